"""Networks of the world outside, and ports on them: devices of hosts, and others."""

from __future__ import annotations

from typing import Any

import pytest
import test_network_api
from test_network_api import A, Cloud

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.domain.network import BANDWIDTH, BoundDevice, PortDevice, PortGroup, PortNeed
from kilonova.embedded.network.physical_schema import Physical
from kilonova.services.network import PortRequest

cloud = test_network_api.cloud
SERVER = "99999999-9999-4999-8999-999999999999"
DEVICE = BoundDevice(address="0000:82:02.1", vendor_id="8086", product_id="154c", physical_network="physnet1")
PROFILE = {"pci_slot": "0000:82:02.1", "pci_vendor_info": "8086:154c", "physical_network": "physnet1"}


async def outside(cloud: Cloud, status: int = 201, *, kind: str = "vlan", name: str | None = "physnet1",
                  vlan: int | None = 100, **fields: Any) -> Any:
    return await cloud.admin.make("network", status, shared=True, **fields, **{
        "provider:network_type": kind, "provider:physical_network": name, "provider:segmentation_id": vlan,
    })


async def bring(cloud: Cloud, network: str, vnic_type: str = "direct", **fields: Any) -> dict[str, Any]:
    port: dict[str, Any] = await cloud.a.make("port", network_id=network, **{"binding:vnic_type": vnic_type}, **fields)
    return port


async def test_a_network_tells_administrators_what_it_is_outside(cloud: Cloud) -> None:
    network = await outside(cloud)
    shown = ("provider:network_type", "provider:physical_network", "provider:segmentation_id")
    assert [network[name] for name in shown] == ["vlan", "physnet1", 100]
    path = f"/networks/{network['id']}"
    assert not set(shown) & (await cloud.a.get(path))["network"].keys()
    flat = await outside(cloud, kind="flat", name="physnet2", vlan=None)
    assert [flat[name] for name in shown] == ["flat", "physnet2", None]
    assert await outside(cloud, 409) == "VlanIdInUse"
    assert await outside(cloud, 409, kind="flat", name="physnet2", vlan=None) == "FlatNetworkInUse"
    for wrong in ({"name": None}, {"name": "a b"}, {"vlan": None}, {"vlan": 4095}, {"kind": "flat"}, {"kind": "vxlan"},
                  {"kind": "local"}):
        assert await outside(cloud, 400, **wrong) == "InvalidInput"  # type: ignore[arg-type]
    assert await cloud.a.make("network", 403, **{"provider:physical_network": "physnet1"}) == "PolicyNotAuthorized"
    await cloud.admin.delete(path)
    await outside(cloud)
    context = RequestContext(request_id="", user_id="u", project_id=A)
    assert {one.physical_network for one in await cloud.network.networks(context)} == {"physnet1", "physnet2"}


async def test_ports_there_are_devices_and_others_are_not(cloud: Cloud) -> None:
    network, inside = (await outside(cloud))["id"], (await cloud.a.make("network"))["id"]
    for kind in ("direct", "macvtap", "direct-physical"):
        port = await bring(cloud, network, kind)
        assert port["binding:vnic_type"] == kind
        (seen,) = [await cloud.network.port(RequestContext(request_id="", user_id="u", project_id=A), port["id"])]
        assert seen.need == PortNeed(
            port_id=port["id"], device=PortDevice(vnic_type=kind, physical_network="physnet1")  # type: ignore[arg-type]
        )
        assert await cloud.a.put("port", port["id"], 400, **{"binding:vnic_type": "normal"}) == "InvalidInput"
        assert await cloud.a.make("port", 400, network_id=inside, **{"binding:vnic_type": kind}) == "InvalidInput"
    for kind in ("baremetal", "virtio-forwarder", "vdpa", "remote-managed", "accelerator-direct", "smart-nic"):
        assert await cloud.a.make("port", 400, network_id=network, **{"binding:vnic_type": kind}) == "InvalidInput"
    assert await cloud.a.make("port", 400, network_id=network) == "InvalidInput"
    with pytest.raises(InvalidInput, match="only ports of these types can be on it: direct, macvtap, direct-physical"):
        await cloud.network.create_port(PortRequest(
            key="k", network_id=network, project_id=A, instance_uuid=SERVER, host="here"
        ))
    assert await cloud.network.ports_of(SERVER) == []


async def test_other_ports_are_where_an_interface_leads(cloud: Cloud) -> None:
    network = (await outside(cloud, name="wired"))["id"]
    # The range may be one that the machine itself is in.
    body = {"network_id": network, "ip_version": 4, "cidr": "192.0.2.0/24", "enable_dhcp": False}
    subnet = await cloud.admin.make("subnet", **body)
    port = await bring(cloud, network, "normal")
    assert [held["subnet_id"] for held in port["fixed_ips"]] == [subnet["id"]]
    await cloud.network.bind_port(port["id"], SERVER, "here")
    shown = (await cloud.admin.get(f"/ports/{port['id']}"))["port"]
    assert (shown["binding:vif_type"], shown["binding:vif_details"]) == ("bridge", {"port_filter": True})
    request = PortRequest(key="k", network_id=network, project_id=A, instance_uuid=SERVER, host="here")
    made = await cloud.network.create_port(request)
    plan = cloud.wiring.networks[network]
    assert (plan.physical, set(cloud.wiring.ports)) == (Physical(name="wired", vlan=100), {port["id"], made})
    assert (await bring(cloud, network, "direct"))["binding:vnic_type"] == "direct"  # devices are beside them


async def test_the_gateway_outside_is_the_world_s_until_a_router_has_it(cloud: Cloud) -> None:
    network = (await outside(cloud, name="wired"))["id"]
    v4 = await cloud.admin.make("subnet", network_id=network, ip_version=4, cidr="198.51.100.0/24")
    await cloud.admin.make("subnet", network_id=network, ip_version=6, cidr="2001:db8::/64", ipv6_ra_mode="slaac",
                           ipv6_address_mode="slaac")
    await cloud.network.bind_port((await bring(cloud, network, "normal"))["id"], SERVER, "here")
    plan = cloud.wiring.networks[network]
    assert (plan.gateway_outside(4), plan.gateway_outside(6)) == ("198.51.100.1", "2001:db8::1")
    assert [subnet.ra_mode for subnet in plan.subnets] == [None, None]  # nobody here announces itself there
    assert plan.own_addresses(4) == [plan.subnets[0].dhcp_address]
    router = await cloud.admin.make("router")
    await cloud.admin.call("PUT", f"/routers/{router['id']}/add_router_interface", 200, {"subnet_id": v4["id"]})
    plan = cloud.wiring.networks[network]
    assert (plan.gateway_outside(4), "198.51.100.1" in plan.own_addresses(4)) == (None, True)


async def test_the_type_of_a_port_can_be_changed_until_it_is_bound(cloud: Cloud) -> None:
    port = await bring(cloud, (await outside(cloud))["id"])
    change = {"binding:vnic_type": "macvtap"}
    assert (await cloud.a.put("port", port["id"], **change))["binding:vnic_type"] == "macvtap"
    await cloud.network.bind_port(port["id"], SERVER, "here")
    assert await cloud.a.put("port", port["id"], 409, **{"binding:vnic_type": "direct"}) == "PortBound"


@pytest.mark.parametrize(("kind", "vif_type"), [
    ("direct", "hw_veb"), ("macvtap", "hw_veb"), ("direct-physical", "hostdev_physical"),
])
async def test_a_binding_names_the_device(cloud: Cloud, kind: str, vif_type: str) -> None:
    network = (await outside(cloud))["id"]
    port = await bring(cloud, network, kind)
    path = f"/ports/{port['id']}"
    for _ in range(2):
        await cloud.network.bind_port(port["id"], SERVER, "here")
        await cloud.network.serve_ports(SERVER, {}, {port["id"]: DEVICE, "another": DEVICE})
        shown = (await cloud.admin.get(path))["port"]
        assert (shown["binding:vif_type"], shown["binding:profile"], shown["status"]) == (vif_type, PROFILE, "ACTIVE")
        assert shown["binding:vif_details"] == {"port_filter": False, "vlan": "100"}
    assert "binding:profile" not in (await cloud.a.get(path))["port"]
    (vif,) = await cloud.network.vifs(SERVER)
    assert (vif.vif_type, vif.vnic_type, vif.vlan, vif.address, vif.active) == (
        vif_type, kind, 100, DEVICE.address, True
    )
    await cloud.network.leave_host(SERVER, "here")
    shown = (await cloud.admin.get(path))["port"]
    assert (shown["binding:vif_type"], shown["binding:profile"], shown["status"]) == ("unbound", {}, "DOWN")
    assert shown["binding:vif_details"] == {}
    await cloud.network.go_to_host(SERVER, "elsewhere")
    await cloud.network.serve_ports(SERVER, {}, {port["id"]: DEVICE})
    shown = (await cloud.admin.get(path))["port"]
    assert (shown["binding:vif_type"], shown["binding:profile"]) == ("binding_failed", {})


async def test_untagged_networks_have_no_vlan(cloud: Cloud) -> None:
    port = await bring(cloud, (await outside(cloud, kind="flat", vlan=None))["id"])
    await cloud.network.bind_port(port["id"], SERVER, "here")
    assert (await cloud.admin.get(f"/ports/{port['id']}"))["port"]["binding:vif_details"] == {"port_filter": False}
    (vif,) = await cloud.network.vifs(SERVER)
    assert vif.vlan is None


async def test_users_do_not_name_devices(cloud: Cloud) -> None:
    network = (await outside(cloud))["id"]
    fields = {"network_id": network, "binding:vnic_type": "direct", "binding:profile": PROFILE}
    assert await cloud.a.make("port", 403, **fields) == "PolicyNotAuthorized"
    port = await bring(cloud, network)
    assert await cloud.a.put("port", port["id"], 403, **{"binding:profile": PROFILE}) == "PolicyNotAuthorized"


async def test_a_port_says_where_its_device_is_beside_the_guest(cloud: Cloud) -> None:
    network = (await outside(cloud))["id"]
    port = await bring(cloud, network, numa_affinity_policy="required")
    assert port["numa_affinity_policy"] == "required"
    await cloud.network.bind_port(port["id"], SERVER, "here")
    (seen,) = await cloud.network.ports_of(SERVER)
    assert seen.need is not None and seen.need.device is not None
    assert seen.need.device.numa_policy == "required"
    assert await cloud.a.put("port", port["id"], 400, numa_affinity_policy="legacy") == "InvalidInput"
    await cloud.network.unbind_port(port["id"], SERVER)
    for policy in ("socket", None):
        assert (await cloud.a.put("port", port["id"], numa_affinity_policy=policy))["numa_affinity_policy"] == policy
    assert await cloud.a.put("port", port["id"], 400, numa_affinity_policy="near") == "InvalidInput"


async def gold(cloud: Cloud) -> str:
    """A policy that guarantees something; its id."""
    body = {"policy": {"name": "gold", "shared": True}}
    policy = (await cloud.admin.call("POST", "/qos/policies", 201, body))["policy"]
    await cloud.admin.call("POST", f"/qos/policies/{policy['id']}/minimum_bandwidth_rules", 201,
                           {"minimum_bandwidth_rule": {"direction": "egress", "min_kbps": 1000}})
    return str(policy["id"])


async def test_devices_are_guaranteed_no_bandwidth(cloud: Cloud) -> None:
    policy, network = await gold(cloud), (await outside(cloud))["id"]
    fields = {"network_id": network, "binding:vnic_type": "direct", "qos_policy_id": policy}
    assert await cloud.a.make("port", 400, **fields) == "InvalidInput"
    port = await bring(cloud, network)
    assert await cloud.admin.put("network", network, 400, qos_policy_id=policy) == "InvalidInput"
    assert (await cloud.admin.get(f"/ports/{port['id']}"))["port"]["resource_request"] is None
    await cloud.a.delete(f"/ports/{port['id']}")
    await cloud.admin.put("network", network, qos_policy_id=policy)
    assert await cloud.a.make("port", 400, network_id=network, **{"binding:vnic_type": "direct"}) == "InvalidInput"


@pytest.mark.spec("EMP-08")
async def test_other_ports_ask_for_the_bandwidth_of_their_physical_network(cloud: Cloud) -> None:
    policy, network = await gold(cloud), (await outside(cloud, name="wired"))["id"]
    port = await bring(cloud, network, "normal", qos_policy_id=policy)
    traits = ("CUSTOM_PHYSNET_WIRED", "CUSTOM_VNIC_TYPE_NORMAL")
    (group,) = (await cloud.admin.get(f"/ports/{port['id']}"))["port"]["resource_request"]["request_groups"]
    assert (group["required"], group["resources"]) == (list(traits), {"NET_BW_EGR_KILOBIT_PER_SEC": 1000})
    seen = await cloud.network.port(RequestContext(request_id="", user_id="u", project_id=A), port["id"])
    assert seen.need == PortNeed(port_id=port["id"], groups=(
        PortGroup(name=BANDWIDTH, resources=group["resources"], traits=traits),
    ))
