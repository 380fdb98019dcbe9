"""QoS policies and their rules in the network API."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.context import RequestContext
from kilonova.embedded.http import caller, empty_response, json_object, json_response
from kilonova.embedded.network import listing, qos
from kilonova.embedded.network.bodies import BandwidthRuleBody, PacketRateRuleBody, PolicyBody, parse
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.http_api import Records, answering
from kilonova.embedded.network.qos_schema import (
    MINIMUM_BANDWIDTH,
    MINIMUM_PACKET_RATE,
    RULE_TYPES,
    Policy,
    Rule,
    RuleType,
    policies,
)
from kilonova.embedded.network.resources import View, narrow
from kilonova.embedded.network.views import stamped

BODIES: dict[str, type[qos.RuleBody]] = {
    MINIMUM_BANDWIDTH.name: BandwidthRuleBody, MINIMUM_PACKET_RATE.name: PacketRateRuleBody
}
"""What callers may write of a rule, by its type."""


class Policies:
    singular, plural, body, table = "policy", "policies", PolicyBody, policies

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        found = qos.find(conn, caller, *narrow(self.table, query, name="name", project_id="project_id"))
        rules = qos.rules_of(conn, [policy.id for policy in found])
        return [_policy(policy, rules[policy.id]) for policy in found]

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return _policy(qos.get(conn, caller, id_), qos.rules_of(conn, [id_])[id_])

    def create(self, conn: sa.Connection, caller: RequestContext, body: PolicyBody, now: float,
               effects: Effects) -> View:
        return _policy(qos.create(conn, caller, body, now), [])

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: PolicyBody, now: float,
               effects: Effects) -> View:
        return _policy(qos.update(conn, caller, id_, body, now), qos.rules_of(conn, [id_])[id_])

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        qos.delete(conn, caller, id_)


def rule_routes(records: Records) -> list[BaseRoute]:
    """What types of rules there are, and the rules of each."""
    return [
        Route("/v2.0/qos/rule-types", answering(_types), methods=["GET"]),
        *(route for type_ in RULE_TYPES for route in RuleRoutes(type_, records).routes()),
    ]


async def _types(request: Request) -> Response:
    return json_response(listing.page(request, "rule_types", [{"type": type_.name} for type_ in RULE_TYPES]))


class RuleRoutes:
    """The rules of one type: below their policy, and, as an alias, by their id alone."""

    def __init__(self, type_: RuleType, records: Records) -> None:
        self._type = type_
        self._singular = f"{type_.name}_rule"
        self._records = records

    def routes(self) -> list[BaseRoute]:
        path = f"/v2.0/qos/policies/{{policy}}/{self._singular}s"
        return [
            Route(path, answering(self._list), methods=["GET"]),
            Route(path, answering(self._create), methods=["POST"]),
            *self._of_one(f"{path}/{{id}}"), *self._of_one(f"/v2.0/qos/alias_{self._singular}s/{{id}}"),
        ]

    def _of_one(self, path: str) -> list[BaseRoute]:
        return [
            Route(path, answering(self._show), methods=["GET"]),
            Route(path, answering(self._update), methods=["PUT"]),
            Route(path, answering(self._delete), methods=["DELETE"]),
        ]

    async def _list(self, request: Request) -> Response:
        who, policy = caller(request), request.path_params["policy"]

        def read(conn: sa.Connection) -> list[View]:
            qos.get(conn, who, policy)
            return [_rule(rule) for rule in qos.rules_of(conn, [policy])[policy] if rule.type == self._type.name]

        return json_response(listing.page(request, f"{self._singular}s", await self._records.database.read(read)))

    async def _create(self, request: Request) -> Response:
        who, policy, body = caller(request), request.path_params["policy"], await self._body(request)
        view = await self._records.database.write(
            lambda conn: _rule(qos.create_rule(conn, who, self._type, policy, body))
        )
        return json_response({self._singular: view}, 201)

    async def _show(self, request: Request) -> Response:
        who, id_ = caller(request), request.path_params["id"]

        def read(conn: sa.Connection) -> View:
            policy = self._policy(conn, request)
            qos.get(conn, who, policy)
            return _rule(qos.get_rule(conn, self._type, policy, id_))

        return json_response({self._key(request): await self._records.database.read(read)})

    async def _update(self, request: Request) -> Response:
        who, id_, body = caller(request), request.path_params["id"], await self._body(request)
        view = await self._records.database.write(lambda conn: _rule(
            qos.update_rule(conn, who, self._type, self._policy(conn, request), id_, body)
        ))
        return json_response({self._key(request): view})

    async def _delete(self, request: Request) -> Response:
        who, id_ = caller(request), request.path_params["id"]
        await self._records.database.write(
            lambda conn: qos.delete_rule(conn, who, self._type, self._policy(conn, request), id_)
        )
        return empty_response()

    def _policy(self, conn: sa.Connection, request: Request) -> str:
        """The id of the policy of the rule that is asked for. Raises QosRuleNotFound."""
        given: str | None = request.path_params.get("policy")
        return given or qos.policy_of_rule(conn, self._type, request.path_params["id"])

    def _key(self, request: Request) -> str:
        """Under which a body has the rule."""
        return self._singular if "policy" in request.path_params else f"alias_{self._singular}"

    async def _body(self, request: Request) -> qos.RuleBody:
        return parse(BODIES[self._type.name], (await json_object(request)).get(self._key(request)))


def _rule(rule: Rule) -> dict[str, Any]:
    (type_,) = [type_ for type_ in RULE_TYPES if type_.name == rule.type]
    return {"id": rule.id, "direction": rule.direction, type_.amount: rule.amount}


def _policy(policy: Policy, rules: list[Rule]) -> dict[str, Any]:
    return stamped(policy) | {
        "name": policy.name, "shared": policy.shared, "is_default": False,
        "rules": [_rule(rule) | {"type": rule.type, "qos_policy_id": policy.id} for rule in rules],
    }
