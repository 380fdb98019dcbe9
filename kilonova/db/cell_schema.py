"""Tables of a cell database register themselves here; `kilonova.db.schema` imports every module that has some."""

from __future__ import annotations

from kilonova.db.columns import new_metadata

cell_metadata = new_metadata()
