"""The units of work of the image service: functions of one connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, ImageNotFound
from kilonova.embedded.image import access, schema
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.records import (
    MAY_BE_STAGED,
    ImageRecord,
    Limits,
    Member,
    MemberStatus,
    Status,
    Visibility,
)

image = schema.images.c

IDS: sa.BindParameter[str] = sa.bindparam("ids", expanding=True)
IMAGES = sa.select(schema.images).where(image.id.in_(IDS))
PROPERTIES = (
    sa.select(schema.properties).where(schema.properties.c.image_id.in_(IDS)).order_by(schema.properties.c.name)
)
TAGS = sa.select(schema.tags).where(schema.tags.c.image_id.in_(IDS)).order_by(schema.tags.c.position)
"""Built once: every call of the service reads an image."""


_IMAGE = Prepared(sa.select(schema.images).where(image.id == sa.bindparam("id")))
_PROPERTIES = Prepared(
    sa.select(schema.properties.c.name, schema.properties.c.value)
    .where(schema.properties.c.image_id == sa.bindparam("id")).order_by(schema.properties.c.name)
)
_TAGS = Prepared(
    sa.select(schema.tags.c.tag).where(schema.tags.c.image_id == sa.bindparam("id")).order_by(schema.tags.c.position)
)
_MEMBER = Prepared(sa.select(schema.members).where(
    schema.members.c.image_id == sa.bindparam("image"), schema.members.c.member_id == sa.bindparam("project")
))


def load(conn: sa.Connection, ids: Sequence[str]) -> list[ImageRecord]:
    """The images of these ids, in their order; missing ones are left out."""
    ids = [id_ for id_ in ids if "\0" not in id_]
    if not ids:
        return []
    rows = conn.execute(IMAGES, {"ids": ids}).all()
    properties: dict[str, dict[str, str]] = {}
    for id_, name, value in conn.execute(PROPERTIES, {"ids": ids}):
        properties.setdefault(id_, {})[name] = value
    tags: dict[str, list[str]] = {}
    for id_, tag, _ in conn.execute(TAGS, {"ids": ids}):
        tags.setdefault(id_, []).append(tag)
    records = {
        row.id: ImageRecord(**row._mapping, properties=properties.get(row.id, {}), tags=tuple(tags.get(row.id, ())))
        for row in rows
    }
    return [records[id_] for id_ in ids if id_ in records]


def get(conn: sa.Connection, image_id: str) -> ImageRecord:
    """Raises ImageNotFound."""
    row = None if "\0" in image_id else _IMAGE.first(conn, id=image_id)
    if row is None:
        raise ImageNotFound(image_id)
    return ImageRecord(
        **row._asdict(), properties=dict(_PROPERTIES.all(conn, id=image_id)),
        tags=tuple(_TAGS.scalars(conn, id=image_id)),
    )


def visible(conn: sa.Connection, context: RequestContext, image_id: str) -> ImageRecord:
    """The image, if the caller may know of it. Raises ImageNotFound. Spec: EMI-05."""
    record = get(conn, image_id)
    member = False
    if record.visibility is Visibility.SHARED and context.project_id is not None:
        member = find_member(conn, image_id, context.project_id) is not None
    access.check_visible(context, record, member=member)
    return record


def changeable(conn: sa.Connection, context: RequestContext, image_id: str) -> ImageRecord:
    """The image, if the caller may change it. Raises ImageNotFound; Forbidden."""
    record = visible(conn, context, image_id)
    access.check_change(context, record)
    return record


def insert(conn: sa.Connection, record: ImageRecord, limits: Limits) -> None:
    """Raises Conflict: the id exists. TooLarge: the project has as many images as it may. Spec: EMG-01."""
    count = conn.scalar(sa.select(sa.func.count()).where(image.owner == record.owner))
    if count is not None and count >= limits.images:
        raise TooLarge(f"The project has {count} images, which is its limit.", hint="delete some")
    try:
        conn.execute(schema.images.insert().values(_columns(record)))
    except sa.exc.IntegrityError as error:
        raise Conflict(f"Image ID {record.id} already exists!") from error
    _write_details(conn, record)


def replace(conn: sa.Connection, record: ImageRecord) -> None:
    """Write the caller's side of an image: everything but what describes its data."""
    own = {"name", "owner", "visibility", "disk_format", "container_format", "min_disk", "min_ram", "os_hidden",
           "protected", "updated_at"}
    values = {name: value for name, value in _columns(record).items() if name in own}
    conn.execute(schema.images.update().where(image.id == record.id).values(values))
    for table in (schema.properties, schema.tags):
        conn.execute(table.delete().where(table.c.image_id == record.id))
    _write_details(conn, record)


def _columns(record: ImageRecord) -> dict[str, Any]:
    return {column.name: getattr(record, column.name) for column in schema.images.c}


def _write_details(conn: sa.Connection, record: ImageRecord) -> None:
    if record.properties:
        conn.execute(schema.properties.insert(), [
            {"image_id": record.id, "name": name, "value": value} for name, value in record.properties.items()
        ])
    if record.tags:
        conn.execute(schema.tags.insert(), [
            {"image_id": record.id, "tag": tag, "position": n} for n, tag in enumerate(record.tags)
        ])


def move(conn: sa.Connection, image_id: str, before: Iterable[Status], after: Status, now: float,
         **values: Any) -> bool:
    """Change the status if it is one of `before`. False if it is another or the image is gone."""
    if after not in MAY_BE_STAGED:
        values["staged_size"] = None
    moved = conn.execute(
        schema.images.update()
        .where(image.id == image_id, image.status.in_(list(before)))
        .values(status=after, updated_at=now, **values)
    )
    return moved.rowcount == 1


def record_staged(conn: sa.Connection, image_id: str, size: int) -> None:
    """Keep how many bytes are staged. Raises ImageNotFound."""
    if not conn.execute(schema.images.update().where(image.id == image_id).values(staged_size=size)).rowcount:
        raise ImageNotFound(image_id)


def with_properties(conn: sa.Connection, owner: str, wanted: Mapping[str, str]) -> list[ImageRecord]:
    """The images of a project that have all these properties, newest first."""
    query = sa.select(image.id).where(image.owner == owner)
    held = schema.properties.c
    for name, value in wanted.items():
        query = query.where(image.id.in_(sa.select(held.image_id).where(held.name == name, held.value == value)))
    return load(conn, list(conn.scalars(query.order_by(image.created_at.desc(), image.id.desc()))))


def share(conn: sa.Connection, image_id: str, member: str, now: float) -> None:
    """Let another project use a shared image, which it need not accept first."""
    conn.execute(schema.members.insert().values(
        image_id=image_id, member_id=member, status=MemberStatus.ACCEPTED, created_at=now, updated_at=now
    ))


def used_bytes(conn: sa.Connection, owner: str | None) -> int:
    """Bytes of all image data of a project."""
    return int(conn.scalar(sa.select(sa.func.coalesce(sa.func.sum(image.size), 0)).where(image.owner == owner)) or 0)


def delete(conn: sa.Connection, image_id: str) -> bool:
    """Remove the record and all that hangs on it. False if there is none."""
    for table in (schema.properties, schema.tags, schema.members, schema.tasks):
        conn.execute(table.delete().where(table.c.image_id == image_id))
    return conn.execute(schema.images.delete().where(image.id == image_id)).rowcount == 1


def find_member(conn: sa.Connection, image_id: str, project_id: str) -> Member | None:
    if "\0" in project_id:
        return None
    row = _MEMBER.first(conn, image=image_id, project=project_id)
    return Member(**row._asdict()) if row else None
