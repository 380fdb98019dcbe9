"""What `kilonova up` shows while it comes up."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TextIO

import msgspec

from kilonova.domain.errors import KilonovaError

if TYPE_CHECKING:
    from kilonova.roles.running import Running


class Announcer(Protocol):
    """Whom a starting installation tells how it goes."""

    def progress(self, component: str, doing: str) -> None:
        """A component begins to do something."""
        ...

    def running(self, running: Running) -> None:
        """Everything is up."""
        ...

    def failed(self, error: KilonovaError) -> None:
        """It does not come up."""
        ...


class StartupLines:
    """One line for each component. Args: quiet: show nothing."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream = stream
        self._quiet = quiet
        self._began = time.monotonic()

    def progress(self, component: str, doing: str) -> None:
        """A component begins to do something."""
        if not self._quiet:
            seconds = time.monotonic() - self._began
            self._stream.write(f"[{seconds:6.2f} s] {component:<12} {doing}\n")
            self._stream.flush()


class Console(StartupLines):
    """Tells whoever has called the command. Args: json: nothing but one JSON object, when everything is up."""

    def __init__(self, *, json: bool) -> None:
        super().__init__(sys.stderr, quiet=json)
        self._json = json

    def running(self, running: Running) -> None:
        self.progress("ready", "")
        print(msgspec.json.encode(running).decode() if self._json else summary(running), flush=True)

    def failed(self, error: KilonovaError) -> None:
        raise error


class _Announced(msgspec.Struct, omit_defaults=True):
    """A line of the pipe between a detached installation and the command that has started it."""

    component: str = ""
    doing: str = ""
    running: msgspec.Raw = msgspec.Raw()
    error: str = ""
    hint: str | None = None


class Pipe:
    """Tells the command that has started a detached installation; nobody listens once everything is up."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def progress(self, component: str, doing: str) -> None:
        self._send(_Announced(component=component, doing=doing))

    def running(self, running: Running) -> None:
        self._send(_Announced(running=msgspec.Raw(msgspec.json.encode(running))))
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def failed(self, error: KilonovaError) -> None:
        self._send(_Announced(error=error.message, hint=error.hint))

    def _send(self, line: _Announced) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, msgspec.json.encode(line) + b"\n")
        except BrokenPipeError:  # the command was killed; the installation comes up all the same
            self._descriptor = None


def relay(announced: BinaryIO, console: Announcer, log: Path) -> None:
    """Tell the console what comes through the pipe. Raises KilonovaError: the installation does not come up."""
    from kilonova.roles.running import Running

    for line in announced:
        told = msgspec.json.decode(line, type=_Announced)
        if told.error:
            console.failed(KilonovaError(told.error, hint=told.hint))
        elif told.component:
            console.progress(told.component, told.doing)
        else:
            console.running(msgspec.json.decode(told.running, type=Running))
            return
    raise KilonovaError("The installation ended while it came up.", hint=f"see {log}")


def summary(running: Running) -> str:
    """What to do next, for people."""
    return (
        f"Kilonova is up ({running.driver} driver, data in {running.data_dir}).\n"
        f"  identity  {running.auth_url}\n"
        f"  compute   {running.compute_url}\n"
        f"Use it:\n"
        f"  export OS_CLIENT_CONFIG_FILE={running.clouds_yaml} OS_CLOUD={running.cloud}\n"
        f"  openstack server list"
    )
