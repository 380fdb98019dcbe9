"""GET /servers and /servers/detail: filters, order, pages, and where the servers are."""

import itertools
import uuid
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from compute_cloud import CIRROS, OTHER_PROJECT, PROJECT, ComputeCloud, compute_cloud, create, vif

from kilonova.api.cloud import ApiOptions
from kilonova.db.instance_list import SORT_KEYS
from kilonova.domain.errors import ServiceUnavailable
from kilonova.domain.states import PowerState, TaskState, VmState


async def names(cloud: ComputeCloud, query: str = "", *, version: int = 104, as_: str = "member") -> list[str]:
    answer = await cloud.get(f"/servers?{query}", version=f"2.{version}", as_=as_)
    assert answer.status_code == 200, answer.text
    return [server["name"] for server in answer.json()["servers"]]


async def code(cloud: ComputeCloud, query: str, *, version: int = 104, as_: str = "member") -> int:
    return (await cloud.get(f"/servers?{query}", version=f"2.{version}", as_=as_)).status_code


@pytest.mark.spec("API-106", "API-048", "API-051", "DEL-46")
async def test_newest_first_wherever_they_are(cloud: ComputeCloud) -> None:
    for number in range(4):
        cloud.clock.time += 1
        if number % 2:
            await cloud.boot(display_name=f"s{number}")
        else:
            await create(cloud, name=f"s{number}")
    assert await names(cloud) == ["s3", "s2", "s1", "s0"]
    assert await names(cloud, "sort_key=created_at&sort_dir=asc") == ["s0", "s1", "s2", "s3"]
    waiting = cloud.compute.created[0].instance
    assert (await cloud.delete(f"/servers/{waiting.uuid}")).status_code == 204
    assert await names(cloud) == ["s3", "s2", "s1"]


@pytest.mark.spec("API-106")
async def test_server_being_handed_over_is_listed_once(cloud: ComputeCloud) -> None:
    await create(cloud)
    await cloud.boot_record(cloud.compute.created[0].instance)
    assert await names(cloud) == ["vm"]


@pytest.mark.spec("API-046", "API-047", "API-048", "API-049")
@pytest.mark.parametrize("order", ["", "sort_key=display_name&sort_dir=asc", "sort_key=host&sort_dir=asc",
                                   "sort_key=host&sort_dir=desc", "sort_key=launch_index&sort_key=host"])
async def test_pages(cloud: ComputeCloud, order: str) -> None:
    for number in range(7):
        cloud.clock.time += number % 2
        host = None if number % 3 == 0 else f"host-{number % 3}"
        if number == 4:
            await create(cloud, name="s4")
        else:
            await cloud.boot(display_name=f"s{number}", host=host, launch_index=number % 2)
    whole = await names(cloud, order, as_="admin")
    assert len(whole) == 7
    found: list[str] = []
    url = f"/servers?{order}&limit=3"
    for size in (3, 3, 1):
        answer = (await cloud.get(url, as_="admin", version="2.104")).json()
        assert len(answer["servers"]) == size
        found += [server["name"] for server in answer["servers"]]
        if size < 3:
            assert "servers_links" not in answer
            break
        (following,) = answer["servers_links"]
        assert following["rel"] == "next"
        parts = urlsplit(following["href"])
        assert parts.path == "/compute/v2.1/servers"
        assert parse_qs(parts.query)["marker"] == [answer["servers"][-1]["id"]]
        pairs = [pair.partition("=")[0] for pair in parts.query.split("&")]
        assert pairs == sorted(pairs)
        url = f"/servers?{parts.query}"
    assert found == whole


@pytest.mark.spec("API-046", "API-047", "API-049")
async def test_limits() -> None:
    async with compute_cloud(options=ApiOptions(max_limit=2)) as cloud:
        for _ in range(3):
            await cloud.boot()
        for query, size, linked in (("", 2, True), ("limit=5", 2, True), ("limit=1", 1, True), ("limit=0", 0, False)):
            answer = (await cloud.get(f"/servers/detail?{query}")).json()
            assert len(answer["servers"]) == size
            assert ("servers_links" in answer) is linked
        for bad in ("limit=-1", "limit=x", "limit=1.5"):
            assert await code(cloud, bad, version=1) == 400
        assert await code(cloud, "limit=x&limit=1") == 400
    assert ApiOptions().max_limit == 1000


@pytest.mark.spec("API-048")
async def test_markers(cloud: ComputeCloud) -> None:
    foreign = await cloud.boot(project_id=OTHER_PROJECT)
    for marker in (str(uuid.uuid4()), "x", foreign.uuid):
        answer = await cloud.get(f"/servers?marker={marker}")
        assert answer.status_code == 400
        assert answer.json()["badRequest"]["message"] == f"marker [{marker}] not found"


@pytest.mark.spec("API-628", "API-051")
@pytest.mark.parametrize("key", sorted(SORT_KEYS))
async def test_every_sort_key(cloud: ComputeCloud, key: str) -> None:
    tags = iter(itertools.cycle("bca"))
    for number in range(5):
        letter = next(tags)
        await cloud.boot(
            display_name=letter, access_ip_v4=letter, access_ip_v6=letter, auto_disk_config=letter == "b",
            availability_zone=letter if number else None, config_drive=letter, display_description=letter,
            host=letter, hostname=letter, image_ref=letter, kernel_id=letter, key_name=letter,
            launch_index=ord(letter), launched_at=float(ord(letter)), locked_by="owner" if letter == "c" else None,
            node=letter, power_state=PowerState.PAUSED if letter == "a" else PowerState.RUNNING, progress=ord(letter),
            ramdisk_id=letter, root_device_name=letter, terminated_at=float(ord(letter)), user_id=letter,
            task_state=TaskState.MIGRATING if letter == "a" else None, updated_at=float(ord(letter)),
            vm_state=VmState.STOPPED if letter == "c" else VmState.ACTIVE, created_at=float(ord(letter)),
        )
    ids = {}
    for direction in ("asc", "desc"):
        answer = await cloud.get(f"/servers?sort_key={key}&sort_dir={direction}", version="2.104", as_="admin")
        ids[direction] = [server["id"] for server in answer.json()["servers"]]
    assert len(ids["asc"]) == 5
    assert ids["asc"] == ids["desc"][::-1]
    records = [await cloud.stored(server_id) for server_id in ids["asc"]]
    values = [(0,) if (v := SORT_KEYS[key].value(record)) is None else (1, v) for record in records]
    assert values == sorted(values)


@pytest.mark.spec("API-051", "API-629", "API-630", "API-573")
async def test_bad_sorting(cloud: ComputeCloud) -> None:
    assert await code(cloud, "sort_key=display_name&sort_dir=asc&sort_dir=desc") == 400
    assert await code(cloud, "sort_key=uuid&sort_dir=up") == 400
    assert await code(cloud, "sort_key=nonsense", version=1) == 400
    for key in ("host", "node"):
        assert await code(cloud, f"sort_key={key}") == 403
        assert await code(cloud, f"sort_key={key}", as_="admin") == 200
    for key in ("vcpus", "id", "os_type", "deleted"):
        assert await code(cloud, f"sort_key={key}", version=74) == 200
        assert await code(cloud, f"sort_key={key}", version=75) == 400
    assert await code(cloud, "sort_key=locked", version=72) == 200
    assert await code(cloud, "sort_key=locked", version=75) == 200


@pytest.mark.spec("API-051")
async def test_directions_are_paired_and_the_first_fills_up(cloud: ComputeCloud) -> None:
    for name, zone in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")):
        await cloud.boot(display_name=name, availability_zone=zone)
    keys = "sort_key=availability_zone&sort_key=display_name"
    assert await names(cloud, f"{keys}&sort_dir=asc&sort_dir=desc") == ["b", "a", "d", "c"]
    assert await names(cloud, f"{keys}&sort_dir=asc") == ["a", "b", "c", "d"]
    assert await names(cloud, keys) == ["d", "c", "b", "a"]


FILTERS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("name=^w.b$", "everybody", 1, {"display_name": "web"}),
    ("reservation_id=r-1", "everybody", 1, {"reservation_id": "r-12"}),
    ("status=shutoff", "everybody", 1, {"vm_state": VmState.STOPPED}),
    ("status=HARD_REBOOT", "everybody", 1, {"task_state": TaskState.REBOOTING_HARD}),
    ("image=other", "everybody", 1, {"image_ref": "other"}),
    ("ip=10.0.0", "everybody", 1, {"network_info": (vif(),)}),
    ("ip6=fd00::", "everybody", 5, {"network_info": (vif(),)}),
    ("tags=a,b", "everybody", 26, {"tags": ("a", "b", "c")}),
    ("tags-any=a,z", "everybody", 26, {"tags": ("a",)}),
    ("locked=true", "everybody", 73, {"locked_by": "owner"}),
    ("user_id=u2", "everybody", 83, {"user_id": "u2"}),
    ("vm_state=paused", "everybody", 83, {"vm_state": VmState.PAUSED}),
    ("task_state=migrating", "everybody", 83, {"task_state": TaskState.MIGRATING}),
    ("availability_zone=ea", "everybody", 83, {"availability_zone": "east"}),
    ("config_drive=True", "everybody", 83, {"config_drive": "True"}),
    ("key_name=my", "everybody", 83, {"key_name": "mykey"}),
    ("created_at=2001-", "everybody", 83, {"created_at": 1_000_000_000.0}),
    ("launched_at=2001-", "everybody", 83, {"launched_at": 1_000_000_000.0}),
    ("terminated_at=2001-", "everybody", 83, {"terminated_at": 1_000_000_000.0}),
    ("power_state=4", "everybody", 83, {"power_state": PowerState.SHUTDOWN}),
    ("progress=77", "everybody", 83, {"progress": 77}),
    ("hostname=gue", "everybody", 90, {"hostname": "guest"}),
    ("host=h2", "admin", 1, {"host": "h2"}),
    ("node=n2", "admin", 1, {"node": "n2"}),
    ("image_ref=other", "admin", 1, {"image_ref": "other"}),
    ("launch_index=7", "admin", 1, {"launch_index": 7}),
    ("kernel_id=k", "admin", 1, {"kernel_id": "k1"}),
    ("ramdisk_id=k", "admin", 1, {"ramdisk_id": "k1"}),
    ("root_device_name=vdz", "admin", 1, {"root_device_name": "/dev/vdz"}),
    ("access_ip_v4=192", "admin", 1, {"access_ip_v4": "192.0.2.1"}),
    ("access_ip_v6=2001", "admin", 1, {"access_ip_v6": "2001:db8::"}),
    ("auto_disk_config=0", "admin", 1, {"auto_disk_config": False}),
    ("description=what", "admin", 1, {"display_description": "what"}),
    ("display_name=web", "admin", 1, {"display_name": "web"}),
    ("display_description=what", "admin", 1, {"display_description": "what"}),
    ("locked_by=owner", "admin", 1, {"locked_by": "owner"}),
]


@pytest.mark.spec("API-620")
async def test_letters_are_found_in_names_as_they_are_written(cloud: ComputeCloud) -> None:
    for name in ("Web-1", "web-1", "web_2 a", "w"):
        await cloud.boot(display_name=name)
    found = {
        asked: set(await names(cloud, f"name={asked}"))
        for asked in ("eb-1", "web", "WEB", "b_2 a", "^Web-1$", "w.b", "")
    }
    assert found == {
        "eb-1": {"Web-1", "web-1"}, "web": {"web-1", "web_2 a"}, "WEB": set(), "b_2 a": {"web_2 a"},
        "^Web-1$": {"Web-1"}, "w.b": {"web-1", "web_2 a"}, "": {"Web-1", "web-1", "web_2 a", "w"},
    }


@pytest.mark.spec("API-620", "API-622", "API-505", "API-526", "API-573", "API-583", "API-590", "API-016")
@pytest.mark.parametrize(("query", "audience", "since", "fields"), FILTERS)
async def test_filters(
    cloud: ComputeCloud, query: str, audience: str, since: int, fields: dict[str, Any]
) -> None:
    wanted = {"display_name": "wanted", **fields}
    await cloud.boot(display_name="plain")
    await cloud.boot(**wanted)
    only, both = [wanted["display_name"]], {"plain", wanted["display_name"]}
    assert await names(cloud, query, as_="admin", version=max(since, 26)) == only
    if audience == "everybody":
        assert await names(cloud, query, version=since) == only
        if since > 26 or since == 5:
            assert set(await names(cloud, query, version=since - 1)) == both
    else:
        assert set(await names(cloud, query, version=104)) == both


@pytest.mark.spec("API-526", "API-622")
async def test_tag_filters(cloud: ComputeCloud) -> None:
    for name, tags in (("none", ()), ("a", ("a",)), ("ab", ("a", "b"))):
        await cloud.boot(display_name=name, tags=tags)
    for query, found in (("tags=a", {"a", "ab"}), ("tags=a,b", {"ab"}), ("tags-any=b,c", {"ab"}),
                         ("not-tags=a,b", {"none", "a"}), ("not-tags-any=b,a", {"none"}),
                         ("tags=a&not-tags=b", {"a"})):
        assert set(await names(cloud, query)) == found, query


@pytest.mark.spec("API-627", "API-622")
async def test_expressions(cloud: ComputeCloud) -> None:
    await cloud.boot(display_name="a" * 60)
    for bad in ("name=*", "name=(", "ip=[", "name=a{2"):
        assert await code(cloud, bad) in (400, 200)
    assert await code(cloud, "name=*") == 400
    assert await code(cloud, "ip=[") == 400
    assert await names(cloud, "name=(a%2B)%2B%24&name=(a%2B)%2Bb") == []
    assert await names(cloud, "flavor=unknown") == []
    assert len(await names(cloud, "flavor=1")) == 1


@pytest.mark.spec("API-621")
@pytest.mark.parametrize("name", ["_x", "block_device_mapping", "services", "metadata", "system_metadata",
                                  "info_cache", "security_groups", "pci_devices"])
@pytest.mark.parametrize("version", [1, 104])
async def test_invalid_filter_fields(cloud: ComputeCloud, name: str, version: int) -> None:
    answer = await cloud.get(f"/servers?{name}=1", version=f"2.{version}")
    assert answer.status_code == 400
    assert "Invalid filter field" in answer.text


@pytest.mark.spec("API-029", "API-025", "API-575")
async def test_unknown_parameters(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    for path in ("/servers", "/servers/detail"):
        assert (await cloud.get(f"{path}?color=red", version="2.74")).status_code == 200
        assert (await cloud.get(f"{path}?color=red", version="2.75")).status_code == 400
    for path in (f"/servers/{server.uuid}", f"/servers/{server.uuid}/metadata", f"/servers/{server.uuid}/ips"):
        assert (await cloud.get(f"{path}?color=red", version="2.101")).status_code == 200
        assert (await cloud.get(f"{path}?color=red", version="2.102")).status_code == 400
    actions = f"/servers/{server.uuid}/os-instance-actions"
    assert (await cloud.get(f"{actions}?color=red", version="2.57")).status_code == 200
    assert (await cloud.get(f"{actions}?color=red", version="2.58")).status_code == 400
    assert (await cloud.get(f"/servers/{server.uuid}/tags?color=red", version="2.104")).status_code == 200


@pytest.mark.spec("API-602")
async def test_queries_are_strict_from_2_102(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await cloud.get(f"/servers/{server.uuid}?x=1", version="2.102")
    assert answer.json()["badRequest"]["message"] == (
        "Additional properties are not allowed ('x' was unexpected)")


@pytest.mark.spec("API-052")
async def test_last_of_repeated_parameters_counts(cloud: ComputeCloud) -> None:
    await cloud.boot(display_name="a")
    await cloud.boot(display_name="b")
    assert await names(cloud, "name=a&name=b") == ["b"]
    assert await code(cloud, "name=a&limit=x&limit=3") == 400


@pytest.mark.spec("API-623", "API-624", "API-106", "API-107")
async def test_all_tenants(cloud: ComputeCloud) -> None:
    await cloud.boot(display_name="ours")
    await cloud.boot(display_name="theirs", project_id=OTHER_PROJECT)
    assert await names(cloud) == ["ours"]
    assert await names(cloud, as_="admin") == ["ours"]
    assert await names(cloud, f"project_id={OTHER_PROJECT}", as_="admin") == ["ours"]
    for value in ("1", "", "True", "yes"):
        assert set(await names(cloud, f"all_tenants={value}", as_="admin")) == {"ours", "theirs"}
        answer = await cloud.get(f"/servers?all_tenants={value}")
        assert answer.json()["forbidden"]["message"] == (
            "Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.")
    answer = await cloud.get("/servers/detail?all_tenants=1")
    assert "servers:detail:get_all_tenants" in answer.text
    assert await names(cloud, "all_tenants=0") == ["ours"]
    assert await code(cloud, "all_tenants=perhaps", as_="admin") == 400
    for name in ("project_id", "tenant_id"):
        assert await names(cloud, f"all_tenants=1&{name}={OTHER_PROJECT}", as_="admin") == ["theirs"]


@pytest.mark.spec("API-625", "API-626", "API-620")
async def test_deleted_servers(cloud: ComputeCloud) -> None:
    await cloud.boot(display_name="alive")
    gone = await cloud.boot(display_name="gone", vm_state=VmState.DELETED, deleted_at=cloud.clock.now() + 5,
                            updated_at=cloud.clock.now() + 5)
    await cloud.boot(display_name="soft", vm_state=VmState.SOFT_DELETED)
    assert await names(cloud) == ["alive"]
    assert await names(cloud, "deleted=1") == ["alive"]
    assert await names(cloud, "deleted=1", as_="admin") == ["gone"]
    assert await names(cloud, "status=deleted", as_="admin") == ["gone"]
    assert await names(cloud, "status=soft_deleted") == ["soft"]
    assert set(await names(cloud, "soft_deleted=1", as_="admin")) == {"alive", "soft"}
    answer = await cloud.get("/servers?status=deleted")
    assert answer.json()["forbidden"]["message"] == "Only administrators may list deleted instances"
    since = "changes-since=2023-11-14T22:13:24Z"
    assert await names(cloud, since) == ["gone"]
    (shown,) = (await cloud.get(f"/servers/detail?{since}")).json()["servers"]
    assert (shown["status"], shown["OS-EXT-STS:vm_state"], shown["id"]) == ("DELETED", "deleted", gone.uuid)


@pytest.mark.spec("API-053", "API-056", "API-566")
async def test_changes(cloud: ComputeCloud) -> None:
    await cloud.boot(display_name="old", created_at=1_000_000_000.0)
    await cloud.boot(display_name="new", created_at=1_000_000_000.0, updated_at=1_000_000_100.0)
    at = "2001-09-09T01:48:20"
    assert await names(cloud, f"changes-since={at}Z") == ["new"]
    assert await names(cloud, f"changes-since={at}") == ["new"]
    assert await names(cloud, f"changes-since={at}%2B00:00") == ["new"]
    assert set(await names(cloud, f"changes-before={at}Z")) == {"old", "new"}
    assert await names(cloud, "changes-before=2001-09-09T01:48:19Z") == ["old"]
    assert await names(cloud, "changes-since=2001-09-09T01:48:21Z") == []
    answer = await cloud.get(f"/servers?changes-since={at}Z&changes-before=2001-01-01T00:00:00Z", version="2.66")
    assert answer.json()["badRequest"]["message"] == (
        "The value of changes-since must be less than or equal to changes-before.")
    assert await code(cloud, "changes-since=yesterday") == 400
    assert len(await names(cloud, "changes-before=2000-01-01T00:00:00Z", version=65)) == 2


@pytest.mark.spec("API-538", "API-626", "API-490")
async def test_status_filter(cloud: ComputeCloud) -> None:
    await cloud.boot(display_name="on")
    await cloud.boot(display_name="off", vm_state=VmState.STOPPED)
    await cloud.boot(display_name="busy", task_state=TaskState.REBOOTING)
    assert set(await names(cloud, "status=active")) == {"on", "busy"}
    assert set(await names(cloud, "status=REBOOT")) == {"busy"}
    assert set(await names(cloud, "status=ACTIVE&status=SHUTOFF")) == {"on", "off", "busy"}
    assert await names(cloud, "status=nonsense", version=37) == []
    answer = await cloud.get("/servers?status=nonsense", version="2.38")
    assert answer.json()["badRequest"]["message"] == "Invalid status value"


@pytest.mark.spec("API-624", "API-573")
async def test_bad_booleans(cloud: ComputeCloud) -> None:
    assert await code(cloud, "locked=perhaps") == 400
    assert await code(cloud, "deleted=perhaps", as_="admin") == 400


@pytest.mark.spec("API-054", "API-451", "API-569", "API-029")
async def test_unreachable_cell(cloud: ComputeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await cloud.boot()
    waiting = (await create(cloud)).json()["server"]["id"]

    async def silent(fn: object) -> None:
        raise ServiceUnavailable("The database does not answer.")

    monkeypatch.setattr(cloud.cell.database, "read", silent)
    entries = {s["id"]: s for s in (await cloud.get("/servers", version="2.69")).json()["servers"]}
    assert set(entries) == {server.uuid, waiting}
    assert set(entries[server.uuid]) == {"id", "status", "links"}
    assert entries[server.uuid]["status"] == "UNKNOWN"
    entries = {s["id"]: s for s in (await cloud.get("/servers/detail", version="2.69")).json()["servers"]}
    assert set(entries[server.uuid]) == {"id", "status", "links", "tenant_id", "created"}
    assert entries[server.uuid]["tenant_id"] == PROJECT
    for query, version in (("", 68), ("limit=5", 69), ("name=vm", 69), ("sort_key=uuid", 69)):
        assert len(await names(cloud, query, version=version)) == 1


@pytest.mark.spec("API-054")
async def test_unreachable_cell_may_fail_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    async with compute_cloud(options=ApiOptions(list_records_by_skipping_down_cells=False)) as cloud:
        async def silent(fn: object) -> None:
            raise ServiceUnavailable("The database does not answer.")

        monkeypatch.setattr(cloud.cell.database, "read", silent)
        assert await code(cloud, "", version=68) == 500


@pytest.mark.spec("API-195", "API-196", "API-197", "API-198", "API-603")
async def test_old_alias(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/os-volumes_boot/{server.uuid}"
    assert (await cloud.get("/os-volumes_boot", version="2.102")).json()["servers"][0]["id"] == server.uuid
    assert (await cloud.get("/os-volumes_boot/detail")).json()["servers"][0]["status"] == "ACTIVE"
    shown = (await cloud.get(path)).json()["server"]
    assert shown["links"][0]["href"].endswith(f"/v2.1/servers/{server.uuid}")
    assert (await cloud.put(path, {"server": {"name": "n"}})).json()["server"]["name"] == "n"
    assert (await cloud.post(f"{path}/action", {"os-stop": None})).status_code == 202
    answer = await cloud.post(f"{path}/action", {"lock": None})
    assert answer.json()["badRequest"]["message"] == "There is no such action: lock"
    body = {"server": {"name": "x", "flavorRef": "1", "imageRef": CIRROS}}
    await cloud.flavor()
    answer = await cloud.post("/os-volumes_boot", body)
    assert answer.status_code == 202
    assert "/v2.1/servers/" in answer.headers["location"]
    assert (await cloud.delete(path)).status_code == 204
    for gone in ("/os-volumes_boot", "/os-volumes_boot/detail", path):
        assert (await cloud.get(gone, version="2.103")).status_code == 404
