"""The HTTP side of the network service, over the in-memory wiring."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Retryable, Unauthorized
from kilonova.embedded.network.extensions import EXTENSIONS
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring
from kilonova.services.identity import Token

A, B = "a" * 32, "b" * 32
SERVER = "11111111-1111-4111-8111-111111111111"
NOWHERE = "99999999-9999-4999-8999-999999999999"


class Identity:
    async def validate(self, token: str, **_: Any) -> Token:
        people = {"admin": ("c" * 32, ("admin",)), "a": (A, ("member",)), "b": (B, ("member",)),
                  "nova": ("d" * 32, ("service",))}
        if token not in people:
            raise Unauthorized("no such token")
        project, roles = people[token]
        return Token(user_id=token, user_name=token, user_domain_id="default", project_id=project, roles=roles)

    async def project_exists(self, project_id: str) -> bool:
        return True


class Wiring(FakeWiring):
    def serves(self, host: str) -> bool:
        return host == "here"

    def refuses(self, cidr: str) -> str | None:
        return "is the machine's own" if cidr == "192.0.2.0/24" else None

    def wires(self, physical_network: str) -> bool:
        return physical_network == "wired"


class Api:
    """Calls as one caller; each checks the status it expects and gives the body."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self._client = client
        self._token = token

    async def call(self, method: str, path: str, status: int, body: Any = None) -> Any:
        answer = await self._client.request(method, f"/v2.0{path}", json=body, headers={"X-Auth-Token": self._token})
        assert answer.status_code == status, answer.text
        if status == 204:
            assert answer.content == b""
        return answer.json() if answer.content else None

    async def get(self, path: str, status: int = 200) -> Any:
        return await self.call("GET", path, status)

    async def make(self, kind: str, status: int = 201, **fields: Any) -> Any:
        """Create; gives the object, or the type of the error."""
        body = await self.call("POST", f"/{kind.replace('_', '-')}s", status, {kind: fields})
        return body[kind] if status == 201 else body["NeutronError"]["type"]

    async def put(self, kind: str, id_: str, status: int = 200, **fields: Any) -> Any:
        body = await self.call("PUT", f"/{kind.replace('_', '-')}s/{id_}", status, {kind: fields})
        return body[kind] if status == 200 else body["NeutronError"]["type"]

    async def delete(self, path: str, status: int = 204) -> Any:
        body = await self.call("DELETE", path, status)
        return body and body["NeutronError"]["type"]


class Cloud:
    def __init__(self, client: httpx.AsyncClient, events: "asyncio.Queue[tuple[str, str]]", wiring: Wiring,
                 network: EmbeddedNetwork) -> None:
        self.network = network
        self.client = client
        self.events = events
        self.wiring = wiring
        self.admin, self.a, self.b, self.nova = (Api(client, name) for name in ("admin", "a", "b", "nova"))

    async def event(self) -> tuple[str, str]:
        return await asyncio.wait_for(self.events.get(), 10)


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    database = Database.open("sqlite://")
    events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def on_event(name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        assert instance_uuid == SERVER and status == "completed"
        events.put_nowait((name, tag))

    wiring = Wiring()
    service = EmbeddedNetwork(database, SystemClock(), Identity(), "http://identity", wiring, on_event)
    await service.start()
    transport = httpx.ASGITransport(service.application())
    async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
        yield Cloud(client, events, wiring, service)
    await service.close()
    await database.close()


async def subnetted(api: Api, cidr: str = "10.1.0.0/24", **fields: Any) -> tuple[str, str]:
    """A network with a subnet; their ids."""
    network = await api.make("network", name="n")
    subnet = await api.make("subnet", network_id=network["id"], cidr=cidr, ip_version=4, **fields)
    return network["id"], subnet["id"]


@pytest.mark.spec("EMI-04", "EMI-15")
async def test_discovery_needs_no_token_and_all_else_does(cloud: Cloud) -> None:
    root = (await cloud.client.get("/")).json()
    assert root["versions"][0]["links"] == [{"href": "http://cloud/v2.0/", "rel": "self"}]
    assert (await cloud.client.get("/v2.0/")).status_code == 200
    refused = await cloud.client.get("/v2.0/networks")
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == 'Keystone uri="http://identity"'


@pytest.mark.spec("EMN-01")
async def test_extensions_are_those_that_work(cloud: Cloud) -> None:
    listed = {entry["alias"] for entry in (await cloud.a.get("/extensions"))["extensions"]}
    assert {"binding-extended", "security-group", "port-security", "quotas", "qos"} <= listed == set(EXTENSIONS)
    assert not {"extraroute", "segment", "trunk", "dhcp_agent_scheduler"} & listed
    assert (await cloud.a.get("/extensions/binding"))["extension"]["alias"] == "binding"
    assert (await cloud.a.get("/extensions/segment", 404))["NeutronError"]["type"] == "ExtensionNotFound"


@pytest.mark.spec("EMN-02", "EMN-03", "EMN-04", "EMI-05")
async def test_networks_belong_to_projects(cloud: Cloud) -> None:
    mine = await cloud.a.make("network", name="mine")
    assert (mine["status"], mine["shared"], mine["router:external"], mine["subnets"]) == ("ACTIVE", False, False, [])
    assert mine["project_id"] == mine["tenant_id"] == A and mine["port_security_enabled"] is True
    assert "provider:network_type" not in mine
    assert "segments" not in mine
    for forbidden in ({"shared": True}, {"router:external": True}):
        assert await cloud.a.make("network", 403, **forbidden) == "PolicyNotAuthorized"
        assert await cloud.a.put("network", mine["id"], 403, **forbidden) == "PolicyNotAuthorized"
    outside = await cloud.admin.make("network", name="outside", **{"router:external": True})
    assert outside["router:external"] is True
    await cloud.admin.delete(f"/networks/{outside['id']}")
    shared = await cloud.admin.make("network", name="all", shared=True, **{"provider:network_type": "local"})
    assert shared["provider:network_type"] == "local"
    assert await cloud.admin.make("network", 400, **{"provider:network_type": "vlan"}) == "InvalidInput"
    assert await cloud.a.make("network", 403, **{"provider:network_type": "local"}) == "PolicyNotAuthorized"
    ids = {network["id"] for network in (await cloud.b.get("/networks"))["networks"]}
    assert ids == {shared["id"]}
    assert (await cloud.b.get(f"/networks/{mine['id']}", 404))["NeutronError"]["type"] == "NetworkNotFound"
    assert await cloud.b.put("network", shared["id"], 403, name="x") == "PolicyNotAuthorized"


@pytest.mark.spec("EMI-09", "EMI-12", "EMI-07", "EMI-08")
async def test_lists_filter_sort_page_and_pick_fields(cloud: Cloud) -> None:
    names = ["n1", "n2", "n3", "n11"]
    made = {name: (await cloud.a.make("network", name=name))["id"] for name in names}
    assert [n["id"] for n in (await cloud.a.get("/networks?name=n1"))["networks"]] == [made["n1"]]
    assert (await cloud.a.get("/networks?admin_state_up=False"))["networks"] == []
    assert len((await cloud.a.get("/networks?nonsense=1"))["networks"]) == 4
    picked = (await cloud.a.get("/networks?name=n1&name=n2&fields=id&fields=name"))["networks"]
    assert [set(entry) for entry in picked] == [{"id", "name"}] * 2
    first = await cloud.a.get("/networks?sort_key=name&sort_dir=desc&limit=3&fields=name&fields=id")
    assert [n["name"] for n in first["networks"]] == ["n3", "n2", "n11"]
    (link,) = first["networks_links"]
    second = await cloud.a.get(link["href"].split("/v2.0")[1])
    assert [n["name"] for n in second["networks"]] == ["n1"]
    assert [entry["rel"] for entry in second["networks_links"]] == ["previous"]
    assert (await cloud.a.get(f"/networks?limit=2&marker={made['n11']}"))["networks"] == []
    await cloud.a.get(f"/networks?limit=2&marker={NOWHERE}", 404)
    await cloud.a.get("/networks/n1", 404)


@pytest.mark.spec("EMI-13", "EMI-06")
async def test_bad_bodies_are_refused(cloud: Cloud) -> None:
    body = await cloud.a.call("POST", "/networks", 400, {"network": {"colour": "red"}})
    assert body["NeutronError"]["message"] == "Unrecognized attribute(s) 'colour'"
    await cloud.a.call("POST", "/networks", 400, {"network": {"name": 5}})
    await cloud.a.call("POST", "/networks", 400, {"nets": {}})
    await cloud.a.call("POST", "/networks", 400, [])
    network, _ = await subnetted(cloud.a)
    await cloud.a.put("network", network, 400, project_id=B)


@pytest.mark.spec("EMN-05", "EMN-06", "EMN-07")
async def test_subnets_get_gateway_pool_and_dhcp_port(cloud: Cloud) -> None:
    network, subnet = await subnetted(cloud.a, "10.1.0.0/29")
    shown = (await cloud.a.get(f"/subnets/{subnet}"))["subnet"]
    assert shown["gateway_ip"] == "10.1.0.1"
    assert shown["allocation_pools"] == [{"start": "10.1.0.2", "end": "10.1.0.6"}]
    (dhcp,) = (await cloud.a.get(f"/ports?network_id={network}&device_owner=network:dhcp"))["ports"]
    assert dhcp["fixed_ips"][0]["subnet_id"] == subnet
    error = await cloud.a.call("POST", "/subnets", 400, {"subnet": {"network_id": network, "cidr": "10.1.0.0/30"}})
    assert "overlaps with another subnet" in error["NeutronError"]["message"]
    plain = await cloud.a.make("subnet", network_id=network, cidr="10.2.0.0/24", gateway_ip=None, enable_dhcp=False)
    assert plain["gateway_ip"] is None and plain["allocation_pools"][0]["start"] == "10.2.0.1"
    for cidr in ("10.3.0.0/33", "hello", "224.0.0.0/24", "127.0.0.0/24", "0.0.0.0/0", "fd00::/64"):
        await cloud.a.make("subnet", 400, network_id=network, cidr=cidr)
    assert await cloud.a.make("subnet", 400, network_id=network, cidr="192.0.2.0/24") == "InvalidInput"
    assert len((await cloud.a.get(f"/networks/{network}"))["network"]["subnets"]) == 2
    await cloud.a.put("subnet", subnet, enable_dhcp=False)
    assert (await cloud.a.get(f"/ports?network_id={network}"))["ports"] == []


@pytest.mark.spec("EMN-09")
async def test_what_is_in_use_cannot_be_deleted(cloud: Cloud) -> None:
    network, subnet = await subnetted(cloud.a)
    port = await cloud.a.make("port", network_id=network)
    assert await cloud.a.delete(f"/networks/{network}", 409) == "NetworkInUse"
    assert await cloud.a.delete(f"/subnets/{subnet}", 409) == "SubnetInUse"
    (dhcp,) = (await cloud.a.get("/ports?device_owner=network:dhcp"))["ports"]
    await cloud.a.delete(f"/ports/{dhcp['id']}")
    assert (await cloud.a.get("/ports?device_owner=network:dhcp"))["ports"] == [dhcp]
    await cloud.a.delete(f"/ports/{port['id']}")
    assert await cloud.a.delete(f"/ports/{port['id']}", 404) == "PortNotFound"
    await cloud.a.delete(f"/networks/{network}")
    assert await cloud.a.delete(f"/subnets/{subnet}", 404) == "SubnetNotFound"


@pytest.mark.spec("EMN-20")
async def test_addresses_and_macs_are_checked_and_unique(cloud: Cloud) -> None:
    network, subnet = await subnetted(cloud.a, "10.1.0.0/29")
    other, foreign = await subnetted(cloud.a, "10.9.0.0/29")
    taken = await cloud.a.make("port", network_id=network, fixed_ips=[{"ip_address": "10.1.0.5"}],
                               mac_address="fa:16:3e:00:00:01")
    assert taken["fixed_ips"] == [{"subnet_id": subnet, "ip_address": "10.1.0.5"}]

    async def refused(status: int, **fields: Any) -> Any:
        return await cloud.a.make("port", status, network_id=network, **fields)

    assert await refused(409, fixed_ips=[{"ip_address": "10.1.0.5"}]) == "IpAddressAlreadyAllocated"
    assert await refused(400, fixed_ips=[{"ip_address": "10.9.0.5"}]) == "InvalidIpForNetwork"
    assert await refused(400, fixed_ips=[{"subnet_id": subnet, "ip_address": "10.9.0.5"}]) == "InvalidIpForSubnet"
    assert await refused(400, fixed_ips=[{"subnet_id": foreign}]) == "InvalidInput"
    assert await refused(409, mac_address="FA:16:3E:00:00:01") == "MacAddressInUse"
    assert await refused(400, mac_address="01:00:5e:00:00:01") == "InvalidInput"
    for _ in range(3):
        await cloud.a.make("port", network_id=network)
    assert await refused(409) == "IpAddressGenerationFailure"
    assert await cloud.a.make("port", 404, network_id=other, security_groups=[NOWHERE]) == "SecurityGroupNotFound"
    assert await cloud.a.make("port", 404, network_id=NOWHERE) == "NetworkNotFound"
    assert (await cloud.a.make("port", network_id=other, fixed_ips=[]))["fixed_ips"] == []


@pytest.mark.spec("EMN-25")
async def test_ports_are_found_by_address(cloud: Cloud) -> None:
    network, subnet = await subnetted(cloud.a)
    one = await cloud.a.make("port", network_id=network, fixed_ips=[{"ip_address": "10.1.0.50"}])
    two = await cloud.a.make("port", network_id=network, fixed_ips=[{"ip_address": "10.1.0.51"}])

    async def found(query: str) -> set[str]:
        return {port["id"] for port in (await cloud.a.get(f"/ports?{query}"))["ports"]}

    assert await found("fixed_ips=ip_address=10.1.0.50") == {one["id"]}
    assert await found("fixed_ips=ip_address_substr=.0.5") == {one["id"], two["id"]}
    assert await found(f"fixed_ips=subnet_id={subnet}&fixed_ips=ip_address=10.1.0.51") == {two["id"]}
    assert await found(f"fixed_ips=subnet_id={NOWHERE}&fixed_ips=ip_address=10.1.0.51") == set()


@pytest.mark.spec("EMN-31")
async def test_a_bulk_create_makes_all_or_none(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a, "10.1.0.0/29")
    many = {"ports": [{"network_id": network, "tags": ["t"]}] * 2}
    assert len((await cloud.a.call("POST", "/ports", 201, many))["ports"]) == 2
    await cloud.a.call("POST", "/ports", 409, {"ports": [{"network_id": network}] * 3})
    assert len((await cloud.a.get("/ports?device_id="))["ports"]) == 2


@pytest.mark.spec("EMN-21", "EMN-22", "EMN-28")
async def test_binding_fills_in_the_interface_type_at_once(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a)
    port = await cloud.a.make("port", network_id=network, device_id=SERVER)
    assert port["status"] == "DOWN" and "binding:host_id" not in port
    assert await cloud.a.put("port", port["id"], 403, **{"binding:host_id": "here"}) == "PolicyNotAuthorized"
    bound = await cloud.nova.put("port", port["id"], device_owner="compute:nova", **{"binding:host_id": "here"})
    assert (bound["binding:vif_type"], bound["binding:vif_details"]) == ("bridge", {"port_filter": True})
    assert await cloud.event() == ("network-changed", port["id"])
    assert await cloud.event() == ("network-vif-plugged", port["id"])
    assert (await cloud.a.get(f"/ports/{port['id']}"))["port"]["status"] == "ACTIVE"
    lost = await cloud.nova.put("port", port["id"], **{"binding:host_id": "elsewhere"})
    assert (lost["binding:vif_type"], lost["status"]) == ("binding_failed", "DOWN")
    assert port["id"] not in cloud.wiring.ports


@pytest.mark.spec("EMN-28")
@pytest.mark.parametrize("fails", [False, True])
async def test_a_port_that_is_back_before_its_absence_is_recorded_is_told_of(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    network, _ = await subnetted(cloud.a)
    port = await cloud.nova.make("port", network_id=network, project_id=A, device_id=SERVER,
                                 device_owner="compute:nova", **{"binding:host_id": "here"})
    assert await cloud.event() == ("network-vif-plugged", port["id"])
    datapath = cloud.network._datapath
    record = datapath._record_plugs

    async def fail_as_it_comes_back(*_: object) -> None:
        monkeypatch.setattr(datapath, "_record_plugs", record)
        cloud.wiring._on_plug(port["id"], True)
        raise Retryable("the database is busy")

    cloud.wiring._on_plug(port["id"], False)
    if fails:
        monkeypatch.setattr(datapath, "_record_plugs", fail_as_it_comes_back)
    else:
        cloud.wiring._on_plug(port["id"], True)
    assert await cloud.event() == ("network-vif-plugged", port["id"])
    assert (await cloud.a.get(f"/ports/{port['id']}"))["port"]["status"] == "ACTIVE"


@pytest.mark.spec("EMN-23")
async def test_unbinding_leaves_empty_strings(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a)
    port = await cloud.nova.make("port", network_id=network, project_id=A, device_id=SERVER,
                                 device_owner="compute:nova", **{"binding:host_id": "here"})
    assert await cloud.event() == ("network-vif-plugged", port["id"])
    freed = await cloud.nova.put("port", port["id"], device_id="", device_owner="", dns_name="",
                                 **{"binding:host_id": None, "binding:profile": {}})
    assert (freed["device_id"], freed["device_owner"], freed["binding:host_id"]) == ("", "", "")
    assert (freed["binding:vif_type"], freed["status"]) == ("unbound", "DOWN")
    assert (freed["mac_address"], freed["fixed_ips"]) == (port["mac_address"], port["fixed_ips"])


@pytest.mark.spec("EMN-27", "EMN-26")
async def test_changes_of_a_bound_port_are_told_and_wired(cloud: Cloud) -> None:
    network, subnet = await subnetted(cloud.a)
    port = await cloud.nova.make("port", network_id=network, project_id=A, device_id=SERVER,
                                 device_owner="compute:nova", **{"binding:host_id": "here"})
    assert await cloud.event() == ("network-vif-plugged", port["id"])
    wanted = [*port["fixed_ips"], {"subnet_id": subnet, "ip_address": "10.1.0.99"}]
    changed = await cloud.a.put("port", port["id"], fixed_ips=wanted)
    assert changed["fixed_ips"] == wanted
    assert await cloud.event() == ("network-changed", port["id"])
    assert "10.1.0.99" in {ip for _, ip in cloud.wiring.ports[port["id"]].addresses}
    assert await cloud.a.put("port", port["id"], 403, mac_address="fa:16:3e:00:00:09") == "PolicyNotAuthorized"
    assert await cloud.admin.put("port", port["id"], 409, mac_address="fa:16:3e:00:00:09") == "PortBound"
    await cloud.a.delete(f"/ports/{port['id']}")
    assert await cloud.event() == ("network-vif-deleted", port["id"])
    assert port["id"] not in cloud.wiring.ports


@pytest.mark.spec("EMN-30")
async def test_port_security_and_groups_go_together(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a)
    port = await cloud.a.make("port", network_id=network)
    assert len(port["security_groups"]) == 1
    assert await cloud.a.put("port", port["id"], 409, port_security_enabled=False) == \
        "PortSecurityPortHasSecurityGroup"
    bare = await cloud.a.put("port", port["id"], port_security_enabled=False, security_groups=[])
    assert bare["security_groups"] == [] and bare["port_security_enabled"] is False
    pair = [{"ip_address": "10.1.0.77"}]
    assert await cloud.a.put("port", port["id"], 409, allowed_address_pairs=pair) == \
        "AddressPairAndPortSecurityRequired"
    open_net = await cloud.a.make("network", port_security_enabled=False)
    assert (await cloud.a.make("port", network_id=open_net["id"]))["security_groups"] == []


@pytest.mark.spec("EMN-32", "EMN-33", "EMN-34", "EMN-35", "EMN-36")
async def test_a_second_binding_waits_until_it_is_activated(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a)
    port = await cloud.nova.make("port", network_id=network, project_id=A, **{"binding:host_id": "here"})
    path = f"/ports/{port['id']}/bindings"
    await cloud.a.get(path, 403)
    second = (await cloud.nova.call("POST", path, 201, {"binding": {"host": "there"}}))["binding"]
    assert (second["status"], second["vif_type"]) == ("INACTIVE", "binding_failed")
    error = await cloud.nova.call("POST", path, 409, {"binding": {"host": "there"}})
    assert error["NeutronError"]["type"] == "PortBindingAlreadyExists"
    active = (await cloud.nova.call("PUT", f"{path}/there/activate", 200))["binding"]
    assert active["status"] == "ACTIVE"
    shown = (await cloud.nova.get(f"/ports/{port['id']}"))["port"]
    assert (shown["binding:host_id"], shown["binding:vif_type"]) == ("there", "binding_failed")
    error = await cloud.nova.call("PUT", f"{path}/there/activate", 409)
    assert error["NeutronError"]["type"] == "PortBindingAlreadyActive"
    assert (await cloud.nova.get(f"{path}/here"))["binding"]["status"] == "INACTIVE"
    await cloud.nova.delete(f"{path}/here")
    await cloud.nova.delete(f"{path}/here", 404)
    await cloud.nova.delete(f"{path}/there")
    assert (await cloud.nova.get(f"/ports/{port['id']}"))["port"]["binding:vif_type"] == "unbound"


@pytest.mark.spec("EMN-39", "EMN-40")
async def test_every_project_has_a_default_group(cloud: Cloud) -> None:
    (default,) = (await cloud.a.get("/security-groups"))["security_groups"]
    assert (default["name"], default["stateful"], default["shared"]) == ("default", True, False)
    kinds = sorted((r["direction"], r["ethertype"], r["remote_group_id"]) for r in default["security_group_rules"]
                   if r["direction"] == "ingress")
    assert kinds == [("ingress", "IPv4", default["id"]), ("ingress", "IPv6", default["id"])]
    assert sum(r["direction"] == "egress" for r in default["security_group_rules"]) == 2
    await cloud.b.get("/security-groups")
    (found,) = (await cloud.admin.get(f"/security-groups?project_id={A}&name=default"))["security_groups"]
    assert found["id"] == default["id"]
    assert await cloud.a.delete(f"/security-groups/{default['id']}", 409) == "SecurityGroupCannotRemoveDefault"
    await cloud.admin.delete(f"/security-groups/{default['id']}")


@pytest.mark.spec("EMN-44", "EMN-45")
async def test_groups_in_use_stay_and_names_may_repeat(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a)
    one = await cloud.a.make("security_group", name="web")
    two = await cloud.a.make("security_group", name="web")
    assert one["id"] != two["id"] and len(one["security_group_rules"]) == 2
    await cloud.a.make("security_group_rule", security_group_id=two["id"], direction="ingress",
                       remote_group_id=one["id"])
    port = await cloud.a.make("port", network_id=network, security_groups=[one["id"]])
    assert await cloud.a.delete(f"/security-groups/{one['id']}", 409) == "SecurityGroupInUse"
    await cloud.a.put("port", port["id"], security_groups=[])
    await cloud.a.delete(f"/security-groups/{one['id']}")
    left = (await cloud.a.get(f"/security-group-rules?security_group_id={two['id']}"))["security_group_rules"]
    assert {rule["direction"] for rule in left} == {"egress"}
    await cloud.b.get(f"/security-groups/{two['id']}", 404)


@pytest.mark.spec("EMN-41", "EMN-42", "EMN-43")
async def test_rules_are_checked(cloud: Cloud) -> None:
    group = (await cloud.a.make("security_group", name="g"))["id"]

    async def rule(status: int = 201, **fields: Any) -> Any:
        return await cloud.a.make("security_group_rule", status, security_group_id=group,
                                  **{"direction": "ingress"} | fields)

    made = await rule(protocol="tcp", port_range_min=22, port_range_max=22, remote_ip_prefix="10.0.0.0/8")
    assert (made["protocol"], made["ethertype"], made["remote_ip_prefix"]) == ("tcp", "IPv4", "10.0.0.0/8")
    body = {"security_group_rule": {"security_group_id": group, "direction": "ingress", "protocol": 6,
                                    "port_range_min": 22, "port_range_max": 22, "remote_ip_prefix": "10.0.0.0/8"}}
    error = (await cloud.a.call("POST", "/security-group-rules", 409, body))["NeutronError"]
    assert error["type"] == "SecurityGroupRuleExists" and "Security group rule already exists" in error["message"]
    assert (await rule(protocol=132))["protocol"] == "132"
    assert (await rule(protocol="icmp", port_range_min=8, port_range_max=0))["port_range_min"] == 8
    assert (await rule(protocol="ipv6-icmp", ethertype="IPv6"))["protocol"] == "ipv6-icmp"
    for bad in (
        {"port_range_min": 1, "port_range_max": 2}, {"protocol": "tcp", "port_range_min": 5, "port_range_max": 1},
        {"protocol": "bogus"}, {"protocol": 256}, {"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": group},
        {"remote_ip_prefix": "10.0.0.0/99"}, {"protocol": "udp", "port_range_min": 0, "port_range_max": 1},
        {"protocol": "udp", "port_range_min": 1, "port_range_max": 65536}, {"direction": "sideways"},
        {"ethertype": "IPv6", "remote_ip_prefix": "10.0.0.0/8"}, {"ethertype": "IPv5"},
        {"protocol": "icmp", "port_range_max": 1}, {"protocol": "gre", "port_range_min": 1, "port_range_max": 1},
    ):
        await rule(400, **bad)
    assert await rule(404, remote_group_id=NOWHERE) == "SecurityGroupNotFound"
    assert await cloud.a.make("security_group_rule", 404, security_group_id=NOWHERE, direction="ingress") == \
        "SecurityGroupNotFound"
    await cloud.a.delete(f"/security-group-rules/{made['id']}")
    await cloud.a.delete(f"/security-group-rules/{made['id']}", 404)


@pytest.mark.spec("EMN-18", "EMN-19")
async def test_quotas_have_defaults_and_hold(cloud: Cloud) -> None:
    unknown = (await cloud.admin.get(f"/quotas/{'e' * 32}"))["quota"]
    assert (unknown["network"], unknown["port"], unknown["security_group_rule"]) == (100, 500, 100)
    await cloud.a.call("PUT", f"/quotas/{A}", 403, {"quota": {"network": 1}})
    await cloud.a.get(f"/quotas/{B}", 403)
    await cloud.admin.call("PUT", f"/quotas/{A}", 200, {"quota": {"network": 1}})
    await cloud.a.make("network")
    assert await cloud.a.make("network", 409) == "OverQuota"
    details = (await cloud.a.get(f"/quotas/{A}/details.json"))["quota"]["network"]
    assert details == {"limit": 1, "used": 1, "reserved": 0}
    await cloud.admin.delete(f"/quotas/{A}")
    await cloud.a.make("network")
    for refused in ({"network": "many"}, {"network": 1, "check_limit": True}, {"colour": 1}):
        await cloud.admin.call("PUT", f"/quotas/{A}", 400, {"quota": refused})
    await cloud.admin.call("PUT", f"/quotas/{A}", 200, {"quota": {"network": 2, "check_limit": True}})
    await cloud.admin.call("PUT", f"/quotas/{A}", 200, {"quota": {"network": 1}})


async def test_tags_are_kept_and_filter(cloud: Cloud) -> None:
    network = await cloud.a.make("network")
    path = f"/networks/{network['id']}/tags"
    assert (await cloud.a.call("PUT", path, 200, {"tags": ["red", "blue"]}))["tags"] == ["red", "blue"]
    await cloud.a.call("PUT", f"{path}/green", 201)
    await cloud.a.get(f"{path}/green", 204)
    await cloud.a.delete(f"{path}/blue")
    await cloud.a.delete(f"{path}/blue", 404)
    assert len((await cloud.a.get("/networks?tags=red,green"))["networks"]) == 1
    assert (await cloud.a.get("/networks?not-tags-any=red"))["networks"] == []
    await cloud.b.call("PUT", path, 404, {"tags": []})
    await cloud.a.call("PUT", path, 400, {"tags": ["x" * 256]})


async def test_zones_and_address_use(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a, "10.1.0.0/29")
    await cloud.a.make("port", network_id=network)
    use = (await cloud.admin.get(f"/network-ip-availabilities/{network}"))["network_ip_availability"]
    assert (use["total_ips"], use["used_ips"]) == (5, 2)
    await cloud.a.get("/network-ip-availabilities", 403)
    assert (await cloud.a.get("/availability_zones"))["availability_zones"][0]["resource"] == "network"
    await cloud.a.get("/trunks", 404)


async def test_a_port_in_use_is_not_handed_to_another_server(cloud: Cloud) -> None:
    network, _ = await subnetted(cloud.a)
    port = await cloud.a.make("port", network_id=network, device_id=SERVER)
    assert await cloud.a.put("port", port["id"], 409, device_id=NOWHERE) == "PortInUse"
    assert (await cloud.a.put("port", port["id"], device_id=""))["device_id"] == ""
    await cloud.a.make("port", 403, network_id=network, device_owner="network:dhcp")
