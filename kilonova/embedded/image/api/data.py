"""Image data: upload, download, staging, import, locations, tasks.

Spec: EMG-02 to EMG-06, EMG-10, EMG-11, EMG-19, EMG-25, EMG-26, EMG-28.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from kilonova.domain.errors import Conflict, Forbidden, InvalidInput, NotFound
from kilonova.embedded.http import caller, empty_response, json_object, json_response
from kilonova.embedded.image import import_tasks, queries, views
from kilonova.embedded.image.api.info import IMPORT_METHODS
from kilonova.embedded.image.api.streams import file_chunks, requested_range
from kilonova.embedded.image.core import Core
from kilonova.embedded.image.errors import UnsupportedMediaType
from kilonova.embedded.image.records import (
    HASH_ALGORITHM,
    STORE,
    ImageRecord,
    ImportMethod,
    ImportRequest,
    Status,
)

OCTETS = "application/octet-stream"
MAX_TASKS = 1000
SHA512 = re.compile(r"[0-9a-fA-F]{128}")


def routes(core: Core) -> list[BaseRoute]:
    api = _Data(core)
    return [
        Route("/v2/images/{id}/file", api.upload, methods=["PUT"]),
        Route("/v2/images/{id}/file", api.download, methods=["GET"]),
        Route("/v2/images/{id}/stage", api.stage, methods=["PUT"]),
        Route("/v2/images/{id}/import", api.import_, methods=["POST"]),
        Route("/v2/images/{id}/locations", api.locations, methods=["GET"]),
        Route("/v2/images/{id}/locations", api.add_location, methods=["POST"]),
        Route("/v2/images/{id}/tasks", api.tasks_of_image, methods=["GET"]),
        Route("/v2/tasks", api.tasks, methods=["GET"]),
        Route("/v2/tasks/{task}", api.task, methods=["GET"]),
        Route("/v2/stores/{store}/{id}", api.delete_from_store, methods=["DELETE"]),
    ]


class _Data:
    def __init__(self, core: Core) -> None:
        self._core = core

    async def upload(self, request: Request) -> Response:
        return await self._receive(request, self._core.uploads.upload)

    async def stage(self, request: Request) -> Response:
        return await self._receive(request, self._core.uploads.stage)

    async def _receive(
        self, request: Request, receive: Callable[[ImageRecord, AsyncIterator[bytes], int | None], Awaitable[None]],
    ) -> Response:
        if request.headers.get("content-type", OCTETS).partition(";")[0].strip().lower() != OCTETS:
            raise UnsupportedMediaType(f"Image data is sent as {OCTETS}.")
        record = await self._changeable(request)
        try:
            await receive(record, request.stream(), _announced_size(request))
        except ClientDisconnect:
            return empty_response(400)  # for the log: the sender is gone
        return empty_response()

    async def download(self, request: Request) -> Response:
        context = caller(request)
        record = await self._visible(request)
        if record.status is Status.DEACTIVATED and not context.is_admin:
            raise Forbidden(f"Image {record.id} is deactivated.")
        if record.status not in (Status.ACTIVE, Status.DEACTIVATED) or not record.size:
            return empty_response()
        part = requested_range(request.headers.get("range"), record.size)
        start, length = part or (0, record.size)
        headers = {"Content-Length": str(length), "Accept-Ranges": "bytes"}
        if part is None:
            headers["Content-MD5"] = record.checksum or ""
        else:
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{record.size}"
        chunks = file_chunks(self._core.files, record.id, start, length)
        return StreamingResponse(chunks, 200 if part is None else 206, headers, OCTETS)

    async def import_(self, request: Request) -> Response:
        record = await self._changeable(request)
        wanted = _import_request(await json_object(request))
        await self._core.imports.begin(caller(request), record, wanted)
        return empty_response(202)

    async def locations(self, request: Request) -> Response:
        """Spec: EMG-26: for services only, since it tells where files lie."""
        if "service" not in caller(request).roles:
            raise Forbidden("You are not authorized to list the locations of an image.")
        record = await self._visible(request)
        if record.status not in (Status.ACTIVE, Status.DEACTIVATED):
            return json_response([])
        return json_response([{"url": self._core.files.data(record.id).as_uri(), "metadata": {"store": STORE}}])

    async def add_location(self, request: Request) -> Response:
        """The data behind the location is fetched in the background: this store keeps all data itself."""
        record = await self._changeable(request)
        body = await json_object(request)
        url, validation = body.get("url"), body.get("validation_data") or {}
        if not isinstance(url, str) or not isinstance(validation, dict):
            raise InvalidInput("A location has a url and may have validation_data.")
        wanted = ImportRequest(method=ImportMethod.LOCATION, uri=url, sha512=_expected_hash(validation))
        await self._core.imports.begin(caller(request), record, wanted)
        image = await self._core.database.read(lambda conn: queries.get(conn, record.id))
        return json_response(views.image(image), 202)

    async def tasks_of_image(self, request: Request) -> Response:
        record = await self._visible(request)
        tasks = await self._core.database.read(lambda conn: import_tasks.of_image(conn, record.id))
        return json_response({"tasks": [views.task(task) for task in tasks]})

    async def tasks(self, request: Request) -> Response:
        context = caller(request)
        owner = None if context.is_admin else context.project_id or ""
        tasks = await self._core.database.read(lambda conn: import_tasks.of_owner(conn, owner, MAX_TASKS))
        return json_response({"tasks": [views.task(task) for task in tasks], "first": "/v2/tasks",
                              "schema": "/v2/schemas/tasks"})

    async def task(self, request: Request) -> Response:
        context, task_id = caller(request), request.path_params["task"]
        task = await self._core.database.read(lambda conn: import_tasks.get(conn, task_id))
        if not context.is_admin and task.owner != context.project_id:
            raise NotFound(f"Task {task_id} could not be found.")
        return json_response(views.task(task))

    async def delete_from_store(self, request: Request) -> Response:
        record = await self._changeable(request)
        if request.path_params["store"] != STORE:
            raise NotFound(f"There is no store {request.path_params['store']}.")
        if record.status not in (Status.ACTIVE, Status.DEACTIVATED):
            raise Conflict(f"Image {record.id} has no data.")
        raise Forbidden(f"Store {STORE} has the last copy of image {record.id}.", hint="delete the image instead")

    async def _visible(self, request: Request) -> ImageRecord:
        context, image_id = caller(request), request.path_params["id"]
        return await self._core.database.read(lambda conn: queries.visible(conn, context, image_id))

    async def _changeable(self, request: Request) -> ImageRecord:
        context, image_id = caller(request), request.path_params["id"]
        return await self._core.database.read(lambda conn: queries.changeable(conn, context, image_id))


def _announced_size(request: Request) -> int | None:
    text = request.headers.get("x-openstack-image-size") or request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInput(f"Invalid size of the image data: {text!r}.")
    return int(text)


def _import_request(body: dict[str, Any]) -> ImportRequest:
    """Raises InvalidInput for what this service does not offer. Spec: EMG-06, EMG-25."""
    method = body.get("method")
    if not isinstance(method, dict):
        raise InvalidInput("An import names its method.")
    name = method.get("name")
    if name not in IMPORT_METHODS:
        raise InvalidInput(f"The import method {name!r} is not offered.", hint=f"use {' or '.join(IMPORT_METHODS)}")
    stores = body.get("stores") or [STORE]
    if stores != [STORE]:
        raise InvalidInput(f"The only store is {STORE}.")
    uri = method.get("uri")
    if name == ImportMethod.WEB_DOWNLOAD.value and not isinstance(uri, str):
        raise InvalidInput("Method web-download needs a uri.")
    if name == ImportMethod.GLANCE_DIRECT.value:
        return ImportRequest(method=ImportMethod.GLANCE_DIRECT)
    return ImportRequest(method=ImportMethod.WEB_DOWNLOAD, uri=uri)


def _expected_hash(validation: dict[str, Any]) -> str | None:
    value = validation.get("os_hash_value")
    if value is None:
        return None
    if validation.get("os_hash_algo", HASH_ALGORITHM) != HASH_ALGORITHM:
        raise InvalidInput(f"The hash algorithm is {HASH_ALGORITHM}.")
    if not isinstance(value, str) or not SHA512.fullmatch(value):
        raise InvalidInput(f"os_hash_value is not a {HASH_ALGORITHM} digest.")
    return value.lower()
