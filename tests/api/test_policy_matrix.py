"""Every route, asked by everybody: the contract says who gets through and in whose name the others are refused."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import httpx
import pytest
from compute_cloud import PROJECT, ComputeCloud
from contract_table import Key, Row, audiences, key_of, rows

from kilonova.api.compute.application import all_routes, all_rules
from kilonova.api.compute.server_lookup import find_server_of_anyone
from kilonova.api.policy import Audience
from kilonova.api.routes import Route

ALIAS = "/os-volumes_boot"
"""The contract describes this alias of /servers by the rows of /servers."""

ROWS: dict[Key, list[Row]] = {}
for row in rows():
    ROWS.setdefault(row.key, []).append(row)
ROUTES = [route for route in all_routes() if not route.retired and not route.path.startswith(ALIAS)]
BY_KEY = {key: list(found) for key, found in groupby(sorted(ROUTES, key=lambda r: str(key_of(r))), key_of)}
PERSONAS = ("reader", "member", "manager", "admin", "service", "stranger")
ADMITTED = {
    Audience.ANY: set(PERSONAS), Audience.USER: set(PERSONAS),
    Audience.READER: {"reader", "member", "manager", "admin", "stranger"},
    Audience.MEMBER: {"member", "manager", "admin", "stranger"},
    Audience.MANAGER: {"manager", "admin"}, Audience.ADMIN: {"admin"}, Audience.SERVICE: {"service", "admin"},
}
"""Who passes for objects of his own. The stranger is a member of another project."""

ELSEWHERE = {"servers:allow_all_filters": Audience.ADMIN}
"""Named in part 11. Spec: API-620."""

GROUP = "/os-server-groups/{id}"
OF_A_PROJECT = ("/os-quota-sets/{id}", "/os-simple-tenant-usage/{id}", GROUP)
"""Paths that name a project, or what belongs to one: the stranger asks for one that is not his."""


def name(route: Route) -> str:
    return f"{route.method} {route.path} {route.action or ''} 2.{route.since}".replace("  ", " ")


@pytest.mark.spec("API-040")
def test_the_contract_names_every_rule_and_its_audience() -> None:
    contract = audiences() | ELSEWHERE
    ours = {rule.short: rule.audience for rule in all_rules(all_routes())}
    assert ours == {short: contract.get(short) for short in ours}


@pytest.mark.parametrize("key", BY_KEY, ids=lambda key: " ".join(filter(None, key)))
def test_routes_are_those_of_the_contract(key: Key) -> None:
    """Microversions, success codes and rules, as its tables have them."""
    assert key in ROWS, "the contract has no such route"
    described, ours = ROWS[key], BY_KEY[key]
    versions = {version for row in described for version in range(row.since, row.until + 1)}
    assert {version for route in ours for version in range(route.since, route.until + 1)} == versions
    statuses = {status for route in ours for status in (route.status, route.other_status) if status}
    wanted = {status for row in described for status in row.statuses if status < 300}
    assert statuses == wanted or not wanted
    for row in described:
        first = row.rules[:1]
        declared = {(rule.short, rule.audience) for route in ours for rule in (route.rule, *route.rules) if rule}
        assert set(first) <= declared
        assert first or all(route.rule is None for route in ours)


@pytest.mark.spec("API-038", "API-040", "API-041", "API-042")
@pytest.mark.parametrize("route", ROUTES, ids=name)
async def test_who_may(cloud: ComputeCloud, route: Route) -> None:
    assert (await ask(cloud, route, None)).status_code == 401
    for persona in PERSONAS:
        answer = await ask(cloud, route, persona)
        assert (answer.status_code, refusing(answer)) in expected(route, persona, answer), (persona, answer.text)


def expected(route: Route, persona: str, answer: httpx.Response) -> list[tuple[int, str | None]]:
    """What may come back: for those who pass anything but a refusal in the name of a policy rule."""
    first = [row.rules[0] for row in ROWS[key_of(route)] if row.rules]
    if not first:
        return [(answer.status_code, None)]
    if persona == "stranger" and "{server_id}" in route.path and route.look_up is not find_server_of_anyone:
        return [(404, None)]
    foreign = persona == "stranger" and ("{server_id}" in route.path or route.path.startswith(OF_A_PROJECT))
    refusals = []
    for short, audience in first:
        hidden = foreign and audience in (Audience.READER, Audience.MEMBER, Audience.MANAGER)
        if hidden or persona not in ADMITTED[audience]:
            complete = short if short.startswith(("compute:", "network:")) else f"os_compute_api:{short}"
            refusals.append((403, complete))
    return refusals if len(refusals) == len(first) else [*refusals, (answer.status_code, None)]


def refusing(answer: httpx.Response) -> str | None:
    """The rule that refused, if a policy rule did."""
    if answer.status_code != 403:
        return None
    message: str = answer.json()["forbidden"]["message"]
    before, rule, after = message.partition("Policy doesn't allow ")
    return after.removesuffix(" to be performed.") if rule and not before else None


async def ask(cloud: ComputeCloud, route: Route, persona: str | None) -> httpx.Response:
    """A request that fits the route's description, about a server of the usual project that is there."""
    server = await cloud.boot()
    path = route.path.replace("{server_id}", server.uuid)
    ending = PROJECT if route.path.startswith(OF_A_PROJECT) else "1"
    if route.path == GROUP:
        made = await cloud.post("/os-server-groups", {"server_group": {"name": "group", "policies": ["affinity"]}})
        ending = made.json()["server_group"]["id"]
    for part in [part for part in path.split("/") if part.startswith("{")]:
        path = path.replace(part, ending)
    if route.path == "/os-migrations":  # a manager has to name the project
        path += f"?project_id={PROJECT}"
    body: dict[str, Any] = {}
    if route.body is not None and route.method in ("POST", "PUT"):
        body = {"json": example(route.body.describe(route.until))}
    elif route.action is not None:
        body = {"json": {route.action: None}}
    return await cloud.request(route.method, path, as_=persona, version=f"2.{route.until}", **body)


FORMATS = {
    "uuid": "88888888-8888-4888-8888-888888888888", "base64": "aGk=", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
    "ip address": "192.0.2.1",
}


def example(schema: dict[str, Any]) -> Any:
    """The least that fits a schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return None if {"type": "null"} in schema["anyOf"] else example(schema["anyOf"][-1])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        names, properties = list(schema.get("required", ())), schema.get("properties", {})
        fewest = schema.get("minProperties", 0)
        chosen = dict.fromkeys([*names, *properties][: max(fewest, len(names))])
        found = {one: example(properties[one]) for one in chosen}
        if len(found) < fewest:
            (of_values,) = schema["patternProperties"].values()
            found["key"] = example(of_values)
        return found
    if kind == "array":
        return [example(schema["items"])] * schema.get("minItems", 0)
    if kind == "string":
        return FORMATS.get(schema.get("format", ""), "1" * max(1, schema.get("minLength", 1)))
    return {"integer": 1, "number": 1, "boolean": True, None: None, "null": None}.get(kind, 1)
