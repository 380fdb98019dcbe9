"""Servers with CPUs and NUMA cells of their own as requests: what is refused, and what the API shows of them."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest
from compute_cloud import CIRROS, HOST, TINY, ComputeCloud, compute_cloud

from kilonova.db import placement
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.hypervisor.guest import HostInventory
from kilonova.shapes.host import HostCell, HostTopology
from kilonova.shapes.resources import resources_of
from kilonova.shapes.shape import shape_of

__all__ = ["compute_cloud"]

PINNED = Flavor(flavor_id="7", name="pinned", vcpus=4, memory_mib=1024, root_gib=1, extra_specs={
    "hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "0-1", "hw:numa_nodes": "2", "hw:mem_page_size": "2MB",
    "hw:cpu_sockets": "2", "hw:cpu_threads": "2",
})
TOPOLOGY = HostTopology(cells=(
    HostCell(id=0, memory_mib=4096, dedicated=(2, 3), shared=(0, 1), pages={4: 1048576, 2048: 512}),
    HostCell(id=1, memory_mib=4096, dedicated=(6, 7), shared=(4, 5), pages={4: 1048576, 2048: 512}),
))
INVENTORY = HostInventory(
    hostname=HOST, hypervisor_type="QEMU", hypervisor_version=7002022, vcpus=4, pcpus=4, memory_mib=8192,
    local_gib=100, disk_available_gib=90, memory_free_mib=8000, topology=TOPOLOGY,
)


async def refusal(cloud: ComputeCloud, extra_specs: dict[str, str], properties: dict[str, str] | None = None) -> str:
    """What a request for a server of such a flavor and image is told."""
    flavor = msgspec.structs.replace(TINY, flavor_id=str(uuid.uuid4()), name=str(uuid.uuid4()), vcpus=4,
                                     extra_specs=extra_specs)
    await cloud.flavor(flavor)
    image = cloud.images.add(properties=properties or {})
    body = {"server": {"name": "vm", "imageRef": image.id, "flavorRef": flavor.flavor_id, "networks": "none"}}
    answer = await cloud.post("/servers", body, version="2.90")
    assert answer.status_code == 400, answer.text
    assert cloud.compute.created == []
    message: str = answer.json()["badRequest"]["message"]
    return message


@pytest.mark.parametrize(("extra_specs", "properties", "named"), [
    ({"hw:cpu_policy": "shared"}, {"hw_cpu_policy": "dedicated"}, "hw_cpu_policy"),
    ({"hw:cpu_policy": "dedicated", "hw:cpu_thread_policy": "prefer"}, {"hw_cpu_thread_policy": "require"},
     "hw_cpu_thread_policy"),
    ({"hw:numa_nodes": "2"}, {"hw_numa_nodes": "1"}, "hw_numa_nodes"),
    ({"hw:numa_nodes": "3"}, {}, "evenly"),
    ({}, {"hw_mem_page_size": "large"}, "hw_mem_page_size"),
    ({"hw:cpu_max_cores": "1"}, {"hw_cpu_cores": "2"}, "hw_cpu_cores"),
    ({"hw:cpu_realtime": "true"}, {}, "hw:cpu_realtime"),
    ({"hw:mem_encryption": "true"}, {}, "hw_firmware_type"),
    ({"pci_passthrough:alias": "gpu:1,nic:2"}, {}, "gpu, nic"),
    ({"resources1:VCPU": "1", "resources2:VCPU": "1"}, {}, "group_policy"),
])
async def test_what_cannot_be_is_refused_at_once(
    cloud: ComputeCloud, extra_specs: dict[str, str], properties: dict[str, str], named: str
) -> None:
    assert named in await refusal(cloud, extra_specs, properties)


async def test_a_resize_to_what_cannot_be_is_refused(cloud: ComputeCloud) -> None:
    await cloud.flavor()
    await cloud.flavor(msgspec.structs.replace(PINNED, extra_specs={"hw:cpu_policy": "shared"}))
    server = await cloud.boot(image=Image(id=CIRROS, properties={"hw_cpu_policy": "dedicated"}),
                              flavor=msgspec.structs.replace(TINY, extra_specs={}))
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"resize": {"flavorRef": "7"}})
    assert answer.status_code == 400
    assert "hw_cpu_policy" in answer.text
    assert cloud.compute.asked == []


async def test_a_rebuild_keeps_the_place_of_its_server(cloud: ComputeCloud) -> None:
    server = await cloud.boot(image=Image(id=CIRROS), flavor=msgspec.structs.replace(TINY, extra_specs={}))
    pinned = cloud.images.add(properties={"hw_cpu_policy": "dedicated"})
    other = cloud.images.add(properties={"hw_cpu_cores": "1"})
    path = f"/servers/{server.uuid}/action"
    answer = await cloud.post(path, {"rebuild": {"imageRef": pinned.id}})
    assert answer.status_code == 400
    assert "cannot be changed by a rebuild" in answer.text
    assert (await cloud.post(path, {"rebuild": {"imageRef": other.id}})).status_code == 202


async def topology(cloud: ComputeCloud, server: str, as_: str) -> Any:
    answer = await cloud.get(f"/servers/{server}/topology", version="2.78", as_=as_)
    assert answer.status_code == 200
    return answer.json()


@pytest.mark.spec("API-194", "API-473", "API-578")
async def test_topology_of_a_pinned_server(cloud: ComputeCloud) -> None:
    """As its claim has decided; which part of the host it has is shown to administrators only."""
    server = await cloud.boot(flavor=PINNED)

    def claim(conn: Any) -> None:
        provider = placement.report(conn, HOST, HOST, INVENTORY, now=1.0)
        shape, resources = shape_of(PINNED, None), resources_of(PINNED)
        assert placement.claim(conn, server.uuid, provider, resources, "p", "u", shape=shape)

    await cloud.cells.api.write(claim)
    nodes = [
        {"memory_mb": 512, "vcpu_set": [0, 1], "siblings": [[0, 1]]},
        {"memory_mb": 512, "vcpu_set": [2, 3], "siblings": [[2, 3]]},
    ]
    assert await topology(cloud, server.uuid, "reader") == {"nodes": nodes, "pagesize_kb": 2048}
    shown = await topology(cloud, server.uuid, "admin")
    assert [node["host_node"] for node in shown["nodes"]] == [0, 1]
    assert [node["cpu_pinning"] for node in shown["nodes"]] == [{"0": 2, "1": 3}, {}]
