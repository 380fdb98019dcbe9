"""Routers and floating IPs in the network API, over the in-memory wiring."""

from typing import Any

import pytest
import test_network_api
from test_network_api import SERVER, A, Api, Cloud, subnetted

from kilonova.embedded.network.wiring import FloatingPlan, RouterPlan

cloud = test_network_api.cloud


async def external(cloud: Cloud, cidr: str = "203.0.113.0/24") -> tuple[str, str]:
    """An external network of the administrator's; its id and its subnet's."""
    network = await cloud.admin.make("network", name="public", **{"router:external": True})
    subnet = await cloud.admin.make("subnet", network_id=network["id"], cidr=cidr, ip_version=4, enable_dhcp=False)
    return network["id"], subnet["id"]


async def join(api: Api, router: str, status: int = 200, **what: str) -> Any:
    body = await api.call("PUT", f"/routers/{router}/add_router_interface", status, what)
    return body if status == 200 else body["NeutronError"]["type"]


async def leave(api: Api, router: str, status: int = 200, **what: str) -> Any:
    body = await api.call("PUT", f"/routers/{router}/remove_router_interface", status, what)
    return body if status == 200 else body["NeutronError"]["type"]


async def routed(cloud: Cloud) -> tuple[str, str, str, str]:
    """A network behind a router with a gateway: public network, router, network, subnet."""
    public, _ = await external(cloud)
    router = await cloud.a.make("router", name="r", external_gateway_info={"network_id": public})
    network, subnet = await subnetted(cloud.a)
    await join(cloud.a, router["id"], subnet_id=subnet)
    return public, router["id"], network, subnet


async def server_port(cloud: Cloud, network: str) -> Any:
    port = await cloud.a.make("port", network_id=network, device_id=SERVER)
    return await cloud.nova.put("port", port["id"], device_owner="compute:nova", **{"binding:host_id": "here"})


@pytest.mark.spec("EMN-10", "EMN-11", "EMN-12")
async def test_a_router_joins_subnets(cloud: Cloud) -> None:
    network, subnet = await subnetted(cloud.a)
    router = await cloud.a.make("router", name="r")
    assert (router["status"], router["admin_state_up"], router["external_gateway_info"]) == ("ACTIVE", True, None)
    joined = await join(cloud.a, router["id"], subnet_id=subnet)
    assert joined == {"id": router["id"], "project_id": A, "tenant_id": A, "subnet_id": subnet,
                      "subnet_ids": [subnet], "port_id": joined["port_id"], "network_id": network}
    port = (await cloud.a.get(f"/ports/{joined['port_id']}"))["port"]
    assert (port["device_owner"], port["device_id"]) == ("network:router_interface", router["id"])
    assert port["fixed_ips"] == [{"subnet_id": subnet, "ip_address": "10.1.0.1"}]
    assert await cloud.a.delete(f"/ports/{port['id']}", 409) == "ServicePortInUse"
    assert await join(cloud.a, router["id"], 400, subnet_id=subnet) == "InvalidInput"
    _, overlapping = await subnetted(cloud.a, "10.1.0.128/25")
    assert await join(cloud.a, router["id"], 400, subnet_id=overlapping) == "InvalidInput"
    _, closed = await subnetted(cloud.a, "10.2.0.0/24", gateway_ip=None)
    assert await join(cloud.a, router["id"], 400, subnet_id=closed) == "InvalidInput"
    assert await join(cloud.a, router["id"], 400) == "InvalidInput"
    other, _ = await subnetted(cloud.a, "10.3.0.0/24")
    own = await cloud.a.make("port", network_id=other)
    by_port = await join(cloud.a, router["id"], port_id=own["id"])
    assert by_port["port_id"] == own["id"]
    assert await join(cloud.a, router["id"], 409, port_id=own["id"]) == "PortInUse"
    plan = cloud.wiring.routed[0]
    assert set(plan.network_ids) == {network, other}
    assert cloud.wiring.networks[other].answers_to == (own["fixed_ips"][0]["ip_address"],)
    assert await cloud.a.delete(f"/routers/{router['id']}", 409) == "RouterInUse"
    assert await cloud.a.delete(f"/subnets/{subnet}", 409) == "SubnetInUse"
    assert await leave(cloud.a, router["id"], 404, subnet_id=overlapping) == "RouterInterfaceNotFoundForSubnet"
    assert await leave(cloud.a, router["id"], 404, port_id=overlapping) == "RouterInterfaceNotFound"
    await leave(cloud.a, router["id"], subnet_id=subnet)
    await leave(cloud.a, router["id"], port_id=own["id"])
    await cloud.a.delete(f"/routers/{router['id']}")
    assert cloud.wiring.routed == ()
    await cloud.a.get(f"/routers/{router['id']}", 404)


@pytest.mark.spec("EMN-13", "EMN-14")
async def test_a_gateway(cloud: Cloud) -> None:
    public, outer = await external(cloud)
    inner, _ = await subnetted(cloud.a)
    router = await cloud.a.make("router", name="r")
    assert await cloud.a.put("router", router["id"], 400, external_gateway_info={"network_id": inner}) == "InvalidInput"
    changed = await cloud.a.put("router", router["id"], external_gateway_info={"network_id": public})
    address = {"subnet_id": outer, "ip_address": "203.0.113.2"}
    assert changed["external_gateway_info"] == {
        "network_id": public, "enable_snat": True, "external_fixed_ips": [address]}
    (port,) = (await cloud.admin.get(f"/ports?network_id={public}&device_owner=network:router_gateway"))["ports"]
    assert (port["project_id"], port["device_id"]) == ("", router["id"])
    assert (await cloud.a.get("/ports"))["ports"] == [
        port for port in (await cloud.a.get("/ports"))["ports"] if port["device_owner"] == "network:dhcp"]
    plan = RouterPlan(id=router["id"], network_ids=(), external_network_id=public, gateway="203.0.113.2")
    assert cloud.wiring.routed == (plan,)
    assert cloud.wiring.networks[public].answers_to == ("203.0.113.2",)
    await cloud.a.put("router", router["id"], external_gateway_info={"network_id": public, "enable_snat": False})
    assert cloud.wiring.routed[0].gateway == ""
    await cloud.a.put("router", router["id"], admin_state_up=False)
    assert not cloud.wiring.routed[0].works
    assert cloud.wiring.networks[public].answers_to == ()
    await cloud.a.put("router", router["id"], admin_state_up=True)
    assert cloud.wiring.networks[public].answers_to == ("203.0.113.2",)
    cleared = await cloud.a.put("router", router["id"], external_gateway_info={})
    assert cleared["external_gateway_info"] is None
    assert cloud.wiring.networks[public].answers_to == ()
    await cloud.admin.delete(f"/networks/{public}")


async def test_routers_of_others_are_not_seen(cloud: Cloud) -> None:
    router = await cloud.a.make("router", name="r")
    assert (await cloud.b.get("/routers"))["routers"] == []
    await cloud.b.get(f"/routers/{router['id']}", 404)
    assert await cloud.b.put("router", router["id"], 404, name="x") == "RouterNotFound"
    _, subnet = await subnetted(cloud.b)
    assert await join(cloud.a, router["id"], 404, subnet_id=subnet) == "SubnetNotFound"
    assert len((await cloud.admin.get(f"/routers?project_id={A}"))["routers"]) == 1


@pytest.mark.spec("EMN-18")
async def test_quotas_of_routers_and_floating_ips(cloud: Cloud) -> None:
    public, _ = await external(cloud)
    await cloud.admin.call("PUT", f"/quotas/{A}", 200, {"quota": {"router": 1, "floatingip": 1}})
    await cloud.a.make("router", name="r")
    assert await cloud.a.make("router", 409, name="r") == "OverQuota"
    await cloud.a.make("floatingip", floating_network_id=public)
    assert await cloud.a.make("floatingip", 409, floating_network_id=public) == "OverQuota"


@pytest.mark.spec("EMN-50", "EMN-58")
async def test_a_floating_ip_is_made_and_deleted(cloud: Cloud) -> None:
    public, _ = await external(cloud, "203.0.113.0/29")
    inner, _ = await subnetted(cloud.a)
    made = await cloud.a.make("floatingip", floating_network_id=public, description="mine")
    assert (made["status"], made["port_id"], made["router_id"], made["fixed_ip_address"], made["port_details"]) == (
        "DOWN", None, None, None, None)
    assert (made["floating_ip_address"], made["floating_network_id"]) == ("203.0.113.2", public)
    assert await cloud.a.make("floatingip", 400, floating_network_id=inner) == "InvalidInput"
    assert await cloud.a.make("floatingip", 404, floating_network_id=SERVER) == "NetworkNotFound"
    assert await cloud.a.make(
        "floatingip", 403, floating_network_id=public, floating_ip_address="203.0.113.6") == "PolicyNotAuthorized"
    chosen = await cloud.admin.make(
        "floatingip", floating_network_id=public, floating_ip_address="203.0.113.6", project_id=A)
    assert chosen["floating_ip_address"] == "203.0.113.6"
    for _ in range(3):
        await cloud.b.make("floatingip", floating_network_id=public)
    assert await cloud.a.make("floatingip", 409, floating_network_id=public) == "IpAddressGenerationFailure"
    assert await cloud.admin.delete(f"/networks/{public}", 409) == "NetworkInUse"
    await cloud.b.get(f"/floatingips/{made['id']}", 404)
    await cloud.a.delete(f"/floatingips/{made['id']}")
    again = await cloud.a.make("floatingip", floating_network_id=public)
    assert again["floating_ip_address"] == made["floating_ip_address"]


@pytest.mark.spec("EMN-51", "EMN-52", "EMN-53", "EMN-55")
async def test_a_floating_ip_follows_its_port(cloud: Cloud) -> None:
    public, router, network, _ = await routed(cloud)
    port, other = await server_port(cloud, network), await server_port(cloud, network)
    made = await cloud.a.make("floatingip", floating_network_id=public, port_id=port["id"])
    fixed = port["fixed_ips"][0]["ip_address"]
    assert (made["status"], made["router_id"], made["fixed_ip_address"]) == ("ACTIVE", router, fixed)
    assert made["port_details"]["device_id"] == SERVER
    assert made["port_details"]["mac_address"] == port["mac_address"]
    await changed(cloud, port["id"])
    floating = FloatingPlan(made["floating_ip_address"], network, fixed)
    assert cloud.wiring.routed[0].floating == (floating,)
    assert made["floating_ip_address"] in cloud.wiring.networks[public].answers_to
    second = await cloud.a.make("floatingip", floating_network_id=public)
    assert await cloud.a.put("floatingip", second["id"], 409, port_id=port["id"]) == "FloatingIPPortAlreadyAssociated"
    moved = await cloud.a.put("floatingip", made["id"], port_id=other["id"])
    assert moved["fixed_ip_address"] == other["fixed_ips"][0]["ip_address"]
    await changed(cloud, port["id"], other["id"])
    assert await cloud.a.call(
        "PUT", f"/routers/{router}", 409, {"router": {"external_gateway_info": {}}}) is not None
    subnet = port["fixed_ips"][0]["subnet_id"]
    assert await leave(cloud.a, router, 409, subnet_id=subnet) == "RouterInterfaceInUseByFloatingIP"
    freed = await cloud.a.put("floatingip", made["id"], port_id=None)
    assert (freed["status"], freed["router_id"], freed["port_id"]) == ("DOWN", None, None)
    await changed(cloud, other["id"])
    assert cloud.wiring.routed[0].floating == ()
    await cloud.a.put("floatingip", made["id"], port_id=other["id"])
    await cloud.a.delete(f"/ports/{other['id']}")
    assert (await cloud.a.get(f"/floatingips/{made['id']}"))["floatingip"]["status"] == "DOWN"
    assert cloud.wiring.routed[0].floating == ()
    await leave(cloud.a, router, subnet_id=subnet)


async def changed(cloud: Cloud, *ports: str) -> None:
    """The compute service hears of these ports next, in any order; what else it hears is of no matter here."""
    waiting = set(ports)
    while waiting:
        name, port = await cloud.event()
        if name == "network-changed":
            waiting.remove(port)


@pytest.mark.spec("EMN-51", "EMN-53")
async def test_where_a_floating_ip_cannot_go(cloud: Cloud) -> None:
    public, _, network, _ = await routed(cloud)
    made = await cloud.a.make("floatingip", floating_network_id=public)
    lonely, _ = await subnetted(cloud.a, "10.9.0.0/24")
    far = await cloud.a.make("port", network_id=lonely)
    assert await cloud.a.put("floatingip", made["id"], 404, port_id=far["id"]) == "ExternalGatewayForFloatingIPNotFound"
    bare = await cloud.a.make("port", network_id=network, fixed_ips=[])
    assert await cloud.a.put("floatingip", made["id"], 400, port_id=bare["id"]) == "InvalidInput"
    port = await cloud.a.make("port", network_id=network)
    assert await cloud.a.put(
        "floatingip", made["id"], 400, port_id=port["id"], fixed_ip_address="10.1.0.200") == "InvalidInput"
    assert await cloud.a.put("floatingip", made["id"], 404, port_id=SERVER) == "PortNotFound"
    await cloud.a.put("floatingip", made["id"], port_id=port["id"])
    await cloud.a.put("port", port["id"], fixed_ips=[{"ip_address": "10.1.0.201"}])
    assert (await cloud.a.get(f"/floatingips/{made['id']}"))["floatingip"]["status"] == "DOWN"


@pytest.mark.spec("EMN-54")
async def test_filters_of_floating_ips(cloud: Cloud) -> None:
    public, router, network, _ = await routed(cloud)
    port = await cloud.a.make("port", network_id=network)
    made = await cloud.a.make("floatingip", floating_network_id=public, port_id=port["id"])
    await cloud.a.make("floatingip", floating_network_id=public)
    await cloud.b.make("floatingip", floating_network_id=public)
    for query in (
        f"floating_ip_address={made['floating_ip_address']}", f"router_id={router}", f"port_id={port['id']}",
        f"port_id={port['id']}&fixed_ip_address={made['fixed_ip_address']}", f"id={made['id']}",
    ):
        assert [one["id"] for one in (await cloud.nova.get(f"/floatingips?{query}"))["floatingips"]] == [made["id"]]
    assert len((await cloud.nova.get(f"/floatingips?tenant_id={A}"))["floatingips"]) == 2
    assert (await cloud.nova.get(f"/floatingips?port_id={port['id']}&fixed_ip_address=10.1.0.99"))["floatingips"] == []


async def test_tags_of_routers_and_floating_ips(cloud: Cloud) -> None:
    public, router, _, _ = await routed(cloud)
    made = await cloud.a.make("floatingip", floating_network_id=public)
    for path in (f"/routers/{router}", f"/floatingips/{made['id']}"):
        await cloud.a.call("PUT", f"{path}/tags/blue", 201)
        assert (await cloud.a.get(f"{path}/tags"))["tags"] == ["blue"]


@pytest.mark.spec("EMN-17")
async def test_thirty_sets_of_a_network_and_a_router_exist_at_once_and_go(cloud: Cloud) -> None:
    public, _ = await external(cloud)
    admin, sets = cloud.admin, []
    for number in range(30):
        project = f"{number:032x}"
        network = await admin.make("network", name="n", project_id=project)
        cidr = f"10.100.{number // 16}.{number % 16 * 16}/28"
        subnet = await admin.make(
            "subnet", network_id=network["id"], project_id=project, cidr=cidr, ip_version=4)
        gateway = {"network_id": public}
        router = await admin.make("router", name="r", project_id=project, external_gateway_info=gateway)
        await join(admin, router["id"], subnet_id=subnet["id"])
        sets.append((project, network["id"], subnet["id"], router["id"]))
    assert len(cloud.wiring.routed) == 30
    assert len({plan.gateway for plan in cloud.wiring.routed}) == 30
    for project, network_id, subnet_id, router_id in sets:
        await leave(admin, router_id, subnet_id=subnet_id)
        await admin.delete(f"/routers/{router_id}")
        await admin.delete(f"/routers/{router_id}", 404)
        await admin.delete(f"/subnets/{subnet_id}")
        await admin.delete(f"/networks/{network_id}")
        for group in (await admin.get(f"/security-groups?project_id={project}&name=default"))["security_groups"]:
            await admin.delete(f"/security-groups/{group['id']}")
    assert cloud.wiring.routed == ()
    assert (await admin.get(f"/ports?network_id={public}"))["ports"] == []
