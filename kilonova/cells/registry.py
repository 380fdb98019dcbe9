"""The cells of this cloud, and finding a server in them."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db import build_requests, instances
from kilonova.db.database import Database
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.instance import BuildRequest, Instance


class Cell(msgspec.Struct, frozen=True):
    """One cell. Its name is unique; `uuid` is what Nova's tools expect of a cell."""

    name: str
    uuid: str
    database: Database


class Located(msgspec.Struct, frozen=True):
    """A server and where it was found: in a cell, or as a build request while it has none."""

    instance: Instance
    cell: Cell | None
    request: BuildRequest | None = None


class Cells:
    """All cells, first the one that takes servers no host could be found for."""

    def __init__(self, api: Database, cells: tuple[Cell, ...]) -> None:
        self.api = api
        self.all = cells
        self._by_name = {cell.name: cell for cell in cells}

    def named(self, name: str) -> Cell:
        return self._by_name[name]

    async def locate(self, uuid: str) -> Located:
        """Find a server that is not deleted. Raises InstanceNotFound."""

        def look_up(conn: sa.Connection) -> tuple[str | None, BuildRequest | None]:
            cell = build_requests.cell_of(conn, uuid)
            return cell, None if cell else build_requests.get(conn, uuid)

        cell_name, request = await self.api.read(look_up)
        if cell_name is not None:
            cell = self._by_name[cell_name]
            return Located(await cell.database.read(lambda conn: instances.get(conn, uuid)), cell)
        if request is None:
            raise InstanceNotFound(uuid)
        return Located(request.instance, None, request)
