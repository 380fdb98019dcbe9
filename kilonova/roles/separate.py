"""What roles that run as processes of their own have in common: the bus, and shared databases."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from pathlib import Path

from kilonova.bus import credentials
from kilonova.bus.nats import NatsBus
from kilonova.bus.protocol import Bus
from kilonova.config import Config
from kilonova.domain.clock import Clock
from kilonova.domain.errors import InvalidInput
from kilonova.roles import assembly
from kilonova.roles.assembly import Ground


async def bus(config: Config, stack: AsyncExitStack) -> Bus:
    """Connect to the message bus; the stack disconnects.

    Raises:
        InvalidInput: it is not configured. CredentialsUnusable: the file with the credentials cannot be read.
    """
    options = config.bus
    if not options.servers or not options.credentials:
        raise InvalidInput(
            "Processes that run apart need a message bus.",
            hint="set bus.servers and bus.credentials, or run everything in one process with `kilonova up`",
        )
    tls = ssl.create_default_context(cafile=options.authority) if options.authority else None
    connected = await NatsBus.connect(options.servers, credentials.load(Path(options.credentials)), tls=tls)
    stack.push_async_callback(connected.close)
    return connected


async def ground(config: Config, clock: Clock, stack: AsyncExitStack) -> Ground:
    """What a role of the control plane stands on.

    Raises:
        InvalidInput: a database that only one process can use.
    """
    for which in (config.database_url("api"), config.database_url("cell")):
        if which.startswith("sqlite"):
            raise InvalidInput(
                "Processes that run apart cannot share a SQLite database.",
                hint="set database.api and database.cell to those of a PostgreSQL server",
            )
    api, cell = await assembly.databases(config, clock, stack)
    return Ground(config, clock, await bus(config, stack), api, cell)
