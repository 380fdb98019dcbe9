"""The description of the API: valid by the word of others, complete, and served without a token."""

from typing import Any

import pytest
from compute_cloud import ComputeCloud
from openapi_spec_validator import OpenAPIV31SpecValidator

from kilonova.api.compute.application import all_routes
from kilonova.api.openapi import describe_api

VERSIONS = (1, 35, 52, 87, 104)
"""Each has routes or fields that the next no longer has."""


async def described(cloud: ComputeCloud, version: str | None = None) -> dict[str, Any]:
    query = {} if version is None else {"microversion": version}
    answer = await cloud.get("/openapi.json", as_=None, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def schema_of(operation: dict[str, Any], status: str | None = None) -> dict[str, Any]:
    """The schema of the request, or of an answer."""
    part = operation["requestBody"] if status is None else operation["responses"][status]
    found: dict[str, Any] = part["content"]["application/json"]["schema"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
async def test_it_is_valid(cloud: ComputeCloud, version: int) -> None:
    document = await described(cloud, f"2.{version}")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


async def test_it_tells_the_latest_microversion_unless_asked(cloud: ComputeCloud) -> None:
    assert (await described(cloud))["info"]["version"] == "2.104"
    old = await described(cloud, "2.25")
    assert old["info"]["version"] == "2.25"
    assert "/servers/{server_id}/tags" not in old["paths"]
    assert old["servers"] == [{"url": "http://cloud.test/compute/v2.1"}]


@pytest.mark.parametrize(("query", "status"), [
    ("microversion=2.105", 406), ("microversion=3.0", 406), ("microversion=new", 400), ("microversion=", 400),
    ("version=2.1", 400),
])
async def test_microversions_that_do_not_exist(cloud: ComputeCloud, query: str, status: int) -> None:
    assert (await cloud.get(f"/openapi.json?{query}", as_=None)).status_code == status


async def test_only_the_document_itself_needs_no_token(cloud: ComputeCloud) -> None:
    assert (await cloud.post("/openapi.json", {}, as_=None)).status_code == 401
    assert (await cloud.get("/openapi.json/servers", as_=None)).status_code == 401
    assert (await cloud.get("/openapi.json", as_=None, root="/v2")).status_code == 401


@pytest.mark.parametrize("version", [1, 36, 37, 89, 90, 104])
def test_requests(version: int) -> None:
    paths = describe_api(all_routes(), version)["paths"]
    server = schema_of(paths["/servers"]["post"])["properties"]["server"]
    assert ("networks" in server["required"]) is (version >= 37)
    assert ("hostname" in server["properties"]) is (version >= 90)
    names = {name for one in schema_of(paths["/servers/{server_id}/action"]["post"])["anyOf"]
             for name in one["properties"]}
    assert {"os-start", "reboot", "lock"} <= names
    assert "resetNetwork" not in names
    assert "/os-cells" not in paths
    in_query = {p["name"] for p in paths["/servers"]["get"]["parameters"] if p.get("in") == "query"}
    assert ("changes-before" in in_query) is (version >= 66)


@pytest.mark.parametrize("version", [1, 46, 47, 74, 75, 104])
def test_answers(version: int) -> None:
    paths = describe_api(all_routes(), version)["paths"]
    assert "202" in paths["/servers"]["post"]["responses"]
    (shown,) = schema_of(paths["/servers/{server_id}"]["get"], "200")["anyOf"]
    server = shown["properties"]["server"]
    server = server["anyOf"][0] if version >= 69 else server
    assert ("original_name" in server["properties"]["flavor"]["properties"]) is (version >= 47)
    (changed,) = schema_of(paths["/servers/{server_id}"]["put"], "200")["anyOf"]
    assert ("key_name" in changed["properties"]["server"]["properties"]) is (version >= 75)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_every_operation_says(version: int) -> None:
    document = describe_api(all_routes(), version)
    seen = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            in_path = {p["name"] for p in operation["parameters"] if p.get("in") == "path"}
            assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert {"$ref": "#/components/parameters/microversion"} in operation["parameters"]
            assert {"400", "401", "403", "404", "406", "503"} <= operation["responses"].keys()
            assert ("requestBody" in operation) <= (method in ("post", "put"))
    for status, response in document["components"]["responses"].items():
        assert status.startswith("error") and response["description"]
    assert document["security"] == [{"token": []}]


def test_declared_errors_have_a_meaning() -> None:
    known = describe_api(all_routes(), 104)["components"]["responses"]
    assert {f"error{status}" for route in all_routes() for status in route.errors} <= known.keys()
