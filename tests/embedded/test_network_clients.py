"""The clients people use, unmodified, against the network service."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from openstack.connection import Connection
from starlette.applications import Starlette
from starlette.routing import Mount

from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.embedded.identity.service import EmbeddedIdentity
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring

PASSWORD = "not-a-secret"
LIMIT = 240.0
"""Seconds for a script of commands."""


async def on_event(name: str, instance_uuid: str, *, tag: str, status: str) -> None:
    return


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    database = Database.open(f"sqlite:///{tmp_path}/cloud.db")
    identity = EmbeddedIdentity(database, tmp_path / "keys", SystemClock(), url)
    made = await identity.bootstrap(PASSWORD)
    network = EmbeddedNetwork(database, SystemClock(), identity, f"{url}/identity", FakeWiring(), on_event)
    await network.start()
    await network.bootstrap(made.admin_project_id)
    app = Starlette(routes=[Mount("/identity", identity.application()), Mount("/network", network.application())])
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(running.serve(sockets=[listener]))
    yield url
    running.should_exit = True
    await asyncio.wait_for(serving, 30)
    await network.close()
    identity.close()
    await database.close()


async def openstack(server: str, script: str, tmp_path: Path) -> list[str]:
    """Run commands, one a line, in one `openstack` process; returns the lines of its output."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("openstack")), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OS_IDENTITY_API_VERSION": "3",
             "OS_AUTH_URL": f"{server}/identity", "OS_USERNAME": "admin", "OS_PASSWORD": PASSWORD,
             "OS_PROJECT_NAME": "admin", "OS_USER_DOMAIN_NAME": "Default", "OS_PROJECT_DOMAIN_NAME": "Default"},
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(script.encode()), LIMIT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    complaints = [line for line in errors.decode().splitlines() if line and "Warning" not in line]
    assert not complaints, "\n".join(complaints)
    return [line for line in out.decode().splitlines() if line]


async def test_the_command_line_manages_networks(server: str, tmp_path: Path) -> None:
    lines = await openstack(server, """\
network list -f value -c Name
network create n1 --mtu 1400 --description d --tag t1 -f value -c mtu
network set n1 --name n2 --disable --tag t2
network show n2 -f value -c admin_state_up -c tags
subnet create s1 --network n2 --subnet-range 10.5.0.0/24 --dns-nameserver 192.0.2.53 -f value -c gateway_ip
subnet set s1 --dns-nameserver 192.0.2.54 --name s2
subnet show s2 -f value -c dns_nameservers
subnet list --network n2 -f value -c Name
port create p1 --network n2 --fixed-ip ip-address=10.5.0.9 --tag t -f value -c status
port set p1 --name p2 --allowed-address ip-address=10.5.0.10
port unset p2 --fixed-ip subnet=s2,ip-address=10.5.0.9
port set p2 --fixed-ip ip-address=10.5.0.11
port show p2 -f value -c fixed_ips
port list --network n2 --fixed-ip ip-address=10.5.0.11 -f value -c Name
security group create web -f value -c name
security group rule create web --protocol tcp --dst-port 80:81 --remote-ip 192.0.2.0/24 -f value -c protocol
security group rule create web --protocol icmp -f value -c direction
security group rule list web --protocol tcp -f value
port set p2 --security-group web
port unset p2 --security-group web
security group set web --name www
security group delete www
extension list --network -f value -c Alias --sort-column Alias
availability zone list --network -f value
network agent list -f value
ip availability list -f value
quota show --network -f value -c Limit
port delete p2
subnet delete s2
network delete n2
network list -f value -c Name
""", tmp_path)
    text = "\n".join(lines)
    for expected in ("private", "1400", "10.5.0.1", "192.0.2.54", "p2", "10.5.0.11", "80:81", "binding-extended"):
        assert expected in text
    assert lines[-1] == "private"


@pytest.mark.spec("EMN-56")
async def test_the_command_line_manages_routers_and_floating_ips(server: str, tmp_path: Path) -> None:
    lines = await openstack(server, """\
network create public --external -f value -c name
subnet create public --network public --subnet-range 203.0.113.0/24 --no-dhcp -f value -c gateway_ip
network create n1 -f value -c name
subnet create s1 --network n1 --subnet-range 10.5.0.0/24 -f value -c gateway_ip
subnet create s2 --network n1 --subnet-range 10.6.0.0/24 -f value -c gateway_ip
router create r1 -f value -c status
router add subnet r1 s1
port create p2 --network n1 --fixed-ip subnet=s2 -f value -c status
router add port r1 p2
router set r1 --external-gateway public --name r2
router show r2 -f value -c external_gateway_info
router list -f value -c Name
port create p1 --network n1 --fixed-ip subnet=s1,ip-address=10.5.0.9 -f value -c status
floating ip create public --description one -f value -c floating_ip_address
floating ip set --port p1 203.0.113.3
floating ip show 203.0.113.3 -f value -c fixed_ip_address -c status
floating ip list --port p1 -f value -c Port
floating ip unset --port 203.0.113.3
floating ip delete 203.0.113.3
floating ip create --port p1 public -f value -c status
router set r2 --disable
""", tmp_path)
    text = "\n".join(lines)
    for expected in ("203.0.113.2", "r2", "10.5.0.9", "203.0.113.3", "enable_snat"):
        assert expected in text
    assert lines[-1] == "ACTIVE"


async def test_the_sdk_finds_and_changes(server: str) -> None:
    def work() -> None:
        cloud = Connection(auth={
            "auth_url": f"{server}/identity", "username": "admin", "password": PASSWORD, "project_name": "admin",
            "user_domain_name": "Default", "project_domain_name": "Default",
        }, region_name="RegionOne")
        network = cloud.network.create_network(name="sdk")
        cloud.network.create_subnet(network_id=network.id, ip_version=4, cidr="10.6.0.0/24", name="sub")
        ports = [cloud.network.create_port(network_id=network.id, name=f"p{index}") for index in range(5)]
        assert cloud.network.find_port("p3").id == ports[3].id
        assert cloud.network.find_network("nothing") is None
        assert {port.id for port in ports} <= {port.id for port in cloud.network.ports(limit=2)}
        group = cloud.network.create_security_group(name="g")
        rule = cloud.network.create_security_group_rule(
            security_group_id=group.id, direction="ingress", protocol="tcp", port_range_min=1, port_range_max=2)
        assert cloud.network.get_security_group(group.id).security_group_rules[-1]["id"] == rule.id
        cloud.network.update_port(ports[0], security_group_ids=[group.id])
        cloud.network.set_tags(network, ["a"])
        assert [found.id for found in cloud.network.networks(tags="a")] == [network.id]
        for port in ports:
            cloud.network.delete_port(port)
        cloud.network.delete_network(network)
        cloud.close()

    await asyncio.wait_for(asyncio.to_thread(work), LIMIT)
