"""Declarations, services and drivers that tell a plan where they are. What they do is not changed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from crash_matrix.plan import PLACE, Plan
from kilonova.db.database import Database
from kilonova.engine.operation import Definitions, Here, HostStep, NoUndo, OnHost, Operation, Record, Step


class Watched:
    """A service or driver; after each of its calls the current step has done a part of its work."""

    def __init__(self, target: Any, plan: Plan) -> None:
        self._target = target
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await found(*args, **kwargs)
            if PLACE.get():
                self._plan.here("part")
            return result

        return call


class WatchedDatabase(Database):
    """A database that steps use as a service: the one of another journal."""

    def __init__(self, real: Database, plan: Plan) -> None:
        self.url, self.engine = real.url, real.engine
        watched = Watched(real, plan)
        self.read, self.write = watched.read, watched.write  # type: ignore[method-assign]

    async def close(self) -> None:
        return None


def definitions(all_: Definitions, plan: Plan, **limits: int) -> Definitions:
    """The same operations, telling the plan. limits: other values for fields of `Operation`."""
    return Definitions(*(_operation(operation, plan, limits) for operation in all_))


def host_steps(all_: dict[str, HostStep], plan: Plan) -> dict[str, HostStep]:
    """The same host steps, telling the plan."""
    return {
        name: dataclasses.replace(
            step, do=_on_host(step.do, plan),
            after_crash=None if step.after_crash is None else _on_host(step.after_crash, plan),
        )
        for name, step in all_.items()
    }


def _operation(operation: Operation, plan: Plan, limits: dict[str, int]) -> Operation:
    kind = operation.name
    return dataclasses.replace(
        operation, steps=tuple(_step(step, kind, plan) for step in operation.steps),
        ends=_in_transaction(operation.ends, plan, f"{kind}/(end)/do/ends"),
        fails=_in_transaction(operation.fails, plan, f"{kind}/(end)/undo/fails"), **limits,
    )


def _step(step: Step, kind: str, plan: Plan) -> Step:
    do, undo = f"{kind}/{step.name}/do", f"{kind}/{step.name}/undo"
    if isinstance(step, Record):
        return dataclasses.replace(
            step, do=_in_transaction(step.do, plan, f"{do}/record"),
            undo=_in_transaction(step.undo, plan, f"{undo}/record"),
        )
    if isinstance(step, Here | OnHost):
        step = dataclasses.replace(
            step, recorded=_in_transaction(step.recorded, plan, f"{do}/recorded"),
            undone=_in_transaction(step.undone, plan, f"{undo}/undone"),
        )
    if isinstance(step, Here):
        step = dataclasses.replace(step, do=_here(step.do, plan), undo=_here(step.undo, plan))
    return step


def _in_transaction(function: Any, plan: Plan, point: str) -> Any:
    if function is None or isinstance(function, NoUndo):
        return function

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        result = function(*args)
        plan.at(point)
        return result

    return call


def _here(function: Any, plan: Plan) -> Any:
    if isinstance(function, NoUndo):
        return function

    @functools.wraps(function)
    async def call(environment: Any, run: Any) -> Any:
        result = await function(environment, run)
        if plan.twice():
            result = await function(environment, run)
        return result

    return call


def _on_host(function: Callable[[Any, Any], Any], plan: Plan) -> Callable[[Any, Any], Any]:
    @functools.wraps(function)
    async def call(host: Any, args: Any) -> Any:
        plan.here("begun")
        result = await function(host, args)
        if plan.twice():
            result = await function(host, args)
        plan.here("done")
        return result

    return call
