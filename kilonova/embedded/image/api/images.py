"""Images as records: create, list, show, change, delete, tags, deactivation.

Spec: EMG-01, EMG-07 to EMG-18, EMG-29.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.errors import Conflict, Forbidden, NotFound
from kilonova.embedded.http import caller, empty_response, json_object, json_response, root_url
from kilonova.embedded.image import access, attributes, listing, patch, queries, views
from kilonova.embedded.image.api.info import IMPORT_METHODS
from kilonova.embedded.image.core import Core
from kilonova.embedded.image.quotas import Resource
from kilonova.embedded.image.records import ImageRecord, Status


def routes(core: Core) -> list[BaseRoute]:
    api = _Images(core)
    return [
        Route("/v2/images", api.create, methods=["POST"]),
        Route("/v2/images", api.list, methods=["GET"]),
        Route("/v2/images/{id}", api.show, methods=["GET"]),
        Route("/v2/images/{id}", api.change, methods=["PATCH"]),
        Route("/v2/images/{id}", api.delete, methods=["DELETE"]),
        Route("/v2/images/{id}/actions/{action}", api.act, methods=["POST"]),
        Route("/v2/images/{id}/tags/{tag}", api.add_tag, methods=["PUT"]),
        Route("/v2/images/{id}/tags/{tag}", api.remove_tag, methods=["DELETE"]),
    ]


class _Images:
    def __init__(self, core: Core) -> None:
        self._core = core

    async def create(self, request: Request) -> Response:
        context = caller(request)
        access.check_writer(context)
        body = await json_object(request)
        limits, now = self._core.limits, self._core.clock.now()
        record = attributes.new_image(body, context, limits, new_id=str(uuid.uuid4()), now=now)
        if self._core.transfers.running(record.id):
            raise Conflict(f"Image ID {record.id} is still in use.")
        quota = await self._core.quotas.of(record.owner)

        def unit(conn: sa.Connection) -> None:
            queries.insert(conn, record, limits)
            quota.check(conn, Resource.COUNT_TOTAL)

        await self._core.database.write(unit)
        return json_response(views.image(record), 201, {
            "Location": f"{root_url(request)}/v2/images/{record.id}",
            "OpenStack-image-import-methods": ",".join(IMPORT_METHODS),
        })

    async def list(self, request: Request) -> Response:
        context = caller(request)
        parameters = request.query_params.multi_items()
        wanted = listing.parse(parameters, context)
        records, more = await self._core.database.read(lambda conn: listing.page(conn, wanted, context))
        return json_response({
            "images": [views.image(record) for record in records],
            **listing.links(parameters, records, more=more),
            "schema": "/v2/schemas/images",
        })

    async def show(self, request: Request) -> Response:
        context, image_id = caller(request), request.path_params["id"]
        record = await self._core.database.read(lambda conn: queries.visible(conn, context, image_id))
        return json_response(views.image(record))

    async def change(self, request: Request) -> Response:
        context, image_id = caller(request), request.path_params["id"]
        changes = patch.parse(request.headers.get("content-type", ""), await request.body())
        limits, now = self._core.limits, self._core.clock.now()

        def unit(conn: sa.Connection) -> ImageRecord:
            before = queries.changeable(conn, context, image_id)
            after = msgspec.structs.replace(patch.apply(before, changes), updated_at=now)
            attributes.check_rights(after, before, context)
            attributes.check_counts(after, limits)
            queries.replace(conn, after)
            return after

        return json_response(views.image(await self._core.database.write(unit)))

    async def delete(self, request: Request) -> Response:
        context, image_id = caller(request), request.path_params["id"]
        await self._core.database.read(lambda conn: queries.changeable(conn, context, image_id))
        await self._core.delete(image_id)
        return empty_response()

    async def act(self, request: Request) -> Response:
        """Deactivate or reactivate; either is no change when it has been done already. Spec: EMG-11."""
        context, image_id = caller(request), request.path_params["id"]
        action = request.path_params["action"]
        if action not in ("deactivate", "reactivate"):
            raise NotFound("The resource could not be found.")
        after = Status.DEACTIVATED if action == "deactivate" else Status.ACTIVE
        now = self._core.clock.now()

        def unit(conn: sa.Connection) -> None:
            record = queries.changeable(conn, context, image_id)
            if not queries.move(conn, image_id, [Status.ACTIVE, Status.DEACTIVATED], after, now):
                raise Forbidden(f"Not allowed to {action} image {image_id} in status '{record.status.value}'.")

        await self._core.database.write(unit)
        return empty_response()

    async def add_tag(self, request: Request) -> Response:
        tag = attributes.check_tag(request.path_params["tag"])
        await self._change_tags(request, lambda tags: tags if tag in tags else (*tags, tag))
        return empty_response()

    async def remove_tag(self, request: Request) -> Response:
        tag = request.path_params["tag"]

        def remove(tags: tuple[str, ...]) -> tuple[str, ...]:
            if tag not in tags:
                raise NotFound(f"The image has no tag '{tag}'.")
            return tuple(other for other in tags if other != tag)

        await self._change_tags(request, remove)
        return empty_response()

    async def _change_tags(self, request: Request, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        context, image_id = caller(request), request.path_params["id"]
        now = self._core.clock.now()

        def unit(conn: sa.Connection) -> None:
            before = queries.changeable(conn, context, image_id)
            after = msgspec.structs.replace(before, tags=change(before.tags), updated_at=now)
            attributes.check_counts(after, self._core.limits)
            queries.replace(conn, after)

        await self._core.database.write(unit)
