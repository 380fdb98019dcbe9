"""The work of `script/revision`: see there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from sqlalchemy.dialects import sqlite

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kilonova.db.migrate import DIRECTORY, apply_to
from kilonova.db.upgrade import Schema
from kilonova.embedded.schema import SCHEMAS

FIRST = "0001"

TEMPLATE = '''"""{title}."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {previous}


def upgrade() -> None:
    {body}
'''


def main(arguments: list[str]) -> int:
    schemas = {schema.name: schema for schema in SCHEMAS}
    if arguments == ["first"]:
        for schema in schemas.values():
            if schema.revisions == (FIRST,):
                write(schema, FIRST, None, "All tables of the first release")
        return 0
    if len(arguments) == 2 and arguments[0] in schemas:
        schema = schemas[arguments[0]]
        number = f"{int(schema.head) + 1:04}"
        path = write(schema, number, schema.head, arguments[1])
        print(f'Read {path}, then append "{number}" to the revisions of the schema {schema.name}.')
        return 0
    print(f"usage: script/revision first | SCHEMA TITLE; schemas: {', '.join(schemas)}", file=sys.stderr)
    return 2


def write(schema: Schema, revision: str, previous: str | None, title: str) -> Path:
    """Write one revision. Returns its file."""
    words = "_".join(re.findall(r"[a-z0-9]+", title.lower())) if previous else "first"
    path = DIRECTORY / schema.name / f"r{revision}_{words}.py"
    path.parent.mkdir(exist_ok=True)
    before = f'"{previous}"' if previous else None
    path.write_text(TEMPLATE.format(
        title=title, revision=revision, previous=before, body=difference(schema, previous)
    ))
    subprocess.run([Path(sys.executable).with_name("ruff"), "format", "--quiet", path], check=True, timeout=60)
    return path


def difference(schema: Schema, previous: str | None) -> str:
    """The statements that lead from the migrations so far to the tables in the sources."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        if previous is not None:
            apply_to(connection, schema)
        context = MigrationContext.configure(
            connection,
            opts={
                "target_metadata": schema.metadata, "version_table": schema.version_table, "compare_type": True,
                "render_item": render_item, "sqlalchemy_module_prefix": "sa.",
                "alembic_module_prefix": "op.", "user_module_prefix": None,
            },
        )
        upgrade = produce_migrations(context, schema.metadata).upgrade_ops
    assert upgrade is not None
    # SQLite changes a table by making it anew, which is what Alembic calls a batch.
    code = render_python_code(
        upgrade, render_as_batch=previous is not None, migration_context=context, render_item=render_item
    )
    return re.sub(r"^ *# ### .*\n?", "", code, flags=re.MULTILINE).strip()


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Migrations do not depend on types that may change after them: these are written as what they are stored as."""
    if kind == "type" and isinstance(item, sa.types.TypeDecorator):
        return f"sa.{item.load_dialect_impl(sqlite.dialect())!r}"
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
