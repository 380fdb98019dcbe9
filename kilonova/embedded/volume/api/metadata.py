"""Metadata of volumes and of snapshots: the same calls below each. Spec: section 5.1."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.volume import snapshots, volumes
from kilonova.embedded.volume.api.call import Access, Call, Method, texts
from kilonova.embedded.volume.records import Snapshot, Volume

Metadata = dict[str, str]


def methods() -> list[Method]:
    return [
        *_Calls(volumes.visible, volumes.change).at("/volumes"),
        *_Calls(snapshots.visible, snapshots.change).at("/snapshots"),
    ]


class _Calls:
    """Args: visible, change: units of work of what has the metadata."""

    def __init__(self, visible: Callable[..., Volume | Snapshot], change: Callable[..., None]) -> None:
        self._visible = visible
        self._change = change

    def at(self, path: str) -> list[Method]:
        every, one = f"{path}/{{id}}/metadata", f"{path}/{{id}}/metadata/{{key}}"
        return [
            Method("GET", every, self._list), Method("POST", every, self._add, Access.MEMBER),
            Method("PUT", every, self._replace, Access.MEMBER), Method("GET", one, self._show),
            Method("PUT", one, self._set, Access.MEMBER), Method("DELETE", one, self._delete, Access.MEMBER),
        ]

    async def _list(self, call: Call) -> Response:
        return json_response({"metadata": await self._read(call)})

    async def _show(self, call: Call) -> Response:
        found, key = await self._read(call), call.path("key")
        if key not in found:
            raise _absent(key)
        return json_response({"meta": {key: found[key]}})

    async def _add(self, call: Call) -> Response:
        sent = texts("metadata", await call.body("metadata", Metadata))
        return json_response({"metadata": await self._write(call, lambda before: before | sent)})

    async def _replace(self, call: Call) -> Response:
        sent = texts("metadata", await call.body("metadata", Metadata))
        return json_response({"metadata": await self._write(call, lambda before: sent)})

    async def _set(self, call: Call) -> Response:
        sent = texts("meta", await call.body("meta", Metadata))
        if set(sent) != {call.path("key")}:
            raise InvalidInput("The body must have exactly the key that the URL names.")
        await self._write(call, lambda before: before | sent)
        return json_response({"meta": sent})

    async def _delete(self, call: Call) -> Response:
        key = call.path("key")

        def without(before: Metadata) -> Metadata:
            if key not in before:
                raise _absent(key)
            return {name: value for name, value in before.items() if name != key}

        await self._write(call, without)
        return empty_response(200)

    async def _read(self, call: Call) -> Metadata:
        found = await call.read(lambda conn: self._visible(conn, call.who, call.path()))
        return found.metadata

    async def _write(self, call: Call, change: Callable[[Metadata], Metadata]) -> Metadata:
        now = call.now()

        def unit(conn: sa.Connection) -> Metadata:
            after = change(self._visible(conn, call.who, call.path(), lock=True).metadata)
            self._change(conn, call.path(), now, metadata=after)
            return after

        return await call.write(unit)


def _absent(key: str) -> NotFound:
    return NotFound(f"There is no metadata with key {key}.")
