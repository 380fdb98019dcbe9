"""Asking a server of NBD whether it has an export, as a client does before it uses one."""

from __future__ import annotations

import contextlib
import socket
import struct

from kilonova.hypervisor.volumes import NbdSource

LIMIT = 2.0
"""Seconds that a server may take for each step."""
GREETING, OPTION = b"NBDMAGICIHAVEOPT", b"IHAVEOPT"
FIXED_NEWSTYLE = 1
ABORT, INFO = 2, 6
REPLY = struct.Struct(">QIII")
FAILED = 1 << 31
"""The bit of an answer that is an error."""


def is_served(source: NbdSource) -> bool:
    """Whether the server answers and has the export. One that wants TLS is believed to."""
    if source.tls:
        return True
    try:
        with contextlib.closing(_connect(source)) as server:
            if not _read(server, len(GREETING) + 2).startswith(GREETING):
                return False
            name = source.export.encode()
            asked = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
            server.sendall(struct.pack(">I", FIXED_NEWSTYLE) + OPTION + struct.pack(">II", INFO, len(asked)) + asked)
            answer: int = REPLY.unpack(_read(server, REPLY.size))[2]
            server.sendall(OPTION + struct.pack(">II", ABORT, 0))
            return not answer & FAILED
    except OSError:
        return False


def _connect(source: NbdSource) -> socket.socket:
    if not source.socket:
        return socket.create_connection((source.host, source.port), LIMIT)
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(LIMIT)
    try:
        server.connect(source.socket)
    except OSError:
        server.close()
        raise
    return server


def _read(server: socket.socket, size: int) -> bytes:
    """Raises OSError: there is less."""
    found = b""
    while len(found) < size:
        more = server.recv(size - len(found))
        if not more:
            raise ConnectionError("the server hung up")
        found += more
    return found
