"""Tables of the volume service.

A volume's data lies in its pool (`host`) under its `name_id`, which is its own id until a migration gives it the data
of another volume.
"""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.columns import EnumValue, Json, Timestamp, Uuid, new_metadata
from kilonova.db.journal import Journal
from kilonova.db.upgrade import Schema
from kilonova.embedded.volume.states import AttachStatus, BackupStatus, SnapshotStatus, VolumeStatus

metadata = new_metadata()

VOLUME = Schema("volume", metadata, ("0001",))
"""All tables of this file and their revisions."""

journal = Journal(metadata, "volume_operations")
"""The operations of the service; what they work on is in the same database."""

Project = sa.String(64)
Texts = dict[str, str]

types = sa.Table(
    "volume_types", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("description", sa.Text),
    sa.Column("is_public", sa.Boolean, nullable=False),
    sa.Column("extra_specs", Json(Texts), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
)

type_access = sa.Table(
    "volume_type_access", metadata,
    sa.Column("type_id", Uuid, sa.ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("project_id", Project, primary_key=True, index=True),
)

default_types = sa.Table(
    "volume_default_types", metadata,
    sa.Column("project_id", Project, primary_key=True),
    sa.Column("type_id", Uuid, sa.ForeignKey("volume_types.id"), nullable=False, index=True),
)

type_encryption = sa.Table(
    "volume_type_encryption", metadata,
    sa.Column("type_id", Uuid, sa.ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("id", Uuid, nullable=False, unique=True),
    sa.Column("provider", sa.String(255), nullable=False),
    sa.Column("cipher", sa.String(255)),
    sa.Column("key_size", sa.Integer),
    sa.Column("control_location", sa.String(16), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
)

volumes = sa.Table(
    "volumes", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", Project, nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255)),
    sa.Column("description", sa.Text),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("status", EnumValue(VolumeStatus), nullable=False),
    sa.Column("previous_status", EnumValue(VolumeStatus)),
    sa.Column("attach_status", EnumValue(AttachStatus), nullable=False),
    sa.Column("migration_status", sa.String(64)),
    sa.Column("host", sa.String(255), index=True),
    sa.Column("name_id", Uuid, nullable=False, unique=True),
    sa.Column("type_id", Uuid, sa.ForeignKey("volume_types.id"), index=True),
    sa.Column("availability_zone", sa.String(255), nullable=False),
    sa.Column("bootable", sa.Boolean, nullable=False),
    sa.Column("multiattach", sa.Boolean, nullable=False),
    sa.Column("readonly", sa.Boolean),
    sa.Column("encryption_key_id", Uuid),
    sa.Column("snapshot_id", Uuid),
    sa.Column("source_volid", Uuid),
    sa.Column("metadata", Json(Texts), nullable=False),
    sa.Column("image_metadata", Json(Texts), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.Index("volumes_of_project", "project_id", "created_at", "id"),
    sa.Index("volumes_by_age", "created_at", "id"),
    sa.Index("volumes_by_status", "status"),
)

snapshots = sa.Table(
    "volume_snapshots", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("volume_id", Uuid, sa.ForeignKey("volumes.id"), nullable=False, index=True),
    sa.Column("project_id", Project, nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255)),
    sa.Column("description", sa.Text),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("status", EnumValue(SnapshotStatus), nullable=False),
    sa.Column("progress", sa.Integer, nullable=False),
    sa.Column("metadata", Json(Texts), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.Index("volume_snapshots_of_project", "project_id", "created_at", "id"),
    sa.Index("volume_snapshots_by_age", "created_at", "id"),
)

attachments = sa.Table(
    "volume_attachments", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("volume_id", Uuid, sa.ForeignKey("volumes.id"), nullable=False, index=True),
    sa.Column("project_id", Project, nullable=False, index=True),
    sa.Column("instance_id", Uuid, index=True),
    sa.Column("host_name", sa.String(255)),
    sa.Column("status", EnumValue(AttachStatus), nullable=False),
    sa.Column("mode", sa.String(2), nullable=False),
    sa.Column("mountpoint", sa.String(255)),
    sa.Column("connector", Json(dict[str, object])),
    sa.Column("connection", Json(dict[str, object])),
    sa.Column("attached_at", Timestamp),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
)

backups = sa.Table(
    "volume_backups", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("volume_id", Uuid, nullable=False, index=True),
    sa.Column("snapshot_id", Uuid),
    sa.Column("project_id", Project, nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255)),
    sa.Column("description", sa.Text),
    sa.Column("container", sa.String(255), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("status", EnumValue(BackupStatus), nullable=False),
    sa.Column("fail_reason", sa.Text),
    sa.Column("bootable", sa.Boolean, nullable=False),
    sa.Column("volume_metadata", Json(Texts), nullable=False),
    sa.Column("image_metadata", Json(Texts), nullable=False),
    sa.Column("data_at", Timestamp, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.Index("volume_backups_of_project", "project_id", "created_at", "id"),
    sa.Index("volume_backups_by_age", "created_at", "id"),
)

transfers = sa.Table(
    "volume_transfers", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("volume_id", Uuid, sa.ForeignKey("volumes.id"), nullable=False, unique=True),
    sa.Column("project_id", Project, nullable=False, index=True),
    sa.Column("name", sa.String(255)),
    sa.Column("salt", sa.String(64), nullable=False),
    sa.Column("auth_hash", sa.String(128), nullable=False),
    sa.Column("no_snapshots", sa.Boolean, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
)

quotas = sa.Table(
    "volume_quotas", metadata,
    sa.Column("project_id", Project, primary_key=True),
    sa.Column("resource", sa.String(300), primary_key=True),
    sa.Column("limit", sa.Integer, nullable=False),
)

quota_classes = sa.Table(
    "volume_quota_classes", metadata,
    sa.Column("class_name", sa.String(255), primary_key=True),
    sa.Column("resource", sa.String(300), primary_key=True),
    sa.Column("limit", sa.Integer, nullable=False),
)

services = sa.Table(
    "volume_services", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("binary", sa.String(64), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("updated_at", Timestamp, nullable=False),
    sa.UniqueConstraint("binary", "host"),
)

messages = sa.Table(
    "volume_messages", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", Project, nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("resource_type", sa.String(32), nullable=False),
    sa.Column("resource_uuid", Uuid, nullable=False, index=True),
    sa.Column("event_id", sa.String(64), nullable=False),
    sa.Column("user_message", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("guaranteed_until", Timestamp, nullable=False, index=True),
    sa.Index("volume_messages_of_project", "project_id", "created_at", "id"),
)
