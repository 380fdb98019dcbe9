"""The cases of the matrix, generated from the declared operations: a new step has its cases the day it is written."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from crash_matrix.plan import Act
from kilonova.engine.driver import BEGIN
from kilonova.engine.operation import Await, Here, NoUndo, OnHost, Operation, Record, Step
from kilonova.operations.catalogue import API_OPERATIONS, CELL_OPERATIONS

BOUNDARIES = ("written", "committed")
POINTS: dict[type[Step], tuple[str, ...]] = {
    Here: ("before", "part", "answered", *BOUNDARIES),
    OnHost: ("before", "part", "effect", "answered", *BOUNDARIES),
    Await: ("before", *BOUNDARIES),
    Record: (),  # is written with the step before it
}
"""Where a process can stop in a step with an effect."""

FAILS: dict[type[Step], tuple[str, ...]] = {
    Here: ("before", "answered"), OnHost: ("begun", "done"), Record: ("record",), Await: ("event",),
}
"""Where a step can fail: without an effect, and after it."""

ERRORS = ("permanent", "elsewhere", "unexpected")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Args:
        operation: the one under test. lives: what happens in each life of the process, in the order of the points;
            every life but the last ends with a kill.
        like: the case whose end state this one must have, "" for none.
        pause: seconds of the cloud's time between the lives.
        before_last: what a user does before the process is started for the last time: delete.
        then: what is done once everything is at rest: delete, resume, skip or force.
        limits: other values for fields of the operations.
    """

    id: str
    operation: str
    lives: tuple[tuple[Act, ...], ...]
    like: str = ""
    pause: float = 0.0
    before_last: str = ""
    then: tuple[str, ...] = ()
    limits: dict[str, int] = {}


def _id(*parts: str) -> str:
    return "/".join(part.strip("()").replace(" ", "_") for part in parts if part)


class Steps:
    """One operation and the ways to get to each of its points."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.kind = operation.name
        self.all = operation.steps
        self.with_effect = [step for step in self.all if not isinstance(step, Record)]
        self.last_failing = [step for step in self.with_effect if self.fails_for_good(step)][-1:]

    @staticmethod
    def fails_for_good(step: Step) -> bool:
        """A step that is owed becomes a debt instead, a persistent one is tried until it succeeds."""
        if isinstance(step, OnHost):
            return not step.owed_anyway
        return not (isinstance(step, Here) and (step.owed or step.persistent))

    def point(self, step: Step | str, name: str, *, undo: bool = False) -> str:
        title = step if isinstance(step, str) else step.name
        return f"{self.kind}/{title}/{'undo' if undo else 'do'}/{name}"

    def failing(self, step: Step, error: str = "permanent", at: int = 0) -> tuple[Act, ...]:
        """The step fails, in the round in which it is done."""
        fail = Act(self.point(step, FAILS[type(step)][at]), "fail", error)
        return (*self.reach(step), fail)

    def failed(self, step: Step, error: str = "permanent", at: int = 0) -> str:
        """The id of the case in which that happens."""
        return _id("fails", self.kind, step.name, "do", FAILS[type(step)][at], error)

    def reach(self, step: Step) -> tuple[Act, ...]:
        """What must happen before the step is done: with what a round begins is given in the first."""
        if step.name != self.operation.again_from:
            return ()
        (last,) = self.last_failing
        return (Act(self.point(last, FAILS[type(last)][0]), "fail", "elsewhere"),)

    def undoable(self, step: Step) -> bool:
        return not isinstance(step, Await) and not isinstance(step.undo, NoUndo)

    def undone_by(self, failing: Step) -> Iterator[Step]:
        """The steps with an effect that are undone when `failing` fails, in that order."""
        upto = self.all[: self.all.index(failing) + 1]
        for step in reversed(upto):
            if self.undoable(step) and not isinstance(step, Record):
                yield step

    def do_points(self) -> Iterator[tuple[str, tuple[Act, ...], str]]:
        """All boundaries on the way forward: id, what leads there, and the case without a kill."""
        for name in ("before", *BOUNDARIES):
            yield self.point(BEGIN, name), (), _id("done", self.kind)
        for step in self.with_effect:
            way = self.reach(step)
            like = _id("done", self.kind) if not way else self.failed(self.last_failing[0], "elsewhere")
            for name in POINTS[type(step)]:
                yield self.point(step, name), way, like

    def undo_points(self, failing: Step, error: str) -> Iterator[tuple[str, tuple[Act, ...], str]]:
        """All boundaries on the way back from a step that failed."""
        for step in self.undone_by(failing):
            if error == "elsewhere" and isinstance(step, Here) and step.lasting:
                continue
            for name in POINTS[type(step)]:
                yield self.point(step, name, undo=True), self.failing(failing, error), self.failed(failing, error)


ALL = [Steps(operation) for operation in (*API_OPERATIONS, *CELL_OPERATIONS)]


def _kill(point: str) -> Act:
    return Act(point, "kill")


def done() -> Iterator[Case]:
    """Nothing goes wrong."""
    for steps in ALL:
        yield Case(id=_id("done", steps.kind), operation=steps.kind, lives=((),))


def kills() -> Iterator[Case]:
    """The process is killed at every boundary: forward, undoing after the failure of each step, and on the way to
    another host."""
    for steps in ALL:
        ways = [("", way) for way in steps.do_points()]
        for failing in filter(steps.fails_for_good, steps.all):
            ways += [(f"after_{failing.name}", way) for way in steps.undo_points(failing, "permanent")]
        if steps.operation.again_from is not None:
            (last,) = steps.last_failing
            ways += [(f"elsewhere_after_{last.name}", way) for way in steps.undo_points(last, "elsewhere")]
        for name, (point, acts, like) in ways:
            yield Case(id=_id(point, name), operation=steps.kind, lives=((*acts, _kill(point)), ()), like=like)


def failures() -> Iterator[Case]:
    """Every step fails in turn, in every way, with and without having had its effect. Then the user deletes."""
    for steps in ALL:
        for step in steps.all:
            for at, place in enumerate(FAILS[type(step)]):
                for error in ERRORS if not isinstance(step, Await) else ("permanent", "elsewhere"):
                    yield Case(
                        id=_id("fails", steps.kind, step.name, "do", place, error), operation=steps.kind,
                        lives=(steps.failing(step, error, at),), then=("delete",),
                    )
            if isinstance(step, Here | OnHost) and step.recorded is not None:
                yield _fails_in_transaction(steps, step.name, "recorded", steps.reach(step))
        closed = steps.operation.past_return(len(steps.all))
        yield _fails_in_transaction(steps, "(end)", "ends", (), ("resume", "delete") if closed else ("delete",))


def _fails_in_transaction(
    steps: Steps, step: str, place: str, way: tuple[Act, ...], then: tuple[str, ...] = ("delete",)
) -> Case:
    return Case(
        id=_id("fails", steps.kind, step, "do", place), operation=steps.kind, then=then,
        lives=((*way, Act(steps.point(step, place), "fail", "unexpected")),),
    )


def lost_answers() -> Iterator[Case]:
    """The answer of a host is lost after every host step: it is asked again and the effect is not repeated."""
    for steps in ALL:
        for step in steps.all:
            if isinstance(step, OnHost):
                lost = Act(steps.point(step, "answered"), "fail", "lost")
                yield Case(
                    id=_id("lost", steps.kind, step.name, "do"), operation=steps.kind, lives=((lost,),),
                    like=_id("done", steps.kind),
                )


def repeats() -> Iterator[Case]:
    """Every do and every undo has its effect twice."""
    for steps in ALL:
        last = steps.last_failing[0] if steps.last_failing else None
        for step in steps.with_effect:
            if isinstance(step, Await):
                continue
            way = steps.reach(step)
            yield Case(
                id=_id("twice", steps.kind, step.name, "do"), operation=steps.kind,
                lives=((*way, Act(steps.point(step, "twice"), "twice")),),
                like=_id("done", steps.kind) if not way or last is None else steps.failed(last, "elsewhere"),
            )
        for step in steps.undone_by(last) if last else ():
            yield Case(
                id=_id("twice", steps.kind, step.name, "undo"), operation=steps.kind, like=steps.failed(last),
                lives=((*steps.failing(last), Act(steps.point(step, "twice", undo=True), "twice")),),
            )


def strandings() -> Iterator[Case]:
    """An undo that keeps failing is retried, then owed or stranded; then an operator resumes, skips or forces it."""
    for steps in ALL:
        last = steps.last_failing[0] if steps.last_failing else None
        for step in reversed(steps.all):
            if last is None or not steps.undoable(step):
                continue
            places = [FAILS[type(step)][0]]
            if isinstance(step, Here | OnHost) and step.undo_owed:
                broken = Act(steps.point(step, places.pop(), undo=True), "fail", "unexpected", always=True)
                yield Case(
                    id=_id("given_up", steps.kind, step.name, "undo"), operation=steps.kind,
                    lives=((*steps.failing(last), broken),), then=("delete",), limits={"undo_retries": 2},
                )
            if isinstance(step, Here | OnHost) and step.undone is not None:
                places.append("undone")
            for place in places:
                broken = Act(steps.point(step, place, undo=True), "fail", "unexpected", always=True)
                for way_out in ("resume", "skip", "force"):
                    yield Case(
                        id=_id("stranded", steps.kind, step.name, "undo", place, way_out), operation=steps.kind,
                        lives=((*steps.failing(last), broken),), then=(way_out, "delete"), limits={"undo_retries": 2},
                        like=steps.failed(last) if way_out == "resume" else "",
                    )
        for way_out in ("resume", "skip", "force") if last else ():
            broken = Act(steps.point("(end)", "fails", undo=True), "fail", "unexpected", always=True)
            yield Case(
                id=_id("stranded", steps.kind, "(end)", "undo", "fails", way_out), operation=steps.kind,
                lives=((*steps.failing(last), broken),), then=(way_out, "delete"), limits={"undo_retries": 2},
                like=steps.failed(last) if way_out == "resume" else "",
            )


def crash_loops() -> Iterator[Case]:
    """A step that takes the process down each time it is tried is given up; an undo that does is owed or stranded, and
    a step that must not fail is stranded."""
    limits = {"max_crashes": 2}
    for steps in ALL:
        last = steps.last_failing[0] if steps.last_failing else None
        for step in steps.with_effect:
            if isinstance(step, Await):
                continue
            killed = (_kill(steps.point(step, "part")),)
            yield Case(
                id=_id("loop", steps.kind, step.name, "do"), operation=steps.kind, limits=limits,
                then=("resume", "delete") if isinstance(step, Here) and step.persistent else ("delete",),
                lives=((*steps.reach(step), *killed), killed, killed, ()),
            )
        for step in steps.undone_by(last) if last else ():
            killed = (_kill(steps.point(step, "part", undo=True)),)
            yield Case(
                id=_id("loop", steps.kind, step.name, "undo"), operation=steps.kind, limits=limits,
                lives=((*steps.failing(last), *killed), killed, killed, ()),
                then=("delete",) if step.undo_owed else ("resume", "delete"),
                like="" if step.undo_owed else steps.failed(last),
            )


def debts() -> Iterator[Case]:
    """The host is out of reach when its step must be undone (or may be owed); the process is killed at every
    boundary of paying the debt, which is tried until it is paid; one that takes the process down is stranded."""
    for steps in ALL:
        last = steps.last_failing[0] if steps.last_failing else None
        ways: list[tuple[Step, str, tuple[Act, ...]]] = []
        for step in steps.undone_by(last) if last else ():
            if isinstance(step, OnHost):
                deaf = Act(steps.point(step, "before", undo=True), "deaf")
                ways.append((step, "undo", (*steps.failing(last), deaf)))
        for step in steps.all:
            if isinstance(step, OnHost) and step.owed:
                ways.append((step, "do", (Act(steps.point(step, "before"), "deaf"),)))
            elif isinstance(step, Here) and step.owed:
                ways.append((step, "do", steps.failing(step)))
        for step, way, acts in ways:
            like = _id("owed", steps.kind, step.name, way)
            yield Case(id=like, operation=steps.kind, lives=(acts,))
            for name in POINTS[type(step)]:
                paying = _kill(f"debt/{step.name}/do/{name}")
                yield Case(id=_id(like, name), operation=steps.kind, lives=((*acts, paying), ()), like=like)
            broken = Act(f"debt/{step.name}/do/{FAILS[type(step)][0]}", "fail", "unexpected")
            yield Case(
                id=_id(like, "fails"), operation=steps.kind, lives=((*acts, broken, broken, broken),), like=like,
            )
        for step, way, acts in ways[-1:]:
            like = _id("owed", steps.kind, step.name, way)
            killed = (_kill(f"debt/{step.name}/do/part"),)
            yield Case(
                id=_id(like, "loop"), operation=steps.kind, lives=((*acts, *killed), *[killed] * 5, ()),
                then=("resume",), like=like,
            )


def deletes() -> Iterator[Case]:
    """A delete arrives at every boundary; and at every boundary at which the process was killed, before it starts."""
    for steps in ALL:
        last = steps.last_failing[0] if steps.last_failing else None
        ways = [("", way) for way in steps.do_points()]
        if last is not None:
            ways += [(f"after_{last.name}", way) for way in steps.undo_points(last, "permanent")]
        for name, (point, acts, _) in ways:
            if not point.endswith("written"):  # whoever deletes waits for the end of the transaction
                yield Case(
                    id=_id("deleted", point, name), operation=steps.kind, lives=((*acts, Act(point, "delete")),),
                )
            yield Case(
                id=_id("deleted", point, name, "killed"), operation=steps.kind, lives=((*acts, _kill(point)), ()),
                before_last="delete",
            )


def long_pauses() -> Iterator[Case]:
    """The process is killed in every step and started again a day later."""
    for steps in ALL:
        for point, acts, like in steps.do_points():
            if point.endswith(("/before", "/part")):
                yield Case(
                    id=_id("a_day_later", point), operation=steps.kind, lives=((*acts, _kill(point)), ()), like=like,
                    pause=86400.0,
                )


FAMILIES = (done, kills, failures, lost_answers, repeats, strandings, crash_loops, debts, deletes, long_pauses)
