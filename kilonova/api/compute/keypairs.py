"""Key pairs of users. Spec: API-214 to API-217, API-463."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute import key_material
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.compute.quota_check import UNLIMITED
from kilonova.api.paging import effective_limit, next_page
from kilonova.api.policy import Audience, Rule, Target
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Enum, Integer, Object, Text, optional, required
from kilonova.api.telling import PAIR, tell_change
from kilonova.db import keypairs as records
from kilonova.db.keypairs import Keypair
from kilonova.domain.clock import iso_microseconds
from kilonova.domain.errors import InvalidInput, NotFound, OverQuota
from kilonova.notifications import payloads

INDEX = Rule("os-keypairs:index", Audience.USER)
CREATE = Rule("os-keypairs:create", Audience.USER)
SHOW = Rule("os-keypairs:show", Audience.USER)
DELETE = Rule("os-keypairs:delete", Audience.USER)

_PLAIN = r"(?! )[_\- a-zA-Z0-9]+(?<! )"
_WIDER = r"(?! )[_\- a-zA-Z0-9@.]+(?<! )"
PUBLIC_KEY = Text(format=("text without control characters", lambda text: "\0" not in text))
CREATE_BODY = Object({"keypair": required(Object({
    "name": (
        required(Text(1, 255, _PLAIN, trimmed_when_lenient=True), until=91), required(Text(1, 255, _WIDER), since=92),
    ),
    "public_key": optional(PUBLIC_KEY, required_since=92),
    "type": optional(Enum("ssh", "x509"), since=2),
    "user_id": optional(Text(1, 255), since=10),
}))})

ONE_QUERY = Query({"user_id": Param(Text(), since=10)}, strict_since=75)
LIST_QUERY = Query({
    "user_id": Param(Text(), since=10),
    "limit": Param(Integer(0), since=35),
    "marker": Param(Text(), since=35),
}, strict_since=75)


def view(keypair: Keypair, version: int) -> dict[str, Any]:
    """What every view has."""
    shown = {"name": keypair.name, "public_key": keypair.public_key, "fingerprint": keypair.fingerprint}
    if version >= 2:
        shown["type"] = keypair.type
    return shown


def _owner(call: Call, rule: Rule, user_id: str | None) -> str:
    """The user whose keys the request is about. Raises PolicyNotAuthorized."""
    owner = user_id or call.context.user_id
    call.require(rule, Target(call.context.project_id, owner))
    return owner


async def index(call: Call) -> Any:
    owner = _owner(call, INDEX, call.query.first("user_id"))
    if call.version < 35:
        found = await call.cloud.cells.api.read(lambda conn: records.of_user(conn, owner))
        return {"keypairs": [{"keypair": view(keypair, call.version)} for keypair in found]}
    limit, marker = effective_limit(call), call.query.last("marker")

    def read(conn: sa.Connection) -> list[Keypair]:
        if marker is not None:
            records.get(conn, owner, marker)
        return records.of_user(conn, owner, limit=limit, marker=marker)

    try:
        found = await call.cloud.cells.api.read(read)
    except NotFound as error:
        raise InvalidInput(f"marker [{marker}] not found") from error
    names = [keypair.name for keypair in found]
    entries = [{"keypair": view(keypair, call.version)} for keypair in found]
    return {"keypairs": entries, **next_page(call, "/os-keypairs", names, limit, "keypairs_links")}


async def create(call: Call) -> Any:
    body = call.body["keypair"]
    owner = _owner(call, CREATE, body.get("user_id"))
    kind, public_key, private_key = body.get("type", "ssh"), body.get("public_key"), None
    limit = (await call.cloud.quotas.limits(call.context.project_id or "", owner)).key_pairs
    await call.cloud.cells.api.read(lambda conn: _check_quota(conn, owner, limit, more=1))
    now = call.cloud.clock.now()
    if public_key is not None:
        fingerprint = (
            key_material.ssh_fingerprint(public_key) if kind == "ssh" else key_material.x509_fingerprint(public_key)
        )
    else:
        made = await (
            asyncio.to_thread(key_material.generate_ssh)
            if kind == "ssh"
            else asyncio.to_thread(key_material.generate_x509, owner, now)
        )
        public_key, private_key, fingerprint = made.public_key, made.private_key, made.fingerprint
    keypair = Keypair(
        user_id=owner, name=body["name"], type=kind, public_key=public_key, fingerprint=fingerprint, created_at=now
    )

    def store(conn: sa.Connection) -> Keypair:
        made = records.create(conn, keypair)
        _check_quota(conn, owner, limit, more=0)
        _tell(call, conn, "import" if private_key is None else "create", made)
        return made

    stored = await call.cloud.cells.api.write(store)
    shown = {**view(stored, call.version), "user_id": owner}
    if private_key is not None:
        shown["private_key"] = private_key
    return {"keypair": shown}


def _check_quota(conn: sa.Connection, owner: str, limit: int, *, more: int) -> None:
    """Checked before a key is made and again with the stored one. Raises OverQuota. Spec: API-060, API-642."""
    if limit != UNLIMITED and records.count(conn, owner) + more > limit:
        raise OverQuota("Quota exceeded, too many key pairs.")


async def show(call: Call) -> Any:
    owner, name = _owner(call, SHOW, call.query.first("user_id")), call.path["id"]
    found = await call.cloud.cells.api.read(lambda conn: records.get(conn, owner, name))
    return {"keypair": {
        **view(found, call.version),
        "user_id": owner,
        "id": found.id,
        "created_at": iso_microseconds(found.created_at),
        "updated_at": None,
        "deleted": False,
        "deleted_at": None,
    }}


async def delete(call: Call) -> None:
    owner, name = _owner(call, DELETE, call.query.first("user_id")), call.path["id"]

    def remove(conn: sa.Connection) -> None:
        going = records.get(conn, owner, name)
        records.delete(conn, owner, name)
        _tell(call, conn, "delete", going)

    await call.cloud.cells.api.write(remove)


def _tell(call: Call, conn: sa.Connection, action: str, keypair: Keypair) -> None:
    told = payloads.keypair(
        user_id=keypair.user_id, name=keypair.name, fingerprint=keypair.fingerprint,
        public_key=keypair.public_key or "", type_=keypair.type,
    )
    tell_change(call, conn, f"keypair.{action}", f"{keypair.user_id}/{keypair.name}", told, phases=PAIR)


_ALL, _ONE = "/os-keypairs", "/os-keypairs/{id}"
_CREATE = Route(method="POST", path=_ALL, handler=create, rules=(CREATE,), body=CREATE_BODY, status=201, since=2,
                query=Query(strict_since=75), answer=answers.NEW_KEYPAIR)
_DELETE = Route(method="DELETE", path=_ONE, handler=delete, rules=(DELETE,), query=ONE_QUERY, status=204, since=2)
ROUTES = [
    Route(method="GET", path=_ALL, handler=index, rules=(INDEX,), query=LIST_QUERY, answer=answers.KEYPAIRS),
    _CREATE,
    msgspec.structs.replace(_CREATE, status=200, since=1, until=1),
    Route(method="GET", path=_ONE, handler=show, rules=(SHOW,), query=ONE_QUERY, answer=answers.KEYPAIR),
    _DELETE,
    msgspec.structs.replace(_DELETE, status=202, since=1, until=1),
]
