"""QoS policies over the in-memory wiring: what bandwidth ports are guaranteed, and who serves it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
import test_network_api
from test_network_api import SERVER, Cloud

from kilonova.db import placement
from kilonova.db.placement.guarantees import provider_of_network
from kilonova.db.schema import API
from kilonova.db.upgrade import ensure
from kilonova.domain.network import (
    BANDWIDTH,
    BANDWIDTH_CLASSES,
    PACKET_RATE,
    PACKET_RATE_CLASSES,
    PACKET_RATE_TRAITS,
    PortGroup,
    PortNeed,
)
from kilonova.embedded.network import qos
from kilonova.hypervisor.guest import HostInventory, NetworkBandwidth, PacketRate
from kilonova.shapes.resources import groups_of_ports

cloud = test_network_api.cloud
INVENTORY = HostInventory(
    hostname="here", hypervisor_type="QEMU", hypervisor_version=7002022, vcpus=8, memory_mib=8704, local_gib=100,
    disk_available_gib=90, memory_free_mib=8000,
)
EGRESS, INGRESS, PACKETS = (*BANDWIDTH_CLASSES.values(), PACKET_RATE_CLASSES["any"])
LOCAL = ("CUSTOM_NETWORK_LOCAL_PROVIDER", "CUSTOM_VNIC_TYPE_NORMAL")
PROVIDER, FORWARDER = "77777777-7777-4777-8777-777777777777", "78787878-7878-4878-8878-787878787878"


async def policy(cloud: Cloud, *, shared: bool = True, kpps: int = 0, **rules: int) -> Any:
    body = await cloud.admin.call("POST", "/qos/policies", 201, {"policy": {"name": "gold", "shared": shared}})
    made = body["policy"]
    for direction, kbps in rules.items():
        await rule(cloud, made["id"], direction=direction, min_kbps=kbps)
    if kpps:
        await packet_rule(cloud, made["id"], direction="any", min_kpps=kpps)
    return (await cloud.admin.get(f"/qos/policies/{made['id']}"))["policy"]


async def rule(cloud: Cloud, policy_id: str, status: int = 201, **fields: Any) -> Any:
    path = f"/qos/policies/{policy_id}/minimum_bandwidth_rules"
    body = await cloud.admin.call("POST", path, status, {"minimum_bandwidth_rule": fields})
    return body["minimum_bandwidth_rule"] if status == 201 else body["NeutronError"]["type"]


async def packet_rule(cloud: Cloud, policy_id: str, status: int = 201, **fields: Any) -> Any:
    path = f"/qos/policies/{policy_id}/minimum_packet_rate_rules"
    body = await cloud.admin.call("POST", path, status, {"minimum_packet_rate_rule": fields})
    return body["minimum_packet_rate_rule"] if status == 201 else body["NeutronError"]["type"]


async def test_policies_and_their_rules(cloud: Cloud) -> None:
    made = await policy(cloud, egress=1000, ingress=2000)
    assert {(r["direction"], r["min_kbps"], r["type"]) for r in made["rules"]} == {
        ("egress", 1000, "minimum_bandwidth"), ("ingress", 2000, "minimum_bandwidth")}
    path = f"/qos/policies/{made['id']}"
    assert (await cloud.a.get(path))["policy"]["name"] == "gold"
    found = (await cloud.a.get(f"{path}/minimum_bandwidth_rules"))["minimum_bandwidth_rules"]
    one = found[0]
    assert (await cloud.a.get(f"{path}/minimum_bandwidth_rules/{one['id']}"))["minimum_bandwidth_rule"] == one
    body = {"minimum_bandwidth_rule": {"min_kbps": 5}}
    changed = await cloud.admin.call("PUT", f"{path}/minimum_bandwidth_rules/{one['id']}", 200, body)
    assert changed["minimum_bandwidth_rule"] == one | {"min_kbps": 5}
    assert await rule(cloud, made["id"], 409, direction="egress", min_kbps=1) == "QosRuleConflict"
    assert await rule(cloud, made["id"], 400, direction="up", min_kbps=1) == "InvalidInput"
    assert await rule(cloud, made["id"], 400, direction="ingress", min_kbps=-1) == "InvalidInput"
    await cloud.admin.delete(f"{path}/minimum_bandwidth_rules/{one['id']}")
    await cloud.admin.get(f"{path}/minimum_bandwidth_rules/{one['id']}", 404)
    body = {"policy": {"name": "silver"}}
    assert (await cloud.admin.call("PUT", path, 200, body))["policy"]["name"] == "silver"
    assert (await cloud.a.get("/qos/rule-types"))["rule_types"] == [
        {"type": "minimum_bandwidth"}, {"type": "minimum_packet_rate"}]
    await cloud.admin.delete(path)
    await cloud.a.get(path, 404)


async def test_rules_of_packet_rates(cloud: Cloud) -> None:
    extensions = {found["alias"] for found in (await cloud.a.get("/extensions"))["extensions"]}
    assert extensions >= {"qos-pps-minimum", "qos-pps-minimum-rule-alias", "port-resource-request-groups"}
    made = await policy(cloud, egress=1000, kpps=50)
    (one,) = [found for found in made["rules"] if found["type"] == "minimum_packet_rate"]
    assert (one["direction"], one["min_kpps"], one["qos_policy_id"]) == ("any", 50, made["id"])
    shown = {name: one[name] for name in ("id", "direction", "min_kpps")}
    path = f"/qos/policies/{made['id']}/minimum_packet_rate_rules"
    assert (await cloud.a.get(path))["minimum_packet_rate_rules"] == [shown]
    # One that is for both directions and one for a direction cannot be told from each other.
    assert await packet_rule(cloud, made["id"], 409, direction="any", min_kpps=1) == "QosRuleConflict"
    assert await packet_rule(cloud, made["id"], 409, direction="egress", min_kpps=1) == "QosRuleConflict"
    body: Any = {"minimum_packet_rate_rule": {"direction": "ingress", "min_kpps": 5}}
    changed = await cloud.admin.call("PUT", f"{path}/{one['id']}", 200, body)
    assert changed["minimum_packet_rate_rule"] == {"id": one["id"], "direction": "ingress", "min_kpps": 5}
    other = await packet_rule(cloud, made["id"], min_kpps=7)
    assert other["direction"] == "egress"
    assert await packet_rule(cloud, made["id"], 409, direction="any", min_kpps=1) == "QosRuleConflict"
    assert await packet_rule(cloud, made["id"], 400, direction="up", min_kpps=1) == "InvalidInput"
    assert await packet_rule(cloud, made["id"], 400, direction="any", min_kpps=-1) == "InvalidInput"
    assert await packet_rule(cloud, made["id"], 400, direction="any", min_kbps=1) == "InvalidInput"
    # A rule is of its type, under whichever path.
    await cloud.a.get(f"/qos/policies/{made['id']}/minimum_bandwidth_rules/{one['id']}", 404)
    await cloud.a.get(f"/qos/alias_minimum_bandwidth_rules/{one['id']}", 404)
    alias = f"/qos/alias_minimum_packet_rate_rules/{one['id']}"
    body = {"alias_minimum_packet_rate_rule": {"min_kpps": 6}}
    assert (await cloud.admin.call("PUT", alias, 200, body))["alias_minimum_packet_rate_rule"]["min_kpps"] == 6
    assert (await cloud.a.get(alias))["alias_minimum_packet_rate_rule"] == {
        "id": one["id"], "direction": "ingress", "min_kpps": 6}
    await cloud.a.delete(alias, 403)
    await cloud.admin.delete(alias)
    await cloud.a.get(alias, 404)
    assert (await cloud.a.get(path))["minimum_packet_rate_rules"] == [other]


async def test_administrators_make_policies_and_projects_use_those_that_are_shared(cloud: Cloud) -> None:
    own, shared = await policy(cloud, shared=False), await policy(cloud)
    assert [found["id"] for found in (await cloud.a.get("/qos/policies"))["policies"]] == [shared["id"]]
    await cloud.a.get(f"/qos/policies/{own['id']}", 404)
    await cloud.a.call("POST", "/qos/policies", 403, {"policy": {"name": "mine"}})
    await cloud.a.delete(f"/qos/policies/{shared['id']}", 403)
    network = await cloud.a.make("network")
    assert network["qos_policy_id"] is None
    assert await cloud.a.make("port", 404, network_id=network["id"], qos_policy_id=own["id"]) == "QosPolicyNotFound"
    port = await cloud.a.make("port", network_id=network["id"], qos_policy_id=shared["id"])
    assert (port["qos_policy_id"], port["qos_network_policy_id"], "resource_request" in port) == (
        shared["id"], None, False)
    assert await cloud.admin.delete(f"/qos/policies/{shared['id']}", 409) == "QosPolicyInUse"
    await cloud.a.delete(f"/ports/{port['id']}")
    await cloud.admin.delete(f"/qos/policies/{shared['id']}")


@pytest.mark.spec("EMP-08")
async def test_what_a_port_asks_for_and_who_serves_it(cloud: Cloud) -> None:
    gold, network = await policy(cloud, egress=1000, ingress=2000, kpps=50), await cloud.a.make("network")
    port = await cloud.a.make("port", network_id=network["id"], qos_policy_id=gold["id"])
    wanted = {"NET_BW_EGR_KILOBIT_PER_SEC": 1000, "NET_BW_IGR_KILOBIT_PER_SEC": 2000}
    path = f"/ports/{port['id']}"
    group, packets = qos.group_of(port["id"], BANDWIDTH), qos.group_of(port["id"], PACKET_RATE)
    assert (await cloud.admin.get(path))["port"]["resource_request"] == {
        "request_groups": [
            {"id": group, "required": list(LOCAL), "resources": wanted},
            {"id": packets, "required": ["CUSTOM_VNIC_TYPE_NORMAL"],
             "resources": {"NET_PACKET_RATE_KILOPACKET_PER_SEC": 50}},
        ],
        "same_subtree": [group, packets],
    }
    await cloud.network.bind_port(port["id"], SERVER, "here")
    (seen,) = await cloud.network.ports_of(SERVER)
    assert seen.need == PortNeed(port_id=port["id"], groups=(
        PortGroup(name=BANDWIDTH, resources=wanted, traits=LOCAL),
        PortGroup(name=PACKET_RATE, resources={PACKETS: 50}, traits=PACKET_RATE_TRAITS),
    ))
    serving = {BANDWIDTH: PROVIDER, PACKET_RATE: FORWARDER}
    named = {"allocation": {group: PROVIDER, packets: FORWARDER}}
    for _ in range(2):
        await cloud.network.serve_ports(SERVER, {port["id"]: serving, "another": serving}, {})
        assert (await cloud.admin.get(path))["port"]["binding:profile"] == named
    (vif,) = await cloud.network.vifs(SERVER)
    assert vif.profile == named
    assert await packet_rule(cloud, gold["id"], 409, direction="any", min_kpps=1) == "QosRuleConflict"
    # What is claimed for a bound port follows its policy, but not the rules of that, so they stay.
    assert await rule(cloud, gold["id"], 409, direction="egress", min_kbps=1) == "QosRuleConflict"
    await cloud.network.unbind_port(port["id"], SERVER)
    assert (await cloud.admin.get(path))["port"]["binding:profile"] == {}
    assert (await cloud.a.put("port", port["id"], qos_policy_id=None))["qos_policy_id"] is None
    assert (await cloud.admin.get(path))["port"]["resource_request"] is None


@pytest.mark.spec("EMP-08")
async def test_what_is_claimed_for_the_port_of_a_server_follows_its_policy(cloud: Cloud) -> None:
    database = cloud.network._database
    small, large = await policy(cloud, egress=300, ingress=300, kpps=30), await policy(cloud, egress=600, kpps=60)
    huge, network = await policy(cloud, egress=1, kpps=101), await cloud.a.make("network")
    plain = await policy(cloud, egress=600)
    port = await cloud.a.make("port", network_id=network["id"], qos_policy_id=small["id"])
    bare = await cloud.a.make("port", network_id=network["id"])
    path = f"/ports/{port['id']}"
    wanted = PortNeed(port_id=port["id"], groups=(
        PortGroup(name=BANDWIDTH, resources={EGRESS: 300, INGRESS: 300}, traits=LOCAL),
        PortGroup(name=PACKET_RATE, resources={PACKETS: 30}, traits=PACKET_RATE_TRAITS),
    ))

    def claim(conn: sa.Connection, consumer: str) -> str:
        carries = NetworkBandwidth(egress_kbps=1000, ingress_kbps=1000)
        inventory = msgspec.structs.replace(INVENTORY, bandwidths=(carries,), packet_rate=PacketRate(kpps=100))
        root = placement.report(conn, "here", "here", inventory, now=1.0)
        groups = groups_of_ports([wanted])
        assert placement.claim(conn, consumer, root, {"VCPU": 1}, "p", "u", groups=groups, isolate=False)
        return provider_of_network(root)

    async def claimed() -> dict[str, int]:
        found = await database.read(lambda conn: placement.holdings(conn, SERVER))
        return {name: n for one in found for name, n in one.resources.items() if name != "VCPU"}

    async def allocation() -> dict[str, Any]:
        profile: dict[str, Any] = (await cloud.admin.get(path))["port"]["binding:profile"]
        return profile

    await ensure(database, API)
    provider = await database.write(lambda conn: claim(conn, SERVER))
    for one in (port, bare):
        await cloud.network.bind_port(one["id"], SERVER, "here")
    await cloud.network.serve_ports(SERVER, {port["id"]: dict.fromkeys((BANDWIDTH, PACKET_RATE), provider)}, {})
    bound = await allocation()
    assert list(bound["allocation"].values()) == [provider, provider]
    assert (await cloud.a.put("port", port["id"], qos_policy_id=large["id"]))["qos_policy_id"] == large["id"]
    assert (await claimed(), await allocation()) == ({EGRESS: 600, PACKETS: 60}, bound)
    assert await cloud.a.put("port", port["id"], 409, qos_policy_id=huge["id"]) == "QosRuleConflict"
    assert (await cloud.a.get(path))["port"]["qos_policy_id"] == large["id"]
    await cloud.a.put("port", bare["id"], qos_policy_id=small["id"])  # had no claim, and gets none
    assert await claimed() == {EGRESS: 600, PACKETS: 60}
    await database.write(lambda conn: claim(conn, "44444444-4444-4444-8444-444444444444"))  # of its migration
    assert await cloud.a.put("port", port["id"], 409, qos_policy_id=small["id"]) == "QosRuleConflict"
    await database.write(lambda conn: placement.release(conn, "44444444-4444-4444-8444-444444444444"))
    await cloud.a.put("port", port["id"], qos_policy_id=plain["id"])
    assert (await claimed(), len((await allocation())["allocation"])) == ({EGRESS: 600}, 1)
    await cloud.a.put("port", port["id"], qos_policy_id=large["id"])  # had no packet rate, and gets none
    assert (await claimed(), len((await allocation())["allocation"])) == ({EGRESS: 600}, 1)
    await cloud.a.put("port", port["id"], qos_policy_id=None)
    assert (await claimed(), await allocation()) == ({}, {})


async def test_ports_have_the_policy_of_their_network_unless_they_have_their_own(cloud: Cloud) -> None:
    gold, plain = await policy(cloud, egress=1000), await policy(cloud)
    network = await cloud.a.make("network", qos_policy_id=gold["id"])
    assert network["qos_policy_id"] == gold["id"]
    port = await cloud.a.make("port", network_id=network["id"])
    assert (port["qos_policy_id"], port["qos_network_policy_id"]) == (None, gold["id"])
    await cloud.network.bind_port(port["id"], SERVER, "here")
    (seen,) = await cloud.network.ports_of(SERVER)
    assert seen.need is not None
    assert await cloud.a.put("network", network["id"], 409, qos_policy_id=None) == "QosRuleConflict"
    await cloud.network.unbind_port(port["id"], SERVER)
    await cloud.a.put("port", port["id"], qos_policy_id=plain["id"])
    await cloud.network.bind_port(port["id"], SERVER, "here")
    (seen,) = await cloud.network.ports_of(SERVER)
    assert seen.need is None
    assert (await cloud.a.put("network", network["id"], 200, name="x"))["qos_policy_id"] == gold["id"]
    await cloud.network.unbind_port(port["id"], SERVER)
    await cloud.a.delete(f"/ports/{port['id']}")
    await cloud.a.delete(f"/networks/{network['id']}")
    await cloud.admin.delete(f"/qos/policies/{gold['id']}")
