"""The projects that a shared image is shared with. Spec: EMG-13."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, Forbidden, InvalidInput, NotFound
from kilonova.embedded.http import caller, empty_response, json_object, json_response
from kilonova.embedded.image import access, queries, schema, views
from kilonova.embedded.image.attributes import PROJECT_ID
from kilonova.embedded.image.core import Core
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.records import ImageRecord, Member, MemberStatus, Visibility

column = schema.members.c


def routes(core: Core) -> list[BaseRoute]:
    api = _Members(core)
    return [
        Route("/v2/images/{id}/members", api.add, methods=["POST"]),
        Route("/v2/images/{id}/members", api.list, methods=["GET"]),
        Route("/v2/images/{id}/members/{member}", api.show, methods=["GET"]),
        Route("/v2/images/{id}/members/{member}", api.answer, methods=["PUT"]),
        Route("/v2/images/{id}/members/{member}", api.remove, methods=["DELETE"]),
    ]


class _Members:
    def __init__(self, core: Core) -> None:
        self._core = core

    async def add(self, request: Request) -> Response:
        context, image_id = caller(request), request.path_params["id"]
        project_id = (await json_object(request)).get("member")
        if not isinstance(project_id, str) or not PROJECT_ID.fullmatch(project_id):
            raise InvalidInput("The body must name a project as member.")
        now = self._core.clock.now()
        member = Member(image_id=image_id, member_id=project_id, status=MemberStatus.PENDING, created_at=now,
                        updated_at=now)

        def unit(conn: sa.Connection) -> None:
            _shared(queries.changeable(conn, context, image_id))
            count = conn.scalar(sa.select(sa.func.count()).where(column.image_id == image_id)) or 0
            if count >= self._core.limits.members:
                raise TooLarge(f"Image {image_id} has {count} members, which is the limit.")
            try:
                conn.execute(schema.members.insert().values(msgspec.structs.asdict(member)))
            except sa.exc.IntegrityError as error:
                raise Conflict(f"Project {project_id} is already a member of image {image_id}.") from error

        await self._core.database.write(unit)
        return json_response(views.member(member))

    async def list(self, request: Request) -> Response:
        """All members for the owner; for a member itself alone."""
        context, image_id = caller(request), request.path_params["id"]

        def unit(conn: sa.Connection) -> list[Member]:
            record = queries.visible(conn, context, image_id)
            query = sa.select(schema.members).where(column.image_id == image_id)
            if not _knows_all(context, record):
                query = query.where(column.member_id == context.project_id)
            return [Member(**row._mapping) for row in conn.execute(query.order_by(column.created_at, column.member_id))]

        members = await self._core.database.read(unit)
        return json_response({"members": [views.member(member) for member in members],
                              "schema": "/v2/schemas/members"})

    async def show(self, request: Request) -> Response:
        context, image_id = caller(request), request.path_params["id"]
        project_id = request.path_params["member"]

        def unit(conn: sa.Connection) -> Member:
            record = queries.visible(conn, context, image_id)
            return _find(conn, record, project_id, known=_knows_all(context, record)
                         or project_id == context.project_id)

        return json_response(views.member(await self._core.database.read(unit)))

    async def answer(self, request: Request) -> Response:
        """Accept or reject: the member's own decision."""
        context, image_id = caller(request), request.path_params["id"]
        project_id = request.path_params["member"]
        try:
            status = MemberStatus((await json_object(request)).get("status"))
        except ValueError:
            raise InvalidInput("The status of a member is pending, accepted or rejected.") from None
        now = self._core.clock.now()

        def unit(conn: sa.Connection) -> Member:
            record = queries.visible(conn, context, image_id)
            access.check_writer(context)
            mine = project_id == context.project_id
            _find(conn, record, project_id, known=mine or _knows_all(context, record))
            if not mine and not context.is_admin:
                raise Forbidden(f"Only project {project_id} itself accepts or rejects image {image_id}.")
            conn.execute(
                schema.members.update()
                .where(column.image_id == image_id, column.member_id == project_id)
                .values(status=status, updated_at=now)
            )
            return _find(conn, record, project_id, known=True)

        return json_response(views.member(await self._core.database.write(unit)))

    async def remove(self, request: Request) -> Response:
        context, image_id = caller(request), request.path_params["id"]
        project_id = request.path_params["member"]

        def unit(conn: sa.Connection) -> None:
            record = queries.changeable(conn, context, image_id)
            _shared(record)
            _find(conn, record, project_id, known=True)
            conn.execute(schema.members.delete().where(column.image_id == image_id, column.member_id == project_id))

        await self._core.database.write(unit)
        return empty_response()


def _knows_all(context: RequestContext, record: ImageRecord) -> bool:
    return context.is_admin or access.owns(context, record)


def _shared(record: ImageRecord) -> None:
    if record.visibility is not Visibility.SHARED:
        raise Forbidden(f"Image {record.id} is {record.visibility.value}: only shared images have members.")


def _find(conn: sa.Connection, record: ImageRecord, project_id: str, *, known: bool) -> Member:
    """Raises NotFound, also for a member that the caller may not know of."""
    member = queries.find_member(conn, record.id, project_id) if known else None
    if member is None:
        raise NotFound(f"Project {project_id} is no member of image {record.id}.")
    return member
