"""Tables of a cell database register themselves here; `kilonova.db.schema` imports every module that has some."""

from __future__ import annotations

import sqlalchemy as sa

cell_metadata = sa.MetaData()
