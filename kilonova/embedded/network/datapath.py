"""Carries committed changes to the wiring and to the compute service.

Records are changed first; the data path follows from what they say then. So a crash in between costs nothing:
`restore` reads the same records.
"""

from __future__ import annotations

import asyncio

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.embedded.network import events, plans, ports, schema
from kilonova.embedded.network.events import EventSender
from kilonova.embedded.network.port_records import find_port
from kilonova.embedded.network.tasks import begin, end
from kilonova.embedded.network.wiring import BridgeListener, GroupPlan, NetworkPlan, RouterPlan, Wiring

log = structlog.get_logger(__name__)


class Effects(msgspec.Struct, kw_only=True):
    """What a unit of work changed that matters outside the database.

    Args:
        ports: (before, after) pairs, None for a port that was not there before or is not after.
        networks, groups: ids whose plans changed or that are gone.
        routers: some router or floating IP changed. told: ports whose floating IPs changed.
    """

    ports: list[tuple[schema.Port | None, schema.Port | None]] = []
    networks: list[str] = []
    groups: list[str] = []
    routers: bool = False
    told: list[schema.Port] = []


class Datapath:
    """Keeps the wiring in step with the records."""

    def __init__(self, database: Database, clock: Clock, wiring: Wiring, sender: EventSender) -> None:
        self._database = database
        self._clock = clock
        self._wiring = wiring
        self._events = sender
        self._turn = asyncio.Lock()
        self._networks: set[str] = set()
        self._groups: set[str] = set()
        self._routed: set[str] = set()
        self._plugs: dict[str, bool] = {}
        self._more = asyncio.Event()
        self._announce: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self, bridges: BridgeListener | None) -> None:
        """Adopt what is on the machine and tell the compute service of ports that are wired. Spec: EMN-63."""
        self._task = begin(self._follow_plugs(), "network-plugs")
        networks, wired, groups, routers = await self._database.read(plans.everything)
        self._routed = plans.networks_of(routers)
        self._networks = {plan.id for plan in networks}
        self._groups = {plan.id for plan in groups}
        self._announce = {plan.id for plan in wired}
        await self._wiring.start(self._on_plug, bridges)
        self._wiring.routers(routers)
        await self._wiring.restore(networks, wired, groups)

    async def close(self) -> None:
        await self._wiring.close()
        await end(self._task)

    async def apply(self, effects: Effects) -> None:
        """Hand changes to the wiring and send the events they call for."""
        for id_ in effects.networks:
            await self._refresh_network(id_)
        await self._refresh_groups([id_ for id_ in effects.groups if id_ in self._groups])
        for before, after in effects.ports:
            port = after or before
            assert port is not None
            await self._refresh_port(port.id)
            self._tell(before, after)
        if effects.routers or (self._routed and any(_moved(*pair) for pair in effects.ports)):
            await self._refresh_routers()
        for port in effects.told:
            self._events.send(events.CHANGED, port)

    async def settle(self, network_id: str) -> None:
        """Wait until guests can be plugged into the network. Raises Retryable."""
        await self._wiring.settle(network_id)

    async def _refresh_network(self, id_: str) -> None:
        async with self._turn:
            plan = await self._database.read(lambda conn: plans.network_plan(conn, id_))
            if plan is None:
                self._networks.discard(id_)
                self._wiring.forget_network(id_)
            elif id_ in self._networks:
                self._wiring.network(plan)

    async def _refresh_groups(self, ids: list[str]) -> None:
        if not ids:
            return
        async with self._turn:
            def read(conn: sa.Connection) -> tuple[list[GroupPlan], set[str]]:
                table = schema.groups
                there = set(conn.execute(sa.select(table.c.id).where(table.c.id.in_(ids))).scalars())
                return plans.group_plans(conn, sorted(there)), there

            found, there = await self._database.read(read)
            for plan in found:
                self._wiring.group(plan)
            for id_ in set(ids) - there:
                self._groups.discard(id_)
                self._wiring.forget_group(id_)

    async def _refresh_routers(self) -> None:
        """The networks that routers join, and then the routers."""
        async with self._turn:
            def read(conn: sa.Connection) -> tuple[list[NetworkPlan | None], tuple[RouterPlan, ...]]:
                routers = plans.router_plans(conn)
                concerned = sorted(plans.networks_of(routers) | self._routed)
                return [plans.network_plan(conn, id_) for id_ in concerned], routers

            networks, routers = await self._database.read(read)
            self._routed = plans.networks_of(routers)
            for plan in networks:
                if plan is not None:
                    self._networks.add(plan.id)
                    self._wiring.network(plan)
            self._wiring.routers(routers)

    async def _refresh_port(self, id_: str) -> None:
        """Wire a bound port, with its network and groups if they are not yet; forget one that is not bound."""
        async with self._turn:
            def read(conn: sa.Connection) -> tuple[
                schema.Port | None, NetworkPlan | None, list[GroupPlan]
            ]:
                port = find_port(conn, id_)
                if port is None or not port.bound:
                    return None, None, []
                known = port.network_id in self._networks
                groups = sorted(set(port.group_ids) - self._groups)
                return (port, None if known else plans.network_plan(conn, port.network_id),
                        plans.group_plans(conn, groups) if groups else [])

            port, network, groups = await self._database.read(read)
            if port is None:
                self._wiring.forget_port(id_)
                return
            if network is not None:
                self._networks.add(network.id)
                self._wiring.network(network)
            for group in groups:
                self._groups.add(group.id)
                self._wiring.group(group)
            self._wiring.port(plans.port_plan(port))

    def _tell(self, before: schema.Port | None, after: schema.Port | None) -> None:
        """Spec: section 4.8."""
        if before is not None and after is None:
            self._events.send(events.DELETED, before)
        elif before is not None and after is not None and before.device_id == after.device_id:
            shown = ("addresses", "group_ids", "mac", "name", "host", "vif_type", "profile", "pairs", "secured")
            if any(getattr(before, name) != getattr(after, name) for name in shown):
                self._events.send(events.CHANGED, after)

    def _on_plug(self, port_id: str, up: bool) -> None:
        if up and self._plugs.get(port_id) is False:  # its record says nothing of this, but somebody may wait for it
            self._announce.add(port_id)
        self._plugs[port_id] = up
        self._more.set()

    async def _follow_plugs(self) -> None:
        """Record plugged and unplugged ports, those that wait together in one unit of work. Spec: EMN-28, EMN-61."""
        while True:
            await self._more.wait()
            self._more.clear()
            states, self._plugs = self._plugs, {}
            announced = self._announce & states.keys()
            self._announce -= announced
            try:
                await self._record_plugs(states, announced)
            except KilonovaError as error:
                log.warning("port states will be recorded again", error=str(error))
                await self._clock.sleep(1.0)
                newer, self._plugs = self._plugs, states
                self._announce |= announced
                for port_id, up in newer.items():
                    self._on_plug(port_id, up)
                self._more.set()

    async def _record_plugs(self, states: dict[str, bool], announced: set[str]) -> None:
        """announced: ports of which the compute service is told although their records may say the same already."""
        def unit(conn: sa.Connection) -> list[tuple[schema.Port, bool]]:
            told = []
            for port_id, up in states.items():
                status = ports.ACTIVE if up else ports.DOWN
                changed = ports.set_status(conn, port_id, status, self._clock.now())
                port = changed[1] if changed else find_port(conn, port_id) if port_id in announced else None
                if port is not None and port.status == status and (changed or up):
                    told.append((port, up))
            return told

        for port, up in await self._database.write(unit):
            self._events.send(events.PLUGGED if up else events.UNPLUGGED, port)


def _moved(before: schema.Port | None, after: schema.Port | None) -> bool:
    """Whether an address that a floating IP may stand for has gone."""
    return before is not None and (after is None or before.addresses != after.addresses)
