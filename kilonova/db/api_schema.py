"""Tables of the API database register themselves here; `kilonova.db.schema` imports every module that has some."""

from __future__ import annotations

from kilonova.db.columns import new_metadata

api_metadata = new_metadata()
