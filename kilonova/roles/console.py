"""The console role: the proxy to consoles, apart from the APIs, for example at the edge of the hosts' network.

The `api` role has the proxy as well. Tokens lead here if `consoles.novncproxy_base_url` and
`consoles.serial_base_url` say so where the APIs run.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from kilonova.config import Config
from kilonova.domain.clock import SystemClock
from kilonova.roles import assembly, separate
from kilonova.roles.assembly import Progress
from kilonova.roles.running import public_url
from kilonova.roles.web import Prefixes, WebServer


async def start(config: Config, stack: AsyncExitStack, progress: Progress) -> None:
    """Returns when it serves. The stack stops it."""
    prefixes = Prefixes()
    web = WebServer(prefixes, config.api.listen, config.api.port)
    web.open()
    stack.push_async_callback(web.close)
    progress("database", "open")
    ground = await separate.ground(config, SystemClock(), stack)
    url = public_url(config)
    site = assembly.console_site(ground, assembly.consoles(ground, url), url)
    prefixes.mount_sockets(site)
    prefixes.mount({"/console": site})
    progress("console", "listen")
    await web.start()
    stack.push_async_callback(web.close)
