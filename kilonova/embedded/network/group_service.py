"""The part of the embedded network service that is about security groups, as the compute service calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, OverQuota
from kilonova.embedded.network import group_calls, schema
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.errors import NetworkOverQuota
from kilonova.embedded.network.http_api import Records
from kilonova.embedded.network.wiring import Wiring
from kilonova.services.security_groups import GroupRule, GroupSummary, NewRule

T = TypeVar("T")


class SecurityGroupCalls:
    """Implements `kilonova.services.security_groups.SecurityGroups`."""

    def __init__(self, database: Database, clock: Clock, wiring: Wiring, records: Records) -> None:
        self._database = database
        self._clock = clock
        self._wiring = wiring
        self._records = records

    async def check_security_groups(self, context: RequestContext, names: tuple[str, ...]) -> tuple[str, ...]:
        project_id = context.project_id or ""
        return await self._database.write(
            lambda conn: group_calls.resolve(conn, project_id, names, self._clock.now())
        )

    async def security_groups_of(self, port_ids: tuple[str, ...]) -> tuple[str, ...]:
        table, members = schema.groups, schema.port_groups
        statement = (
            sa.select(table.c.name).distinct().join(members, members.c.group_id == table.c.id)
            .where(members.c.port_id.in_(port_ids)).order_by(table.c.name)
        )
        return await self._database.read(lambda conn: tuple(conn.execute(statement).scalars()))

    async def groups_of_ports(self, port_ids: tuple[str, ...]) -> list[GroupSummary]:
        return await self._database.read(lambda conn: group_calls.groups_of_ports(conn, port_ids))

    async def change_group(
        self, context: RequestContext, port_ids: tuple[str, ...], group: str, *, member: bool
    ) -> None:
        await self._change(lambda conn, effects: group_calls.change_group(
            conn, context, port_ids, group, member=member, now=self._clock.now(), serves=self._wiring.serves,
            effects=effects,
        ))

    async def groups(
        self, context: RequestContext, *, all_projects: bool, offset: int, limit: int
    ) -> list[GroupSummary]:
        await self._records.meet(context)
        project = None if all_projects else context.project_id or ""
        return await self._database.read(lambda conn: group_calls.listed(conn, project, offset, limit))

    async def group(self, context: RequestContext, id_: str) -> GroupSummary:
        return await self._database.read(lambda conn: group_calls.shown(conn, context, id_))

    async def create_group(self, context: RequestContext, name: str, description: str) -> GroupSummary:
        return await self._change(
            lambda conn, _: group_calls.create(conn, context, name, description, self._clock.now())
        )

    async def update_group(
        self, context: RequestContext, id_: str, name: str, description: str | None
    ) -> GroupSummary:
        return await self._change(
            lambda conn, _: group_calls.update(conn, context, id_, name, description, self._clock.now())
        )

    async def delete_group(self, context: RequestContext, id_: str) -> None:
        await self._change(lambda conn, effects: group_calls.delete(conn, context, id_, effects))

    async def create_group_rule(self, context: RequestContext, group_id: str, rule: NewRule) -> GroupRule:
        return await self._change(
            lambda conn, effects: group_calls.create_rule(conn, context, group_id, rule, self._clock.now(), effects)
        )

    async def delete_group_rule(self, context: RequestContext, id_: str) -> None:
        await self._change(lambda conn, effects: group_calls.delete_rule(conn, context, id_, effects))

    async def _change(self, unit: Callable[[sa.Connection, Effects], T]) -> T:
        """A change with the errors that the protocol promises."""
        try:
            return await self._records.change(unit)
        except sa.exc.IntegrityError as error:
            raise Conflict("The change collides with another made at the same time.", hint="try again") from error
        except NetworkOverQuota as error:
            raise OverQuota(error.message) from error
