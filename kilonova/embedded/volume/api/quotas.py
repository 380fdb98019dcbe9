"""Limits on what projects may have, and what they have. Spec: section 5.1, EMV-10."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.volume import quotas
from kilonova.embedded.volume.api.call import Access, Call, Method, flag, whole

PROJECT_IN_LIMITS = 39
_NOT_LIMITS = frozenset({"id", "tenant_id", "project_id", "class_name", "force", "skip_validation"})
"""What clients send beside limits."""

Body = dict[str, Any]


def methods() -> list[Method]:
    one, class_ = "/os-quota-sets/{id}", "/os-quota-class-sets/{id}"
    return [
        Method("GET", one, _show),
        Method("GET", f"{one}/defaults", _show_defaults),
        Method("PUT", one, _change, Access.ADMIN),
        Method("DELETE", one, _reset, Access.ADMIN),
        Method("GET", class_, _show_class, Access.ADMIN),
        Method("PUT", class_, _change_class, Access.ADMIN),
        Method("GET", "/limits", _limits),
    ]


def _own(call: Call) -> str:
    """The project that is asked for. Raises Forbidden: it is another than the caller's."""
    if not call.who.is_admin and call.path() != call.who.project_id:
        raise Forbidden("You are not authorized to see the quotas of another project.")
    return call.path()


async def _show(call: Call) -> Response:
    project, usage = _own(call), call.request.query_params.get("usage")
    limits, used = await call.read(lambda conn: (quotas.limits(conn, project), quotas.usage(conn, project)))
    shown: dict[str, Any] = {"id": project} | limits
    if usage is not None and flag("usage", usage):
        shown |= {name: {"limit": limit, "in_use": used.get(name, 0), "reserved": 0}
                  for name, limit in limits.items()}
    return json_response({"quota_set": shown})


async def _show_defaults(call: Call) -> Response:
    project = _own(call)
    limits = await call.read(lambda conn: quotas.class_limits(conn, quotas.DEFAULT_CLASS))
    return json_response({"quota_set": {"id": project} | limits})


async def _change(call: Call) -> Response:
    body = await call.body("quota_set", Body)
    known = await call.read(lambda conn: quotas.limits(conn, call.path()))
    values = _checked(body, known)
    await call.write(lambda conn: quotas.set_limits(conn, call.path(), values))
    return json_response({"quota_set": known | values})


async def _reset(call: Call) -> Response:
    await call.write(lambda conn: quotas.reset(conn, call.path()))
    return empty_response(200)


async def _show_class(call: Call) -> Response:
    limits = await call.read(lambda conn: quotas.class_limits(conn, call.path()))
    return json_response({"quota_class_set": {"id": call.path()} | limits})


async def _change_class(call: Call) -> Response:
    body = await call.body("quota_class_set", Body)
    known = await call.read(lambda conn: quotas.class_limits(conn, call.path()))
    values = _checked(body, known)
    await call.write(lambda conn: quotas.set_class_limits(conn, call.path(), values))
    return json_response({"quota_class_set": known | values})


def _checked(body: Body, known: dict[str, int]) -> dict[str, int]:
    """The limits in a body. Raises InvalidInput: there is no such resource, or its limit is no number."""
    sent = {name: value for name, value in body.items() if name not in _NOT_LIMITS}
    wrong = sorted(sent.keys() - known.keys())
    if wrong:
        raise InvalidInput(f"Bad key(s) in quota set: {', '.join(wrong)[:200]}")
    return {name: _limit(name, value) for name, value in sent.items()}


def _limit(name: str, value: object) -> int:
    if not isinstance(value, int | str):
        raise InvalidInput(f"Invalid input for {name}: a limit is a whole number, -1 for none.")
    return whole(name, value, -1)


async def _limits(call: Call) -> Response:
    """Those of the caller's project; administrators may (3.39) ask for another's."""
    project = call.who.project_id or ""
    if call.version >= PROJECT_IN_LIMITS and call.who.is_admin:
        project = call.request.query_params.get("project_id") or project
    limit, used = await call.read(lambda conn: (quotas.limits(conn, project), quotas.usage(conn, project)))
    return json_response({"limits": {"rate": [], "absolute": {
        "maxTotalVolumes": limit["volumes"], "maxTotalSnapshots": limit["snapshots"],
        "maxTotalVolumeGigabytes": limit["gigabytes"], "maxTotalBackups": limit["backups"],
        "maxTotalBackupGigabytes": limit["backup_gigabytes"], "totalVolumesUsed": used["volumes"],
        "totalSnapshotsUsed": used["snapshots"], "totalGigabytesUsed": used["gigabytes"],
        "totalBackupsUsed": used["backups"], "totalBackupGigabytesUsed": used["backup_gigabytes"],
    }}})
