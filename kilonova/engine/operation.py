"""How an operation is declared: an ordered list of steps, each with where it runs, its undo and its limits.

Four kinds of step:

- `Record`: changes the database of the journal, inside the journal's own transaction: exactly once.
- `Here`: runs in the conductor and may call other services: at least once, so it must be idempotent.
- `OnHost`: runs on a hypervisor host through its agent: effective once by the agent's own journal.
- `Await`: waits for external events; costs a row, not a coroutine.

The result of a step is a msgspec.Struct that is journaled; later steps ask for it by its type
(`run.output(Allocated)`). Results are small: names and numbers that recovery needs.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec
import sqlalchemy as sa

from kilonova.domain.notification import Phase
from kilonova.domain.operation import Failure
from kilonova.engine.run import Run

Output = TypeVar("Output", bound=msgspec.Struct)

AnyRun: TypeAlias = Run[Any]


@dataclass(frozen=True)
class Tx:
    """A transaction on the database of the journal.

    Args:
        now: its time, seconds since the epoch.
        refused: what earlier tries of the same transaction found out: by round and step, why it cannot be done.
    """

    conn: sa.Connection
    now: float
    refused: Mapping[tuple[int, str], Failure] = field(default_factory=dict)


@dataclass(frozen=True)
class NoUndo:
    """A step that needs no undo, and why."""

    reason: str


RecordFn: TypeAlias = Callable[[Tx, Any], msgspec.Struct | None]
HereFn: TypeAlias = Callable[[Any, Any], Awaitable[msgspec.Struct | None]]


@dataclass(frozen=True)
class HostStep:
    """A function that runs on a host, by the name it has in journals and messages.

    Args:
        name: stable, for example `guest.spawn`.
        do: `async (host, args) -> result`; idempotent.
        args: type of its arguments. result: type of its result, None if it has none.
        after_crash: what to run instead of `do` when the agent died in the middle of it; None repeats `do`.
        interruptible: a cancel (a delete that came in) may cut it short.
        heavy: counts against the host's limit of concurrent builds. disk_work: against that of work on disks.
        snapshot: against that of snapshots.
    """

    name: str
    do: Callable[[Any, Any], Awaitable[msgspec.Struct | None]]
    args: type[msgspec.Struct]
    result: type[msgspec.Struct] | None = None
    after_crash: Callable[[Any, Any], Awaitable[msgspec.Struct | None]] | None = None
    interruptible: bool = False
    heavy: bool = False
    disk_work: bool = False
    snapshot: bool = False


@dataclass(frozen=True)
class Record:
    """A step that is nothing but a change of the journal's database."""

    name: str
    do: RecordFn
    undo: RecordFn | NoUndo


@dataclass(frozen=True)
class Here:
    """A step in the conductor.

    Args:
        do: `async (environment, run) -> result`.
        undo: the same form.
        recorded: written in the transaction that journals the result.
        undone: written in the transaction that journals the undo.
        timeout: seconds for the whole step, retries included.
        retries: further attempts after an error that may pass, fixed or from the run; negative is none.
        pause: seconds before the attempt that follows the given one (from 1); None for growing ones of the engine.
        owed: if it still fails after its retries, the step becomes a debt and the operation goes on.
        undo_owed: the same for its undo; otherwise an undo that keeps failing strands the operation.
        persistent: it never fails for good: whatever goes wrong, it is tried again until it succeeds.
        given: whether its effect is there already (it was made by who asked), so that only the undo counts.
        lasting: what it made belongs to no host: it stays while the operation begins anew on another, and is undone
            with the whole.
    """

    name: str
    do: HereFn
    undo: HereFn | NoUndo
    recorded: RecordFn | None = None
    undone: RecordFn | None = None
    timeout: float = 60.0
    retries: int | Callable[[Any], int] = 3
    pause: Callable[[int], float] | None = None
    owed: bool = False
    persistent: bool = False
    undo_owed: bool = False
    given: Callable[[Any], bool] = lambda _run: False
    lasting: bool = False


@dataclass(frozen=True)
class OnHost:
    """A step on a host.

    Args:
        host: which one, from the run; None there means that no host is concerned and the step is passed over.
        do, args: the host step and its arguments from the run.
        undo, undo_args: how it is undone on that host; the arguments default to those of `do`.
        owed: if the host cannot be reached the step becomes a debt to it and the operation goes on.
        owed_anyway: it becomes a debt also if the host answers but keeps failing.
        paid: written in the transaction that journals the result, if the step was owed and the operation has ended.
        undo_owed: the undo becomes a debt also if the host answers but keeps failing.
        undo_paid: written in the transaction that journals an undo that was owed.
        binds: while its undo is owed, the operation begins on no other host.
    """

    name: str
    host: Callable[[Any], str | None]
    do: HostStep
    args: Callable[[Any], msgspec.Struct]
    undo: HostStep | NoUndo
    undo_args: Callable[[Any], msgspec.Struct] | None = None
    recorded: RecordFn | None = None
    undone: RecordFn | None = None
    timeout: float = 300.0
    retries: int | Callable[[Any], int] = 3
    pause: Callable[[int], float] | None = None
    owed: bool = False
    owed_anyway: bool = False
    paid: RecordFn | None = None
    undo_owed: bool = False
    undo_paid: RecordFn | None = None
    binds: bool = False


@dataclass(frozen=True)
class Await:
    """A wait for external events of the operation's subject.

    Args:
        events: keys (`event_key`) awaited; none means that there is nothing to wait for.
        timeout: seconds from the moment the step is reached, for all of them together.
        fatal: a missing or failed event fails the operation; otherwise it goes on.
    """

    name: str
    events: Callable[[Any], tuple[str, ...]]
    timeout: Callable[[Any], float]
    fatal: Callable[[Any], bool] = lambda _run: True


Step: TypeAlias = Record | Here | OnHost | Await


@dataclass(frozen=True)
class During:
    """A part of an operation: from one step to another, both included; or the undo of one step."""

    first: str
    last: str
    undo: bool = False


class Notice(Protocol):
    """Tells others of an operation, or of a part of it, when it starts and when it ends.

    It is called in the transaction that journals the start or end. What it raises is logged and changes nothing.
    """

    @property
    def during(self) -> During | None:
        """The part that it tells of; None for the whole operation."""
        ...

    def __call__(self, tx: Tx, run: AnyRun, phase: Phase, failure: Failure | None) -> None: ...


@dataclass(frozen=True)
class Operation:
    """A declared operation.

    Args:
        name, version: journals refer to them; a changed list of steps needs a new version.
        request: type of what the operation is asked to do.
        begins: guarded save that takes the subject, in the transaction that accepts the operation. Raises
            to refuse.
        ends: in the transaction of the last step. fails: in the transaction that ends the undo.
        exclusive: has its subject to itself.
        preempts: the kinds of exclusive operation it may end to take their place; ("*",) for all.
        supersedes: the kinds of exclusive operation that end unbegun if they wait when it comes.
        no_return: name of the first step from which on a cancel is not obeyed. If it fails although it had its effect,
            the undo of the last step before it that has one raises `PastReturn`, and the operation goes on behind it.
        again_from: name of the step where it starts anew on another host after `TryElsewhere`.
        rounds: how many hosts are tried at most, from the run.
        deadline: from the run, when it is cancelled and undone if it is not complete; seconds since the epoch.
        scrub: takes secrets out of the request once the operation has ended.
        action: its name in os-instance-actions, "" to keep it out of there.
        event: its name among the events of that action.
        notices: who is told, and of what. Every start is followed by one end or one error, whatever happens.
        max_crashes: how often a step may take its process down before it counts as failed.
        about: what its subject is, as log lines name it.
        waited_for: it shows no task state, so who asks for another operation meanwhile waits for its end instead
            of being refused.
    """

    name: str
    request: type[msgspec.Struct]
    steps: tuple[Step, ...]
    ends: Callable[[Tx, Any], None]
    fails: Callable[[Tx, Any, Failure], None]
    begins: Callable[[Tx, Any], None] = lambda _tx, _run: None
    version: int = 1
    exclusive: bool = True
    preempts: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()
    no_return: str | None = None
    again_from: str | None = None
    rounds: Callable[[Any], int] = lambda _run: 1
    deadline: Callable[[Any], float] = lambda _run: math.inf
    scrub: Callable[[Any], msgspec.Struct] | None = None
    action: str = ""
    event: str = ""
    notices: tuple[Notice, ...] = ()
    max_crashes: int = 5
    undo_retries: int = 8
    waited_for: bool = False
    about: str = "instance"
    _index: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    _types: dict[str, type[msgspec.Struct]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for position, step in enumerate(self.steps):
            if step.name in self._index:
                raise ValueError(f"{self.name}: two steps are called {step.name!r}")
            self._index[step.name] = position
        told = [step for n in self.notices if n.during is not None for step in (n.during.first, n.during.last)]
        for name in (self.no_return, self.again_from, *told):
            if name is not None and name not in self._index:
                raise ValueError(f"{self.name}: no step is called {name!r}")

    def position(self, step: str) -> int:
        """Index of the step of that name."""
        return self._index[step]

    def past_return(self, cursor: int) -> bool:
        """Whether an operation at `cursor` can no longer be cancelled."""
        return self.no_return is not None and cursor >= self._index[self.no_return]

    @property
    def waits(self) -> Iterator[str]:
        """Names of the steps that wait."""
        return (step.name for step in self.steps if isinstance(step, Await))

    def output_types(self) -> dict[str, type[msgspec.Struct]]:
        """Type of each step's result, by step name."""
        if not self._types:
            self._types.update({s.name: type_ for s in self.steps if (type_ := output_type(s)) is not None})
        return self._types


def output_type(step: Step) -> type[msgspec.Struct] | None:
    """The type of a step's result, from its declaration."""
    if isinstance(step, OnHost):
        return step.do.result
    if isinstance(step, Await):
        return None
    hint = typing.get_type_hints(step.do).get("return")
    return hint if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else None


class Definitions:
    """The operations that a process can run, by name and version."""

    def __init__(self, *operations: Operation) -> None:
        self._all = {(operation.name, operation.version): operation for operation in operations}

    def find(self, name: str, version: int) -> Operation | None:
        return self._all.get((name, version))

    def __iter__(self) -> typing.Iterator[Operation]:
        return iter(self._all.values())

    def host_steps(self) -> dict[str, HostStep]:
        """All host steps that these operations use, by name."""
        found: dict[str, HostStep] = {}
        for operation in self:
            for step in operation.steps:
                if isinstance(step, OnHost):
                    found[step.do.name] = step.do
                    if isinstance(step.undo, HostStep):
                        found[step.undo.name] = step.undo
        return found
