"""The message bus of a cloud of several processes: a NATS server that is kept running."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from kilonova.bus import credentials
from kilonova.bus.server import BusServer
from kilonova.bus.server_config import TlsFiles
from kilonova.config import Config
from kilonova.domain.errors import InvalidInput
from kilonova.roles.assembly import Progress


async def start(config: Config, stack: AsyncExitStack, progress: Progress) -> None:
    """Run it until the stack is closed. The control plane's credentials are left in `bus/control.json`.

    Raises:
        InvalidInput: a certificate without key or authority. ServiceUnavailable: the server does not start.
    """
    options = config.bus
    tls = None
    if options.certificate:
        if not options.key or not options.authority:
            raise InvalidInput("bus.certificate needs bus.key and bus.authority.")
        tls = TlsFiles(
            certificate=Path(options.certificate), key=Path(options.key), authority=Path(options.authority)
        )
    directory = config.directory / "bus"
    server = BusServer(directory, address=options.listen, port=options.port, tls=tls)
    progress("bus", "listen")
    await server.start()
    stack.push_async_callback(server.stop)
    credentials.store(directory / "control.json", server.control())
