"""The service does what its own description says, whatever is sent: no failure, no answer that is not described.

Requests are generated from the OpenAPI description, half of them such that they do not fit it. The short run sends
the same requests every time. `KILONOVA_FUZZ_MINUTES=30` sends new ones for about as long; a failing one is printed
as a command.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import sys
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

sys.path.insert(0, str(Path(__file__).parent.parent / "api"))

from compute_cloud import CIRROS, HOST, NETWORK, PROJECT, TINY
from resource_cloud import ResourceCloud

from kilonova.api.compute.application import all_routes
from kilonova.api.openapi import describe_api
from kilonova.db import aggregates
from kilonova.domain.errors import ServiceUnavailable
from kilonova.domain.flavor import Flavor
from kilonova.domain.operation import OperationRecord

MINUTES = float(os.environ.get("KILONOVA_FUZZ_MINUTES", "0"))
VERSIONS = (1, 35, 52, 87, 104) if MINUTES else (1, 104)
EXAMPLES = 5
"""Requests of each kind for one operation in the short run."""


def service_did_not_fail(_context: Any, response: schemathesis.Response, _case: schemathesis.Case) -> None:
    """501 and 503 say what this cloud lacks; every other such status is a failure. Spec: API-036."""
    assert response.status_code < 500 or response.status_code in (501, 503), response.text


def nonsense_is_refused(context: Any, response: schemathesis.Response, case: schemathesis.Case) -> bool | None:
    """Also for being too long."""
    return None if response.status_code == 413 else checks.negative_data_rejection(context, response, case)


CHECKS = [
    service_did_not_fail,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    nonsense_is_refused,
]
PRINTABLE = st.characters(categories=["L", "N", "P", "S"])
FORMATS = {
    "base64": st.binary(max_size=30).map(lambda data: base64.b64encode(data).decode()),
    "ip address": st.ip_addresses().map(str),
    "name: printable, no white space at its ends": st.text(PRINTABLE, min_size=1, max_size=40),
    "text without control characters": st.text(PRINTABLE, max_size=40),
}
for name, strategy in FORMATS.items():
    schemathesis.openapi.format(name, strategy)


def description(version: int) -> dict[str, Any]:
    """The description without what this client adds by itself: token and microversion."""
    document = describe_api(all_routes(), version)
    del document["security"], document["components"]["securitySchemes"]
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["parameters"] = [one for one in operation["parameters"] if "$ref" not in one]
    return document


SCHEMAS = {version: schemathesis.openapi.from_dict(description(version)) for version in VERSIONS}
OPERATIONS = [
    pytest.param(version, found.ok(), id=f"2.{version} {found.ok().label}")
    for version, schema in SCHEMAS.items()
    for found in schema.get_all_operations()
]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


def never_ends(_record: OperationRecord) -> OperationRecord:
    """No conductor goes on with operations here."""
    raise ServiceUnavailable("The operation has not ended in time.")


async def furnished() -> tuple[ResourceCloud, dict[str, list[str]]]:
    """A cloud in which there is something of every kind, and the names of these things by path parameter."""
    cloud = ResourceCloud()
    cloud.compute.ends = defaultdict(lambda: never_ends)
    now = cloud.clock.now()
    node = await cloud.report(HOST)
    await cloud.flavor(TINY)
    await cloud.flavor(Flavor(flavor_id="p", name="private", vcpus=1, memory_mib=64, root_gib=1, is_public=False,
                              extra_specs={"hw:cpu_policy": "shared"}))
    servers = [(await cloud.boot(tags=("blue",), metadata={"key": "value"})).uuid for _ in range(3)]
    await cloud.post("/os-keypairs", {"keypair": {"name": "key"}})
    await cloud.cells.api.write(lambda conn: aggregates.create(conn, "rack", None, now=now))
    service = await cloud.service_of(HOST)
    image = cloud.images.add(name="mine", owner=PROJECT, properties={"key": "value"}, created_at="2023-11-14T22:13:20Z",
                             updated_at="2023-11-14T22:13:20Z").id
    things = ["1", "p", "key", "blue", "private", "v2.1", "hw:cpu_policy", "os-keypairs", node, service.uuid, CIRROS,
              PROJECT, "default", "enable", "disable-log-reason", "force-down", HOST]
    return cloud, {"server_id": servers, "flavor_id": ["1", "p"], "image_id": [image, CIRROS], "id": [*things, image]}


KNOWN = {"flavorRef": "1", "imageRef": CIRROS, "host": HOST, "binary": "nova-compute", "tenant": PROJECT,
         "key_name": "key", "networks": [{"uuid": NETWORK}]}


def made_sensible(body: Any, chosen: st.DataObject) -> Any:
    """The same body with names of things that exist in some places."""
    if isinstance(body, dict):
        return {key: KNOWN[key] if key in KNOWN and chosen.draw(st.booleans()) else made_sensible(value, chosen)
                for key, value in body.items()}
    return body


async def send(cloud: ResourceCloud, case: schemathesis.Case, version: int, persona: str) -> Any:
    request = case.as_transport_kwargs(base_url="http://cloud.test/compute/v2.1")
    content_type = {k: v for k, v in request["headers"].items() if k.lower() == "content-type"}
    return await cloud.client.request(
        request["method"], request["url"], params=request.get("params"), json=request.get("json"),
        content=request.get("data"),
        headers={**content_type, "X-Auth-Token": persona, "OpenStack-API-Version": f"compute 2.{version}"},
    )


@pytest.mark.spec("API-036", "EMI-14")
@pytest.mark.parametrize(("version", "operation"), OPERATIONS)
def test_answers_are_as_described(version: int, operation: Any, runner: asyncio.Runner) -> None:
    cloud, known = runner.run(furnished())

    def check(mode: GenerationMode, chosen: st.DataObject) -> None:
        case = chosen.draw(operation.as_strategy(generation_mode=mode))
        for parameter in case.path_parameters or {}:
            if chosen.draw(st.integers(0, 3)):
                wanted = chosen.draw(st.sampled_from(known.get(parameter, known["id"])))
                case.path_parameters[parameter] = urllib.parse.quote(wanted, safe="")
        if mode is GenerationMode.POSITIVE:
            case.body = made_sensible(case.body, chosen)
        persona = chosen.draw(st.sampled_from(["admin", "admin", "member", "reader"]))
        judged = CHECKS[:-1] if ambiguous(case.query) else CHECKS
        case.validate_response(runner.run(send(cloud, case, version, persona)), checks=judged)

    try:
        for mode in modes(operation):
            explore(partial(check, mode))
    finally:
        runner.run(cloud.close())


def ambiguous(query: dict[str, Any] | None) -> bool:
    """A list is sent as its items, and may then fit a parameter that no list fits."""
    return any(isinstance(value, (list, dict)) for value in (query or {}).values())


def modes(operation: Any) -> list[GenerationMode]:
    """Requests that do not fit need something to be wrong in; every path fits."""
    return list(GenerationMode) if operation.body or operation.query else [GenerationMode.POSITIVE]


def explore(check: Callable[[st.DataObject], None]) -> None:
    """Run a check on many examples: the same few ones, or new ones until the time is up."""

    def once(chosen: st.DataObject) -> None:
        check(chosen)

    short = settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
                     suppress_health_check=list(HealthCheck))
    if not MINUTES:
        short(given(st.data())(once))()
        return
    until = time.monotonic() + MINUTES * 60 / (2 * len(OPERATIONS))
    while time.monotonic() < until:
        number = secrets.randbits(32)
        print(f"seed {number}")
        seed(number)(settings(short, derandomize=False)(given(st.data())(once)))()
