"""Ports that are not bound where their server is are bound there by the healing of interfaces."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from small_cloud import OPTIONS, SmallCloud, in_cloud

from kilonova.domain.errors import KilonovaError, ServiceUnavailable
from kilonova.domain.flavor import Flavor
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.bind_ports import BIND_PORTS, BindPorts
from kilonova.operations.resize import RESIZE, ResizeServer

HEALING = msgspec.structs.replace(OPTIONS, heal_instance_info_cache_interval=60.0)
BIG = Flavor(flavor_id="2", name="big", vcpus=2, memory_mib=1024, root_gib=2)


def drift(cloud: SmallCloud, port: str, **changes: Any) -> None:
    cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], **changes)


def binding(cloud: SmallCloud, port: str) -> tuple[str, str]:
    return cloud.net.ports[port].binding_host, cloud.net.ports[port].vif_type


@pytest.mark.spec("PER-14", "PER-16", "IFC-52", "IFC-53", "PER-17", "PER-18")
@pytest.mark.parametrize("changes", [
    {"binding_host": "elsewhere"}, {"binding_host": ""}, {"vif_type": "unbound"}, {"vif_type": "binding_failed"},
])
def test_ports_are_bound_where_the_server_is(changes: dict[str, str]) -> None:
    @in_cloud(options=HEALING)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build(networks=2)
        host = cloud.server(uuid).host
        right, wrong = cloud.ports(uuid)
        before = cloud.server(uuid)
        drift(cloud, wrong, addresses=("10.0.0.77",), **changes)
        await cloud.until(lambda: cloud.operations(uuid, "bind-ports"), within=200.0)
        await cloud.rest()
        assert [binding(cloud, port) for port in (right, wrong)] == [(host, "bridge")] * 2
        after = cloud.server(uuid)
        assert (after.vm_state, after.task_state, cloud.fault(uuid)) == (before.vm_state, None, None)
        assert after.network_info[1].fixed_ips[0].address == "10.0.0.77"
        await asyncio.sleep(300.0)
        assert len(cloud.operations(uuid, "bind-ports")) == 1
        assert "bind-ports" not in [action.action for action in await cloud.actions(uuid)]

    story()


@pytest.mark.spec("PER-16", "IFC-52")
@in_cloud(options=HEALING)
async def test_ports_that_are_right_are_left_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build(networks=2)
    await asyncio.sleep(300.0)
    assert cloud.operations(uuid, "bind-ports") == []
    assert "go_to_host" not in cloud.net.calls


@pytest.mark.spec("IFC-53", "PER-14")
@in_cloud(options=HEALING)
async def test_with_a_task_they_are_left_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    drift(cloud, port, binding_host="elsewhere")
    await cloud.change(uuid, task_state=TaskState.REBOOTING)
    await asyncio.sleep(300.0)
    assert (cloud.operations(uuid, "bind-ports"), binding(cloud, port)[0]) == ([], "elsewhere")
    await cloud.change(uuid, task_state=None)
    await cloud.until(lambda: binding(cloud, port)[0] == cloud.server(uuid).host, within=200.0)


@pytest.mark.spec("PER-22")
@in_cloud(options=HEALING)
async def test_a_server_that_moves_is_left_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    await cloud.act(uuid, RESIZE, ResizeServer(flavor=BIG))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.RESIZED
    drift(cloud, port, binding_host="elsewhere")
    await asyncio.sleep(300.0)
    assert (cloud.operations(uuid, "bind-ports"), binding(cloud, port)[0]) == ([], "elsewhere")


@pytest.mark.spec("PER-22")
@in_cloud()
async def test_what_was_seen_on_another_host_is_not_acted_on(cloud: SmallCloud) -> None:
    """The server has moved between the look and its turn."""
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    drift(cloud, port, binding_host="elsewhere")
    with pytest.raises(KilonovaError):
        await cloud.act(uuid, BIND_PORTS, BindPorts("another"))
    await cloud.rest()
    assert binding(cloud, port)[0] == "elsewhere"


@pytest.mark.spec("PER-18", "PER-20")
@in_cloud(options=HEALING)
async def test_a_network_service_that_refuses_leaves_the_server_as_it_was(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    drift(cloud, port, binding_host="elsewhere")
    cloud.net.fail["go_to_host"] = [KilonovaError("no"), ServiceUnavailable("down")]
    before = cloud.server(uuid)
    await cloud.until(lambda: cloud.operations(uuid, "bind-ports"), within=200.0)
    await cloud.rest()
    assert (cloud.server(uuid), cloud.fault(uuid)) == (before, None)
    await cloud.until(lambda: binding(cloud, port)[0] == before.host, within=300.0)
