"""The wiring of a Linux machine: keeps bridges, filters and DHCP servers as the plans want them.

Plans are only noted; one task makes the machine match, several changes at a time, and tries again after failures.
It is woken by new plans, by devices that come and go, by a DHCP server that ends and by lost filter tables. Filters
are always in place before a bridge or a tap can carry packets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, Retryable
from kilonova.embedded.network.addressing import version_of
from kilonova.embedded.network.linux import bridges, firewall, routing
from kilonova.embedded.network.linux.bridges import Bridges
from kilonova.embedded.network.linux.command import find, run
from kilonova.embedded.network.linux.dhcp_servers import DhcpServers
from kilonova.embedded.network.linux.links import LinkMonitor, TableMonitor
from kilonova.embedded.network.linux.names import Names
from kilonova.embedded.network.linux.uplinks import Uplinks
from kilonova.embedded.network.tasks import begin, end
from kilonova.embedded.network.wiring import (
    TAP,
    BridgeListener,
    Found,
    GroupPlan,
    NetworkPlan,
    PlugListener,
    PortPlan,
    RouterPlan,
    tap_name,
)

log = structlog.get_logger(__name__)

SETTLE_LIMIT = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


class LinuxWiring:
    """Implements `kilonova.embedded.network.wiring.Wiring`.

    Args:
        token: names this installation on the machine: 1 to 5 lower-case letters and digits.
        directory: for the files of the DHCP servers; kept over restarts. If others may not enter it (mode x),
            the servers have to run as root.
        host: the name under which compute hosts bind ports to this machine.
        interfaces: by which the machine reaches physical networks, by their names.
    """

    def __init__(self, token: str, directory: Path, clock: Clock, host: str, interfaces: Mapping[str, str]) -> None:
        self._names = Names(token)
        self._directory = directory
        self._clock = clock
        self.host = host
        self._networks: dict[str, NetworkPlan] = {}
        self._ports: dict[str, PortPlan] = {}
        self._groups: dict[str, GroupPlan] = {}
        self._routers: tuple[RouterPlan, ...] = ()
        self._joined: dict[str, tuple[frozenset[str], str | None]] = {}
        self._made: dict[str, NetworkPlan] = {}
        self._whole: set[str] = set()  # of those made, the networks whose bridge has not gone since
        self._servers = DhcpServers(self._names, directory, self._touch)
        self._filters: firewall.Ruleset | None = None
        self._filtered: set[str] = set()
        self._plugged: set[str] = set()
        self._taps: dict[str, str] = {}
        self._wanted, self._reached = 0, 0
        self._change = asyncio.Event()
        self._settled = asyncio.Condition()
        self._failure: Exception | None = None
        self._broken: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._links = LinkMonitor(self._link_changed)
        self._tables = TableMonitor(self._names.table, self._filters_lost)
        self._interfaces = interfaces
        self._uplinks = Uplinks(self._names, interfaces, self._links)

    # --- plans -------------------------------------------------------------------------------------

    def serves(self, host: str) -> bool:
        return host == self.host

    def bridge(self, segment: int) -> str:
        return self._names.bridge(segment)

    def uplink(self, segment: int) -> str:
        return self._names.uplink(segment)

    def wires(self, physical_network: str) -> bool:
        return physical_network in self._interfaces

    def refuses(self, cidr: str) -> str | None:
        return bridges.in_the_way(cidr, self._names.prefix)

    def network(self, plan: NetworkPlan) -> None:
        self._networks[plan.id] = plan
        self._touch()

    def port(self, plan: PortPlan) -> None:
        self._ports[plan.id] = plan
        self._taps[tap_name(plan.id)] = plan.id
        self._touch()

    def group(self, plan: GroupPlan) -> None:
        self._groups[plan.id] = plan
        self._touch()

    def routers(self, plans: tuple[RouterPlan, ...]) -> None:
        self._routers = plans
        self._touch()

    def forget_network(self, network_id: str) -> None:
        if self._networks.pop(network_id, None):
            self._touch()

    def forget_port(self, port_id: str) -> None:
        if self._ports.pop(port_id, None):
            self._taps.pop(tap_name(port_id), None)
            self._plugged.discard(port_id)
            self._touch()

    def forget_group(self, group_id: str) -> None:
        if self._groups.pop(group_id, None):
            self._touch()

    def _touch(self) -> None:
        self._wanted += 1
        self._change.set()

    # --- life --------------------------------------------------------------------------------------

    async def start(self, on_plug: PlugListener, bridges: BridgeListener | None) -> None:
        self._on_plug = on_plug
        self._listener = bridges
        self._nft = find("nft", "nftables")
        find("dnsmasq", "dnsmasq-base")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._bridges = Bridges(self._names, self._directory)
        await self._bridges.prepare()
        await self._links.start()
        self._tables.start()

    async def restore(self, networks: list[NetworkPlan], ports: list[PortPlan], groups: list[GroupPlan]) -> None:
        self._networks = {plan.id: plan for plan in networks}
        self._groups = {plan.id: plan for plan in groups}
        for plan in ports:
            self.port(plan)
        await self._remove_leftovers()
        for port_id in self._ports:
            if not self._is_there(port_id):
                self._on_plug(port_id, False)
        self._task = begin(self._work(), "network-wiring")
        self._touch()
        async with self._settled:  # what cannot be made now is tried again later and does not keep us from starting
            await asyncio.wait_for(self._settled.wait(), SETTLE_LIMIT)

    async def close(self) -> None:
        await end(self._task)
        self._servers.unwatch()
        if self._listener is not None:
            for network_id in self._made:
                await self._listener.closed(network_id)
        self._links.close()
        self._tables.close()

    async def remove_all(self) -> None:
        self._networks, self._ports, self._groups, self._taps, self._routers = {}, {}, {}, {}, ()
        await end(self._task)
        for network_id in list(self._made):
            await self._remove_network(network_id)
        await self._remove_leftovers()
        with self._tables.muted():
            for table in await self._own_tables():
                await run([self._nft, "-f", "-"], f"delete table {table}\n")
        self._filters = None
        self._bridges.restore_forwarding()

    async def settle(self, network_id: str) -> None:
        target = self._wanted

        def reached() -> bool:
            return self._reached >= target and network_id not in self._broken

        try:
            async with asyncio.timeout(SETTLE_LIMIT), self._settled:
                await self._settled.wait_for(reached)
        except TimeoutError as error:
            cause = self._broken.get(network_id) or self._failure or "it takes too long."
            raise Retryable(f"The network of this machine is not ready: {cause}") from error

    async def found(self) -> Found:
        own = [name for name in self._links.by_name if name.startswith(self._names.prefix)]
        return Found(
            bridges=tuple(sorted(own)), dhcp_servers=self._servers.pids(),
            firewall_tables=await self._own_tables(),
            addresses=tuple(found for found in await self._bridges.all_addresses() if found[0] in own),
            uplinks=tuple(self._uplinks.found()), taps=tuple(sorted(
                name for name in self._links.by_name if name.startswith(TAP) and self._links.master_of(name) in own
            )),
        )

    async def plugged(self, port_id: str) -> None:
        port = self._ports.get(port_id)
        tap = tap_name(port_id)
        if port is None or tap not in self._links.by_name:
            return
        await self.settle(port.network_id)
        if port_id in self._ports and not self._is_there(port_id):
            await self._join(tap, self._names.bridge(self._networks[port.network_id].segment))

    # --- watching ----------------------------------------------------------------------------------

    def _is_there(self, port_id: str) -> bool:
        """The tap of the port exists and is a port of the right bridge."""
        network = self._networks.get(self._ports[port_id].network_id)
        return network is not None and self._links.master_of(tap_name(port_id)) == self._names.bridge(network.segment)

    def _link_changed(self, name: str) -> None:
        port_id = self._taps.get(name)
        if port_id is not None:
            self._compare_plug(port_id)
        elif name.startswith(self._names.prefix) and name not in self._links.by_name:
            lost = {id_ for id_ in self._whole if self._names.bridge(self._made[id_].segment) == name}
            if lost:
                log.warning("bridge is gone and will be made again", bridge=name)
                self._whole -= lost
                self._touch()
        elif self._uplinks.concern(name):
            self._touch()

    def _compare_plug(self, port_id: str) -> None:
        """Tell of a tap that has come to a filtered port, or has gone. Spec: EMN-28, EMN-61."""
        there = self._is_there(port_id) and port_id in self._filtered
        if there and port_id not in self._plugged:
            self._plugged.add(port_id)
            self._on_plug(port_id, True)
        elif not there and port_id in self._plugged and not self._is_there(port_id):
            self._plugged.discard(port_id)
            self._on_plug(port_id, False)
            port = self._ports[port_id]
            self._servers.release_v6(port.network_id, [ip for _, ip in port.addresses if version_of(ip) == 6])

    def _filters_lost(self) -> None:
        log.warning("filter tables were removed and will be loaded again", table=self._names.table)
        self._filters = None
        self._touch()

    # --- making it so ------------------------------------------------------------------------------

    async def _work(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._change.wait()
            self._change.clear()
            target = self._wanted
            try:
                await self._apply()
                self._failure = None
            except (KilonovaError, OSError) as error:
                self._failure, self._filters = error, None
            except Exception as error:
                log.exception("network wiring failed")
                self._failure, self._filters = error, None
            async with self._settled:
                self._reached = self._reached if self._failure else target
                self._settled.notify_all()
            if self._failure or self._broken:
                log.warning("network wiring will be tried again", error=str(self._failure), networks=self._broken)
                await self._clock.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                self._change.set()
            else:
                pause = _FIRST_PAUSE

    async def _apply(self) -> None:
        """Match all plans. A network that cannot be made is noted and does not keep the others waiting."""
        networks, ports = dict(self._networks), {
            id_: port for id_, port in self._ports.items() if port.network_id in self._networks
        }
        await self._load_filters(networks, ports)
        for network_id in [id_ for id_ in self._made if id_ not in networks]:
            await self._remove_network(network_id)
        self._broken = {id_: error for id_, error in self._broken.items() if id_ in networks}
        for network in networks.values():
            try:
                await self._make_network(network)
                served = tuple(port for port in ports.values() if port.network_id == network.id)
                await self._servers.serve(network, served)
                await self._uplinks.join(network)
                self._broken.pop(network.id, None)
            except (KilonovaError, OSError) as error:
                self._broken[network.id] = str(error)
        await self._join_networks(networks)
        self._filtered = set(ports)
        for port_id in self._ports:
            self._compare_plug(port_id)

    async def _load_filters(self, networks: dict[str, NetworkPlan], ports: dict[str, PortPlan]) -> None:
        """Spec: EMN-26, EMN-46, EMN-48."""
        uplinks = {plan.id: device for plan in networks.values() if (device := self._uplinks.of(plan)) is not None}
        wanted = firewall.ruleset(
            self._names, networks.values(), ports.values(), self._groups.values(), self._routers, uplinks
        )
        if self._filters is None:
            with self._tables.muted():
                held = [table.split()[0] for table in await self._own_tables()]
                await run([self._nft, "-f", "-"], firewall.loading(self._names.table, wanted, held))
            self._filters = wanted
            if len(await self._own_tables()) < len(wanted.families):  # somebody has deleted one while we did not listen
                self._filters_lost()
        elif text := firewall.changing(self._names.table, self._filters, wanted):
            self._filters = wanted
            await run([self._nft, "-f", "-"], text)

    async def _own_tables(self) -> tuple[str, ...]:
        """Family and name of each filter table of this installation that is there."""
        listed = await run([self._nft, "list", "tables"])
        return tuple(
            " ".join(line.split()[1:]) for line in listed.splitlines() if line.split()[-1:] == [self._names.table]
        )

    async def _make_network(self, plan: NetworkPlan) -> None:
        is_new = plan.id not in self._whole
        if not is_new and self._made[plan.id] == plan:
            return
        self._joined.clear()  # routes go with the bridges that they lead to
        name = self._names.bridge(plan.segment)
        if is_new:
            self._made[plan.id] = plan
            self._whole.add(plan.id)  # taken back if the bridge goes meanwhile
        try:
            await self._bridges.make(plan, name in self._links.by_name)
            if is_new:
                await self._join_taps(plan, name)
                if self._listener is not None:
                    await self._listener.opened(plan.id, name)
        except BaseException:
            if is_new:
                self._whole.discard(plan.id)
            raise
        self._made[plan.id] = plan

    async def _join_networks(self, networks: dict[str, NetworkPlan]) -> None:
        """Give each network the routes to those that a router joins it with. Spec: EMN-10."""
        wanted, ways_out = routing.neighbours(self._routers), routing.ways_out(self._routers)
        outside = {plan.id for plan in networks.values() if plan.physical is not None}
        for network_id in self._whole & (wanted.keys() | self._joined.keys() | outside):
            there = frozenset(id_ for id_ in wanted.get(network_id, ()) if id_ in self._whole)
            way_out = ways_out.get(network_id)
            if self._joined.get(network_id) != (there, way_out):
                await self._bridges.join(networks[network_id], [self._made[id_] for id_ in sorted(there)],
                                         self._made[way_out] if way_out in self._whole else None)
                self._joined[network_id] = there, way_out

    async def _join_taps(self, plan: NetworkPlan, bridge: str) -> None:
        """Give a bridge that was made again the taps that the lost one had."""
        for port in list(self._ports.values()):  # others come and go meanwhile
            tap = tap_name(port.id)
            if port.network_id == plan.id and tap in self._links.by_name and self._links.master_of(tap) is None:
                await self._join(tap, bridge)

    async def _join(self, tap: str, bridge: str) -> None:
        await run([find("ip", "iproute2"), "link", "set", "dev", tap, "master", bridge, "up"])

    async def _remove_network(self, network_id: str) -> None:
        plan = self._made[network_id]
        self._whole.discard(network_id)
        if self._listener is not None:
            await self._listener.closed(network_id)
        await self._servers.remove(plan)
        del self._made[network_id]
        await self._uplinks.remove(plan.segment)
        await self._bridges.remove(plan.segment, self._names.bridge(plan.segment) in self._links.by_name)

    async def _remove_leftovers(self) -> None:
        """Remove bridges, DHCP servers and routing rules of networks that no plan describes any more."""
        kept = {plan.segment for plan in self._networks.values()}
        await self._servers.remove_but(kept)
        wanted = {self._names.bridge(segment) for segment in kept}
        for name in [name for name in self._links.by_name if name.startswith(self._names.prefix)]:
            if name not in wanted:
                await self._bridges.remove(int(name.removeprefix(self._names.prefix)), exists=True)
        await self._uplinks.remove_but(list(self._networks.values()))
        await self._bridges.remove_rules_but(kept)
