"""Quota classes; only the one named `default` has an effect. Spec: API-256, API-257, API-640."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.compute.quota_check import UNLIMITED
from kilonova.api.compute.stored_quotas import RESOURCES, in_classes, stored_quotas
from kilonova.api.microversions import LATEST
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Integer, Object, optional, required
from kilonova.db import quotas as records

SHOW = Rule("os-quota-class-sets:show", Audience.ADMIN)
UPDATE = Rule("os-quota-class-sets:update", Audience.ADMIN)

UPDATE_BODY = Object({"quota_class_set": required(Object({
    r.name: optional(Integer(UNLIMITED), since=r.classes_since, until=r.classes_until or LATEST) for r in RESOURCES
}))})


async def show(call: Call) -> Any:
    name = call.path["id"]
    return {"quota_class_set": {"id": name, **await _values(call, name)}}


async def update(call: Call) -> Any:
    name, wanted = call.path["id"], call.body["quota_class_set"]
    if stored_quotas(call).changeable:
        await call.cloud.cells.api.write(lambda conn: records.set_class_limits(conn, name, wanted))
    return {"quota_class_set": await _values(call, name)}


async def _values(call: Call, name: str) -> dict[str, int]:
    values = await stored_quotas(call).class_values(name)
    return {resource: values[resource] for resource in in_classes(call.version)}


ROUTES = [
    Route(method="GET", path="/os-quota-class-sets/{id}", handler=show, rule=SHOW, answer=answers.QUOTA_CLASS),
    Route(method="PUT", path="/os-quota-class-sets/{id}", handler=update, rule=UPDATE, body=UPDATE_BODY,
          answer=answers.QUOTA_CLASS),
]
