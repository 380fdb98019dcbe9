"""Security groups of a network service without a data path, for the Compute API that passes requests on to it."""

from __future__ import annotations

from typing import Any

from kilonova.db.database import Database
from kilonova.db.upgrade import ensure
from kilonova.domain.clock import SystemClock
from kilonova.domain.context import RequestContext
from kilonova.embedded.network import quotas, schema
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring
from kilonova.services.security_groups import GroupRule, GroupSummary, NewRule


class RealGroups:
    """The embedded network service in memory; made when it is first used."""

    def __init__(self) -> None:
        self._opened: tuple[Database, EmbeddedNetwork] | None = None

    async def service(self) -> EmbeddedNetwork:
        if self._opened is None:
            database = Database.open("sqlite://")
            await ensure(database, schema.NETWORK)
            no_identity: Any = None
            service = EmbeddedNetwork(database, SystemClock(), no_identity, "", FakeWiring(), _nobody)
            self._opened = database, service
        return self._opened[1]

    async def limit(self, project: str, **limits: int) -> None:
        """Quotas of the network service."""
        await self.service()
        assert self._opened is not None
        await self._opened[0].write(lambda conn: quotas.set_limits(conn, project, limits))

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened[0].close()

    async def groups(
        self, context: RequestContext, *, all_projects: bool, offset: int, limit: int
    ) -> list[GroupSummary]:
        return await (await self.service()).groups(context, all_projects=all_projects, offset=offset, limit=limit)

    async def group(self, context: RequestContext, id_: str) -> GroupSummary:
        return await (await self.service()).group(context, id_)

    async def create_group(self, context: RequestContext, name: str, description: str) -> GroupSummary:
        return await (await self.service()).create_group(context, name, description)

    async def update_group(
        self, context: RequestContext, id_: str, name: str, description: str | None
    ) -> GroupSummary:
        return await (await self.service()).update_group(context, id_, name, description)

    async def delete_group(self, context: RequestContext, id_: str) -> None:
        await (await self.service()).delete_group(context, id_)

    async def create_group_rule(self, context: RequestContext, group_id: str, rule: NewRule) -> GroupRule:
        return await (await self.service()).create_group_rule(context, group_id, rule)

    async def delete_group_rule(self, context: RequestContext, id_: str) -> None:
        await (await self.service()).delete_group_rule(context, id_)


async def _nobody(*_: Any, **__: Any) -> None:
    """Takes the events of the network service."""
