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
from kilonova.embedded.network.bodies import PolicyBody, RuleOfPolicyBody, parse
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.http_api import Records, answering
from kilonova.embedded.network.qos_schema import Policy, Rule, policies
from kilonova.embedded.network.resources import View, narrow
from kilonova.embedded.network.views import stamped

SINGULAR, PLURAL = "minimum_bandwidth_rule", "minimum_bandwidth_rules"


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


class RuleRoutes:
    """The rules of a policy, and what kinds of rules there are."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def routes(self) -> list[BaseRoute]:
        path = f"/v2.0/qos/policies/{{policy}}/{PLURAL}"
        return [
            Route("/v2.0/qos/rule-types", answering(self._types), methods=["GET"]),
            Route(path, answering(self._list), methods=["GET"]),
            Route(path, answering(self._create), methods=["POST"]),
            Route(f"{path}/{{id}}", answering(self._show), methods=["GET"]),
            Route(f"{path}/{{id}}", answering(self._update), methods=["PUT"]),
            Route(f"{path}/{{id}}", answering(self._delete), methods=["DELETE"]),
        ]

    async def _types(self, request: Request) -> Response:
        return json_response(listing.page(request, "rule_types", [{"type": "minimum_bandwidth"}]))

    async def _list(self, request: Request) -> Response:
        who, policy = caller(request), request.path_params["policy"]

        def read(conn: sa.Connection) -> list[View]:
            qos.get(conn, who, policy)
            return [_rule(rule) for rule in qos.rules_of(conn, [policy])[policy]]

        return json_response(listing.page(request, PLURAL, await self._records.database.read(read)))

    async def _show(self, request: Request) -> Response:
        who, policy, id_ = caller(request), request.path_params["policy"], request.path_params["id"]

        def read(conn: sa.Connection) -> View:
            qos.get(conn, who, policy)
            return _rule(qos.get_rule(conn, policy, id_))

        return json_response({SINGULAR: await self._records.database.read(read)})

    async def _create(self, request: Request) -> Response:
        who, policy = caller(request), request.path_params["policy"]
        body = await _body(request)
        view = await self._records.database.write(lambda conn: _rule(qos.create_rule(conn, who, policy, body)))
        return json_response({SINGULAR: view}, 201)

    async def _update(self, request: Request) -> Response:
        who, policy, id_ = caller(request), request.path_params["policy"], request.path_params["id"]
        body = await _body(request)
        view = await self._records.database.write(lambda conn: _rule(qos.update_rule(conn, who, policy, id_, body)))
        return json_response({SINGULAR: view})

    async def _delete(self, request: Request) -> Response:
        who, policy, id_ = caller(request), request.path_params["policy"], request.path_params["id"]
        await self._records.database.write(lambda conn: qos.delete_rule(conn, who, policy, id_))
        return empty_response()


async def _body(request: Request) -> RuleOfPolicyBody:
    return parse(RuleOfPolicyBody, (await json_object(request)).get(SINGULAR))


def _rule(rule: Rule) -> dict[str, Any]:
    return {"id": rule.id, "direction": rule.direction, "min_kbps": rule.min_kbps}


def _policy(policy: Policy, rules: list[Rule]) -> dict[str, Any]:
    return stamped(policy) | {
        "name": policy.name, "shared": policy.shared, "is_default": False,
        "rules": [_rule(rule) | {"type": "minimum_bandwidth", "qos_policy_id": policy.id} for rule in rules],
    }
