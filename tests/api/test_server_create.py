"""POST /servers: what is accepted, what it becomes, and what is refused."""

import base64
import re
import uuid
from typing import Any

import msgspec
import pytest
from compute_cloud import CIRROS, HOST, NETWORK, OTHER_PROJECT, PROJECT, TINY, ComputeCloud, compute_cloud, create

from kilonova.api.cloud import ApiOptions
from kilonova.api.compute.hostnames import hostname_from
from kilonova.api.compute.quota_check import Limits
from kilonova.db import keypairs
from kilonova.db.keypairs import Keypair
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import BuildRequest
from kilonova.domain.network import BANDWIDTH, PortDevice, PortGroup, PortNeed, RequestedNetwork
from kilonova.services.network import NetworkSummary, PortSummary


async def accepted(cloud: ComputeCloud, version: int = 1, **fields: Any) -> BuildRequest:
    answer = await create(cloud, version, **fields)
    assert answer.status_code == 202, answer.text
    return cloud.compute.created[-1]


async def refused(cloud: ComputeCloud, code: int, version: int = 1, **fields: Any) -> str:
    answer = await create(cloud, version, **fields)
    assert answer.status_code == code, answer.text
    assert cloud.compute.created == []
    (fault,) = answer.json().values()
    message: str = fault["message"]
    return message


@pytest.mark.spec("API-108", "API-447")
async def test_answer(cloud: ComputeCloud) -> None:
    answer = await create(cloud)
    assert answer.status_code == 202
    server = answer.json()["server"]
    assert set(server) == {"id", "links", "OS-DCF:diskConfig", "security_groups", "adminPass"}
    assert (server["OS-DCF:diskConfig"], server["security_groups"]) == ("AUTO", [{"name": "default"}])
    assert re.fullmatch(r"[a-zA-Z0-9]{12}", server["adminPass"])
    assert answer.headers["location"] == f"http://cloud.test/compute/v2.1/servers/{server['id']}"
    assert cloud.compute.created[0].admin_password == server["adminPass"]
    shown = (await cloud.get(f"/servers/{server['id']}")).json()["server"]
    assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("BUILD", "scheduling")


@pytest.mark.spec("API-447")
async def test_password_option_off() -> None:
    async with compute_cloud(options=ApiOptions(enable_instance_password=False)) as cloud:
        assert "adminPass" not in (await create(cloud, adminPass="secret")).json()["server"]


@pytest.mark.spec("API-610", "API-440", "API-552", "API-563", "API-590", "BLD-83")
async def test_record(cloud: ComputeCloud) -> None:
    public = Keypair(user_id="user-of-member", name="mine", public_key="ssh-rsa AAAA", fingerprint="aa")
    await cloud.cells.api.write(lambda conn: keypairs.create(conn, public))
    data = base64.b64encode(b"#!/bin/sh").decode()
    request = await accepted(
        cloud, 94, metadata={"a": "b"}, key_name="mine", config_drive="yes", user_data=data,
        accessIPv4="192.0.2.1", accessIPv6="2001:0db8:0:0::0001", description="what", tags=["x", "y", "x"],
        trusted_image_certificates=["c"], hostname="vm.example.org", adminPass="secret", availability_zone="east",
        **{"OS-DCF:diskConfig": "MANUAL"},
    )
    made = request.instance
    assert (made.project_id, made.user_id, made.display_name) == (PROJECT, "user-of-member", "vm")
    assert made.system_metadata["boot_roles"] == "member,reader"
    assert (made.metadata, made.tags, made.trusted_certs) == ({"a": "b"}, ("x", "y"), ("c",))
    assert cloud.compute.created[0].spec.trusted_certs == ("c",)
    assert (made.key_name, made.key_data, made.user_data) == ("mine", "ssh-rsa AAAA", data)
    assert (made.config_drive, made.auto_disk_config, made.hostname) == ("True", False, "vm.example.org")
    assert (made.access_ip_v4, made.access_ip_v6, made.display_description) == ("192.0.2.1", "2001:db8::1", "what")
    assert (made.availability_zone, request.spec.availability_zone) == ("east", "east")
    assert (request.admin_password, made.flavor.name, made.created_at) == ("secret", "tiny", cloud.clock.now())
    assert (request.spec.image.id, request.spec.requested_networks) == (CIRROS, ())


@pytest.mark.spec("API-440", "API-519")
async def test_description_before_it_existed(cloud: ComputeCloud) -> None:
    assert (await accepted(cloud, 18)).instance.display_description == "vm"
    assert (await accepted(cloud, 19)).instance.display_description is None
    await cloud.post("/servers", {}, version="2.18")
    cloud.compute.created.clear()
    assert "description" in await refused(cloud, 400, 18, description="x")


LATER_FIELDS: list[tuple[str, int, Any]] = [
    ("description", 19, "x"), ("tags", 52, ["t"]), ("trusted_image_certificates", 63, None),
    ("host", 74, HOST), ("hypervisor_hostname", 74, HOST), ("hostname", 90, "host-name"),
]


@pytest.mark.spec("API-025", "API-610", "API-552", "API-563", "API-574", "API-590")
@pytest.mark.parametrize(("field", "since", "value"), LATER_FIELDS)
async def test_fields_of_later_microversions(cloud: ComputeCloud, field: str, since: int, value: Any) -> None:
    value = ["c"] if value is None else value
    message = await refused(cloud, 400, since - 1, as_="admin", **{field: value})
    assert f"('{field}' was unexpected)" in message
    assert (await create(cloud, since, as_="admin", **{field: value})).status_code == 202


@pytest.mark.spec("API-057", "API-610", "API-028", "API-024")
@pytest.mark.parametrize("fields", [
    {"name": ""}, {"name": " x"}, {"name": "x" * 256}, {"name": "a\nb"}, {"name": 3}, {"flavorRef": ""},
    {"flavorRef": None}, {"imageRef": "x"}, {"metadata": {"k": "v" * 256}}, {"metadata": {"k" * 256: "v"}},
    {"metadata": {"k/": "v"}}, {"metadata": {"": "v"}}, {"user_data": "not base64!"},
    {"user_data": base64.b64encode(b"x" * 50_000).decode()}, {"accessIPv4": "2001:db8::1"}, {"accessIPv6": "1.2.3.4"},
    {"config_drive": "maybe"}, {"min_count": 0}, {"max_count": "x"}, {"min_count": 3, "max_count": 2},
    {"OS-DCF:diskConfig": "auto"}, {"security_groups": ["default"]}, {"key_name": " k"}, {"color": "red"},
    {"personality": [{"path": "/x", "contents": "%"}]}, {"networks": "auto"}, {"return_reservation_id": 2},
])
async def test_bad_fields(cloud: ComputeCloud, fields: dict[str, Any]) -> None:
    name = {"name": "x", **fields}
    await cloud.flavor()
    body = {"server": {"flavorRef": "1", "imageRef": CIRROS, **name}}
    body["server"] = {k: v for k, v in body["server"].items() if v is not None}
    answer = await cloud.post("/servers", body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["badRequest"]["message"]


@pytest.mark.spec("API-026", "API-027")
async def test_words_for_booleans_and_digits_for_integers(cloud: ComputeCloud) -> None:
    for word in ("True", "on", "YES", True):
        assert (await accepted(cloud, config_drive=word)).instance.config_drive == "True"
    for word in ("False", "Off", "0", False):
        assert (await accepted(cloud, config_drive=word)).instance.config_drive == ""
    cloud.compute.created.clear()
    await create(cloud, min_count="2", max_count="2")
    assert len(cloud.compute.created) == 2


@pytest.mark.spec("API-594", "API-590", "API-057")
async def test_hostname_forms(cloud: ComputeCloud) -> None:
    for bad in ("x", "a.b", "-ab", "ab-", "a_b", "x" * 64):
        await refused(cloud, 400, 90, hostname=bad)
    for bad in ("", "x" * 256, "a b"):
        await refused(cloud, 400, 94, hostname=bad)
    assert (await accepted(cloud, 94, hostname="a.b")).instance.hostname == "a.b"
    cloud.compute.created.clear()
    await refused(cloud, 400, 94, hostname="ab", max_count=2)


@pytest.mark.spec("API-610")
@pytest.mark.parametrize(("name", "hostname"), [
    ("Web Server_1", "web-server-1"), ("guest.example.com", "guest-example-com"), ("-x-", "x"), ("ä b", "b"),
    ("x" * 100, "x" * 63), ("日本", "server-U"),
])
def test_hostname_from_name(name: str, hostname: str) -> None:
    assert hostname_from(name, "U") == hostname


@pytest.mark.spec("API-610", "API-426", "API-427", "API-059")
async def test_several_servers(cloud: ComputeCloud) -> None:
    answer = await create(cloud, min_count=3, return_reservation_id=True, as_="member")
    assert answer.status_code == 202
    made = [request.instance for request in cloud.compute.created]
    assert [m.display_name for m in made] == ["vm-1", "vm-2", "vm-3"]
    assert [m.hostname for m in made] == ["vm-1", "vm-2", "vm-3"]
    assert [m.launch_index for m in made] == [0, 1, 2]
    assert {m.reservation_id for m in made} == {answer.json()["reservation_id"]}
    assert set(answer.json()) == {"reservation_id"}
    assert len({m.uuid for m in made}) == 3


@pytest.mark.spec("API-059", "API-058", "API-061", "API-640")
async def test_quota() -> None:
    async with compute_cloud(limits=Limits(instances=3, cores=20)) as cloud:
        await cloud.boot()
        assert (await create(cloud)).status_code == 202
        cloud.compute.created.clear()
        message = await refused(cloud, 403, min_count=2, max_count=4)
        assert message == (
            "Quota exceeded for instances: Requested 2, but already used 2 of 3 instances")
        assert (await create(cloud, min_count=1, max_count=4)).status_code == 202
        assert len(cloud.compute.created) == 1
        cloud.compute.created.clear()
        await cloud.boot(project_id=OTHER_PROJECT)
        assert (await create(cloud, as_="stranger")).status_code == 202
    async with compute_cloud(limits=Limits(instances=-1, cores=-1, ram=1024)) as cloud:
        await cloud.boot()
        await cloud.boot(deleted_at=1.0)
        message = await refused(cloud, 403, min_count=2)
        assert message == "Quota exceeded for ram: Requested 1024, but already used 512 of 1024 ram"
        assert (await create(cloud, max_count=2)).status_code == 202


@pytest.mark.spec("API-059")
async def test_server_in_both_databases_counts_once() -> None:
    async with compute_cloud(limits=Limits(instances=2)) as cloud:
        request = await accepted(cloud)
        await cloud.boot_record(request.instance)
        assert (await create(cloud)).status_code == 202


@pytest.mark.spec("API-060")
async def test_other_quotas() -> None:
    async with compute_cloud(limits=Limits(metadata_items=1, injected_files=1, injected_file_content_bytes=4,
                                           injected_file_path_bytes=5)) as cloud:
        message = await refused(cloud, 403, metadata={"a": "1", "b": "2"})
        assert message == "Maximum number of metadata items exceeds 1"
        small = {"path": "/x", "contents": base64.b64encode(b"1234").decode()}
        assert await refused(cloud, 403, personality=[small, small]) == "Personality file limit exceeded"
        big = {"path": "/x", "contents": base64.b64encode(b"12345").decode()}
        assert await refused(cloud, 403, personality=[big]) == "Personality file content exceeds maximum 4"
        long = {**small, "path": "/12345"}
        assert await refused(cloud, 403, personality=[long]) == "Personality file path exceeds maximum 5"
        request = await accepted(cloud, 56, personality=[small])
        assert request.injected_files[0].path == "/x"


@pytest.mark.spec("API-557")
async def test_personality_ends(cloud: ComputeCloud) -> None:
    await refused(cloud, 400, 57, personality=[])


@pytest.mark.spec("API-610", "EMG-21", "EMP-09")
async def test_image_and_flavor_must_fit(cloud: ComputeCloud) -> None:
    assert await refused(cloud, 400, imageRef=None) == "Invalid imageRef provided."
    assert await refused(cloud, 400, imageRef="") == "Invalid imageRef provided."
    assert await refused(cloud, 400, imageRef=str(uuid.uuid4())) == "Can not find requested image"
    queued = cloud.images.add(status="queued").id
    assert await refused(cloud, 400, imageRef=queued) == f"Image {queued} is not active."
    assert "disk is too small" in await refused(cloud, 400, imageRef=cloud.images.add(min_disk=2).id)
    assert "disk is too small" in await refused(cloud, 400, imageRef=cloud.images.add(size=(1 << 30) + 1).id)
    assert "memory is too small" in await refused(cloud, 400, imageRef=cloud.images.add(min_ram=513).id)
    hidden = cloud.images.add(visibility="private", owner=OTHER_PROJECT).id
    assert await refused(cloud, 400, imageRef=hidden) == "Can not find requested image"
    await cloud.flavor(Flavor(flavor_id="a", name="accelerated", vcpus=1, memory_mib=512, root_gib=1,
                              extra_specs={"accel:device_profile": "gpu"}))
    assert "accelerator" in await refused(cloud, 400, flavorRef="a")
    fixed = cloud.images.add(properties={"auto_disk_config": "disabled"}).id
    await refused(cloud, 400, imageRef=fixed, **{"OS-DCF:diskConfig": "AUTO"})
    assert await refused(cloud, 400, flavorRef="9") == "Flavor 9 could not be found."


@pytest.mark.spec("API-610", "API-203")
async def test_flavor_references(cloud: ComputeCloud) -> None:
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="private", name="p", is_public=False))
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="off", name="o", disabled=True))
    for reference in (1, "1", "http://cloud.test/compute/flavors/1", "/flavors/1/"):
        assert (await create(cloud, flavorRef=reference)).status_code == 202
    cloud.compute.created.clear()
    await refused(cloud, 400, flavorRef="private")
    await refused(cloud, 400, flavorRef="off")
    assert (await create(cloud, flavorRef="private", as_="admin")).status_code == 202


@pytest.mark.spec("API-109")
async def test_zero_disk_flavor(cloud: ComputeCloud) -> None:
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="z", name="z", root_gib=0))
    await refused(cloud, 403, flavorRef="z")
    assert (await create(cloud, flavorRef="z", as_="admin")).status_code == 202


@pytest.mark.spec("API-610")
async def test_unknown_keypair(cloud: ComputeCloud) -> None:
    assert await refused(cloud, 400, key_name="none") == "Invalid key_name provided."


@pytest.mark.spec("API-537", "API-610", "API-108")
async def test_networks_absent_or_automatic(cloud: ComputeCloud) -> None:
    one = (RequestedNetwork(network_id=NETWORK),)
    assert (await accepted(cloud, 36)).spec.requested_networks == one
    assert (await accepted(cloud, 37, networks="auto")).spec.requested_networks == one
    assert (await accepted(cloud, 37, networks="none")).spec.requested_networks == ()
    cloud.networks.all.append(NetworkSummary(id=str(uuid.uuid4()), name="second", project_id=PROJECT))
    cloud.compute.created.clear()
    for version, fields in ((36, {}), (37, {"networks": "auto"})):
        await refused(cloud, 409, version, **fields)
    cloud.networks.all.clear()
    assert (await accepted(cloud, 36)).spec.requested_networks == ()
    assert (await accepted(cloud, 37, networks="auto")).spec.requested_networks is None
    body = {"server": {"name": "vm", "flavorRef": "1", "imageRef": CIRROS}}
    answer = await cloud.post("/servers", body, version="2.37")
    assert (answer.status_code, "'networks' is a required property" in answer.text) == (400, True)


@pytest.mark.spec("API-612", "API-109", "API-108")
async def test_networks_named(cloud: ComputeCloud) -> None:
    port, used, bare = (str(uuid.uuid4()) for _ in range(3))
    cloud.networks.ports = {
        port: PortSummary(id=port, network_id=NETWORK, project_id=PROJECT, addresses=("10.0.0.9",)),
        used: PortSummary(id=used, network_id=NETWORK, project_id=PROJECT, device_id="x", addresses=("10.0.0.8",)),
        bare: PortSummary(id=bare, network_id=NETWORK, project_id=PROJECT),
    }
    outside, dry, foreign = (str(uuid.uuid4()) for _ in range(3))
    cloud.networks.all += [
        NetworkSummary(id=outside, name="public", project_id=OTHER_PROJECT, external=True),
        NetworkSummary(id=dry, name="dry", project_id=PROJECT, has_subnets=False),
        NetworkSummary(id=foreign, name="foreign", project_id=OTHER_PROJECT),
    ]
    request = await accepted(cloud, 42, networks=[
        {"uuid": NETWORK, "fixed_ip": "10.0.0.5", "tag": "front"}, {"port": port, "uuid": NETWORK}, {"uuid": NETWORK}])
    assert request.spec.requested_networks == (
        RequestedNetwork(network_id=NETWORK, fixed_ip="10.0.0.5", tag="front"), RequestedNetwork(port_id=port),
        RequestedNetwork(network_id=NETWORK))
    cloud.compute.created.clear()
    for code, entry in (
        (400, {"uuid": foreign}), (400, {"uuid": "x"}), (400, {}), (400, {"port": str(uuid.uuid4())}),
        (400, {"port": port, "fixed_ip": "10.0.0.1"}), (400, {"uuid": dry}), (400, {"port": bare}),
        (400, {"uuid": NETWORK, "fixed_ip": "x"}), (403, {"uuid": outside}), (409, {"port": used}),
    ):
        await refused(cloud, code, 36, networks=[entry])
    await refused(cloud, 400, 36, networks=[{"port": port}, {"port": port}])
    await refused(cloud, 400, 36, networks=[{"port": port}], max_count=2)
    await refused(cloud, 400, 36, networks=[{"uuid": NETWORK, "fixed_ip": "10.0.0.5"}], max_count=2)
    assert (await create(cloud, networks=[{"uuid": outside}], as_="admin")).status_code == 202
    assert (await create(cloud, networks=[{"uuid": foreign}, {"uuid": NETWORK}], as_="admin")).status_code == 202
    assert cloud.compute.created[-1].spec.requested_networks == (
        RequestedNetwork(network_id=foreign, foreign=True), RequestedNetwork(network_id=NETWORK))


@pytest.mark.spec("API-572")
async def test_ports_that_ask_for_resources(cloud: ComputeCloud) -> None:
    """From 2.72 on; their networks cannot be named instead, because the host is chosen before there is a port."""
    port, network = str(uuid.uuid4()), str(uuid.uuid4())
    need = PortNeed(port_id=port, groups=(PortGroup(name=BANDWIDTH, resources={"NET_BW_EGR_KILOBIT_PER_SEC": 1000}),))
    cloud.networks.ports[port] = PortSummary(
        id=port, network_id=NETWORK, project_id=PROJECT, addresses=("10.0.0.9",), need=need
    )
    assert "resources" in await refused(cloud, 400, 71, networks=[{"port": port}])
    request = await accepted(cloud, 72, networks=[{"port": port}])
    assert request.spec.requested_networks == (RequestedNetwork(port_id=port, need=need),)
    assert request.spec.port_needs == (need,)
    cloud.compute.created.clear()
    cloud.networks.all = [NetworkSummary(id=network, name="gold", project_id=PROJECT, guarantees=True)]
    for asked in ([{"uuid": network}], "auto"):
        assert "make a port on it" in await refused(cloud, 400, 72, networks=asked)


async def test_ports_that_are_devices(cloud: ComputeCloud) -> None:
    """In every version; their networks cannot be named instead, and are not chosen by themselves."""
    port, network = str(uuid.uuid4()), str(uuid.uuid4())
    need = PortNeed(port_id=port, device=PortDevice(vnic_type="direct", physical_network="physnet1"))
    cloud.networks.ports[port] = PortSummary(
        id=port, network_id=NETWORK, project_id=PROJECT, addresses=("10.0.0.9",), need=need
    )
    request = await accepted(cloud, 1, networks=[{"port": port}])
    assert request.spec.requested_networks == (RequestedNetwork(port_id=port, need=need),)
    assert request.spec.port_needs == (need,)
    cloud.compute.created.clear()
    cloud.networks.all.append(
        NetworkSummary(id=network, name="outside", project_id=PROJECT, physical_network="physnet1")
    )
    assert "make a port on it" in await refused(cloud, 400, 72, networks=[{"uuid": network}])
    request = await accepted(cloud, 72, networks="auto")
    assert [one.network_id for one in request.spec.requested_networks or ()] == [NETWORK]


@pytest.mark.spec("API-532", "API-542", "API-612")
@pytest.mark.parametrize(("version", "code"), [(31, 400), (32, 202), (36, 202), (37, 400), (41, 400), (42, 202)])
async def test_network_tags(cloud: ComputeCloud, version: int, code: int) -> None:
    answer = await create(cloud, version, networks=[{"uuid": NETWORK, "tag": "t"}])
    assert answer.status_code == code


@pytest.mark.spec("API-537", "API-612")
async def test_form_of_network_ids(cloud: ComputeCloud) -> None:
    message = await refused(cloud, 400, 37, networks=[{"uuid": "x"}])
    assert message.startswith("Invalid input for field/attribute networks. Value: [{'uuid': 'x'}]. ")


@pytest.mark.spec("API-610")
async def test_security_groups(cloud: ComputeCloud) -> None:
    cloud.networks.known_groups["web"] = str(uuid.uuid4())
    request = await accepted(cloud, security_groups=[{"name": "web"}, {"name": "default"}, {"name": "web"}])
    assert request.spec.security_groups == ("web", "default")
    cloud.compute.created.clear()
    assert "nope" in await refused(cloud, 400, security_groups=[{"name": "nope"}])


@pytest.mark.spec("API-109", "API-610", "API-574")
async def test_zones_and_hosts(cloud: ComputeCloud) -> None:
    message = await refused(cloud, 400, availability_zone="mars")
    assert message == "The requested availability zone is not available"
    message = await refused(cloud, 403, availability_zone=f"nova:{HOST}")
    assert message == "Policy doesn't allow os_compute_api:servers:create:forced_host to be performed."
    spec = (await accepted(cloud, as_="admin", availability_zone=f"nova:{HOST}:{HOST}")).spec
    assert (spec.availability_zone, spec.force_host, spec.force_node) == ("nova", HOST, HOST)
    spec = (await accepted(cloud, as_="admin", availability_zone=f"mars::{HOST}")).spec
    assert (spec.availability_zone, spec.force_host, spec.force_node) == ("mars", None, HOST)
    spec = (await accepted(cloud, 74, as_="admin", host=HOST)).spec
    assert (spec.requested_host, spec.force_host) == (HOST, None)
    cloud.compute.created.clear()
    await refused(cloud, 400, as_="admin", availability_zone="a:b:c:d")
    await refused(cloud, 400, as_="admin", availability_zone="nova:unknown")
    await refused(cloud, 400, 74, as_="admin", host="unknown")
    await refused(cloud, 400, 74, as_="admin", hypervisor_hostname="unknown")
    await refused(cloud, 400, 74, as_="admin", host=HOST, availability_zone=f"nova:{HOST}")
    message = await refused(cloud, 403, 74, host=HOST)
    assert "compute:servers:create:requested_destination" in message


@pytest.mark.spec("API-611")
async def test_scheduler_hints(cloud: ComputeCloud) -> None:
    other = str(uuid.uuid4())
    hints = {"same_host": other, "different_host": [other], "query": ["x"], "custom": 1}
    await refused(cloud, 400, hints={"query": 3})
    await refused(cloud, 400, hints={"same_host": "x"})
    await refused(cloud, 400, hints={"cidr": "24"})
    assert other in await refused(cloud, 400, hints={"group": other})
    del hints["query"]
    await create(cloud, hints=hints)
    found = cloud.compute.created[0].spec.scheduler_hints
    assert found == {"same_host": [other], "different_host": [other], "custom": ["1"]}
    body = {"server": {"name": "vm", "flavorRef": "1", "imageRef": CIRROS},
            "OS-SCH-HNT:scheduler_hints": {"same_host": other}}
    assert (await cloud.post("/servers", body)).status_code == 202


LOCAL = {"source_type": "image", "destination_type": "local", "uuid": CIRROS, "boot_index": 0}


@pytest.mark.spec("API-613", "API-610", "API-109")
async def test_block_devices(volume_cloud: ComputeCloud) -> None:
    cloud = volume_cloud
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=1, swap_mib=1))
    request = await accepted(cloud, flavorRef="d", block_device_mapping_v2=[LOCAL, {
        "source_type": "blank", "destination_type": "local", "guest_format": "swap", "volume_size": 1,
        "boot_index": -1}])
    assert [(d.source_type, d.boot_index, d.guest_format) for d in request.spec.block_devices] == [
        ("image", 0, None), ("blank", None, "swap")]
    request = await accepted(cloud, imageRef="", block_device_mapping_v2=[LOCAL])
    assert request.instance.image_ref == CIRROS
    cloud.compute.created.clear()
    volume = str(uuid.uuid4())
    for bad in (
        [{"source_type": "volume", "destination_type": "volume", "uuid": volume, "boot_index": 0}],
        [{"source_type": "image", "destination_type": "volume", "uuid": CIRROS, "boot_index": 0}],
        [{**LOCAL, "boot_index": 1}], [LOCAL, LOCAL], [{**LOCAL, "source_type": "tape"}],
        [{**LOCAL, "uuid": None}], [{**LOCAL, "volume_size": 0}], [{**LOCAL, "x": 1}],
        [{**LOCAL, "uuid": str(uuid.uuid4())}],
    ):
        await refused(cloud, 400, block_device_mapping_v2=bad)
    message = await refused(cloud, 400, block_device_mapping_v2=[
        {"source_type": "volume", "destination_type": "volume", "uuid": volume, "boot_index": 0}])
    assert message == f"Block Device Mapping is Invalid: failed to get volume {volume}."
    await refused(cloud, 400, block_device_mapping=[{"volume_id": volume, "device_name": "vda"}])
    await refused(cloud, 400, block_device_mapping=[], block_device_mapping_v2=[])


@pytest.mark.spec("BDM-29", "BDM-30")
async def test_where_a_block_device_is_to_be_is_said_and_not_guessed(volume_cloud: ComputeCloud) -> None:
    cloud = volume_cloud
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=1))
    volume = str(uuid.uuid4())
    sources = {"image": {"uuid": CIRROS, "boot_index": 0}, "blank": {"volume_size": 1, "boot_index": -1},
               "volume": {"uuid": volume, "boot_index": 0}, "snapshot": {"uuid": volume, "boot_index": 0}}
    for source, rest in sources.items():
        message = await refused(cloud, 400, block_device_mapping_v2=[{"source_type": source, **rest}])
        assert "destination_type is missing" in message
        local = [{"source_type": source, "destination_type": "local", **rest}]
        if source in ("image", "blank"):
            await accepted(cloud, flavorRef="d", block_device_mapping_v2=local)
            cloud.compute.created.clear()
        else:
            message = await refused(cloud, 400, block_device_mapping_v2=local)
            assert f"source type {source} needs destination_type volume" in message
        made = [{"source_type": source, "destination_type": "volume", "volume_size": 1, **rest}]
        if source in ("volume", "snapshot"):
            assert f"failed to get {source} {volume}" in await refused(cloud, 400, block_device_mapping_v2=made)
        else:
            await accepted(cloud, flavorRef="d", imageRef="" if source == "image" else CIRROS,
                           block_device_mapping_v2=made)
            cloud.compute.created.clear()


@pytest.mark.spec("API-532", "API-533", "API-542")
@pytest.mark.parametrize(("version", "code"), [(31, 400), (32, 202), (33, 400), (41, 400), (42, 202)])
async def test_tags_of_block_devices(cloud: ComputeCloud, version: int, code: int) -> None:
    answer = await create(cloud, version, block_device_mapping_v2=[{**LOCAL, "tag": "x"}])
    assert answer.status_code == code


@pytest.mark.spec("API-567")
async def test_the_type_of_a_volume_that_is_made(volume_cloud: ComputeCloud) -> None:
    made = {"source_type": "blank", "destination_type": "volume", "volume_size": 1, "volume_type": "fast"}
    for version, device, refusal in (
        (66, made, "volume_type"), (67, {**made, "volume_type": "slow"}, "Volume type slow"),
        (67, {**LOCAL, "volume_type": "fast"}, "local"),
    ):
        answer = await create(volume_cloud, version, block_device_mapping_v2=[device])
        assert answer.status_code == 400
        assert refusal in answer.json()["badRequest"]["message"]
    request = await accepted(volume_cloud, 67, block_device_mapping_v2=[made])
    assert [one.volume_type for one in request.spec.block_devices] == ["fast"]


@pytest.mark.parametrize("form", ["block_device_mapping", "block_device_mapping_v2"])
async def test_a_request_names_at_most_255_block_devices(cloud: ComputeCloud, form: str) -> None:
    entry = {"no_device": True, "source_type": "blank"} if form.endswith("v2") else {"no_device": True}
    assert "too long" in await refused(cloud, 400, **{form: [entry] * 256})
    await accepted(cloud, **{form: [entry] * 255})


async def test_disks_that_the_first_form_asks_for(cloud: ComputeCloud) -> None:
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=2, swap_mib=64))
    asked = [{"virtual_name": "ephemeral0", "volume_size": 2, "device_name": "vdb"}, {"virtual_name": "swap"}]
    larger = [{**asked[0], "volume_size": 3}]
    assert "larger than the flavor" in await refused(cloud, 400, flavorRef="d", block_device_mapping=larger)
    made = (await accepted(cloud, flavorRef="d", block_device_mapping=asked)).instance
    assert [(one.guest_format, one.volume_size, one.device_name) for one in made.block_devices] == [
        (None, 2, "/dev/vdb"), ("swap", None, None)]


@pytest.mark.spec("API-108", "API-041", "API-040")
@pytest.mark.parametrize(("as_", "code"), [
    ("admin", 202), ("manager", 202), ("member", 202), ("reader", 403), ("nobody", 403), ("service", 403),
    ("system", 403)])
async def test_who_may_create(cloud: ComputeCloud, as_: str, code: int) -> None:
    assert (await create(cloud, as_=as_)).status_code == code


@pytest.mark.spec("EMG-34")
@pytest.mark.parametrize(("properties", "named"), [
    ({"hw_disk_bus": "floppy"}, "hw_disk_bus"), ({"hw_firmware_type": "coreboot"}, "hw_firmware_type"),
    ({"hw_watchdog_action": "bark"}, "hw_watchdog_action"), ({"os_secure_boot": "required"}, "Secure boot"),
    ({"hw_video_ram": "64"}, "hw_video:ram_max_mb"),
])
async def test_an_image_that_asks_for_what_cannot_be(
    cloud: ComputeCloud, properties: dict[str, str], named: str
) -> None:
    image = cloud.images.add(properties=properties)
    assert named in await refused(cloud, 400, imageRef=image.id)


@pytest.mark.parametrize(("fields", "named"), [
    ({"disk_format": "qcow2"}, "qcow2"), ({"disk_format": "raw", "status": "queued"}, "queued"),
    ({"disk_format": "raw", "visibility": "private", "owner": "others"}, "cannot be found"), (None, "cannot be found"),
])
@pytest.mark.parametrize("key", ["kernel_id", "ramdisk_id"])
async def test_a_kernel_or_ramdisk_that_cannot_be(
    cloud: ComputeCloud, key: str, fields: dict[str, str] | None, named: str
) -> None:
    good = cloud.images.add(disk_format="aki").id
    bad = cloud.images.add(**fields).id if fields is not None else "nowhere"
    image = cloud.images.add(properties={"kernel_id": good, key: bad})
    message = await refused(cloud, 400, imageRef=image.id)
    assert named in message
    assert key in message


async def test_a_kernel_and_a_ramdisk(cloud: ComputeCloud) -> None:
    kernel, ramdisk = (cloud.images.add(disk_format=form).id for form in ("aki", "ari"))
    image = cloud.images.add(properties={"kernel_id": kernel, "ramdisk_id": ramdisk})
    made = (await accepted(cloud, imageRef=image.id)).instance
    assert (made.kernel_id, made.ramdisk_id) == (kernel, ramdisk)


@pytest.mark.parametrize(("disks", "named"), [
    ([("swap", 64), ("swap", 64)], "More than one swap"), ([("swap", 129)], "Swap drive requested is larger"),
    ([("ext4", 2), ("ext4", 3)], "larger than the flavor allows"), ([(None, 5)], "larger than the flavor allows"),
    ([("ext4", 2), (None, None)], "larger than the flavor allows"), ([("ntfs", 1)], "ext2, ext3, ext4"),
])
async def test_local_disks_that_cannot_be(cloud: ComputeCloud, disks: list[tuple[str | None, int]], named: str) -> None:
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=4, swap_mib=128))
    mapping = [_root(), *(_blank(guest_format, size) for guest_format, size in disks)]
    assert named in await refused(cloud, 400, flavorRef="d", block_device_mapping_v2=mapping)


async def test_local_disks_of_the_flavor(cloud: ComputeCloud) -> None:
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=4, swap_mib=128))
    for sizes in ((4, 128), (None, None), (1, 64)):
        mapping = [_root(), _blank("ext4", sizes[0]), _blank("swap", sizes[1])]
        made = await accepted(cloud, flavorRef="d", block_device_mapping_v2=mapping)
        assert [device.guest_format for device in made.spec.block_devices] == [None, "ext4", "swap"]
        assert made.instance.block_devices == made.spec.block_devices


async def test_several_local_disks(cloud: ComputeCloud) -> None:
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=4, swap_mib=128))
    mapping = [{**_root(), "disk_bus": "scsi"}, {**_blank("ext3", 2), "boot_index": 1, "device_type": "disk"},
               {**_blank(None, 1), "disk_bus": "sata", "device_name": "/dev/sda"}]
    made = (await accepted(cloud, flavorRef="d", block_device_mapping_v2=mapping)).instance
    assert [(one.volume_size, one.guest_format, one.boot_index, one.disk_bus) for one in made.block_devices] == [
        (None, None, 0, "scsi"), (2, "ext3", 1, None), (1, None, None, "sata")]


@pytest.mark.parametrize(("device", "named"), [
    ({"disk_bus": "scuzzy"}, "disk_bus"), ({"disk_bus": "ide"}, "hw_machine_type"), ({"boot_index": 0}, "blank device"),
    ({"boot_index": 2}, "boot order"), ({"device_type": "floppy"}, "not a floppy"), ({"device_name": "/dev/a"}, "name"),
])
async def test_local_devices_that_cannot_be(cloud: ComputeCloud, device: dict[str, Any], named: str) -> None:
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=4))
    mapping = [{**_root(), "device_name": "/dev/a"}, {**_blank("ext4", 1), **device}]
    assert named in await refused(cloud, 400, flavorRef="d", block_device_mapping_v2=mapping)


async def test_a_flavor_without_such_a_disk(cloud: ComputeCloud) -> None:
    for kind in ("ext4", "swap"):
        message = await refused(cloud, 400, block_device_mapping_v2=[_root(), _blank(kind, None)])
        assert "no such disk" in message


def _root() -> dict[str, Any]:
    return {"source_type": "image", "destination_type": "local", "uuid": CIRROS, "boot_index": 0}


def _blank(guest_format: str | None, size: int | None) -> dict[str, Any]:
    return {"source_type": "blank", "destination_type": "local", "guest_format": guest_format, "volume_size": size,
            "boot_index": -1}
