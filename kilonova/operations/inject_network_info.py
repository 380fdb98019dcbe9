"""Inject network info: put what the network service tells of the server's interfaces in place on its host."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.injections import INJECT_NETWORK
from kilonova.agent.steps.power import GuestArgs
from kilonova.db import instances
from kilonova.domain.errors import InstanceNotFound, InstanceNotReady
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described, describe_as_is
from kilonova.operations.records import blame


class InjectNetworkInfo(msgspec.Struct, frozen=True):
    """Nothing to choose."""


def _begin(tx: Tx, run: Run[InjectNetworkInfo]) -> None:
    """In any state, also of a server that never ran. Spec: API-142."""
    if instances.get(tx.conn, run.subject).host is None:
        raise InstanceNotReady(run.subject)


def _injected(_tx: Tx, _run: Run[InjectNetworkInfo]) -> None:
    """The record is not changed. Spec: FIP-08."""


def _failed(tx: Tx, run: Run[InjectNetworkInfo], failure: Failure) -> None:
    """Spec: FIP-09."""
    if failure.kind != InstanceNotFound.__name__:
        blame(tx, run, failure)


INJECT_NETWORK_INFO = Operation(
    name="inject-network-info",
    request=InjectNetworkInfo,
    begins=_begin,
    steps=(
        Here("describe guest", describe_as_is, undo=NoUndo("changes nothing")),
        OnHost("inject", lambda run: run.output(Described).host, INJECT_NETWORK,
               lambda run: GuestArgs(run.output(Described).guest), undo=NoUndo("what is in place is right")),
    ),
    ends=_injected,
    fails=_failed,
    waited_for=True,
)
