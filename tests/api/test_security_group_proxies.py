"""Security groups in the Compute API, as long as it had them, over the network service itself."""

import uuid
from typing import Any

import pytest
from compute_cloud import PROJECT, ComputeCloud

from kilonova.services.network import PortRequest

GROUPS, RULES = "/os-security-groups", "/os-security-group-rules"
NOWHERE = "99999999-9999-4999-8999-999999999999"


async def made(cloud: ComputeCloud, name: str = "web", **more: Any) -> dict[str, Any]:
    body = {"security_group": {"name": name, "description": f"for {name}"}}
    answer = await cloud.post(GROUPS, body, version="2.35", **more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["security_group"])


@pytest.mark.spec("API-285", "API-287", "API-050", "API-047", "API-536")
async def test_groups_are_listed(cloud: ComputeCloud) -> None:
    (default,) = (await cloud.get(GROUPS, as_="reader")).json()["security_groups"]
    assert (default["name"], default["tenant_id"]) == ("default", PROJECT)
    web, api = await made(cloud), await made(cloud, "api")
    await made(cloud, as_="stranger")

    async def names(query: str = "", as_: str = "reader") -> list[str]:
        answer = await cloud.get(f"{GROUPS}{query}", version="2.35", as_=as_)
        assert set(answer.json()) == {"security_groups"}
        return [group["name"] for group in answer.json()["security_groups"]]

    assert await names() == await names("?all_tenants=1") == await names("?limit=0") == ["api", "default", "web"]
    assert await names("?limit=1&offset=1") == ["default"]
    everywhere = await names("?all_tenants=1", as_="admin")
    assert everywhere == ["api", "default", "web", "default", "web"]
    assert await names(as_="admin") == ["api", "default", "web"]
    shown = (await cloud.get(f"{GROUPS}/{web['id']}", as_="reader")).json()
    assert shown == {"security_group": web}
    assert web == {"id": web["id"], "name": "web", "description": "for web", "tenant_id": PROJECT, "rules": []}
    for id_, status in ((NOWHERE, 404), ("7", 400)):
        assert (await cloud.get(f"{GROUPS}/{id_}")).status_code == status
    assert (await cloud.get(f"{GROUPS}/{api['id']}", as_="stranger")).status_code == 404
    for path in (GROUPS, f"{GROUPS}/{web['id']}"):
        assert (await cloud.get(path, version="2.36")).status_code == 404
    assert (await cloud.get(f"{GROUPS}?limit=x")).status_code == 400


@pytest.mark.spec("API-286", "API-288", "API-289", "API-024", "API-058", "API-536")
async def test_groups_are_made_changed_and_deleted(cloud: ComputeCloud) -> None:
    group = await made(cloud)
    path = f"{GROUPS}/{group['id']}"

    async def put(body: Any, **more: Any) -> int:
        return (await cloud.put(path, {"security_group": body}, **more)).status_code

    assert await put({"name": "front", "description": "new", "color": "red"}) == 200
    assert await put({"name": "front"}) == 200
    shown = (await cloud.get(path)).json()["security_group"]
    assert shown == group | {"name": "front", "description": "new"}
    for bad in ({}, {"name": "x" * 256}, {"name": "x", "description": "x" * 256}, {"name": 7}):
        assert await put(bad) == 400
        assert (await cloud.post(GROUPS, {"security_group": bad})).status_code == 400
    assert (await cloud.post(GROUPS, {})).status_code == 400
    assert await put({"name": "x"}, as_="reader") == 403
    assert await put({"name": "x"}, version="2.36") == 404
    assert (await cloud.post(GROUPS, {"security_group": {"name": "x"}}, as_="reader")).status_code == 403
    assert (await cloud.post(GROUPS, {"security_group": {"name": "default"}})).status_code == 400
    (default,) = [entry for entry in (await cloud.get(GROUPS)).json()["security_groups"] if entry["name"] == "default"]
    assert (await cloud.delete(f"{GROUPS}/{default['id']}")).status_code == 400
    assert (await cloud.delete(path, as_="reader")).status_code == 403
    assert (await cloud.delete(path, version="2.36")).status_code == 404
    answer = await cloud.delete(path, version="2.35")
    assert (answer.status_code, answer.content) == (202, b"")
    assert (await cloud.delete(path)).status_code == 404
    assert await put({"name": "x"}) == 404
    assert (await cloud.delete(f"{GROUPS}/7")).status_code == 400
    await cloud.networks.limit(PROJECT, security_group=1)
    assert (await cloud.post(GROUPS, {"security_group": {"name": "more"}})).status_code == 403


@pytest.mark.spec("API-289")
async def test_a_group_in_use_stays(cloud: ComputeCloud) -> None:
    group = await made(cloud)
    network = await cloud.networks.service()
    net = await network.bootstrap(PROJECT)
    await network.create_port(PortRequest(
        key="one", network_id=net, project_id=PROJECT, instance_uuid=str(uuid.uuid4()), host="h",
        security_groups=("web",),
    ))
    answer = await cloud.delete(f"{GROUPS}/{group['id']}")
    assert (answer.status_code, "in use" in answer.json()["badRequest"]["message"]) == (400, True)


@pytest.mark.spec("API-290", "API-291", "API-024", "API-058", "API-536")
async def test_rules(cloud: ComputeCloud) -> None:
    group, other = await made(cloud), await made(cloud, "db")

    async def post(status: int = 200, as_: str = "member", version: str = "2.35", **rule: Any) -> dict[str, Any]:
        body = {"security_group_rule": {"parent_group_id": group["id"], **rule}}
        answer = await cloud.post(RULES, body, as_=as_, version=version)
        assert answer.status_code == status, answer.text
        return dict(answer.json().get("security_group_rule", {}))

    ssh: dict[str, Any] = {"ip_protocol": "tcp", "from_port": 22, "to_port": 23}
    first = await post(**ssh, cidr="192.0.2.0/24", color="red")
    assert first == {
        "id": first["id"], "parent_group_id": group["id"], "ip_protocol": "tcp", "from_port": 22, "to_port": 23,
        "group": {}, "ip_range": {"cidr": "192.0.2.0/24"},
    }
    anywhere = await post(ip_protocol="UDP", from_port="1", to_port=65535)
    assert (anywhere["ip_protocol"], anywhere["ip_range"]) == ("udp", {"cidr": "0.0.0.0/0"})
    ping = await post(ip_protocol="icmp", from_port=-1, to_port=-1, cidr="2001:db8::/32")
    assert (ping["from_port"], ping["to_port"], ping["ip_range"]) == (-1, -1, {"cidr": "2001:db8::/32"})
    inside = await post(**ssh, cidr="203.0.113.7/24")
    assert inside["ip_range"] == {"cidr": "203.0.113.7/24"}
    echo = await post(ip_protocol="icmp", from_port=8, to_port=-1)
    assert echo["from_port"] == 8
    db = {"name": "db", "tenant_id": PROJECT}
    every = await post(group_id=other["id"])
    assert (every["ip_protocol"], every["from_port"], every["group"], every["ip_range"]) == (None, None, db, {})
    assert (await post(group_id=other["id"], ip_protocol="tcp"))["to_port"] == 65535
    assert (await post(group_id=other["id"], **ssh))["group"] == db
    shown = (await cloud.get(f"{GROUPS}/{group['id']}")).json()["security_group"]["rules"]
    assert {rule["id"] for rule in shown} >= {first["id"], every["id"]}
    assert first in shown

    for bad in (
        {**ssh, "cidr": "192.0.2.0/24"}, {**ssh, "cidr": "192.0.2.0/33"}, {**ssh, "ip_protocol": "gre"},
        {**ssh, "from_port": 24}, {**ssh, "from_port": 0}, {**ssh, "to_port": 65536}, {**ssh, "from_port": "x"},
        {"ip_protocol": "icmp", "from_port": 256, "to_port": -1}, {"cidr": "192.0.2.0/24"}, {}, {"ip_protocol": "tcp"},
        {**ssh, "parent_group_id": "7"}, {**ssh, "parent_group_id": None}, {**ssh, "group_id": "7"},
        {"group_id": other["id"], "from_port": 1, "to_port": 2},
    ):
        await post(400, **bad)
    await post(404, **{**ssh, "parent_group_id": NOWHERE})
    await post(404, **{**ssh, "group_id": NOWHERE})
    await post(403, as_="reader", **ssh)
    await post(404, as_="stranger", **ssh)
    await post(404, version="2.36", **ssh)

    path = f"{RULES}/{first['id']}"
    assert (await cloud.delete(path, as_="reader")).status_code == 403
    assert (await cloud.delete(path, version="2.36")).status_code == 404
    answer = await cloud.delete(path)
    assert (answer.status_code, answer.content) == (202, b"")
    assert (await cloud.delete(path)).status_code == 404
    assert (await cloud.delete(f"{RULES}/7")).status_code == 400
    await cloud.networks.limit(PROJECT, security_group_rule=1)
    await post(403, **ssh, cidr="198.51.100.0/24")
