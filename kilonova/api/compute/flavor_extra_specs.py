"""Extra specs of flavors. Spec: API-209 to API-213."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Answer, Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.compute.extra_spec_rules import check_extra_spec
from kilonova.api.compute.field_types import METADATA_KEY
from kilonova.api.compute.flavor_view import SHOW_EXTRA_SPECS, find_visible
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Invalid, MapOf, Object, Reading, Schema, required
from kilonova.api.telling import tell_flavor
from kilonova.db import flavors
from kilonova.domain.errors import InvalidInput, NotFound

CREATE = Rule("os-flavor-extra-specs:create", Audience.ADMIN)
SHOW = Rule("os-flavor-extra-specs:show", Audience.READER)
UPDATE = Rule("os-flavor-extra-specs:update", Audience.ADMIN)
DELETE = Rule("os-flavor-extra-specs:delete", Audience.ADMIN)

LONGEST_VALUE = 255


class ExtraSpecValue(Schema):
    """A string or a number, up to 255 characters as text; kept as it is, because answers repeat it. Spec: API-057."""

    def read(self, value: Any, reading: Reading) -> Any:
        if type(value) not in (str, int, float):
            raise Invalid(value, f"{str(value)[:255]!r} is not of type 'string', 'number'")
        if len(str(value)) > LONGEST_VALUE:
            raise Invalid(value, f"{str(value)[:255]!r} is too long")
        return value

    def describe(self, version: int) -> dict[str, Any]:
        return {"type": ["string", "number"], "maxLength": LONGEST_VALUE}


CREATE_BODY = Object({"extra_specs": required(MapOf(METADATA_KEY, ExtraSpecValue()))})
UPDATE_BODY = MapOf(METADATA_KEY, ExtraSpecValue(), fewest=1, most=1)


async def index(call: Call) -> Any:
    return {"extra_specs": (await find_visible(call, call.path["flavor_id"])).extra_specs}


async def show(call: Call) -> Any:
    flavor, key = await find_visible(call, call.path["flavor_id"]), call.path["id"]
    if key not in flavor.extra_specs:
        raise NotFound(f"Flavor {flavor.flavor_id} has no extra specs with key {key}.")
    return {key: flavor.extra_specs[key]}


async def create(call: Call) -> Any:
    await _write(call, call.body["extra_specs"])
    return call.body


async def update(call: Call) -> Any:
    if call.path["id"] not in call.body:
        raise InvalidInput("Request body and URI mismatch")
    await _write(call, call.body)
    return call.body


async def _write(call: Call, wanted: dict[str, Any]) -> None:
    specs = {key: str(value) for key, value in wanted.items()}
    if call.version >= 86:
        for key, value in specs.items():
            check_extra_spec(key, value)
    flavor_id, now = call.path["flavor_id"], call.cloud.clock.now()

    def write(conn: sa.Connection) -> None:
        flavors.set_extra_specs(conn, flavor_id, specs, now=now)
        tell_flavor(call, conn, flavor_id)

    await call.cloud.cells.api.write(write)


async def delete(call: Call) -> Any:
    flavor_id, key, now = call.path["flavor_id"], call.path["id"], call.cloud.clock.now()

    def write(conn: sa.Connection) -> None:
        flavors.remove_extra_spec(conn, flavor_id, key, now=now)
        tell_flavor(call, conn, flavor_id)

    await call.cloud.cells.api.write(write)
    return Answer()


_ALL = "/flavors/{flavor_id}/os-extra_specs"
_ONE = "/flavors/{flavor_id}/os-extra_specs/{id}"
ROUTES = [
    Route(method="GET", path=_ALL, handler=index, rule=SHOW_EXTRA_SPECS, answer=answers.EXTRA_SPECS),
    Route(method="POST", path=_ALL, handler=create, rule=CREATE, body=CREATE_BODY,
          answer=answers.EXTRA_SPECS_AS_SENT),
    Route(method="GET", path=_ONE, handler=show, rule=SHOW, answer=answers.EXTRA_SPEC),
    Route(method="PUT", path=_ONE, handler=update, rule=UPDATE, body=UPDATE_BODY,
          answer=answers.EXTRA_SPEC_AS_SENT),
    Route(method="DELETE", path=_ONE, handler=delete, rule=DELETE),
]
