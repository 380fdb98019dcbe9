"""Tables of the image service. Image data lies in files, see `files.py`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.db.columns import EnumValue, Json, Timestamp, Uuid, new_metadata
from kilonova.db.upgrade import Schema
from kilonova.embedded.image.records import ImportRequest, MemberStatus, Status, TaskStatus, Visibility

metadata = new_metadata()

IMAGE = Schema("image", metadata, ("0001",))
"""All tables of this file and their revisions."""

Project = sa.String(64)


def _image_id(**options: Any) -> sa.Column[str]:
    return sa.Column("image_id", Uuid, sa.ForeignKey("images.id", ondelete="CASCADE"), **options)


images = sa.Table(
    "images", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("name", sa.String(255)),
    sa.Column("owner", Project),
    sa.Column("status", EnumValue(Status), nullable=False),
    sa.Column("visibility", EnumValue(Visibility), nullable=False),
    sa.Column("disk_format", sa.String(20)),
    sa.Column("container_format", sa.String(20)),
    sa.Column("size", sa.BigInteger),
    sa.Column("virtual_size", sa.BigInteger),
    sa.Column("staged_size", sa.BigInteger),
    sa.Column("min_disk", sa.Integer, nullable=False),
    sa.Column("min_ram", sa.Integer, nullable=False),
    sa.Column("checksum", sa.String(32)),
    sa.Column("os_hash_value", sa.String(128)),
    sa.Column("os_hidden", sa.Boolean, nullable=False),
    sa.Column("protected", sa.Boolean, nullable=False),
    sa.Column("importing_to", sa.String(32)),
    sa.Column("failed_import", sa.String(32)),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
    sa.Index("images_by_owner", "owner", "created_at"),
    sa.Index("images_by_creation", "created_at", "id"),
    sa.Index("images_by_name", "name"),
)

properties = sa.Table(
    "image_properties", metadata,
    _image_id(primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

tags = sa.Table(
    "image_tags", metadata,
    _image_id(primary_key=True),
    sa.Column("tag", sa.String(255), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Index("image_tags_by_tag", "tag"),
)

members = sa.Table(
    "image_members", metadata,
    _image_id(primary_key=True),
    sa.Column("member_id", Project, primary_key=True),
    sa.Column("status", EnumValue(MemberStatus), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
    sa.Index("image_members_by_member", "member_id", "status"),
)

tasks = sa.Table(
    "image_tasks", metadata,
    sa.Column("id", Uuid, primary_key=True),
    _image_id(nullable=False, index=True),
    sa.Column("owner", Project),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("request", Json(ImportRequest), nullable=False),
    sa.Column("status", EnumValue(TaskStatus), nullable=False, index=True),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
)
