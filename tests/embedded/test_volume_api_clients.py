"""The clients that people use, unmodified, against the volume service."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import openstack
import pytest
from image_cloud import served
from keystone_stand_in import stand_in_keystone
from starlette.applications import Starlette
from starlette.routing import Mount
from volume_api_cloud import ALICE, ApiCloud, api_cloud
from volume_cloud import SERVER

LIMIT = 240.0
"""Seconds for a script of commands."""
OFFERED = (("cinder", "block-storage", "/volume/v3"), ("cinderv3", "volumev3", "/volume/v3"))


class Region:
    """A volume service on a port, with an identity service beside it."""

    def __init__(self, cloud: ApiCloud, root: str) -> None:
        self.cloud = cloud
        self.root = root

    async def run(self, user: str, script: str) -> list[str]:
        """Run commands, one a line, in one `openstack` process, and let what they asked for be done.

        Returns the lines of its output.
        """
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("openstack")), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=self.cloud.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(self.cloud.directory), "OS_IDENTITY_API_VERSION": "3",
                 "OS_AUTH_URL": f"{self.root}/identity/v3", "OS_USERNAME": user, "OS_PASSWORD": "any",
                 "OS_PROJECT_NAME": user, "OS_USER_DOMAIN_NAME": "Default", "OS_PROJECT_DOMAIN_NAME": "Default"},
        )
        try:
            out, errors = await asyncio.wait_for(process.communicate(script.encode()), LIMIT)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        complaints = [line for line in errors.decode().splitlines() if line and "Warning" not in line]
        assert not complaints, "\n".join(complaints)
        await self.cloud.settle()
        return [line for line in out.decode().splitlines() if line]


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Region]:
    async with api_cloud(tmp_path) as cloud:
        region = Region(cloud, "")
        application = Starlette(routes=[
            Mount("/identity", stand_in_keystone(lambda: region.root, *OFFERED)),
            Mount("/volume", cloud.application),
        ])
        async with served(application) as port:
            region.root = f"http://127.0.0.1:{port}"
            yield region


@pytest.mark.spec("EMI-26", "EMV-11")
async def test_the_command_line_manages_volumes(region: Region) -> None:
    lines = await region.run("alice", """\
volume create v1 --size 1 --description d --property a=1 -f value -c status
volume create v2 --size 1 --type __DEFAULT__ -f value -c size
""")
    lines += await region.run("alice", """\
volume set v1 --name v3 --size 3 --property b=2
volume show v3 -f value -c size -c properties
volume unset v3 --property a
""")
    lines += await region.run("alice", """\
volume set v3 --bootable --image-property os_type=linux
volume list --long -f value -c Name -c Bootable -c Properties --sort-column Name
volume list --name v3 --status available -f value -c Name
volume list --limit 1 --property b=2 -f value -c Name
volume snapshot create s1 --volume v3 --property x=y -f value -c size
""")
    alice = region.cloud.person("alice")
    [volume] = (await alice.get("/volumes?name=v3"))["volumes"]
    body = {"volume_uuid": volume["id"], "instance_uuid": SERVER}
    await alice.post("/attachments", {"attachment": body}, 200)
    lines += await region.run("alice", """\
volume snapshot set s1 --name s2 --description told
volume snapshot list --volume v3 --long -f value -c Name -c Size
volume snapshot show s2 -f value -c description
volume attachment list -f value -c Status
volume summary -f value
volume type list -f value -c Name
availability zone list --volume -f value
quota show --volume -f value -c Resource -c Limit
extension list --volume -f value -c Alias
""")
    text = "\n".join(lines)
    assert lines[:2] == ["creating", "1"]
    for expected in ("v3 True {'b': '2'}", "v2 False {}", "s2 3", "told", "reserved", "\n2\n4\n", "__DEFAULT__",
                     "nova available", "volumes 10", "os-volume-transfer"):
        assert expected in text, expected


async def test_the_command_line_copies_and_hands_over(region: Region) -> None:
    lines = await region.run("alice", """\
volume create v1 --size 1 -f value -c name
""")
    lines += await region.run("alice", "volume create v2 --source v1 -f value -c name\n")
    lines += await region.run("alice", """\
volume backup create v1 --name b1 --description d -f value -c name
volume snapshot create s1 --volume v2 -f value -c name
""")
    assert lines == ["v1", "v2", "b1", "s1"]
    lines = await region.run("alice", """\
volume create v3 --snapshot s1 -f value -c name
volume backup list --long -f value -c Name -c Status -c Size
volume backup show b1 -f value -c is_incremental
volume backup set b1 --name b2
volume backup restore b2 v4 -f value -c volume_name
volume revert s1
volume transfer request create v1 --name t1 -f value -c id -c auth_key
volume transfer request list -f value -c Name
volume transfer request show t1 -f value -c name
""")
    assert lines[0] == "v3"
    assert "b1 available 1" in lines
    *_, key, offer, listed, shown = lines
    assert (listed, shown) == ("t1", "t1")
    [taken] = await region.run(
        "bob", f"volume transfer request accept {offer} --auth-key {key} -f value -c name\n")
    assert taken == "t1"
    assert await region.run("bob", "volume list -f value -c Name -c Status\n") == ["v1 available"]
    await region.run("alice", """\
volume backup delete b2
volume delete v2 --purge
volume delete v3
""")
    assert await region.run("alice", "volume list -f value -c Status\nvolume snapshot list -f value\n") == ["available"]
    await region.run("bob", "volume delete v1\n")
    assert not await region.cloud.problems()


async def test_the_command_line_administers_the_service(region: Region) -> None:
    lines = await region.run("admin", """\
volume create v1 --size 1 -f value -c name
volume type create fast --property volume_backend_name=two --private -f value -c is_public
volume type create luks --encryption-provider luks --encryption-cipher aes-xts-plain64 --encryption-key-size 256 \
--encryption-control-location front-end -f value -c name
volume type set fast --description d --property color=red
volume type unset fast --property color
volume type show fast -f value -c description -c properties
volume type list --long --encryption-type -f value -c Name -c Encryption
volume type list --default -f value -c Name
volume type delete luks
""")
    lines += await region.run("admin", "volume set v1 --type fast --migration-policy on-demand\n")
    lines += await region.run("admin", """\
volume list --long -f value -c Type
volume summary -f value
volume migrate v1 --host machine@one#one
volume service list -f value -c Binary -c Host -c State
volume service set machine@two cinder-volume --disable --disable-reason repair
volume service list --long --service cinder-volume -f value
volume backend pool list --long -f value -c Name -c Protocol
volume backend capability show machine@one -f value
block storage resource filter list -f value -c Resource
quota show --volume --usage -f value
volume set v1 --state error
volume qos list -f value
volume group list -f value
consistency group list -f value
volume delete v1 --force
""")
    text = "\n".join(lines)
    assert {"__DEFAULT__", "fast", "1", "{}"} <= set(lines)  # the default type, the new one, and the summary
    for expected in ("v1", "False", "fast", "'provider': 'luks'", "cinder-scheduler machine up",
                     "cinder-volume machine@one up", "repair", "machine@two#two", "volume",
                     "gigabytes 1000 1"):
        assert expected in text, expected
    assert not await region.cloud.problems()


def connect(region: Region, user: str) -> openstack.connection.Connection:
    return openstack.connect(
        auth_url=f"{region.root}/identity/v3", username=user, password="any", project_name=user,
        user_domain_name="Default", project_domain_name="Default", region_name="RegionOne", load_yaml_config=False,
        load_envvars=False,
    )


async def test_the_sdk_chooses_the_types_of_projects(region: Region) -> None:
    def work() -> None:
        storage = connect(region, "admin").block_storage
        type_id = storage.find_type("__DEFAULT__").id
        assert storage.set_default_type(ALICE, type_id).volume_type_id == type_id
        assert storage.show_default_type(ALICE).volume_type_id == type_id
        assert [one.project_id for one in storage.default_types()] == [ALICE]
        storage.unset_default_type(ALICE)
        assert list(storage.default_types()) == []

    await asyncio.wait_for(asyncio.to_thread(work), LIMIT)


async def test_the_sdk_reads_pages_and_names(region: Region) -> None:
    def work() -> None:
        cloud = connect(region, "alice")
        for n in range(5):
            made = cloud.create_volume(1, name=f"v{n}", wait=True, timeout=60)
            assert made["status"] == "available"
        assert [one.name for one in cloud.block_storage.volumes(limit=2)] == [f"v{n}" for n in (4, 3, 2, 1, 0)]
        assert cloud.block_storage.find_volume("v3").name == "v3"
        assert cloud.block_storage.find_volume("none") is None
        snapshot = cloud.create_volume_snapshot(made["id"], wait=True, timeout=60, name="s")
        assert cloud.block_storage.find_snapshot("s").id == snapshot["id"]
        cloud.delete_volume_snapshot("s", wait=True, timeout=60)
        for n in range(5):
            assert cloud.delete_volume(f"v{n}", wait=True, timeout=60)

    await asyncio.wait_for(asyncio.to_thread(work), LIMIT)
    assert not await region.cloud.problems()
