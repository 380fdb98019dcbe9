"""Build: its interfaces, when the first host does not get as far as a guest."""

from __future__ import annotations

import pytest
from simulation.network import NETWORK
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.errors import KilonovaError, ServiceUnavailable, TryElsewhere
from kilonova.domain.operation import OperationState
from kilonova.domain.states import TaskState, VmState
from kilonova.services.network import PortSummary

ELSEWHERE = TryElsewhere("no room on this disk")
BROUGHT = "55555555-5555-4555-8555-555555555555"


@pytest.mark.spec("NET-16", "NET-18", "NET-29")
@pytest.mark.parametrize("lost", [False, True], ids=["all there", "one was lost"])
def test_ports_that_could_not_be_released_go_along_to_the_next_host(lost: bool) -> None:
    """What is owed meanwhile comes too late to take them away."""

    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        cloud.net.ports[BROUGHT] = PortSummary(id=BROUGHT, network_id=NETWORK, project_id="project")
        cloud.net.order.append(BROUGHT)
        cloud.fail("spawn", ELSEWHERE)
        cloud.net.fail["release"] = [ServiceUnavailable("The network service does not answer.")] * 12
        request = cloud.new(networks=2, ports=(BROUGHT,))
        uuid = request.instance.uuid
        if lost:
            cloud.at["build/claim host/undo/before"] = lambda _p: cloud.net.ports.pop(cloud.net.order[1])
        await cloud.ask(request)
        await cloud.rest(within=300.0, debts=True)
        server = cloud.server(uuid)
        first, second = (host for host, _ in cloud.calls("spawn"))
        assert (server.vm_state, server.host) == (VmState.ACTIVE, second)
        assert len(cloud.calls("release")) == 13  # the debt was paid, after the server had moved on
        assert len(cloud.net.order) == (4 if lost else 3)  # each was made once, unless it had to be made again
        assert len(server.network_info) == 3
        assert set(cloud.ports(uuid)) == {vif.id for vif in server.network_info}
        assert {cloud.net.ports[port].binding_host for port in cloud.ports(uuid)} == {second}
        tasks = [task for _, task in cloud.states(uuid)]
        there = ["networking", "block_device_mapping", "spawning"]
        assert tasks == ["scheduling", *there, "scheduling", *there, None]
        assert first != second
        await cloud.delete(uuid)
        await cloud.rest()
        cloud.gone(uuid)

    story()


@pytest.mark.spec("NET-19", "BLD-59", "BLD-60")
@pytest.mark.parametrize("taken", [True, False], ids=["taken over", "gone"])
def test_a_server_that_was_lost_before_its_networks_were_begun_ends_the_build(taken: bool) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        uuid = cloud.new().instance.uuid

        def lose(_process: str) -> None:
            cloud.wire.spawn(cloud.change(uuid, task_state=TaskState.REBUILDING) if taken else cloud.erase(uuid))

        cloud.at["place/let it build/do/before"] = lose
        await cloud.ask(cloud.new(uuid=uuid))
        await cloud.until(lambda: cloud.operations(uuid, "build"))
        await cloud.rest()
        build = cloud.operation(uuid, "build")
        assert build.state in (OperationState.CANCELLED, OperationState.FAILED)
        assert build.failure is not None
        assert (build.failure.step, build.round) == ("go to host", 0)
        assert build.failure.kind == ("StaleState" if taken else "InstanceNotFound")
        assert "rebuilding" in build.failure.message or not taken
        assert cloud.calls() == []  # no networks, and no other host
        assert (cloud.claims(uuid), cloud.faults(uuid)) == ([], 0)
        if taken:
            assert cloud.server(uuid).task_state is TaskState.REBUILDING

    story()


@pytest.mark.spec("NET-26")
@in_cloud()
async def test_interfaces_of_a_failed_build_are_unplugged_though_the_record_has_lost_them(cloud: SmallCloud) -> None:
    cloud.fail("spawn", KilonovaError("no"))
    uuid = cloud.new().instance.uuid
    unplugged: list[tuple[str, ...]] = []
    driver = cloud.drivers["host0"]
    unplug = driver.unplug

    async def watched(uuid_: str, devnames: tuple[str, ...]) -> None:
        unplugged.append(devnames)
        await unplug(uuid_, devnames)

    driver.unplug = watched  # type: ignore[method-assign]
    cloud.at["build/start guest/do/before"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, network_info=()))
    await cloud.ask(cloud.new(uuid=uuid))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert unplugged
    assert {len(names) for names in unplugged} == {1}
    assert (cloud.guest(uuid), cloud.ports(uuid)) == (None, [])
