"""Tables of the identity service.

`name_key` is the name folded for comparison, as names are unique without regard to case. Spec: EMI-37.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.db.columns import Json, Timestamp, new_metadata
from kilonova.db.upgrade import Schema

metadata = new_metadata()

IDENTITY = Schema("identity", metadata, ("0001",))
"""All tables of this file and their revisions."""

Id = sa.String(64)
Name = sa.String(255)
NameKey = sa.String(1024)
Attributes = Json(dict[str, Any])


def _named(table: str, *columns: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(
        table, metadata,
        sa.Column("id", Id, primary_key=True),
        sa.Column("name", Name, nullable=False),
        sa.Column("name_key", NameKey, nullable=False),
        *columns,
    )


def _of(table: str, column: str, **options: Any) -> sa.Column[str]:
    return sa.Column(column, Id, sa.ForeignKey(f"{table}.id", ondelete="CASCADE"), **options)


domains = _named(
    "identity_domains",
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.UniqueConstraint("name_key"),
)

projects = _named(
    "identity_projects",
    _of("identity_domains", "domain_id", nullable=False),
    sa.Column("parent_id", Id, nullable=False, index=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("tags", Json(tuple[str, ...]), nullable=False),
    sa.Column("options", Attributes, nullable=False),
    sa.Column("extra", Attributes, nullable=False),
    sa.UniqueConstraint("domain_id", "name_key"),
)

users = _named(
    "identity_users",
    _of("identity_domains", "domain_id", nullable=False),
    sa.Column("password_hash", sa.Text),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("default_project_id", Id, index=True),
    sa.Column("options", Attributes, nullable=False),
    sa.Column("extra", Attributes, nullable=False),
    sa.Column("token_epoch", sa.Integer, nullable=False),
    sa.UniqueConstraint("domain_id", "name_key"),
)

groups = _named(
    "identity_groups",
    _of("identity_domains", "domain_id", nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.UniqueConstraint("domain_id", "name_key"),
)

memberships = sa.Table(
    "identity_memberships", metadata,
    _of("identity_users", "user_id", primary_key=True),
    _of("identity_groups", "group_id", primary_key=True, index=True),
)

roles = _named(
    "identity_roles",
    sa.Column("domain_id", Id, nullable=False),
    sa.Column("description", sa.Text),
    sa.UniqueConstraint("domain_id", "name_key"),
)

implied_roles = sa.Table(
    "identity_implied_roles", metadata,
    _of("identity_roles", "prior_id", primary_key=True),
    _of("identity_roles", "implied_id", primary_key=True, index=True),
)

assignments = sa.Table(
    "identity_assignments", metadata,
    sa.Column("actor_kind", sa.String(8), primary_key=True),
    sa.Column("actor_id", Id, primary_key=True),
    sa.Column("target_kind", sa.String(8), primary_key=True),
    sa.Column("target_id", Id, primary_key=True),
    _of("identity_roles", "role_id", primary_key=True),
    sa.Index("identity_assignments_by_target", "target_kind", "target_id"),
)

revoked_tokens = sa.Table(
    "identity_revoked_tokens", metadata,
    sa.Column("audit_id", sa.String(32), primary_key=True),
    sa.Column("expires_at", Timestamp, nullable=False, index=True),
)

application_credentials = _named(
    "identity_application_credentials",
    _of("identity_users", "user_id", nullable=False),
    _of("identity_projects", "project_id", nullable=False, index=True),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("expires_at", Timestamp),
    sa.Column("unrestricted", sa.Boolean, nullable=False),
    sa.Column("role_ids", Json(tuple[str, ...]), nullable=False),
    sa.Column("access_rule_ids", Json(tuple[str, ...]), nullable=False),
    sa.UniqueConstraint("user_id", "name_key"),
)

access_rules = sa.Table(
    "identity_access_rules", metadata,
    sa.Column("id", Id, primary_key=True),
    _of("identity_users", "user_id", nullable=False, index=True),
    sa.Column("service", Name, nullable=False),
    sa.Column("method", sa.String(16), nullable=False),
    sa.Column("path", sa.String(1024), nullable=False),
)

regions = sa.Table(
    "identity_regions", metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("parent_region_id", sa.String(255), sa.ForeignKey("identity_regions.id")),
)

services = sa.Table(
    "identity_services", metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("type", Name, nullable=False),
    sa.Column("name", Name, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
)

endpoints = sa.Table(
    "identity_endpoints", metadata,
    sa.Column("id", Id, primary_key=True),
    _of("identity_services", "service_id", nullable=False, index=True),
    sa.Column("region_id", sa.String(255), sa.ForeignKey("identity_regions.id")),
    sa.Column("interface", sa.String(8), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
)

registered_limits = sa.Table(
    "identity_registered_limits", metadata,
    sa.Column("id", Id, primary_key=True),
    _of("identity_services", "service_id", nullable=False),
    sa.Column("region_id", sa.String(255), sa.ForeignKey("identity_regions.id")),
    sa.Column("resource_name", Name, nullable=False),
    sa.Column("default_limit", sa.Integer, nullable=False),
    sa.Column("description", sa.Text),
)

limits = sa.Table(
    "identity_limits", metadata,
    sa.Column("id", Id, primary_key=True),
    _of("identity_registered_limits", "registered_limit_id", nullable=False, index=True),
    _of("identity_projects", "project_id", index=True),
    _of("identity_domains", "domain_id", index=True),
    sa.Column("service_id", Id, nullable=False),
    sa.Column("region_id", sa.String(255)),
    sa.Column("resource_name", Name, nullable=False),
    sa.Column("resource_limit", sa.Integer, nullable=False),
    sa.Column("description", sa.Text),
)
