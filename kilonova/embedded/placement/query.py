"""Query strings: what providers and candidates are asked for, by version."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from kilonova.db.placement.search import ProviderQuery
from kilonova.embedded.placement.call import BadQuery, Call


def single_values(
    call: Call, allowed: Mapping[str, int], repeatable: Mapping[str, int] | None = None
) -> dict[str, str]:
    """The parameters of a query; of one that may come several times, the last.

    Args:
        allowed: the version that brought each parameter. repeatable: from which version one may be repeated.

    Raises:
        BadQuery: unknown in this version, or repeated.
    """
    values: dict[str, str] = {}
    for name, value in call.request.query_params.multi_items():
        if call.version < allowed.get(name, 1000):
            raise BadQuery(f"Invalid query string parameters: {name!r} is not known in this version.")
        if name in values and call.version < (repeatable or {}).get(name, 1000):
            raise BadQuery(f"Query parameter {name} is given twice.", "placement.query.duplicate_key")
        values[name] = value
    return values


def provider_query(call: Call) -> ProviderQuery:
    """What GET /resource_providers asks for. Spec: API-714."""
    values = single_values(
        call, {"name": 0, "uuid": 0, "member_of": 3, "resources": 4, "in_tree": 14, "required": 18},
        {"member_of": 24, "required": 39},
    )
    query = ProviderQuery(name=values.get("name"))
    if "uuid" in values:
        query.uuid = a_uuid(values["uuid"], "uuid")
    if "in_tree" in values:
        query.in_tree = a_uuid(values["in_tree"], "in_tree")
    if "resources" in values:
        query.resources = amounts(values["resources"])
    query.member_of, query.not_member_of = member_of(call, "member_of")
    query.required, query.forbidden = traits(call, "required")
    return query


def amounts(text: str) -> dict[str, int]:
    """`VCPU:2,MEMORY_MB:512`. Raises BadQuery."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, amount = part.partition(":")
        if not name or not amount.isdecimal() or int(amount) < 1:
            raise BadQuery(f"Badly formed resources parameter: expected CLASS:AMOUNT, got {text!r}.")
        if name in found:
            raise BadQuery(f"Resource class {name} is given twice.", "placement.query.duplicate_key")
        found[name] = int(amount)
    return found


def member_of(call: Call, name: str) -> tuple[list[frozenset[str]], frozenset[str]]:
    """Aggregates: `uuid`, `in:uuid,uuid`, and from 1.32 `!uuid`, `!in:uuid,uuid`."""
    wanted: list[frozenset[str]] = []
    unwanted: set[str] = set()
    for value in call.request.query_params.getlist(name):
        negative = value.startswith("!")
        if negative and call.version < 32:
            raise BadQuery(f"Forbidden {name} parameters are not supported in this version.")
        text = value.removeprefix("!")
        several = text.startswith("in:")
        uuids = frozenset(a_uuid(part, name) for part in text.removeprefix("in:").split(","))
        if not several and len(uuids) > 1:
            raise BadQuery(f"Several values for {name} must be given as in:<uuid>,<uuid>.")
        if negative:
            unwanted |= uuids
        else:
            wanted.append(uuids)
    return wanted, frozenset(unwanted)


def traits(call: Call, name: str) -> tuple[list[frozenset[str]], frozenset[str]]:
    """Traits: `A,B`, from 1.22 `!A`, from 1.39 `in:A,B` and several parameters."""
    wanted: list[frozenset[str]] = []
    unwanted: set[str] = set()
    for value in call.request.query_params.getlist(name):
        if value.startswith("in:") and call.version >= 39:
            wanted.append(frozenset(_nonempty(value.removeprefix("in:").split(","), name)))
            continue
        for part in _nonempty(value.split(","), name):
            if part.startswith("!") and call.version >= 22:
                unwanted.add(part.removeprefix("!"))
            else:
                wanted.append(frozenset({part}))
    both = unwanted & {trait for names in wanted if len(names) == 1 for trait in names}
    if both:
        raise BadQuery(f"Conflicting required and forbidden traits: {', '.join(sorted(both))}.")
    return wanted, frozenset(unwanted)


def names_of(query: ProviderQuery) -> set[str]:
    """All traits that a query names."""
    return set(query.forbidden).union(*query.required)


def a_uuid(text: str, name: str) -> str:
    """A uuid in its dashed form. Raises BadQuery."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise BadQuery(f"Invalid value for {name}: {text!r} is not a uuid.") from error


def _nonempty(parts: Iterable[str], name: str) -> list[str]:
    found = list(parts)
    if not all(part.strip("!") for part in found):
        raise BadQuery(f"Invalid value for {name}: an empty name.")
    return found
