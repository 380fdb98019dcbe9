"""Attaching and detaching interfaces."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from simulation.network import NETWORK
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.domain.errors import (
    Conflict,
    InstanceInvalidState,
    InvalidInput,
    KilonovaError,
    NotFound,
    OverQuota,
    PortInUse,
    PortNotFound,
    ServiceUnavailable,
    TryElsewhere,
    Unreachable,
)
from kilonova.domain.network import RequestedNetwork
from kilonova.domain.operation import OperationState
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachInterface, attached_port
from kilonova.operations.detach_interface import DETACH_INTERFACE, DetachInterface
from kilonova.services.network import PortSummary

USERS = "55555555-5555-4555-8555-555555555555"
REFUSES = KilonovaError("the hypervisor refuses")


async def attach(
    cloud: SmallCloud, uuid: str, *, port: str | None = None, tag: str | None = None,
) -> str:
    """Attach and wait; returns the port."""
    wanted = RequestedNetwork(network_id=None if port else NETWORK, port_id=port, tag=tag)
    record = await cloud.compute.ask_and_wait(
        CONTEXT, await cloud.located(uuid), ATTACH_INTERFACE, AttachInterface(wanted)
    )
    return attached_port(record)


async def detach(cloud: SmallCloud, uuid: str, port: str) -> None:
    await cloud.act(uuid, DETACH_INTERFACE, DetachInterface(port))
    await cloud.rest()


def bring_port(cloud: SmallCloud, port_id: str = USERS) -> str:
    cloud.net.ports[port_id] = PortSummary(id=port_id, network_id=NETWORK, project_id="project")
    cloud.net.order.append(port_id)
    return port_id


def agrees(cloud: SmallCloud, uuid: str, count: int) -> None:
    """Record, network service and guest know the same interfaces."""
    record, guest = cloud.server(uuid), cloud.guest(uuid)
    assert guest is not None
    assert sorted(vif.id for vif in record.network_info) == sorted(cloud.ports(uuid))
    assert sorted(vif.devname for vif in record.network_info) == sorted(guest.devnames)
    assert len(guest.devnames) == count


# --- attach -----------------------------------------------------------------------------------------


@pytest.mark.spec("IFC-01", "IFC-29", "IFC-30", "IFC-32")
@in_cloud()
async def test_an_interface_is_made_and_given_to_the_guest(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    claims = cloud.claims(uuid)
    cloud.effects.clear()
    port = await attach(cloud, uuid)
    assert [name for _, name in cloud.calls()] == ["create_port", "vifs", "attach_interface"]
    assert port in cloud.ports(uuid)
    agrees(cloud, uuid, 2)
    record = cloud.server(uuid)
    assert (record.vm_state, record.task_state) == (VmState.ACTIVE, None)
    assert cloud.claims(uuid) == claims
    actions = await cloud.actions(uuid)
    assert [(a.action, a.message) for a in actions][-1] == ("attach_interface", None)


@in_cloud()
async def test_a_port_of_the_user_is_attached_detached_and_kept(cloud: SmallCloud) -> None:
    uuid, port = await cloud.stopped(), bring_port(cloud)
    assert await attach(cloud, uuid, port=port) == port
    agrees(cloud, uuid, 2)
    await cloud.change(uuid, network_info=tuple(
        msgspec.structs.replace(vif, preserve_on_delete=vif.id == port) for vif in cloud.server(uuid).network_info
    ))
    await detach(cloud, uuid, port)
    agrees(cloud, uuid, 1)
    assert cloud.net.ports[port].device_id == ""


@pytest.mark.spec("IFC-21", "IFC-22")
@in_cloud()
async def test_several_requests_at_once_take_turns(cloud: SmallCloud) -> None:
    uuid, port = await cloud.build(), bring_port(cloud)
    results = await asyncio.gather(
        attach(cloud, uuid), attach(cloud, uuid), attach(cloud, uuid, port=port), attach(cloud, uuid, port=port),
        return_exceptions=True,
    )
    assert sum(isinstance(result, PortInUse) for result in results) == 1
    assert len({result for result in results if isinstance(result, str)}) == 3
    agrees(cloud, uuid, 4)


@pytest.mark.spec("IFC-22", "IFC-23")
@in_cloud()
async def test_a_stop_waits_until_an_attach_is_done(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 3.0
    attaching = asyncio.ensure_future(attach(cloud, uuid))
    await cloud.until(lambda: cloud.calls("attach_interface"))
    await cloud.stop(uuid)
    assert attaching.done() or cloud.operation(uuid, "attach-interface").state is OperationState.SUCCEEDED
    await attaching
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.STOPPED
    agrees(cloud, uuid, 2)


@in_cloud()
async def test_a_request_waits_for_its_turn_only_so_long(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 200.0
    attaching = asyncio.ensure_future(attach(cloud, uuid))
    await cloud.until(lambda: cloud.operations(uuid, "attach-interface"))
    asked = cloud.loop.time()
    with pytest.raises(InstanceInvalidState):
        await cloud.stop(uuid)
    assert 60 <= cloud.loop.time() - asked < 65
    with pytest.raises(KilonovaError, match="has not ended within 120 s"):
        await attaching
    await cloud.rest(within=1000)
    agrees(cloud, uuid, 2)


@pytest.mark.spec("IFC-23")
@in_cloud()
async def test_states_in_which_no_interface_is_attached_or_detached(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    for changes in (
        {"vm_state": VmState.ERROR}, {"vm_state": VmState.SUSPENDED}, {"task_state": TaskState.REBOOTING},
    ):
        before = cloud.server(uuid)
        await cloud.change(uuid, **changes)
        with pytest.raises(InstanceInvalidState, match="attach_interface"):
            await attach(cloud, uuid)
        with pytest.raises(InstanceInvalidState, match="detach_interface"):
            await detach(cloud, uuid, port)
        await cloud.change(uuid, vm_state=before.vm_state, task_state=before.task_state)
    assert cloud.operations(uuid, "attach-interface") == []
    agrees(cloud, uuid, 1)


@pytest.mark.spec("IFC-24")
@in_cloud()
async def test_a_host_that_cannot_attach_is_asked_first(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    hypervisor = cloud.hypervisors["host0"]
    cloud.effects.clear()
    hypervisor.traits = ("COMPUTE_NET_ATTACH_INTERFACE",)
    with pytest.raises(InvalidInput, match="tags"):
        await attach(cloud, uuid, tag="fast")
    hypervisor.traits = ()
    with pytest.raises(InvalidInput, match="cannot attach"):
        await attach(cloud, uuid)
    assert cloud.calls() == []
    hypervisor.traits = ("COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG")
    await attach(cloud, uuid, tag="fast")
    agrees(cloud, uuid, 2)


@pytest.mark.spec("IFC-34", "IFC-35", "IFC-36")
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (Conflict("no address is left"), Conflict), (OverQuota("too many ports"), KilonovaError),
        (PortNotFound(USERS), NotFound), (InvalidInput("not usable"), InvalidInput), (REFUSES, KilonovaError),
    ],
)
def test_an_error_of_the_network_service_reaches_the_caller(error: KilonovaError, raised: type[Exception]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.net.fail["create_port"] = [error]
        with pytest.raises(raised, match=error.message):
            await attach(cloud, uuid)
        agrees(cloud, uuid, 1)
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.code, fault.message, fault.details) == (error.status, error.message, "")

    story()


@pytest.mark.spec("IFC-33", "IFC-38")
@pytest.mark.parametrize("error", [REFUSES, TryElsewhere("no slot is free"), RuntimeError("a mistake")])
def test_what_the_driver_could_not_do_is_undone(error: Exception) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, port = await cloud.build(), bring_port(cloud)
        for wanted in (None, port):
            cloud.fail("attach_interface", error)
            with pytest.raises(KilonovaError):
                await attach(cloud, uuid, port=wanted)
            agrees(cloud, uuid, 1)
        assert cloud.net.ports[port].device_id == ""
        await attach(cloud, uuid, port=port)
        agrees(cloud, uuid, 2)

    story()


@pytest.mark.spec("IFC-14")
@in_cloud()
async def test_the_attach_error_wins_over_that_of_its_clean_up(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("attach_interface", REFUSES)
    cloud.fail("detach_interface", KilonovaError("cannot detach"))
    cloud.net.fail["discard_port"] = [KilonovaError("cannot delete")]
    with pytest.raises(KilonovaError, match="the hypervisor refuses"):
        await attach(cloud, uuid)
    await cloud.rest(debts=True)
    agrees(cloud, uuid, 1)


@pytest.mark.spec("IFC-27", "IFC-37")
@in_cloud()
async def test_a_port_that_the_network_service_does_not_list_is_not_attached(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    real = cloud.net.make

    def misplaced(request: object) -> str:
        made = real(request)  # type: ignore[arg-type]
        cloud.net.ports[made] = msgspec.structs.replace(cloud.net.ports[made], device_id="another")
        return made

    cloud.net.make = misplaced  # type: ignore[method-assign, assignment]
    with pytest.raises(KilonovaError, match="did not give port"):
        await attach(cloud, uuid)
    assert "another" not in {port.device_id for port in cloud.net.ports.values()}
    agrees(cloud, uuid, 1)


@pytest.mark.spec("IFC-39", "IFC-40", "IFC-41")
@pytest.mark.parametrize("place", ["make port", "describe guest", "attach interface"])
def test_an_attach_goes_on_after_a_crash(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        crashed: list[str] = []

        def die(process: str) -> None:
            crashed.append(process)
            cloud.crash(process)

        cloud.at[place] = die
        attaching = asyncio.ensure_future(attach(cloud, uuid))
        await cloud.until(lambda: crashed)
        assert len(cloud.server(uuid).network_info) == 1
        await cloud.restart(*crashed)
        await attaching
        agrees(cloud, uuid, 2)

    story()


@in_cloud()
async def test_an_attach_goes_on_when_nobody_waits_for_it(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    attaching = asyncio.ensure_future(attach(cloud, uuid))
    await cloud.until(lambda: cloud.operations(uuid, "attach-interface"))
    attaching.cancel()
    await cloud.rest()
    agrees(cloud, uuid, 2)


@pytest.mark.spec("IFC-23")
@in_cloud()
async def test_a_delete_ends_an_attach(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 1.0
    attaching = asyncio.ensure_future(attach(cloud, uuid))
    await cloud.until(lambda: cloud.calls("attach_interface"))
    await cloud.delete(uuid)
    await asyncio.gather(attaching, return_exceptions=True)
    await cloud.rest(debts=True)
    cloud.gone(uuid)


# --- detach -----------------------------------------------------------------------------------------


@pytest.mark.spec("IFC-11", "IFC-45")
@in_cloud()
async def test_the_guest_lets_go_before_the_port_is_deleted(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    port = await attach(cloud, uuid)
    cloud.effects.clear()
    await detach(cloud, uuid, port)
    assert [name for _, name in cloud.calls()] == ["detach_interface", "unplug", "delete_port"]
    assert port not in cloud.net.ports
    agrees(cloud, uuid, 1)
    actions = await cloud.actions(uuid)
    assert [(a.action, a.message) for a in actions][-1] == ("detach_interface", None)


@pytest.mark.spec("IFC-42", "IFC-43")
@in_cloud()
async def test_a_port_is_detached_once(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    results = await asyncio.gather(
        detach(cloud, uuid, port), detach(cloud, uuid, port), detach(cloud, uuid, USERS), return_exceptions=True
    )
    assert [type(result) for result in results].count(PortNotFound) == 2
    agrees(cloud, uuid, 0)


@pytest.mark.spec("IFC-48")
@in_cloud()
async def test_a_guest_that_does_not_let_go_keeps_interface_and_port(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await detach(cloud, uuid, port)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "does not let go" in fault.message
    record = cloud.server(uuid)
    assert (record.vm_state, record.task_state) == (VmState.ACTIVE, None)
    agrees(cloud, uuid, 1)
    assert cloud.operation(uuid, "detach-interface").state is OperationState.FAILED
    cloud.heal()
    await detach(cloud, uuid, port)
    agrees(cloud, uuid, 0)


@pytest.mark.spec("IFC-12", "IFC-13", "IFC-50")
@in_cloud()
async def test_a_port_that_cannot_be_released_now_is_released_later(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    cloud.net.fail["delete_port"] = [ServiceUnavailable("down")] * 8
    await detach(cloud, uuid, port)
    guest = cloud.guest(uuid)
    assert guest is not None
    assert (cloud.server(uuid).network_info, guest.devnames) == ((), ())
    await cloud.rest(within=1000, debts=True)
    assert port not in cloud.net.ports


@pytest.mark.spec("IFC-50")
@in_cloud()
async def test_an_interface_that_the_guest_has_lost_is_detached(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    hypervisor = cloud.hypervisors["host0"]
    guest = cloud.guest(uuid)
    assert guest is not None
    hypervisor.keep(msgspec.structs.replace(guest, devnames=()))
    del cloud.net.ports[port]
    await detach(cloud, uuid, port)
    agrees(cloud, uuid, 0)


@in_cloud()
async def test_a_host_that_does_not_answer_gives_the_attach_up(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.always_fail("attach_interface", Unreachable("no answer"))
    with pytest.raises(KilonovaError):
        await attach(cloud, uuid)
    cloud.heal()
    await cloud.rest(within=2000, debts=True)
    agrees(cloud, uuid, 1)
