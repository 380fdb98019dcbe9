"""The clients people use, unmodified, against a running service."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from identity_cloud import ADMIN_PASSWORD, identity_server
from keystoneauth1 import exceptions
from keystoneauth1.identity import v3
from keystoneauth1.session import Session
from openstack.connection import Connection

CLI_LIMIT = 240.0
"""Seconds for a script of commands."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[str]:
    async with identity_server(tmp_path) as url:
        yield url


def account(server: str, user: str = "admin", password: str = ADMIN_PASSWORD, project: str = "admin") -> dict[str, str]:
    return {
        "auth_url": f"{server}/identity", "username": user, "password": password, "project_name": project,
        "user_domain_name": "Default", "project_domain_name": "Default",
    }


async def openstack(server: str, script: str, tmp_path: Path) -> list[str]:
    """Run commands, one a line, in one `openstack` process; returns the lines of its output."""
    environment = {f"OS_{name.upper()}": value for name, value in account(server).items()}
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("openstack")), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OS_IDENTITY_API_VERSION": "3", **environment},
        cwd=tmp_path,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(script.encode()), CLI_LIMIT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    complaints = [line for line in errors.decode().splitlines() if line and "Warning" not in line]
    assert complaints == []
    return [line for line in out.decode().splitlines() if line]


@pytest.mark.spec("EMI-09", "EMI-20")
async def test_the_command_line_manages_everything(server: str, tmp_path: Path) -> None:
    lines = await openstack(server, """\
token issue -f value -c project_id
catalog show compute -f value -c type
catalog list -f value -c Name
versions show --service identity -f value -c Version
project create demo --description first --property colour=red --tag t1 -f value -c name
project set demo --description second --disable --tag t2
project set demo --enable
project show demo -f value -c description -c colour -c enabled
project list --tags t2 -f value -c Name
user create bob --password pw --email b@x --project demo -f value -c name
user set bob --email c@x --name bobby
user show bobby -f value -c email
role create extra -f value -c name
role set extra --name extra2
role show extra2 -f value -c name
role add --user bobby --project demo extra2
role add --user bobby --project demo member
role add --user bobby --system all reader
role assignment list --user bobby --project demo --names -f value -c Role --sort-column Role
role assignment list --user bobby --project demo --effective --names -f value -c Role --sort-column Role
role assignment list --system all --names -f value -c User --sort-column User
role remove --user bobby --system all reader
role remove --user bobby --project demo extra2
role delete extra2
group create g -f value -c name
group add user g bobby
group contains user g bobby
group list --user bobby -f value -c Name
group remove user g bobby
group delete g
domain create d -f value -c name
domain set d --disable
domain show d -f value -c enabled
domain delete d
service create --name svc thing -f value -c type
region create r2 -f value -c region
endpoint create --region r2 svc public http://x/$(project_id)s -f value -c url
endpoint list --service svc -f value -c URL
service delete svc
region delete r2
application credential create ac --role member -f value -c Unrestricted
application credential list -f value -c Name
application credential show ac -f value -c Name
application credential delete ac
application credential list -f value -c Name
user delete bobby
project delete demo
user list -f value -c Name
project list -f value -c Name
role list -f value -c Name
limit list -f value
registered limit list -f value
implied role list -f value
""", tmp_path)
    project_id, *rest = lines[:-3]
    assert len(project_id) == 32
    assert [line.split()[1::2] for line in lines[-3:]] == [
        ["admin", "manager"], ["manager", "member"], ["member", "reader"]
    ]
    assert rest == [
        "compute", "nova", "keystone", "glance", "neutron", "placement", "3.14",
        "demo", "red", "second", "True", "demo",
        "bob", "c@x",
        "extra", "extra2", "extra2", "member", "extra2", "member", "reader", "admin@Default", "bobby@Default",
        "g", "bobby in group g", "g",
        "d", "False",
        "thing", "r2", "http://x/$(project_id)s", "http://x/$(project_id)s",
        "False", "ac", "ac",
        "admin", "glance", "neutron", "nova", "placement",
        "admin", "service",
        "admin", "manager", "member", "reader", "service",
    ]


@pytest.mark.spec("EMI-39", "EMI-40", "EMI-41", "EMI-43")
async def test_the_sdk_makes_and_removes_a_tenant(server: str) -> None:
    def work() -> None:
        with Connection(**account(server), identity_api_version="3") as admin:
            domain = next(admin.identity.domains(name="Default"))
            project = admin.identity.create_project(name="p", domain_id=domain.id, description="d")
            user = admin.identity.create_user(name="u", password="u", domain_id=domain.id)
            role = admin.identity.find_role("member", ignore_missing=False)
            for _ in range(2):
                admin.identity.assign_project_role_to_user(project, user, role)
            assert admin.identity.validate_user_has_project_role(project, user, role)
            assert admin.identity.find_user("u").id == user.id
            assert admin.identity.find_project("nothing") is None
            with Connection(**account(server, "u", "u", "p"), identity_api_version="3") as member:
                assert member.current_project_id == project.id
                assert [each.name for each in member.identity.user_projects(user)] == ["p"]
                secret = member.identity.create_application_credential(user, "c").secret
                credential = member.identity.find_application_credential(user, "c")
                assert credential.secret is None and secret
            admin.identity.update_user(user, is_enabled=False)
            admin.identity.delete_user(user)
            admin.identity.delete_project(project)
            assert admin.identity.find_project("p") is None

    await asyncio.to_thread(work)


@pytest.mark.spec("EMI-31", "EMI-32", "EMI-47", "EMI-34")
async def test_keystoneauth_logs_in_in_every_way(server: str) -> None:
    def work() -> None:
        auth_url, default = f"{server}/identity/v3", {"user_domain_id": "default", "password": ADMIN_PASSWORD}
        unscoped = Session(v3.Password(auth_url, username="admin", **default, unscoped=True))
        assert unscoped.get_project_id() is None
        projects = unscoped.get(f"{auth_url}/auth/projects").json()["projects"]
        assert [project["name"] for project in projects] == ["admin"]
        scoped = Session(v3.Token(auth_url, unscoped.get_token(), project_id=projects[0]["id"]))
        for kind, path in (("compute", "/compute/v2.1"), ("image", "/image"), ("network", "/network")):
            for interface in ("public", "internal", "admin"):
                assert scoped.get_endpoint(service_type=kind, interface=interface) == server + path
        # By discovery from the unversioned URL of the catalogue.
        assert scoped.get_endpoint(service_type="identity", version="3") == f"{auth_url}/"
        system = Session(v3.Password(auth_url, username="admin", **default, system_scope="all"))
        assert "admin" in system.auth.get_access(system).role_names
        assert system.auth.get_access(system).system_scoped
        user_id = scoped.get_user_id()
        made = scoped.post(f"{auth_url}/users/{user_id}/application_credentials", json={
            "application_credential": {"name": "c", "roles": [{"name": "reader"}]}
        }).json()["application_credential"]
        with_credential = Session(v3.ApplicationCredential(
            auth_url, application_credential_id=made["id"], application_credential_secret=made["secret"]
        ))
        assert with_credential.auth.get_access(with_credential).role_names == ["reader"]
        wrong = Session(v3.ApplicationCredential(
            auth_url, application_credential_id=made["id"], application_credential_secret="wrong"
        ))
        with pytest.raises(exceptions.Unauthorized):
            wrong.get_token()
        token = scoped.get_token()
        scoped.delete(f"{auth_url}/auth/tokens", headers={"X-Subject-Token": token})
        with pytest.raises(exceptions.Unauthorized):
            Session(v3.Token(auth_url, token)).get_token()

    await asyncio.to_thread(work)


@pytest.mark.spec("EMI-02")
async def test_answers_without_a_body_have_none_on_the_wire(server: str) -> None:
    """Over a plain socket, as a client library would hide stray bytes."""
    host, port = server.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"HEAD /identity/v3 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        writer.write(f"GET /identity/v3 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        received = await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
    head, rest = received.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200")
    assert rest.startswith(b"HTTP/1.1 200")
