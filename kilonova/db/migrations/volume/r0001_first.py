"""All tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "volume_backups",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("container", sa.String(length=255), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=64), nullable=False),
        sa.Column("fail_reason", sa.Text(), nullable=True),
        sa.Column("bootable", sa.Boolean(), nullable=False),
        sa.Column("volume_metadata", sa.Text(), nullable=False),
        sa.Column("image_metadata", sa.Text(), nullable=False),
        sa.Column("data_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_backups")),
    )
    op.create_index(op.f("ix_volume_backups_volume_id"), "volume_backups", ["volume_id"], unique=False)
    op.create_index("volume_backups_by_age", "volume_backups", ["created_at", "id"], unique=False)
    op.create_index("volume_backups_of_project", "volume_backups", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "volume_messages",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("resource_type", sa.String(length=32), nullable=False),
        sa.Column("resource_uuid", sa.String(length=36), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("user_message", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("guaranteed_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_messages")),
    )
    op.create_index(op.f("ix_volume_messages_guaranteed_until"), "volume_messages", ["guaranteed_until"], unique=False)
    op.create_index(op.f("ix_volume_messages_resource_uuid"), "volume_messages", ["resource_uuid"], unique=False)
    op.create_index("volume_messages_of_project", "volume_messages", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "volume_operations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=36), nullable=False),
        sa.Column("slot", sa.String(length=36), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("cancel", sa.Text(), nullable=True),
        sa.Column("wake_at", sa.Double(), nullable=True),
        sa.Column("lease_owner", sa.String(length=64), nullable=True),
        sa.Column("lease_epoch", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_operations")),
        sa.UniqueConstraint("slot", name=op.f("uq_volume_operations_slot")),
    )
    op.create_index("volume_operations_created", "volume_operations", ["created_at"], unique=False)
    op.create_index("volume_operations_due", "volume_operations", ["state", "wake_at"], unique=False)
    op.create_index("volume_operations_subject", "volume_operations", ["subject", "created_at"], unique=False)
    op.create_table(
        "volume_operations_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("subject", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_operations_events")),
    )
    op.create_index(op.f("ix_volume_operations_events_subject"), "volume_operations_events", ["subject"], unique=False)
    op.create_table(
        "volume_quota_classes",
        sa.Column("class_name", sa.String(length=255), nullable=False),
        sa.Column("resource", sa.String(length=300), nullable=False),
        sa.Column("limit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("class_name", "resource", name=op.f("pk_volume_quota_classes")),
    )
    op.create_table(
        "volume_quotas",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=300), nullable=False),
        sa.Column("limit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "resource", name=op.f("pk_volume_quotas")),
    )
    op.create_table(
        "volume_services",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("binary", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_services")),
        sa.UniqueConstraint("binary", "host", name=op.f("uq_volume_services_binary_host")),
    )
    op.create_table(
        "volume_types",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("extra_specs", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_types")),
        sa.UniqueConstraint("name", name=op.f("uq_volume_types_name")),
    )
    op.create_table(
        "volume_default_types",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("type_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["type_id"], ["volume_types.id"], name=op.f("fk_volume_default_types_type_id")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_volume_default_types")),
    )
    op.create_index(op.f("ix_volume_default_types_type_id"), "volume_default_types", ["type_id"], unique=False)
    op.create_table(
        "volume_type_access",
        sa.Column("type_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["type_id"], ["volume_types.id"], name=op.f("fk_volume_type_access_type_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("type_id", "project_id", name=op.f("pk_volume_type_access")),
    )
    op.create_index(op.f("ix_volume_type_access_project_id"), "volume_type_access", ["project_id"], unique=False)
    op.create_table(
        "volume_type_encryption",
        sa.Column("type_id", sa.String(length=36), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("provider", sa.String(length=255), nullable=False),
        sa.Column("cipher", sa.String(length=255), nullable=True),
        sa.Column("key_size", sa.Integer(), nullable=True),
        sa.Column("control_location", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["type_id"], ["volume_types.id"], name=op.f("fk_volume_type_encryption_type_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("type_id", name=op.f("pk_volume_type_encryption")),
        sa.UniqueConstraint("id", name=op.f("uq_volume_type_encryption_id")),
    )
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=64), nullable=False),
        sa.Column("previous_status", sa.String(length=64), nullable=True),
        sa.Column("attach_status", sa.String(length=64), nullable=False),
        sa.Column("migration_status", sa.String(length=64), nullable=True),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("name_id", sa.String(length=36), nullable=False),
        sa.Column("type_id", sa.String(length=36), nullable=True),
        sa.Column("availability_zone", sa.String(length=255), nullable=False),
        sa.Column("bootable", sa.Boolean(), nullable=False),
        sa.Column("multiattach", sa.Boolean(), nullable=False),
        sa.Column("readonly", sa.Boolean(), nullable=True),
        sa.Column("encryption_key_id", sa.String(length=36), nullable=True),
        sa.Column("snapshot_id", sa.String(length=36), nullable=True),
        sa.Column("source_volid", sa.String(length=36), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("image_metadata", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["type_id"], ["volume_types.id"], name=op.f("fk_volumes_type_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
        sa.UniqueConstraint("name_id", name=op.f("uq_volumes_name_id")),
    )
    op.create_index(op.f("ix_volumes_host"), "volumes", ["host"], unique=False)
    op.create_index(op.f("ix_volumes_type_id"), "volumes", ["type_id"], unique=False)
    op.create_index("volumes_by_age", "volumes", ["created_at", "id"], unique=False)
    op.create_index("volumes_by_status", "volumes", ["status"], unique=False)
    op.create_index("volumes_of_project", "volumes", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "volume_attachments",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("instance_id", sa.String(length=36), nullable=True),
        sa.Column("host_name", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=64), nullable=False),
        sa.Column("mode", sa.String(length=2), nullable=False),
        sa.Column("mountpoint", sa.String(length=255), nullable=True),
        sa.Column("connector", sa.Text(), nullable=True),
        sa.Column("connection", sa.Text(), nullable=True),
        sa.Column("attached_at", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name=op.f("fk_volume_attachments_volume_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_attachments")),
    )
    op.create_index(op.f("ix_volume_attachments_instance_id"), "volume_attachments", ["instance_id"], unique=False)
    op.create_index(op.f("ix_volume_attachments_project_id"), "volume_attachments", ["project_id"], unique=False)
    op.create_index(op.f("ix_volume_attachments_volume_id"), "volume_attachments", ["volume_id"], unique=False)
    op.create_table(
        "volume_snapshots",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=64), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name=op.f("fk_volume_snapshots_volume_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_snapshots")),
    )
    op.create_index(op.f("ix_volume_snapshots_volume_id"), "volume_snapshots", ["volume_id"], unique=False)
    op.create_index("volume_snapshots_by_age", "volume_snapshots", ["created_at", "id"], unique=False)
    op.create_index("volume_snapshots_of_project", "volume_snapshots", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "volume_transfers",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("salt", sa.String(length=64), nullable=False),
        sa.Column("auth_hash", sa.String(length=128), nullable=False),
        sa.Column("no_snapshots", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name=op.f("fk_volume_transfers_volume_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_transfers")),
        sa.UniqueConstraint("volume_id", name=op.f("uq_volume_transfers_volume_id")),
    )
    op.create_index(op.f("ix_volume_transfers_project_id"), "volume_transfers", ["project_id"], unique=False)
