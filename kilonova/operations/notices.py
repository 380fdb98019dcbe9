"""Which notifications an operation on a server sends: one line of its declaration.

`notices=announce("power_off")` sends `instance.power_off.start` when a conductor begins with the operation,
`instance.power_off.end` with its closing transaction, or `instance.power_off.error` with the one that ends its undo,
each also in the older form (`compute.instance.power_off.start`), and `compute.exception` for a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from kilonova.db import block_devices, instances
from kilonova.db.outbox import cell_outbox, listeners
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.instance import Instance
from kilonova.domain.notification import Phase, Priority
from kilonova.domain.operation import Failure
from kilonova.engine.operation import During, Notice, Tx
from kilonova.engine.run import Run
from kilonova.notifications import payloads
from kilonova.notifications.exists import COMPUTE, tell_exists
from kilonova.notifications.payloads import Payload
from kilonova.notifications.periods import current
from kilonova.notifications.tell import tell
from kilonova.notifications.usage import usage

More: TypeAlias = Callable[[Run[Any], Instance], Payload]
"""Further fields of a payload, from the run and the record as it is at that moment."""


def _nothing(_run: Run[Any], _instance: Instance) -> Payload:
    return {}


def _as_it_is(_run: Run[Any], instance: Instance) -> Instance:
    return instance


def _host_of(_run: Run[Any], instance: Instance) -> str | None:
    return instance.host


@dataclass(frozen=True)
class InstanceAction:
    """The notifications of an action on a server.

    Args:
        action: `power_off` of `instance.power_off.start`, "" if there is only the older form.
        older: its name in the older form, None if it has none. once: that is told at the end only, without a phase.
        during: the part it tells of; None for the whole operation.
        payload, version: name and version of the object that is sent. fields: what it has beside the usual ones.
        usage: what the older form says beside the usual. network: whether that has the addresses of the server.
        exists: the phase before which the usage so far is told. was: the server to which that usage belongs.
        host: who publishes it; None there for the service that has asked.
        spares: runs about which there is nothing to tell. alias: the name in both forms in some runs, "" in others.

    Spec: BLD-43.
    """

    action: str
    older: str | None
    once: bool = False
    during: During | None = None
    payload: str = "InstanceActionPayload"
    version: str = "1.8"
    fields: More = _nothing
    usage: More = _nothing
    network: bool = True
    exists: Phase | None = None
    was: Callable[[Run[Any], Instance], Instance] = _as_it_is
    host: Callable[[Run[Any], Instance], str | None] = _host_of
    spares: Callable[[Run[Any], Phase], bool] = lambda _run, _phase: False
    alias: Callable[[Run[Any]], str] = lambda _run: ""

    def __call__(self, tx: Tx, run: Run[Any], phase: Phase, failure: Failure | None) -> None:
        to = listeners(tx.conn)
        if to is None or self.spares(run, phase):
            return
        try:
            instance = instances.get(tx.conn, run.subject, deleted=phase is not Phase.START)
        except InstanceNotFound:  # it was erased, or was gone already
            return
        host = self.host(run, instance)
        if phase is self.exists:
            tell_exists(
                tx.conn, self.was(run, instance), current(tx.now, to.usage_period), now=tx.now, host=host or to.host,
                asker=run.record.asker,
            )
        alias = self.alias(run)
        source = (COMPUTE, "compute", host) if host is not None else ("nova-api", "api", to.host)
        priority = Priority.ERROR if phase is Phase.ERROR else Priority.INFO
        asker = run.record.asker
        if self.older is not None and to.unversioned and (not self.once or phase is Phase.END):
            told = usage(instance, network=self.network, fault=failure, **self.usage(run, instance))
            tell(
                tx.conn, cell_outbox, now=tx.now, subject=run.subject, payload=told, priority=priority,
                event_type=f"compute.instance.{alias or self.older}" + ("" if self.once else f".{phase}"),
                publisher_id=f"{source[1]}.{source[2]}",
                asker=asker, versioned=False,
            )
        if self.action and to.versioned:
            volumes = block_devices.of_server(tx.conn, run.subject)
            data = {**payloads.instance(instance, volumes, asker, failure), **self.fields(run, instance)}
            tell(
                tx.conn, cell_outbox, now=tx.now, subject=run.subject, priority=priority,
                payload=payloads.versioned(self.payload, self.version, data),
                event_type=f"instance.{alias or self.action}.{phase}", publisher_id=f"{source[0]}:{source[2]}",
                asker=asker,
            )


@dataclass(frozen=True)
class Failures:
    """Tells of every operation that failed, whatever it was. One that somebody cancelled has not failed.

    Spec: FND-01, PWD-10.
    """

    during: During | None = None

    def __call__(self, tx: Tx, run: Run[Any], phase: Phase, failure: Failure | None) -> None:
        to = listeners(tx.conn)
        if to is None or phase is not Phase.ERROR or failure is None or failure.cancelled:
            return
        try:
            host = instances.get(tx.conn, run.subject, deleted=True).host
        except InstanceNotFound:
            host = None
        host = host or run.record.host or to.host
        tell(
            tx.conn, cell_outbox, now=tx.now, subject=run.subject, payload=payloads.exception(failure),
            event_type="compute.exception", publisher_id=f"{COMPUTE}:{host}", asker=run.record.asker,
            priority=Priority.ERROR,
        )
        args = {"instance_uuid": run.subject, "operation": run.record.id}
        tell(
            tx.conn, cell_outbox, now=tx.now, subject=run.subject, event_type=run.record.kind.replace("-", "_"),
            payload={"exception": failure.message, "args": args}, publisher_id=f"compute.{host}",
            asker=run.record.asker, priority=Priority.ERROR, versioned=False,
        )


FAILURES = Failures()
ONLY_FAILURES: tuple[Notice, ...] = (FAILURES,)
"""Of operations that the ecosystem has no other notifications for."""


def announce(action: str, *, older: str | None = "", **settings: Any) -> tuple[Notice, ...]:
    """The notifications of an operation. Arguments as of `InstanceAction`; older: "" for the same name."""
    return (InstanceAction(action, older if older != "" else action, **settings), FAILURES)


def announce_part(
    action: str, first: str, last: str = "", *, undo: bool = False, older: str | None = "", **settings: Any
) -> tuple[Notice, ...]:
    """The notifications of a part of an operation: from one step to another (itself, unless named), or an undo."""
    part = During(first, last or first, undo)
    return (InstanceAction(action, older if older != "" else action, during=part, **settings),)


def announce_image() -> tuple[Notice, ...]:
    """The notifications of an operation that makes an image of a server; its request tells of the image."""
    return announce(
        "snapshot", payload="InstanceActionSnapshotPayload", version="1.9",
        fields=lambda run, _instance: {"snapshot_image_id": run.request.image.id},
    )
