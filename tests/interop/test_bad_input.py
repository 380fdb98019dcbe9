"""What clients get for requests that make no sense: the status and the words they know, and nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from clouds import RealCloud, real_cloud, wait_for

pytestmark = pytest.mark.servers

NOTHING = "99999999-9999-4999-8999-999999999999"


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("fake") as running:
        described = {"name": "image", "disk_format": "raw", "container_format": "bare"}
        image = running.call("POST", "/image/v2/images", described).json()["id"]
        running.call("PUT", f"/image/v2/images/{image}/file", content=b"x" * 512,
                     headers={"Content-Type": "application/octet-stream"})
        yield running


@pytest.fixture
def request_body(cloud: RealCloud) -> dict[str, Any]:
    flavors = {one["name"]: one["id"] for one in cloud.get("/compute/v2.1/flavors")["flavors"]}
    (image,) = cloud.get("/image/v2/images")["images"]
    network = {"uuid": cloud.network()}
    return {"name": "one", "imageRef": image["id"], "flavorRef": flavors["m1.nano"], "networks": [network]}


@pytest.fixture(autouse=True)
def nothing_written(cloud: RealCloud) -> Iterator[None]:
    yield
    assert cloud.servers() == []
    assert cloud.get("/network/v2.0/ports?device_owner=compute:nova")["ports"] == []
    limits = cloud.get("/compute/v2.1/limits")["limits"]["absolute"]
    assert limits["totalInstancesUsed"] == limits["totalCoresUsed"] == limits["totalRAMUsed"] == 0


@pytest.mark.spec("API-024", "API-034", "API-037")
@pytest.mark.parametrize(("changed", "message"), [
    ({"imageRef": NOTHING}, "Can not find requested image"),
    ({"flavorRef": "no-such"}, "Flavor no-such could not be found"),
    ({"networks": [{"uuid": NOTHING}]}, f"Network {NOTHING} could not be found"),
    ({"networks": [{"port": NOTHING}]}, f"Port id {NOTHING} could not be found"),
    ({"key_name": "no-such"}, "Invalid key_name provided"),
    ({"name": ""}, "Invalid input for field/attribute name"),
    ({"name": 7}, "Invalid input for field/attribute name"),
    ({"min_count": 5, "max_count": 2}, "min_count must be <= max_count"),
    ({"networks": "auto-magic"}, "Invalid input for field/attribute networks"),
    ({"colour": "blue"}, "Additional properties are not allowed"),
    ({"user_data": "%%%"}, "Invalid input for field/attribute user_data"),
])
def test_a_server_that_cannot_be(
    cloud: RealCloud, request_body: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    answer = cloud.call("POST", "/compute/v2.1/servers", {"server": request_body | changed}, version="2.79")
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["badRequest"]["message"]


def test_more_than_the_quota(cloud: RealCloud, request_body: dict[str, Any]) -> None:
    answer = cloud.call("POST", "/compute/v2.1/servers", {"server": request_body | {"min_count": 11, "max_count": 11}})
    assert answer.status_code == 403
    assert "Quota exceeded for instances: Requested 11, but already used 0 of 10 instances" in answer.text


def test_more_than_any_host_has(cloud: RealCloud, request_body: dict[str, Any]) -> None:
    """The request makes sense, so that it is accepted; the server tells why it cannot be."""
    flavor = {"name": "huge", "ram": 512, "vcpus": 2, "disk": 10_000_000}
    huge = cloud.call("POST", "/compute/v2.1/flavors", {"flavor": flavor}).json()["flavor"]["id"]
    answer = cloud.call("POST", "/compute/v2.1/servers", {"server": request_body | {"flavorRef": huge}})
    assert answer.status_code == 202, answer.text
    server = answer.json()["server"]["id"]
    path = f"/compute/v2.1/servers/{server}"
    failed = wait_for(
        "the server to fail",
        lambda: next((one for one in cloud.servers() if one["status"] == "ERROR"), None), 20,
    )
    assert failed["fault"]["code"] == 500
    assert "No valid host was found" in failed["fault"]["message"]
    assert cloud.call("DELETE", path).status_code == 204
    wait_for("the server to go", lambda: cloud.call("GET", path).status_code == 404, 20)


@pytest.mark.spec("API-021")
@pytest.mark.parametrize(("content", "message"), [
    (b'{"server": {', "Malformed request body"), (b"[]", ""), (b'{"host": {}}', ""), (b"", ""),
])
def test_a_body_that_is_none(cloud: RealCloud, content: bytes, message: str) -> None:
    answer = cloud.call("POST", "/compute/v2.1/servers", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["badRequest"]["message"]


@pytest.mark.spec("API-012", "API-013")
@pytest.mark.parametrize(("version", "status"), [("2.999", 406), ("3.0", 406), ("two", 400)])
def test_a_microversion_that_is_none(cloud: RealCloud, version: str, status: int) -> None:
    answer = cloud.call("GET", "/compute/v2.1/servers", version=version)
    assert answer.status_code == status
    assert status == 400 or "is not supported by the API. Minimum is 2.1 and maximum is 2.104." in answer.text


@pytest.mark.spec("API-038")
def test_a_token_that_is_none(cloud: RealCloud, request_body: dict[str, Any]) -> None:
    for token in ("garbage", ""):
        answer = cloud.call("POST", "/compute/v2.1/servers", {"server": request_body}, headers={"x-auth-token": token})
        assert answer.status_code == 401
        assert answer.json()["error"]["title"] == "Unauthorized"


def test_a_token_that_was_revoked(cloud: RealCloud) -> None:
    token = _token(cloud, "admin", _admin_password(cloud), "admin")
    assert cloud.call("GET", "/compute/v2.1/servers", headers={"x-auth-token": token}).status_code == 200
    revoked = cloud.call("DELETE", "/identity/v3/auth/tokens", headers={"X-Subject-Token": token})
    assert revoked.status_code == 204
    assert cloud.call("GET", "/compute/v2.1/servers", headers={"x-auth-token": token}).status_code == 401


def test_readers_and_other_projects(cloud: RealCloud, request_body: dict[str, Any]) -> None:
    mine = cloud.call("POST", "/compute/v2.1/servers", {"server": request_body}).json()["server"]["id"]
    path = f"/compute/v2.1/servers/{mine}"
    wait_for("the server", lambda: cloud.get(path)["server"]["status"] == "ACTIVE", 20)
    stranger = {"x-auth-token": _user(cloud, "stranger", "elsewhere", "member")}
    reader = {"x-auth-token": _user(cloud, "reader", "admin", "reader")}
    for method, body in (("GET", None), ("DELETE", None), ("PUT", {"server": {"name": "theirs"}})):
        assert cloud.call(method, path, body, headers=stranger).status_code == 404
    stop = ("POST", f"{path}/action", {"os-stop": None})
    assert cloud.call(*stop, headers=stranger).status_code == 404
    assert cloud.get("/compute/v2.1/servers", headers=stranger)["servers"] == []
    assert cloud.get(path, headers=reader)["server"]["id"] == mine
    assert cloud.call(*stop, headers=reader).status_code == 403
    assert cloud.call("DELETE", path, headers=reader).status_code == 403
    assert cloud.get(path)["server"]["name"] == "one"
    assert cloud.call("DELETE", path).status_code == 204
    wait_for("the server to go", lambda: cloud.call("GET", path).status_code == 404, 20)


def test_nothing_is_left(cloud: RealCloud) -> None:
    assert cloud.differences() == []


def _admin_password(cloud: RealCloud) -> str:
    clouds = yaml.safe_load((cloud.directory / "clouds.yaml").read_text())
    password: str = clouds["clouds"]["kilonova"]["auth"]["password"]
    return password


def _token(cloud: RealCloud, user: str, password: str, project: str) -> str:
    who = {"name": user, "domain": {"id": "default"}, "password": password}
    answer = cloud.call("POST", "/identity/v3/auth/tokens", {"auth": {
        "identity": {"methods": ["password"], "password": {"user": who}},
        "scope": {"project": {"name": project, "domain": {"id": "default"}}},
    }})
    assert answer.status_code == 201, answer.text
    return answer.headers["x-subject-token"]


def _user(cloud: RealCloud, name: str, project: str, role: str) -> str:
    """A token of a new user with a role on a project, which is made if there is none of that name."""
    projects = {one["name"]: one["id"] for one in cloud.get("/identity/v3/projects")["projects"]}
    if project not in projects:
        made = cloud.call("POST", "/identity/v3/projects", {"project": {"name": project, "domain_id": "default"}})
        projects[project] = made.json()["project"]["id"]
    user = cloud.call("POST", "/identity/v3/users", {"user": {"name": name, "password": "s3cret-words"}})
    roles = {one["name"]: one["id"] for one in cloud.get("/identity/v3/roles")["roles"]}
    granted = cloud.call(
        "PUT", f"/identity/v3/projects/{projects[project]}/users/{user.json()['user']['id']}/roles/{roles[role]}"
    )
    assert granted.status_code == 204
    return _token(cloud, name, "s3cret-words", project)
