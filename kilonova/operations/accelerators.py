"""The accelerators of a server: requests at the accelerator service, and the devices that come of them.

The record lists the requests from the moment at which they exist until they are deleted. A process that dies before
they are recorded leaves requests that are bound to no server and hold no device; an audit finds those.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from kilonova.db import instances
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.instance import Instance, RequestSpec
from kilonova.domain.operation import event_key
from kilonova.engine.operation import AnyRun, Await, Here, NoUndo, Step, Tx
from kilonova.operations.environment import Environment
from kilonova.services.accelerators import RESOLVED, AcceleratorRequest, RequestState
from kilonova.services.placement import Target
from kilonova.shapes.accelerators import groups_of, profile_of, requests_expected

BOUND_EVENT = "accelerator-request-bound"
PCI, ONLY_IN_TESTS = "PCI", "TEST_PCI"
"""Types of handles. The second is that of the service's own simulated devices, which no guest can get."""


class Requested(msgspec.Struct, frozen=True):
    """The accelerator requests that were made."""

    requests: tuple[AcceleratorRequest, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(request.id for request in self.requests)


class Binding(msgspec.Struct, frozen=True):
    """The requests as they were once binding them had begun."""

    requests: tuple[AcceleratorRequest, ...]


class Devices(msgspec.Struct, frozen=True):
    """Addresses of the PCI devices on the host that the guest gets."""

    addresses: tuple[str, ...]


def devices_of(run: AnyRun) -> tuple[str, ...]:
    """What the steps have found; nothing for a server without accelerators."""
    found = run.find(Devices)
    return found.addresses if found is not None else ()


async def read_devices(env: Environment, instance: Instance) -> tuple[str, ...]:
    """The devices of a server that has its accelerators already. A server without asks nobody. Spec: PWR-17, RBT-06,
    RBD-47, RBD-50.

    Raises:
        KilonovaError: a request is not bound any more, or is gone.
    """
    if not instance.accelerators:
        return ()
    found = await env.accelerators.of_server(instance.uuid)
    requests = [request for request in found if request.id in instance.accelerators]
    _check_number(instance.uuid, len(instance.accelerators), len(requests))
    return _addresses(instance.uuid, requests)


def _check_number(server: str, expected: int, found: int) -> None:
    if expected != found:
        raise KilonovaError(f"Server {server} has {found} accelerator requests in place of {expected}.")


def _addresses(server: str, requests: Collection[AcceleratorRequest]) -> tuple[str, ...]:
    """Spec: BLD-124."""
    addresses = []
    for request in sorted(requests, key=lambda request: (request.group, request.id)):
        if request.state is not RequestState.BOUND:
            raise KilonovaError(
                f"Accelerator request {request.id} of server {server} is not bound: {request.state.value or 'unknown'}."
            )
        if request.handle_type == PCI:
            addresses.append(_address(request))
        elif request.handle_type != ONLY_IN_TESTS:
            raise KilonovaError(
                f"Accelerator request {request.id} of server {server} has a device of the type "
                f"{request.handle_type or 'unknown'}, which guests cannot get here.",
                hint="use a device profile of PCI devices",
            )
    return tuple(addresses)


def _address(request: AcceleratorRequest) -> str:
    """Hexadecimal: domain, bus, slot and function."""
    try:
        numbers = [int(request.handle[part], 16) for part in ("domain", "bus", "device", "function")]
    except (KeyError, ValueError) as error:
        raise KilonovaError(f"Accelerator request {request.id} has no address of a PCI device.") from error
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


class AcceleratorSteps:
    """The steps by which a new guest gets its accelerators.

    Args:
        spec, target: of the run: what is asked for, and the host of this round.
        timeout: of the run: seconds in which all requests must be bound. Spec: BLD-121.
        stays: of the run: the guest may be left on the host, with its devices.
    """

    def __init__(
        self, spec: Callable[[Any], RequestSpec], target: Callable[[Any], Target], timeout: Callable[[Any], float],
        stays: Callable[[Any], bool],
    ) -> None:
        self._spec = spec
        self._target = target
        self._timeout = timeout
        self._stays = stays

    @property
    def request(self) -> tuple[Step, ...]:
        """Ask for the devices on the host. What is asked for goes with the host. Spec: BLD-71, BLD-77, BLD-116."""
        return (
            Here("make accelerator requests", self._make, undo=self._discard, recorded=self._note,
                 undone=self._forget, given=self._without, undo_owed=True),
            Here("bind accelerator requests", self._bind, undo=NoUndo("the requests are deleted"),
                 given=self._without),
        )

    @property
    def wait(self) -> tuple[Step, ...]:
        """Wait for them. Events are kept from the beginning of the operation on, and dropped with its end. Spec:
        BLD-120 to BLD-125."""
        return (
            Await("wait for accelerators", self._awaited, timeout=self._timeout),
            Here("read accelerators", self._read, undo=NoUndo("changes nothing"), given=self._without),
        )

    def _without(self, run: AnyRun) -> bool:
        return profile_of(self._spec(run).flavor) is None

    async def _make(self, env: Environment, run: AnyRun) -> Requested:
        flavor = self._spec(run).flavor
        made = await env.accelerators.make(profile_of(flavor) or "")
        expected, found = requests_expected(flavor), Counter(request.group for request in made)
        if any(found[group] != number for group, number in expected.items()) or found.total() != sum(expected.values()):
            await env.accelerators.discard([request.id for request in made])
            raise KilonovaError(
                f"The accelerator service has made {found.total()} requests in place of {sum(expected.values())}.",
                hint=f"device profile {profile_of(flavor)} was changed; make the server anew",
            )
        return Requested(made)

    def _note(self, tx: Tx, run: AnyRun) -> None:
        instances.update(tx.conn, run.subject, now=tx.now, accelerators=run.output(Requested).ids)

    async def _discard(self, env: Environment, run: AnyRun) -> None:
        """By their ids: it may be late, and the server may have others by then."""
        made = run.find(Requested)
        if not self._stays(run):
            await env.accelerators.discard(made.ids if made is not None else ())

    def _forget(self, tx: Tx, run: AnyRun) -> None:
        """Also if a delete or a reset has taken the record: no other operation runs beside this one."""
        if not self._stays(run):
            with contextlib.suppress(InstanceNotFound):
                instances.update(tx.conn, run.subject, now=tx.now, accelerators=())

    async def _bind(self, env: Environment, run: AnyRun) -> Binding:
        """A server can have requests of one binding only, so what an earlier host has left goes first."""
        target, requests = self._target(run), run.output(Requested).requests
        there = await env.accelerators.of_server(run.subject)
        await env.accelerators.discard({request.id for request in there} - {request.id for request in requests})
        unbound = [request for request in requests if request.id not in {one.id for one in there}]
        if unbound:
            groups = groups_of(self._spec(run).flavor)
            providers = await env.placement.providers_of(run.subject, groups)
            await env.accelerators.bind(
                run.subject, target.node, {request.id: providers[request.group] for request in unbound}
            )
        return Binding(await env.accelerators.of_server(run.subject))

    @staticmethod
    def _awaited(run: AnyRun) -> tuple[str, ...]:
        """Those that are resolved already are not waited for. Spec: BLD-120."""
        binding, made = run.find(Binding), run.find(Requested)
        if binding is None or made is None:
            return ()
        resolved = {request.id for request in binding.requests if request.state in RESOLVED}
        return tuple(event_key(BOUND_EVENT, id_) for id_ in made.ids if id_ not in resolved)

    async def _read(self, env: Environment, run: AnyRun) -> Devices:
        """Asked again only if something had to be waited for. Spec: BLD-123, BLD-124."""
        requests = run.output(Binding).requests
        if self._awaited(run):
            requests = await env.accelerators.of_server(run.subject)
        ids = run.output(Requested).ids
        requests = tuple(request for request in requests if request.id in ids)
        _check_number(run.subject, len(ids), len(requests))
        return Devices(_addresses(run.subject, requests))
