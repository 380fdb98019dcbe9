"""Tables of the API database register themselves here; `kilonova.db.schema` imports every module that has some."""

from __future__ import annotations

import sqlalchemy as sa

api_metadata = sa.MetaData()
