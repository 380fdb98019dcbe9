"""One HTTP answer of the metadata service, on standard input and output.

QEMU's user-mode network runs this for each connection that the guest makes to 169.254.169.254.
Usage: metadata_on_stdio.py FILE, where FILE holds a GuestMetadata as JSON.
"""

import sys
from pathlib import Path

import msgspec

from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.document import render


def main() -> None:
    metadata = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=GuestMetadata)
    path = sys.stdin.readline().split()[1]
    while sys.stdin.readline().strip():
        pass
    body = render(metadata, path)
    status = "404 Not Found" if body is None else "200 OK"
    head = f"HTTP/1.0 {status}\r\nContent-Length: {len(body or b'')}\r\nConnection: close\r\n\r\n"
    sys.stdout.buffer.write(head.encode() + (body or b""))


main()
