"""Offers of volumes to other projects: `/os-volume-transfer`, and from 3.55 `/volume-transfers`.

Spec: section 5.1.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import json_response
from kilonova.embedded.volume import schema, transfers
from kilonova.embedded.volume.api import listing
from kilonova.embedded.volume.api.call import Access, Call, Flag, Method, accepted, flag, text
from kilonova.embedded.volume.api.records import lists, shows
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.records import Transfer

SINCE = 55

column = schema.transfers.c

KIND = listing.Kind(
    table=schema.transfers, record=Transfer, name="transfer", sorts={"id": column.id, "created_at": column.created_at},
    filters={
        "id": listing.equal(column.id), "name": listing.equal(column.name),
        "volume_id": listing.equal(column.volume_id),
    },
)


class TransferBody(msgspec.Struct, forbid_unknown_fields=True):
    volume_id: str
    name: str | None = None
    no_snapshots: Flag = False


class AcceptBody(msgspec.Struct, forbid_unknown_fields=True):
    auth_key: str


def methods() -> list[Method]:
    return [one for path, since in (("/volume-transfers", SINCE), ("/os-volume-transfer", 0)) for one in (
        Method("GET", path, lists(KIND, _brief), since=since),
        Method("GET", f"{path}/detail", lists(KIND, _full), since=since),
        Method("POST", path, _create, Access.MEMBER, since),
        Method("GET", f"{path}/{{id}}", shows(KIND, transfers.visible, _full), since=since),
        Method("DELETE", f"{path}/{{id}}", _delete, Access.MEMBER, since),
        Method("POST", f"{path}/{{id}}/accept", _accept, Access.MEMBER, since),
    )]


def _brief(call: Call, transfer: Transfer) -> dict[str, Any]:
    path = "/volume-transfers" if call.version >= SINCE else "/os-volume-transfer"
    return {"id": transfer.id, "volume_id": transfer.volume_id, "name": transfer.name,
            "links": call.links(f"{path}/{transfer.id}")}


def _full(call: Call, transfer: Transfer) -> dict[str, Any]:
    view = _brief(call, transfer) | {"created_at": time(transfer.created_at)}
    if call.version >= SINCE:
        view["no_snapshots"] = transfer.no_snapshots
    if call.version >= 57:
        view |= {"source_project_id": transfer.project_id, "destination_project_id": None, "accepted": False}
    return view


async def _create(call: Call) -> Response:
    """The key is told this once."""
    body, now = await call.body("transfer", TransferBody), call.now()
    alone = flag("no_snapshots", body.no_snapshots)
    if alone and call.version < SINCE:
        raise InvalidInput("no_snapshots can be given from version 3.55 on.")
    name = text("name", body.name)
    made, key = await call.write(
        lambda conn: transfers.create(conn, call.who, body.volume_id, name, now, no_snapshots=alone)
    )
    return json_response({"transfer": _full(call, made) | {"auth_key": key}}, 202)


async def _accept(call: Call) -> Response:
    body, now = await call.body("accept", AcceptBody), call.now()
    taken = await call.write(lambda conn: transfers.accept(conn, call.who, call.path(), body.auth_key, now))
    return json_response({"transfer": _brief(call, taken)}, 202)


async def _delete(call: Call) -> Response:
    now = call.now()
    await call.write(lambda conn: transfers.withdraw(conn, call.who, call.path(), now))
    return accepted()
