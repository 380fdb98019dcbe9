"""Comparing the requests of the accelerator service with the servers that list them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kilonova.audit.differences import Difference, Kind
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState
from kilonova.operations.build import BUILD
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED
from kilonova.services.accelerators import AcceleratorRequest, RequestState

MAKERS = frozenset({BUILD.name, UNSHELVE_OFFLOADED.name})
"""Kinds of operations that make requests: while one is under way, nobody can tell whose an unbound request is."""

WITH_DEVICES = frozenset({
    VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED, VmState.RESCUED, VmState.SHELVED, VmState.SOFT_DELETED,
})


class Seen(Protocol):
    """The part of a look that is about accelerators. accelerators: None if there was nobody to ask, or no answer.

    silent: the service did not answer. making: an operation was under way that makes requests."""

    @property
    def servers(self) -> dict[str, tuple[str, Instance]]: ...
    @property
    def accelerators(self) -> tuple[AcceleratorRequest, ...] | None: ...
    @property
    def silent(self) -> bool: ...
    @property
    def making(self) -> bool: ...


def compare_accelerators(look: Seen) -> Iterator[Difference]:
    """All differences between requests and servers."""
    if look.silent:
        yield Difference(
            kind=Kind.ACCELERATORS_SILENT, object="accelerator", what="the accelerator service does not answer",
        )
    if look.accelerators is None:
        return
    for request in look.accelerators:
        _, server = look.servers.get(request.server, ("", None))
        if server is not None and request.id in server.accelerators:
            continue
        if not request.server and look.making:
            continue
        whose = f"is bound to {request.server}" if request.server else "is bound to no server"
        listed = "which does not list it" if server is not None else "and nobody's"
        yield Difference(
            kind=Kind.ACCELERATOR_REQUEST_LEFT, object=request.id, subject=request.server,
            what=f"accelerator request {request.id} {whose} {listed}",
        )
    yield from _missing(look, look.accelerators)


def _missing(look: Seen, requests: tuple[AcceleratorRequest, ...]) -> Iterator[Difference]:
    bound = {request.id: request.server for request in requests if request.state is RequestState.BOUND}
    for uuid, (cell, server) in look.servers.items():
        if server.vm_state not in WITH_DEVICES:
            continue
        for id_ in server.accelerators:
            if bound.get(id_) != uuid:
                yield Difference(
                    kind=Kind.ACCELERATOR_REQUEST_MISSING, object=id_, subject=uuid, host=server.host or "", cell=cell,
                    what=f"server {uuid} has the accelerator request {id_}, which is not bound to it",
                )
