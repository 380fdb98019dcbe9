"""Security groups of servers."""

import pytest
from compute_cloud import PROJECT, ComputeCloud
from test_server_interfaces import bring

from kilonova.services.security_groups import GroupRule, GroupSummary


@pytest.mark.spec("API-183")
async def test_groups_are_shown(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    rules = (
        GroupRule(id="1", ingress=True, protocol="tcp", port_min=22, port_max=23, remote_prefix="192.0.2.0/24"),
        GroupRule(id="2", ingress=True, protocol="udp"), GroupRule(id="3", ingress=True, protocol="icmp", version=6),
        GroupRule(id="4", ingress=True, remote_group="web"), GroupRule(id="5", ingress=False),
    )
    cloud.networks.full_groups = [
        GroupSummary(id="g2", name="web", description="d", project_id=PROJECT, rules=rules),
        GroupSummary(id="g1", name="db", description="", project_id=PROJECT),
    ]
    path = f"/servers/{server.uuid}/os-security-groups"
    first, second = (await cloud.get(path, as_="reader")).json()["security_groups"]
    assert first == {"id": "g1", "name": "db", "description": "", "tenant_id": PROJECT, "rules": []}

    def rule(id_: str, protocol: str | None, first: int | None, last: int | None, cidr: str = "") -> object:
        group = {} if cidr else {"name": "web", "tenant_id": PROJECT}
        return {"id": id_, "parent_group_id": "g2", "ip_protocol": protocol, "from_port": first, "to_port": last,
                "group": group, "ip_range": {"cidr": cidr} if cidr else {}}

    assert second["rules"] == [
        rule("1", "tcp", 22, 23, "192.0.2.0/24"), rule("2", "udp", 1, 65535, "0.0.0.0/0"),
        rule("3", "icmp", -1, -1, "::/0"), rule("4", None, None, None),
    ]
    assert (await cloud.get(path, as_="stranger")).status_code == 404


@pytest.mark.spec("API-149", "API-150", "EMN-47")
@pytest.mark.parametrize(("action", "member"), [("addSecurityGroup", True), ("removeSecurityGroup", False)])
async def test_groups_are_added_and_removed(cloud: ComputeCloud, action: str, member: bool) -> None:
    server = await cloud.boot(locked_by="owner")
    port = bring(cloud, device=server.uuid)
    path = f"/servers/{server.uuid}/action"
    answer = await cloud.post(path, {action: {"name": "default"}})
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.networks.changed_groups == [((port.id,), "default", member)]
    assert (await cloud.post(path, {action: {"name": "nothing"}})).status_code == 404
    for bad in ({"name": ""}, {}, None, {"name": 1}):
        assert (await cloud.post(path, {action: bad})).status_code == 400
    assert (await cloud.post(path, {action: {"name": "default"}}, as_="reader")).status_code == 403
