"""Who may use a volume type, and how its volumes are encrypted. Spec: section 5.1, EMV-45."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.http import json_response
from kilonova.embedded.volume import volume_types
from kilonova.embedded.volume.api.actions import Action, answers
from kilonova.embedded.volume.api.call import Access, Call, Method, Whole, accepted, text, whole
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.records import Encryption

ControlLocation = Literal["front-end", "back-end"]


class ProjectBody(msgspec.Struct, forbid_unknown_fields=True):
    project: str


class EncryptionBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """key_size: bits."""

    provider: str
    control_location: ControlLocation = "front-end"
    cipher: str | None = None
    key_size: Whole | None = None


class ChangeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    provider: str | msgspec.UnsetType = msgspec.UNSET
    control_location: ControlLocation | msgspec.UnsetType = msgspec.UNSET
    cipher: str | msgspec.UnsetType | None = msgspec.UNSET
    key_size: Whole | msgspec.UnsetType | None = msgspec.UNSET


def methods() -> list[Method]:
    encryption = "/types/{id}/encryption"
    return [
        Method("GET", "/types/{id}/os-volume-type-access", _list_projects, Access.ADMIN),
        Method("POST", "/types/{id}/action", answers(ACTIONS), Access.ADMIN),
        Method("GET", encryption, _show, Access.ADMIN),
        Method("POST", encryption, _create, Access.ADMIN),
        Method("GET", f"{encryption}/{{key}}", _show_item, Access.ADMIN),
        Method("PUT", f"{encryption}/{{key}}", _change, Access.ADMIN),
        Method("DELETE", f"{encryption}/{{key}}", _delete, Access.ADMIN),
    ]


async def _list_projects(call: Call) -> Response:
    def unit(conn: sa.Connection) -> list[str]:
        if volume_types.get(conn, call.path()).is_public:
            raise NotFound("Access list not available for public volume types.")
        return volume_types.projects(conn, call.path())

    found = [{"volume_type_id": call.path(), "project_id": one} for one in await call.read(unit)]
    return json_response({"volume_type_access": found})


async def _add_project(call: Call, body: ProjectBody) -> Response:
    project = text("project", body.project, 64, 1) or ""
    await call.write(lambda conn: volume_types.add_project(conn, call.path(), project))
    return accepted()


async def _remove_project(call: Call, body: ProjectBody) -> Response:
    project = text("project", body.project, 64, 1) or ""
    await call.write(lambda conn: volume_types.remove_project(conn, call.path(), project))
    return accepted()


ACTIONS = {
    "addProjectAccess": Action(ProjectBody, _add_project, Access.ADMIN),
    "removeProjectAccess": Action(ProjectBody, _remove_project, Access.ADMIN),
}


# --- encryption ----------------------------------------------------------------------------------


def _specs(found: Encryption) -> dict[str, Any]:
    return {"provider": found.provider, "control_location": found.control_location, "cipher": found.cipher,
            "key_size": found.key_size}


async def _find(call: Call) -> dict[str, Any]:
    """{} if volumes of the type are not encrypted."""
    def unit(conn: sa.Connection) -> Encryption | None:
        volume_types.get(conn, call.path())
        return volume_types.encryption(conn, call.path())

    found = await call.read(unit)
    return {} if found is None else _specs(found) | {
        "volume_type_id": found.type_id, "encryption_id": found.id, "deleted": False,
        "created_at": time(found.created_at), "updated_at": time(found.updated_at), "deleted_at": None,
    }


async def _show(call: Call) -> Response:
    return json_response(await _find(call))


async def _show_item(call: Call) -> Response:
    found, key = await _find(call), call.path("key")
    if key not in found:
        raise NotFound(f"Volume type encryption for type {call.path()} has no {key}.")
    return json_response({key: found[key]})


async def _create(call: Call) -> Response:
    body = await call.body("encryption", EncryptionBody)
    made = Encryption(
        id=str(uuid.uuid4()), type_id=call.path(), provider=text("provider", body.provider, least=1) or "",
        cipher=text("cipher", body.cipher), key_size=_key_size(body.key_size),
        control_location=body.control_location, created_at=call.now(),
    )
    await call.write(lambda conn: volume_types.set_encryption(conn, made))
    view = _specs(made) | {"volume_type_id": made.type_id, "encryption_id": made.id}
    return json_response({"encryption": view})


async def _change(call: Call) -> Response:
    body, now = await call.body("encryption", ChangeBody), call.now()
    sent = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not msgspec.UNSET}
    if "key_size" in sent:
        sent["key_size"] = _key_size(sent["key_size"])
    if not sent:
        raise InvalidInput("Nothing is to be changed.")

    def unit(conn: sa.Connection) -> None:
        _check_id(conn, call)
        volume_types.change_encryption(conn, call.path(), now, **sent)

    await call.write(unit)
    return json_response({"encryption": sent})


async def _delete(call: Call) -> Response:
    def unit(conn: sa.Connection) -> None:
        _check_id(conn, call)
        volume_types.drop_encryption(conn, call.path())

    await call.write(unit)
    return accepted()


def _check_id(conn: sa.Connection, call: Call) -> None:
    """Clients name an encryption by its id, or by its provider. Raises NotFound: the type has no such one."""
    volume_types.get(conn, call.path())
    found = volume_types.encryption(conn, call.path())
    if found is None or call.path("key") not in (found.id, found.provider, "provider"):
        raise NotFound(f"Volume type encryption for type {call.path()} does not exist.")


def _key_size(value: Whole | None) -> int | None:
    return None if value is None else whole("key_size", value, 1)
