"""Crash dumps, and network information that is put in place again."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.errors import Conflict, InstanceInvalidState, KilonovaError, NotSupported, PortNotFound
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.crash_dump import TRIGGER_CRASH_DUMP, TriggerCrashDump
from kilonova.operations.inject_network_info import INJECT_NETWORK_INFO, InjectNetworkInfo

P, T, V = PowerState, TaskState, VmState
REFUSES = KilonovaError("the hypervisor refuses")


async def dump(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, TRIGGER_CRASH_DUMP, TriggerCrashDump())


async def inject(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, INJECT_NETWORK_INFO, InjectNetworkInfo())


@pytest.mark.spec("PWR-26")
@pytest.mark.parametrize("vm", [V.ACTIVE, V.PAUSED, V.RESCUED, V.RESIZED, V.ERROR])
def test_a_crash_dump_changes_no_state(vm: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, vm_state=vm)
        before = cloud.server(uuid)
        await dump(cloud, uuid)
        await cloud.rest()
        assert cloud.server(uuid) == before
        assert len(cloud.calls("inject_nmi")) == 1
        action = (await cloud.actions(uuid))[-1]
        assert (action.action, action.message) == ("trigger_crash_dump", None)

    story()


@pytest.mark.spec("PWR-27", "PWR-28")
@pytest.mark.parametrize("error", [
    NotSupported("this driver cannot"), Conflict("the guest is not running"), REFUSES,
])
def test_a_crash_dump_that_fails_says_why(error: KilonovaError) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        cloud.fail("inject_nmi", error)
        await dump(cloud, uuid)
        await cloud.rest()
        assert cloud.server(uuid) == before
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.message, fault.code, cloud.faults(uuid)) == (error.message, error.status, 1)
        if type(error) is not KilonovaError:
            assert fault.details == ""
        assert (await cloud.actions(uuid))[-1].message == "Error"

    story()


@pytest.mark.spec("PWR-28")
@in_cloud()
async def test_a_crash_dump_that_fails_leaves_the_task_of_another_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("inject_nmi", REFUSES)
    cloud.at["inject interrupt/do/before"] = lambda _p: cloud.wire.spawn(
        cloud.change(uuid, task_state=T.REBUILDING)
    )
    await dump(cloud, uuid)
    await cloud.rest()
    assert cloud.operation(uuid, "trigger-crash-dump").state is OperationState.FAILED
    assert (cloud.server(uuid).task_state, cloud.faults(uuid)) == (T.REBUILDING, 1)


@pytest.mark.spec("PWR-29")
@in_cloud()
async def test_a_crash_dump_and_another_task_do_not_meet(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.crash("host0")
    await cloud.stop(uuid)
    with pytest.raises(InstanceInvalidState, match="Cannot 'trigger_crash_dump' instance"):
        await dump(cloud, uuid)
    await cloud.boot("host0")
    await cloud.rest()
    with pytest.raises(InstanceInvalidState, match="vm_state stopped"):
        await dump(cloud, uuid)
    await cloud.start(uuid)
    await cloud.rest()
    cloud.hypervisors["host0"].faults.latency = 2.0
    await dump(cloud, uuid)
    await cloud.stop(uuid)  # waits until the dump was triggered
    assert cloud.operation(uuid, "trigger-crash-dump").state is OperationState.SUCCEEDED
    await cloud.rest()
    calls = [name for _, name in cloud.calls("inject_nmi", "power_off")]
    assert calls == ["power_off", "inject_nmi", "power_off"]


@pytest.mark.spec("FIP-08")
@pytest.mark.parametrize("vm", [V.ACTIVE, V.STOPPED, V.ERROR])
def test_network_information_is_read_anew_and_put_in_place(vm: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, vm_state=vm, launched_at=None)
        before = cloud.server(uuid)
        (port,) = cloud.ports(uuid)
        cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], addresses=("10.0.0.77",))
        cloud.effects.clear()
        await inject(cloud, uuid)
        await cloud.rest()
        assert [name for _, name in cloud.calls("vifs", "plug")] == ["vifs", "plug"]
        assert cloud.server(uuid) == before
        assert "inject-network-info" not in [action.action for action in await cloud.actions(uuid)]

    story()


@pytest.mark.spec("FIP-09")
@pytest.mark.parametrize(("service", "driver"), [(PortNotFound("p"), None), (None, REFUSES)])
def test_an_injection_that_fails_says_why(service: KilonovaError | None, driver: KilonovaError | None) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        if service is not None:
            cloud.net.fail["vifs"] = [service]
        if driver is not None:
            cloud.fail("plug", driver)
        await inject(cloud, uuid)
        await cloud.rest()
        assert cloud.server(uuid) == before
        fault = cloud.fault(uuid)
        error = service or driver
        assert fault is not None
        assert error is not None
        assert fault.message == error.message
        assert cloud.operation(uuid, "inject-network-info").state is OperationState.FAILED

    story()


@pytest.mark.spec("FIP-09")
@in_cloud()
async def test_a_server_that_vanished_gets_no_fault(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["inject-network-info/(begin)/do/before"] = lambda _p: cloud.wire.spawn(cloud.erase(uuid))
    await inject(cloud, uuid)
    await asyncio.sleep(30.0)
    assert cloud.operation(uuid, "inject-network-info").state is OperationState.FAILED
    assert cloud.faults(uuid) == 0
