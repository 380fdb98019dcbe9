"""Commands to hosts: what is sent, and sending it until it is answered.

A command is repeated until the host answers. The host remembers each command by its key and answers a repeat
from its own journal, so that the effect happens once. The epoch fences off a conductor that has lost its lease.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kilonova.bus.protocol import Bus
from kilonova.bus.subjects import to_host
from kilonova.domain.clock import Clock
from kilonova.domain.errors import Fenced, Unreachable
from kilonova.domain.operation import Failure
from kilonova.engine.failure import Failed

HOLD = 2.0
"""Seconds for which a host keeps a command's answer back while the command runs."""

REPLY_LIMIT = 4.0
"""Seconds after which a host that does not reply counts as unreachable for this attempt."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One step to be run on a host.

    Args:
        key: operation, round, step and direction: the identity of the effect.
        fence, epoch: the operation whose lease proves the right to command, and the lease's epoch.
        subject: commands for one subject run one after the other.
        opposite: key of the step this one undoes (or, for a step, of its undo).
        args: JSON of the step's arguments.
        attempt: a higher one than that of a failed command runs it again.
        interrupt: cut the command short if it is interruptible.
        forgive: an operator wants another try, for which earlier crashes of the host's service do not count.
    """

    key: str
    fence: str
    epoch: int
    subject: str
    step: str
    args: bytes
    opposite: str = ""
    undo: bool = False
    attempt: int = 1
    interrupt: bool = False
    forgive: bool = False


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A host's answer. state: running, done, failed or fenced. output: JSON of the step's result."""

    state: str
    output: bytes = b"null"
    failure: Failure | None = None


_encode_command = msgspec.msgpack.Encoder()
_decode_reply = msgspec.msgpack.Decoder(Reply).decode


def command_key(operation: str, round_: int, step: str, *, undo: bool) -> str:
    """The identity of one effect on a host."""
    return f"{operation}/{round_}/{step}/{'undo' if undo else 'do'}"


class Hosts:
    """Sends commands from a conductor to hosts over the bus."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    async def run(
        self, host: str, command: Command, *, deadline: float, interrupted: Callable[[], bool]
    ) -> msgspec.Raw:
        """Run a command to its end.

        Args:
            deadline: on the monotonic clock. interrupted: asked at every exchange.

        Returns:
            The JSON of the step's result.

        Raises:
            Unreachable: no answer (the effect is unknown). Fenced: another conductor owns the operation.
            Failed: the step failed on the host. TimeoutError: it still runs at the deadline.
        """
        while True:
            if interrupted() and not command.interrupt:
                command = msgspec.structs.replace(command, interrupt=True)
            payload = _encode_command.encode(command)
            answer = await self._bus.request(to_host(host, "command"), payload, timeout=REPLY_LIMIT)
            try:
                reply = _decode_reply(answer)
            except msgspec.DecodeError as error:
                raise Unreachable(f"Host {host} gave an answer that cannot be read.") from error
            if reply.state == "done":
                return msgspec.Raw(reply.output)
            if reply.state == "fenced":
                raise Fenced(f"Host {host} has seen a newer owner of operation {command.fence}.")
            if reply.state == "failed":
                assert reply.failure is not None
                raise Failed(reply.failure)
            if self._clock.monotonic() > deadline:
                raise TimeoutError
