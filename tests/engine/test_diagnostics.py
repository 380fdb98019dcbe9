"""What the hypervisor counts for a guest."""

from __future__ import annotations

import pytest
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.errors import Conflict, InstanceNotReady, NotSupported, ServiceUnavailable
from kilonova.domain.states import PowerState
from kilonova.hypervisor import fake_diagnostics

OPERATIONS = {"get_instance_diagnostics": "diagnostics", "get_diagnostics": "own_diagnostics"}


async def ask(cloud: SmallCloud, uuid: str, operation: str) -> object:
    server = await cloud.located(uuid)
    if operation == "get_diagnostics":
        return await cloud.compute.own_diagnostics(server)
    return await cloud.compute.diagnostics(server)


@pytest.mark.spec("DIA-01", "DIA-02", "DIA-04")
@pytest.mark.parametrize(("operation", "call"), OPERATIONS.items())
def test_a_guest_that_runs_is_looked_at(operation: str, call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, power_state=PowerState.SHUTDOWN)  # what is recorded does not count
        expected = fake_diagnostics.OWN if operation == "get_diagnostics" else fake_diagnostics.COMMON
        assert await ask(cloud, uuid, operation) == expected
        assert [name for _, name in cloud.calls(*OPERATIONS.values())] == [call]

    story()


@pytest.mark.spec("DIA-03", "DIA-04", "DIA-05", "DIA-06")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("state", [s for s in PowerState if s is not PowerState.RUNNING])
def test_a_guest_that_does_not_run_is_not_looked_at(operation: str, state: PowerState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        cloud.hypervisors["host0"].guests[uuid].power_state = state
        with pytest.raises(Conflict) as caught:
            await ask(cloud, uuid, operation)
        assert caught.value.message == (
            f"Cannot '{operation}' instance {uuid} while it is in power state {state.name.lower()}"
        )
        assert cloud.calls(*OPERATIONS.values()) == []
        assert (cloud.server(uuid), cloud.faults(uuid)) == (before, 0)

    story()


@pytest.mark.spec("DIA-06")
@pytest.mark.parametrize(("operation", "call"), OPERATIONS.items())
def test_a_query_that_fails_leaves_no_trace(operation: str, call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        cloud.fail(call, NotSupported("this driver cannot"))
        with pytest.raises(NotSupported, match="this driver cannot"):
            await ask(cloud, uuid, operation)
        cloud.crash("host0")
        with pytest.raises(ServiceUnavailable):
            await ask(cloud, uuid, operation)
        assert (cloud.server(uuid), cloud.faults(uuid)) == (before, 0)
        await cloud.change(uuid, host=None)
        with pytest.raises(InstanceNotReady):
            await ask(cloud, uuid, operation)

    story()
