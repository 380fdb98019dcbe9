"""Servers with PCI devices as requests: what their flavors ask for, and what is refused."""

from __future__ import annotations

import pytest
from compute_cloud import CIRROS, TINY, ComputeCloud, compute_cloud
from host_devices import ALIASES, with_devices

from kilonova.api.cloud import ApiOptions
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.network import Vif
from kilonova.operations.resize import ResizeServer
from kilonova.shapes.pci_requests import ALIAS

PLAIN = Flavor(flavor_id="8", name="plain", vcpus=1, memory_mib=512, root_gib=1)
GPU = Flavor(flavor_id="9", name="gpu", vcpus=1, memory_mib=512, root_gib=1, extra_specs={ALIAS: "gpu:2"})
OPTIONS = ApiOptions(pci_aliases=ALIASES)


async def test_a_server_has_the_devices_that_the_alias_meant_when_it_was_asked_for() -> None:
    async with compute_cloud(options=OPTIONS) as cloud:
        await cloud.flavor(GPU)
        body = {"server": {"name": "vm", "imageRef": CIRROS, "flavorRef": "9", "networks": "none"}}
        answer = await cloud.post("/servers", body, version="2.90")
        assert answer.status_code == 202, answer.text
        (request,) = cloud.compute.created
        (asked,) = request.spec.flavor.pci_requests
        assert (asked.alias, asked.count) == ("gpu", 2)
        assert [(one.vendor_id, one.product_id) for one in asked.matches] == [("10de", "1db6")]
        assert request.instance.flavor == request.spec.flavor


async def test_a_resize_asks_for_the_devices_of_the_new_flavor() -> None:
    async with compute_cloud(options=OPTIONS) as cloud:
        await cloud.flavor(GPU)
        server = await cloud.boot(image=Image(id=CIRROS), flavor=PLAIN)
        answer = await cloud.post(f"/servers/{server.uuid}/action", {"resize": {"flavorRef": "9"}})
        assert answer.status_code == 202, answer.text
        (asked,) = cloud.compute.asked
        assert isinstance(asked[-1], ResizeServer)
        assert [(one.alias, one.count) for one in asked[-1].flavor.pci_requests] == [("gpu", 2)]


async def test_an_alias_that_is_not_defined_is_refused(cloud: ComputeCloud) -> None:
    await cloud.flavor(GPU)
    body = {"server": {"name": "vm", "imageRef": CIRROS, "flavorRef": "9", "networks": "none"}}
    server = await cloud.boot(image=Image(id=CIRROS), flavor=PLAIN)
    for path, asked in (("/servers", body), (f"/servers/{server.uuid}/action", {"resize": {"flavorRef": "9"}})):
        answer = await cloud.post(path, asked, version="2.90")
        assert answer.status_code == 400
        assert answer.json()["badRequest"]["message"] == "PCI alias gpu is not defined."
    assert cloud.compute.created == []
    assert cloud.compute.asked == []


@pytest.mark.parametrize("action", [
    {"suspend": None}, {"os-migrateLive": {"host": None, "block_migration": "auto"}},
])
async def test_what_devices_hold_can_neither_be_saved_nor_moved(cloud: ComputeCloud, action: dict[str, object]) -> None:
    port = Vif(id="p", mac="fa:16:3e:00:00:01", network_id="n", network_name="n", devname="t", vnic_type="direct")
    for server in (await cloud.boot(flavor=with_devices(TINY, "gpu:1")), await cloud.boot(network_info=(port,))):
        answer = await cloud.post(f"/servers/{server.uuid}/action", action, version="2.90", as_="admin")
        assert answer.status_code == 409
        assert "PCI devices" in answer.text
    assert cloud.compute.asked == []
