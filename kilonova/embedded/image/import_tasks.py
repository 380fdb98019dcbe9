"""The records of imports. An import that runs has one, so that it goes on after a restart. Spec: EMG-05, EMG-19."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.domain.errors import NotFound
from kilonova.embedded.image import queries, schema
from kilonova.embedded.image.records import STORE, Status, Task, TaskStatus

KEPT_PER_IMAGE = 20
"""Finished imports that are remembered per image; the oldest go first."""

column = schema.tasks.c


def begin(conn: sa.Connection, task: Task, before: Status) -> bool:
    """Record the import and move the image to importing. False if it is not in status `before`."""
    if not queries.move(conn, task.image_id, [before], Status.IMPORTING, task.created_at, importing_to=STORE,
                        failed_import=""):
        return False
    ids = sa.select(column.id).where(column.image_id == task.image_id).order_by(column.created_at.desc(), column.id)
    outdated = list(conn.scalars(ids.offset(KEPT_PER_IMAGE - 1)))
    if outdated:
        conn.execute(schema.tasks.delete().where(column.id.in_(outdated)))
    conn.execute(schema.tasks.insert().values(msgspec.structs.asdict(task)))
    return True


def succeed(conn: sa.Connection, task: Task, now: float) -> None:
    conn.execute(_update(task).values(status=TaskStatus.SUCCESS, updated_at=now))


def fail(conn: sa.Connection, task: Task, message: str, now: float) -> None:
    """Record why, and give the image back as it was before it had data."""
    conn.execute(_update(task).values(status=TaskStatus.FAILURE, message=message, updated_at=now))
    queries.move(conn, task.image_id, [Status.IMPORTING], Status.QUEUED, now, importing_to="", failed_import=STORE)


def _update(task: Task) -> sa.Update:
    return schema.tasks.update().where(column.id == task.id)


def of_image(conn: sa.Connection, image_id: str) -> list[Task]:
    rows = conn.execute(sa.select(schema.tasks).where(column.image_id == image_id).order_by(column.created_at))
    return [Task(**row._mapping) for row in rows]


def of_owner(conn: sa.Connection, owner: str | None, limit: int) -> list[Task]:
    """The newest tasks, of one project or (None) of all."""
    query = sa.select(schema.tasks).order_by(column.created_at.desc(), column.id).limit(limit)
    if owner is not None:
        query = query.where(column.owner == owner)
    return [Task(**row._mapping) for row in conn.execute(query)]


def get(conn: sa.Connection, task_id: str) -> Task:
    """Raises NotFound."""
    row = None
    if "\0" not in task_id:
        row = conn.execute(sa.select(schema.tasks).where(column.id == task_id)).one_or_none()
    if row is None:
        raise NotFound(f"Task {task_id} could not be found.")
    return Task(**row._mapping)


def running(conn: sa.Connection) -> list[Task]:
    rows = conn.execute(sa.select(schema.tasks).where(column.status == TaskStatus.PROCESSING))
    return [Task(**row._mapping) for row in rows]
