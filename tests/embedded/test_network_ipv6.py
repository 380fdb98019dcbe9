"""IPv6 subnets, their addresses and the ports that get them, over HTTP and the in-memory wiring."""

from ipaddress import IPv6Address
from typing import Any

import pytest
import test_network_api
from test_network_api import Cloud
from test_network_routers import external

cloud = test_network_api.cloud
MODES = ("slaac", "dhcpv6-stateful", "dhcpv6-stateless")
MAC = "fa:16:3e:00:00:01"
BUILT = "f816:3eff:fe00:1"
"""What a guest with that MAC puts behind the range."""


async def network(cloud: Cloud, *subnets: dict[str, Any]) -> tuple[str, list[str]]:
    """A network of project A with these subnets; their ids."""
    made = await cloud.a.make("network")
    return made["id"], [(await cloud.a.make("subnet", network_id=made["id"], **fields))["id"] for fields in subnets]


def six(cidr: str = "fd00:1::/64", mode: str | None = "slaac", **fields: Any) -> dict[str, Any]:
    return {"ip_version": 6, "cidr": cidr, "ipv6_ra_mode": mode, "ipv6_address_mode": mode, **fields}


FOUR = {"ip_version": 4, "cidr": "10.1.0.0/24"}


def addresses(port: dict[str, Any]) -> list[str]:
    return [item["ip_address"] for item in port["fixed_ips"]]


@pytest.mark.spec("EMN-05", "EMN-08")
async def test_subnets_of_ipv6_have_gateway_pool_and_modes(cloud: Cloud) -> None:
    net, (subnet,) = await network(cloud, six("2001:DB8:0:1::5/64", "dhcpv6-stateful"))
    shown = (await cloud.a.get(f"/subnets/{subnet}"))["subnet"]
    assert (shown["cidr"], shown["gateway_ip"], shown["ip_version"]) == ("2001:db8:0:1::/64", "2001:db8:0:1::1", 6)
    assert shown["ipv6_ra_mode"] == shown["ipv6_address_mode"] == "dhcpv6-stateful"
    assert shown["allocation_pools"] == [{"start": "2001:db8:0:1::2", "end": "2001:db8:0:1:ffff:ffff:ffff:ffff"}]
    plain = await cloud.a.make("subnet", network_id=net, **six("fd00:2::/48", None, enable_dhcp=False, gateway_ip=None))
    assert (plain["ipv6_ra_mode"], plain["ipv6_address_mode"], plain["gateway_ip"]) == (None, None, None)
    found = (await cloud.a.get("/subnets?ip_version=6&ipv6_ra_mode=dhcpv6-stateful"))["subnets"]
    assert [item["id"] for item in found] == [subnet]
    changed = await cloud.a.put("subnet", subnet, dns_nameservers=["2001:DB8::53"], gateway_ip=None)
    assert (changed["dns_nameservers"], changed["gateway_ip"]) == (["2001:db8::53"], None)
    await cloud.a.put("subnet", subnet, 400, ipv6_ra_mode="slaac")
    await cloud.a.put("subnet", subnet, 400, enable_dhcp=False)


@pytest.mark.spec("EMN-06", "EMN-08")
async def test_what_contradicts_itself_is_refused(cloud: Cloud) -> None:
    net, _ = await network(cloud, six())

    async def refused(**fields: Any) -> str:
        body = await cloud.a.call("POST", "/subnets", 400, {"subnet": {"network_id": net, **fields}})
        assert body["NeutronError"]["type"] == "InvalidInput"
        return str(body["NeutronError"]["message"])

    assert "overlaps with another subnet" in await refused(**six("fd00:1::/80", None))
    assert "must be the same value" in await refused(
        ip_version=6, cidr="fd00:3::/64", ipv6_ra_mode="slaac", ipv6_address_mode="dhcpv6-stateful")
    assert "requires the prefix to be /64" in await refused(**six("fd00:3::/80"))
    assert "when ip_version is 4" in await refused(**FOUR, ipv6_ra_mode="slaac")
    assert "enable_dhcp" in await refused(**six("fd00:3::/64"), enable_dhcp=False)
    assert "is not in" in await refused(**six("fd00:3::/64", "dhcp"))
    assert "does not match" in await refused(ip_version=6, cidr="10.3.0.0/24")
    assert "does not match" in await refused(ip_version=4, cidr="fd00:3::/64")
    for cidr in ("fe80::/64", "ff00::/64", "::/64", "fd00::/8", "fd00::1/128", "::1/127"):
        await refused(**six(cidr, None))
    await refused(**six("fd00:3::/64", None), gateway_ip="fd00:4::1")
    await refused(**six("fd00:3::/64", None), allocation_pools=[{"start": "fd00:4::1", "end": "fd00:4::2"}])
    await cloud.a.put("network", net, 400, mtu=1279)
    small = await cloud.a.make("network", mtu=1000)
    await cloud.a.make("subnet", 400, network_id=small["id"], **six())


@pytest.mark.spec("EMN-08")
async def test_a_port_gets_an_address_of_each_version_and_all_that_it_builds(cloud: Cloud) -> None:
    net, (v4, leased, built, more) = await network(
        cloud, FOUR, six("fd00:1::/64", "dhcpv6-stateful"), six("fd00:2::/64"), six("fd00:3::/64", "dhcpv6-stateless"))
    port = await cloud.a.make("port", network_id=net, mac_address=MAC)
    assert [item["subnet_id"] for item in port["fixed_ips"]] == [v4, leased, built, more]
    assert addresses(port)[2:] == [f"fd00:2::{BUILT}", f"fd00:3::{BUILT}"]
    assert IPv6Address(addresses(port)[1]) in {IPv6Address(f"fd00:1::{last}") for last in range(2, 6)}
    named = [item["hostname"] for item in port["dns_assignment"]]
    assert named[2] == "host-fd00-2--f816-3eff-fe00-1"
    chosen = await cloud.a.make("port", network_id=net, mac_address="fa:16:3e:00:00:02",
                                fixed_ips=[{"ip_address": "FD00:1::77"}])
    assert addresses(chosen) == ["fd00:1::77", "fd00:2::f816:3eff:fe00:2", "fd00:3::f816:3eff:fe00:2"]
    assert await cloud.a.make("port", 409, network_id=net, fixed_ips=[{"ip_address": "fd00:1::77"}]) == \
        "IpAddressAlreadyAllocated"
    await cloud.a.make("port", 400, network_id=net, fixed_ips=[{"subnet_id": built, "ip_address": "fd00:2::77"}])
    assert addresses(await cloud.a.make("port", network_id=net, fixed_ips=[])) == []
    found = (await cloud.a.get("/ports?fixed_ips=ip_address%3Dfd00:1::77"))["ports"]
    assert [item["id"] for item in found] == [chosen["id"]]
    changed = await cloud.a.put("port", chosen["id"], fixed_ips=[{"subnet_id": leased}, {"subnet_id": built}])
    assert addresses(changed) == addresses(chosen)[:2]
    moved = await cloud.admin.put("port", chosen["id"], mac_address="fa:16:3e:00:00:03")
    assert addresses(moved) == ["fd00:1::77", "fd00:2::f816:3eff:fe00:3"]


@pytest.mark.spec("EMN-08", "EMN-09")
async def test_ports_get_and_lose_what_they_build_with_its_subnet(cloud: Cloud) -> None:
    net, (v4,) = await network(cloud, FOUR)
    port = await cloud.a.make("port", network_id=net, mac_address=MAC)
    made = await cloud.a.make("subnet", network_id=net, **six())
    shown = (await cloud.a.get(f"/ports/{port['id']}"))["port"]
    assert addresses(shown) == [*addresses(port), f"fd00:1::{BUILT}"]
    await cloud.a.delete(f"/subnets/{made['id']}")
    assert addresses((await cloud.a.get(f"/ports/{port['id']}"))["port"]) == addresses(port)
    leased = await cloud.a.make("subnet", network_id=net, **six("fd00:2::/64", "dhcpv6-stateful"))
    await cloud.a.make("port", network_id=net, fixed_ips=[{"subnet_id": leased["id"]}])
    assert await cloud.a.delete(f"/subnets/{leased['id']}", 409) == "SubnetInUse"
    assert await cloud.a.delete(f"/subnets/{v4}", 409) == "SubnetInUse"


@pytest.mark.spec("EMN-05")
async def test_pools_of_ipv6_are_used_in_turn_and_run_out(cloud: Cloud) -> None:
    pool = [{"start": "fd00:1::ff:ffff:ffff:fffe", "end": "fd00:1::100:0:0:0"}]
    net, _ = await network(cloud, six(mode=None, enable_dhcp=False, allocation_pools=pool))
    taken = [addresses(await cloud.a.make("port", network_id=net))[0] for _ in range(3)]
    assert taken == ["fd00:1::ff:ffff:ffff:fffe", "fd00:1::ff:ffff:ffff:ffff", "fd00:1:0:0:100::"]
    assert await cloud.a.make("port", 409, network_id=net) == "IpAddressGenerationFailure"


@pytest.mark.spec("EMN-10", "EMN-51")
async def test_routers_join_both_versions_and_floating_ips_are_of_ipv4(cloud: Cloud) -> None:
    outside, _ = await external(cloud)
    net, (v6, v4) = await network(cloud, six(), FOUR)
    router = await cloud.a.make("router", external_gateway_info={"network_id": outside})
    for subnet in (v6, v4):
        await cloud.a.call("PUT", f"/routers/{router['id']}/add_router_interface", 200, {"subnet_id": subnet})
    held = (await cloud.a.get(f"/ports?device_id={router['id']}&device_owner=network:router_interface"))["ports"]
    assert sorted(addresses(port)[0] for port in held) == ["10.1.0.1", "fd00:1::1"]
    (plan,) = cloud.wiring.routed
    assert (plan.network_ids, plan.network_ids_v6) == ((net,), (net,))
    port = await cloud.a.make("port", network_id=net, mac_address=MAC)
    floating = await cloud.a.make("floatingip", floating_network_id=outside, port_id=port["id"])
    assert floating["fixed_ip_address"] == addresses(port)[0] and "." in addresses(port)[0]
    await cloud.a.make("floatingip", 400, floating_network_id=outside, port_id=port["id"],
                       fixed_ip_address=f"fd00:1::{BUILT}")
    await cloud.a.delete(f"/ports/{port['id']}")
    await cloud.a.call("PUT", f"/routers/{router['id']}/remove_router_interface", 200, {"subnet_id": v6})
    assert cloud.wiring.routed[0].network_ids_v6 == ()


async def test_address_pairs_may_be_of_ipv6(cloud: Cloud) -> None:
    net, _ = await network(cloud, six())
    pairs = [{"ip_address": "fd00:9::/64"}]
    port = await cloud.a.make("port", network_id=net, allowed_address_pairs=pairs)
    assert port["allowed_address_pairs"][0]["ip_address"] == "fd00:9::/64"
    await cloud.a.make("port", 400, network_id=net, allowed_address_pairs=[{"ip_address": "fd00:9::/129"}])
