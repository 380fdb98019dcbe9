"""What every route of the Compute API has in common: URLs, microversions, bodies, errors, request ids."""

import re
import uuid
from typing import Any

import httpx
import pytest
from compute_cloud import IDENTITY_URL, OTHER_PROJECT, PROJECT, ComputeCloud, compute_cloud

from kilonova.api import microversions
from kilonova.api.cloud import ApiOptions
from kilonova.domain.errors import ServiceUnavailable
from kilonova.services.identity import ServiceRequest

NOWHERE = f"/servers/{uuid.UUID(int=1)}"
ROUTE = f"{NOWHERE}/ips"
VERSION_HEADERS = ("openstack-api-version", "x-openstack-nova-api-version")


def fault(answer: httpx.Response, name: str, code: int) -> str:
    """The message of a fault; checks its form."""
    assert answer.status_code == code, answer.text
    (found,) = answer.json().items()
    assert found[0] == name
    assert found[1]["code"] == code
    message: str = found[1]["message"]
    return message


def without_versions(answer: httpx.Response) -> None:
    for name in VERSION_HEADERS:
        assert name not in answer.headers


@pytest.mark.spec("API-001")
async def test_root_document_needs_no_token(cloud: ComputeCloud) -> None:
    answer = await cloud.get("/", root="", as_=None)
    assert answer.status_code == 200
    old, current = answer.json()["versions"]
    assert old == {
        "id": "v2.0", "status": "DEPRECATED", "version": "", "min_version": "", "updated": "2025-07-04T12:00:00Z",
        "links": [{"rel": "self", "href": "http://cloud.test/compute/v2/"}],
    }
    assert current == {
        "id": "v2.1", "status": "CURRENT", "version": "2.104", "min_version": "2.1",
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": "http://cloud.test/compute/v2.1/"}],
    }
    without_versions(answer)
    assert "x-openstack-request-id" not in answer.headers


@pytest.mark.spec("API-002")
@pytest.mark.parametrize("path", ["", "/"])
async def test_version_document(cloud: ComputeCloud, path: str) -> None:
    answer = await cloud.get(path, as_=None, version="2.7")
    found = answer.json()["version"]
    assert (answer.status_code, found["id"], found["version"]) == (200, "v2.1", "2.104")
    assert [entry["rel"] for entry in found["links"]] == ["self", "describedby"]
    assert found["links"][1]["type"] == "text/html"
    assert found["media-types"] == [
        {"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}]
    assert answer.headers["x-openstack-nova-api-version"] == "2.7"
    assert (await cloud.get(path, as_=None, version="2.105")).status_code == 406


@pytest.mark.spec("API-003")
@pytest.mark.parametrize("path", ["", "/"])
async def test_old_version_document(cloud: ComputeCloud, path: str) -> None:
    answer = await cloud.get(path, root="/v2", as_=None, version="9.9")
    assert answer.status_code == 200
    assert answer.json()["version"]["id"] == "v2.0"
    assert answer.json()["version"]["media-types"][0]["type"].endswith("version=2")
    without_versions(answer)


@pytest.mark.spec("API-004")
async def test_path_without_version_offers_choices(cloud: ComputeCloud) -> None:
    answer = await cloud.get("/servers", root="", as_=None)
    assert answer.status_code == 300
    choices = answer.json()["choices"]
    assert [c["id"] for c in choices] == ["v2.0", "v2.1"]
    assert choices[1]["links"] == [{"rel": "self", "href": "http://cloud.test/compute/v2.1/servers"}]
    assert choices[1]["media-types"][0]["base"] == "application/json"


@pytest.mark.spec("API-005")
async def test_document_below_a_project(cloud: ComputeCloud) -> None:
    assert (await cloud.get(f"/{PROJECT}/", as_=None)).status_code == 401
    answer = await cloud.get(f"/{PROJECT}/")
    assert (answer.status_code, answer.json()["version"]["id"]) == (200, "v2.1")
    assert (await cloud.get(f"/{PROJECT}")).status_code == 404


@pytest.mark.spec("API-102")
async def test_version_by_id(cloud: ComputeCloud) -> None:
    assert (await cloud.get("/versions/v2.0")).json()["version"]["id"] == "v2.0"
    assert (await cloud.get("/versions/v2.1")).json()["version"]["id"] == "v2.1"
    fault(await cloud.get("/versions/v9"), "itemNotFound", 404)


@pytest.mark.spec("API-006", "API-518")
@pytest.mark.parametrize("version", ["2.1", "2.17", "2.104"])
async def test_project_in_url(cloud: ComputeCloud, version: str) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}/ips"
    assert (await cloud.get(path, version=version)).status_code == 200
    assert (await cloud.get(f"/{PROJECT}{path}", version=version)).status_code == 200
    for wrong in (OTHER_PROJECT, "UPPER", "x_y"):
        answer = await cloud.get(f"/{wrong}{path}", version=version)
        assert fault(answer, "badRequest", 400).startswith("Malformed request URL: ")


@pytest.mark.spec("API-008")
@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/nothing"), ("PATCH", ROUTE), ("DELETE", ROUTE), ("GET", f"{ROUTE}/"), ("GET", f"{ROUTE}.json"),
    ("HEAD", ROUTE), ("GET", f"{NOWHERE}//ips"),
])
async def test_unknown_path_or_method(cloud: ComputeCloud, method: str, path: str) -> None:
    answer = await cloud.request(method, path, version="2.9")
    assert answer.status_code == 404
    if method != "HEAD":
        assert set(answer.json()) == {"message", "code", "title"}
        assert answer.json()["code"] == "404 Not Found"
    without_versions(answer)
    assert "x-compute-request-id" in answer.headers


@pytest.mark.spec("API-010", "API-527")
@pytest.mark.parametrize(("headers", "served"), [
    ({}, "2.1"),
    ({"X-OpenStack-Nova-API-Version": "2.5"}, "2.5"),
    ({"OpenStack-API-Version": "compute 2.6", "X-OpenStack-Nova-API-Version": "2.5"}, "2.6"),
    ({"OpenStack-API-Version": "volume 3.1, compute 2.6"}, "2.6"),
    ({"OpenStack-API-Version": "volume 3.1", "X-OpenStack-Nova-API-Version": "2.5"}, "2.5"),
    ({"OpenStack-API-Version": "2.7"}, "2.1"),
    ({"OpenStack-API-Version": "volume 3.1"}, "2.1"),
])
async def test_negotiation(cloud: ComputeCloud, headers: dict[str, str], served: str) -> None:
    server = await cloud.boot()
    answer = await cloud.get(f"/servers/{server.uuid}/ips", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-openstack-nova-api-version"] == served


@pytest.mark.spec("API-011", "API-015")
@pytest.mark.parametrize("headers", [
    {"OpenStack-API-Version": "compute latest"}, {"X-OpenStack-Nova-API-Version": "latest"}])
async def test_latest(cloud: ComputeCloud, headers: dict[str, str]) -> None:
    answer = await cloud.get(ROUTE, headers=headers)
    assert answer.headers["openstack-api-version"] == "compute 2.104"
    assert answer.headers["x-openstack-nova-api-version"] == "2.104"


@pytest.mark.spec("API-012")
@pytest.mark.parametrize("value", ["2", "2.", "2.01", "02.1", "2.1.1", "newest", "-2.1", "2.1a", "٢.1"])
async def test_malformed_version(cloud: ComputeCloud, value: str) -> None:
    headers = {"X-OpenStack-Nova-API-Version": value.encode()}
    answer = await cloud.get(ROUTE, headers=headers)  # type: ignore[arg-type]
    fault(answer, "badRequest", 400)
    without_versions(answer)


@pytest.mark.spec("API-013")
@pytest.mark.parametrize("value", ["2.0", "2.105", "3.0", "1.9"])
async def test_version_out_of_range(cloud: ComputeCloud, value: str) -> None:
    answer = await cloud.get(ROUTE, version=value)
    assert fault(answer, "computeFault", 406) == (
        f"Version {value} is not supported by the API. Minimum is 2.1 and maximum is 2.104.")
    assert answer.headers["openstack-api-version"] == f"compute {value}"
    assert answer.headers["x-openstack-nova-api-version"] == value


@pytest.mark.spec("API-014", "API-031", "API-546")
@pytest.mark.parametrize("as_", ["member", None])
async def test_headers_of_every_answer(cloud: ComputeCloud, as_: str | None) -> None:
    answer = await cloud.get(ROUTE, version="2.3", as_=as_)
    assert answer.headers["openstack-api-version"] == "compute 2.3"
    assert answer.headers["x-openstack-nova-api-version"] == "2.3"
    assert {"OpenStack-API-Version", "X-OpenStack-Nova-API-Version"} == set(answer.headers.get_list("vary"))
    own = answer.headers["x-openstack-request-id"]
    assert re.fullmatch(r"req-[0-9a-f-]{36}", own)
    assert answer.headers["x-compute-request-id"] == own


@pytest.mark.spec("API-032")
async def test_global_request_id_is_not_echoed(cloud: ComputeCloud) -> None:
    sent = f"req-{uuid.uuid4()}"
    answer = await cloud.get(ROUTE, headers={"X-Openstack-Request-Id": sent})
    assert answer.headers["x-openstack-request-id"] != sent


@pytest.mark.spec("API-017")
async def test_route_outside_its_range(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await cloud.get(f"/servers/{server.uuid}/tags", version="2.25")
    assert fault(answer, "itemNotFound", 404) == "The resource could not be found."
    assert answer.headers["x-openstack-nova-api-version"] == "2.25"
    assert (await cloud.get(f"/servers/{server.uuid}/tags", version="2.26")).status_code == 200


@pytest.mark.spec(
    "API-018", "API-504", "API-512", "API-307", "API-308", "API-309", "API-310", "API-311", "API-312", "API-313",
    "API-314", "API-315", "API-316", "API-317", "API-318", "API-319", "API-320", "API-321", "API-322", "API-323",
    "API-324", "API-325", "API-326", "API-327", "API-328", "API-329", "API-330", "API-331", "API-332", "API-333",
    "API-334", "API-335", "API-336", "API-337", "API-338", "API-339",
)
@pytest.mark.parametrize("route", """
    GET /os-agents|POST /os-agents|PUT /os-agents/1|DELETE /os-agents/1|GET /os-cells|POST /os-cells
    GET /os-cells/capacities|GET /os-cells/detail|GET /os-cells/info|POST /os-cells/sync_instances|GET /os-cells/1
    PUT /os-cells/1|DELETE /os-cells/1|GET /os-cells/1/capacities|POST /os-certificates|GET /os-certificates/1
    GET /os-cloudpipe|POST /os-cloudpipe|PUT /os-cloudpipe/1|GET /os-fixed-ips/1|POST /os-fixed-ips/1/action
    GET /os-floating-ip-dns|PUT /os-floating-ip-dns/1|DELETE /os-floating-ip-dns/1
    GET /os-floating-ip-dns/1/entries/2|PUT /os-floating-ip-dns/1/entries/2|DELETE /os-floating-ip-dns/1/entries/2
    GET /os-floating-ips-bulk|POST /os-floating-ips-bulk|GET /os-floating-ips-bulk/1|PUT /os-floating-ips-bulk/1
    GET /os-fping|GET /os-fping/1|POST /os-networks|POST /os-networks/add|DELETE /os-networks/1
    POST /os-networks/1/action|GET /os-security-group-default-rules|POST /os-security-group-default-rules
    GET /os-security-group-default-rules/1|DELETE /os-security-group-default-rules/1|POST /os-tenant-networks
    DELETE /os-tenant-networks/1|GET /servers/1/consoles|POST /servers/1/consoles|GET /servers/1/consoles/2
    DELETE /servers/1/consoles/2|GET /servers/1/os-virtual-interfaces
""".replace("\n", "|").split("|"))
async def test_retired_routes(cloud: ComputeCloud, route: str) -> None:
    if not route.strip():
        return
    method, path = route.split()
    for version in ("2.1", "2.104"):
        answer = await cloud.request(method, f"{path}?x=y", version=version, as_="nobody", content=b"{not json")
        fault(answer, "computeFault", 410)
        assert answer.headers["x-openstack-nova-api-version"] == version
    assert (await cloud.request(method, path, as_=None)).status_code == 401


@pytest.mark.spec("API-143")
async def test_retired_action(cloud: ComputeCloud) -> None:
    fault(await cloud.post(f"{NOWHERE}/action", {"resetNetwork": None}), "computeFault", 410)


@pytest.mark.spec("API-020")
async def test_content_types(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path, body = f"/servers/{server.uuid}/metadata", b'{"metadata": {"a": "b"}}'
    for kind in ("application/json", "application/vnd.openstack.compute+json", "text/plain",
                 "application/json; charset=utf-8", ""):
        headers = {"Content-Type": kind, "Accept": "application/xml"} if kind else {"Accept": "text/html"}
        answer = await cloud.request("POST", path, content=body, headers=headers)
        assert answer.status_code == 200, kind
        assert answer.headers["content-type"] == "application/json"
    answer = await cloud.request("POST", path, content=body, headers={"Content-Type": "application/xml"})
    fault(answer, "badMediaType", 415)


@pytest.mark.spec("API-021")
@pytest.mark.parametrize("body", [b"", b"null", b" ", b"[", b'{"metadata": }', b"\xff", b"[" * 100_000,
                                  b'{"metadata": {"a": "\\ud800"}}', b'"text"', b"[1]", b"9" * 5000])
async def test_bodies_that_cannot_be_read(cloud: ComputeCloud, body: bytes) -> None:
    server = await cloud.boot()
    answer = await cloud.request("POST", f"/servers/{server.uuid}/metadata", content=body)
    message = fault(answer, "badRequest", 400)
    if body.strip() in (b"[", b"\xff"):
        assert message == "Malformed request body"


@pytest.mark.spec("EMI-48", "EMI-49", "EMI-50")
async def test_access_rules_and_service_tokens(cloud: ComputeCloud) -> None:
    assert (await cloud.get("/servers", as_="expired-member")).status_code == 401
    for service_token, status in (("service", 200), ("member", 401), ("rubbish", 401)):
        for token in ("expired-member", "member"):
            answer = await cloud.get("/servers", as_=token, headers={"X-Service-Token": service_token})
            assert answer.status_code == status, (token, service_token)
    cloud.identity.allowed = {ServiceRequest(service="compute", method="GET", path="/v2.1/servers")}
    assert (await cloud.get("/servers")).status_code == 200
    assert (await cloud.get("/servers/detail")).status_code == 401
    assert (await cloud.delete("/servers")).status_code == 401


@pytest.mark.spec("API-022")
async def test_body_size() -> None:
    async with compute_cloud(options=ApiOptions(max_request_body_size=100)) as cloud:
        answer = await cloud.request("POST", f"{NOWHERE}/metadata", content=b" " * 101)
        assert "larger than 100 bytes" in fault(answer, "overLimit", 413)
        assert "retryAfter" in answer.json()["overLimit"]
        assert (await cloud.request("POST", f"{NOWHERE}/metadata", content=b" " * 100)).status_code == 400
    assert ApiOptions().max_request_body_size == 114688


@pytest.mark.spec("API-023")
async def test_action_bodies(cloud: ComputeCloud) -> None:
    path = f"/servers/{(await cloud.boot()).uuid}/action"
    for body in ({}, {"os-start": None, "os-stop": None}, [], None):
        fault(await cloud.post(path, body), "badRequest", 400)
    message = fault(await cloud.post(path, {"dance": None}), "badRequest", 400)
    assert message == "There is no such action: dance"


@pytest.mark.spec("API-024", "API-028")
async def test_validation_texts(cloud: ComputeCloud) -> None:
    path = f"/servers/{(await cloud.boot()).uuid}/metadata"

    async def refused(body: Any) -> str:
        return fault(await cloud.post(path, body), "badRequest", 400)

    assert await refused({}) == "'metadata' is a required property"
    assert await refused({"metadata": {}, "x": 1}) == (
        "Additional properties are not allowed ('x' was unexpected)")
    assert await refused({"metadata": {"k": 1}}) == (
        "Invalid input for field/attribute k. Value: 1. 1 is not of type 'string'")
    assert (await refused({"metadata": []})).startswith("Invalid input for field/attribute metadata. Value: []. ")


@pytest.mark.spec("API-030")
async def test_query_that_is_not_utf8(cloud: ComputeCloud) -> None:
    for query in ("name=%ff", "name=a%00b"):
        fault(await cloud.get(f"/servers?{query}"), "badRequest", 400)


@pytest.mark.spec("API-033")
async def test_empty_answers_have_no_bytes(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"os-stop": None})
    assert (answer.status_code, answer.content) == (202, b"")
    answer = await cloud.delete(f"/servers/{server.uuid}")
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.spec("API-036", "API-034", "API-035")
async def test_unexpected_failures_name_their_class_only(cloud: ComputeCloud) -> None:
    cloud.identity.failure = RuntimeError("secret path /etc/x")
    message = fault(await cloud.get(ROUTE), "computeFault", 500)
    assert "RuntimeError" in message
    assert "secret" not in message


@pytest.mark.spec("API-038")
@pytest.mark.parametrize("token", [None, "forged"])
async def test_missing_or_bad_token(cloud: ComputeCloud, token: str | None) -> None:
    answer = await cloud.get(ROUTE, as_=token)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["code"], error["title"], set(error)) == (401, "Unauthorized", {"code", "title", "message"})
    assert answer.headers["www-authenticate"] == f'Keystone uri="{IDENTITY_URL}"'


@pytest.mark.spec("API-039")
async def test_identity_service_down(cloud: ComputeCloud) -> None:
    cloud.identity.failure = ServiceUnavailable("The identity service does not answer.")
    fault(await cloud.get(ROUTE), "serviceUnavailable", 503)


@pytest.mark.spec("API-007")
async def test_compatible_endpoint(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}"
    answer = await cloud.get(path, root="/v2", version="2.104")
    assert answer.status_code == 200
    assert "locked" not in answer.json()["server"]
    without_versions(answer)
    assert "vary" not in answer.headers
    assert (await cloud.get(f"{path}/tags", root="/v2", version="2.104")).status_code == 404
    answer = await cloud.put(path, {"server": {"name": "  spaced  ", "color": "red"}, "x": 1}, root="/v2")
    assert (answer.status_code, answer.json()["server"]["name"]) == (200, "spaced")
    assert (await cloud.put(path, {"server": {"name": " spaced"}})).status_code == 400


@pytest.mark.spec("API-009")
async def test_links(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    for project in ("", f"/{PROJECT}"):
        found = (await cloud.get(f"{project}/servers/{server.uuid}")).json()["server"]["links"]
        assert found == [
            {"rel": "self", "href": f"http://cloud.test/compute/v2.1{project}/servers/{server.uuid}"},
            {"rel": "bookmark", "href": f"http://cloud.test/compute{project}/servers/{server.uuid}"},
        ]
    options = ApiOptions(compute_link_prefix="https://api.test/c", glance_link_prefix="https://img.test")
    async with compute_cloud(options=options) as other:
        server = await other.boot()
        found = (await other.get(f"/servers/{server.uuid}")).json()["server"]
        assert found["links"][0]["href"] == f"https://api.test/c/v2.1/servers/{server.uuid}"
        assert found["image"]["links"][0]["href"] == f"https://img.test/images/{server.image_ref}"


@pytest.mark.spec("API-501", *[f"API-{500 + n}" for n in (4, 12)])
def test_microversion_table() -> None:
    assert microversions.LATEST == 104
    for number, line in enumerate(microversions.MICROVERSIONS, 1):
        assert re.match(rf"2\.{number}: \S", line)
