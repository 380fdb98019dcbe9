"""/allocation_candidates: which providers could serve a request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from starlette.responses import Response

from kilonova.db.placement import names
from kilonova.db.placement.candidates import Candidate, CandidateQuery, Summary, find_candidates
from kilonova.db.placement.search import ProviderQuery
from kilonova.embedded.http import json_response
from kilonova.embedded.placement.call import BadQuery, Call
from kilonova.embedded.placement.query import a_uuid, amounts, member_of, names_of, single_values, traits

SINCE = {"resources": 10, "limit": 16, "required": 17, "member_of": 21, "group_policy": 25, "in_tree": 31,
         "root_required": 35, "same_subtree": 36}
REPEATABLE = {"member_of": 24, "required": 39, "same_subtree": 36}
_GRANULAR = re.compile(r"(resources|required|member_of|in_tree)(?P<suffix>[a-zA-Z0-9_-]{1,64})\Z")


async def index(call: Call) -> Response:
    """GET /allocation_candidates. Spec: API-739."""
    query = candidate_query(call)

    def read(connection: sa.Connection) -> tuple[list[Candidate], dict[int, Summary]]:
        for group in query.groups.values():
            names.check_classes(connection, group.resources)
            names.check_traits(connection, names_of(group))
        names.check_traits(connection, query.root_forbidden.union(*query.root_required))
        return find_candidates(connection, query)

    found, summaries = await call.db.read(read)
    asked = {name for group in query.groups.values() for name in group.resources}
    return json_response({
        "allocation_requests": [_request(call, candidate, summaries) for candidate in found],
        "provider_summaries": {
            summary.provider.uuid: _summary(call, summary, asked) for summary in summaries.values()
        },
    })


def candidate_query(call: Call) -> CandidateQuery:
    """What the query string asks for. Raises BadQuery."""
    suffixes = list(dict.fromkeys(_suffixes(call)))
    known = dict(SINCE)
    repeatable = dict(REPEATABLE)
    for suffix in suffixes:
        for name in ("resources", "required", "member_of", "in_tree"):
            known[name + suffix] = max(known[name], 25 if _is_number(suffix) else 33)
            repeatable[name + suffix] = max(repeatable.get(name, 1000), 25)
    values = single_values(call, known, repeatable)
    groups = {suffix: _group(call, values, suffix) for suffix in ["", *suffixes]}
    if not groups[""].resources:
        if any(name in values for name in ("required", "member_of", "in_tree")) and not suffixes:
            raise BadQuery("The query parameter resources is missing.", "placement.query.missing_value")
        del groups[""]
    query = CandidateQuery(groups=groups, nested=call.version >= 29)
    query.subtrees = list(_subtrees(call, groups))
    in_subtree = frozenset[str]().union(*query.subtrees)
    if not groups or any(not group.resources and suffix not in in_subtree for suffix, group in groups.items()):
        raise BadQuery("All request groups must specify resources.", "placement.query.missing_value")
    query.root_required, query.root_forbidden = traits(call, "root_required")
    _policy(query, values)
    if "limit" in values:
        if not values["limit"].isdecimal() or int(values["limit"]) < 1:
            raise BadQuery(f"Invalid value for limit: {values['limit']!r}.")
        query.limit = int(values["limit"])
    return query


def _policy(query: CandidateQuery, values: dict[str, str]) -> None:
    policy = values.get("group_policy")
    if policy not in (None, "none", "isolate"):
        raise BadQuery("group_policy must be none or isolate.")
    if policy is None and sum(bool(suffix) for suffix in query.groups) > 1:
        raise BadQuery("The group_policy parameter is required with several request groups.",
                       "placement.query.missing_value")
    query.isolate = policy == "isolate"


def _suffixes(call: Call) -> Iterator[str]:
    for name in call.request.query_params:
        match = _GRANULAR.match(name)
        if match is not None and name not in SINCE:
            yield match["suffix"]


def _is_number(suffix: str) -> bool:
    return re.fullmatch("[1-9][0-9]*", suffix) is not None


def _group(call: Call, values: dict[str, str], suffix: str) -> ProviderQuery:
    group = ProviderQuery()
    if f"resources{suffix}" in values:
        group.resources = amounts(values[f"resources{suffix}"])
    if f"in_tree{suffix}" in values:
        group.in_tree = a_uuid(values[f"in_tree{suffix}"], f"in_tree{suffix}")
    group.member_of, group.not_member_of = member_of(call, f"member_of{suffix}")
    group.required, group.forbidden = traits(call, f"required{suffix}")
    return group


def _subtrees(call: Call, groups: dict[str, ProviderQuery]) -> Iterator[frozenset[str]]:
    for value in call.request.query_params.getlist("same_subtree"):
        suffixes = frozenset(value.split(","))
        if not suffixes <= groups.keys() - {""}:
            raise BadQuery(f"Real suffixes should be specified in same_subtree: {value!r}.")
        yield suffixes


def _request(call: Call, candidate: Candidate, summaries: dict[int, Summary]) -> dict[str, Any]:
    holds = {summaries[number].provider.uuid: amounts for number, amounts in candidate.holds.items()}
    if call.version < 12:
        return {"allocations": [
            {"resource_provider": {"uuid": uuid}, "resources": amounts} for uuid, amounts in holds.items()
        ]}
    body: dict[str, Any] = {"allocations": {uuid: {"resources": amounts} for uuid, amounts in holds.items()}}
    if call.version >= 34:
        body["mappings"] = {
            suffix: [summaries[number].provider.uuid for number in numbers]
            for suffix, numbers in candidate.mappings.items()
        }
    return body


def _summary(call: Call, summary: Summary, asked: set[str]) -> dict[str, Any]:
    body: dict[str, Any] = {"resources": {
        name: {"capacity": capacity, "used": used} for name, (capacity, used) in sorted(summary.resources.items())
        if name in asked or call.version >= 27
    }}
    if call.version >= 17:
        body["traits"] = sorted(summary.traits)
    if call.version >= 29:
        body |= {"parent_provider_uuid": summary.provider.parent, "root_provider_uuid": summary.provider.root}
    return body
