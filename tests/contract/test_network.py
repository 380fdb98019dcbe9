"""What the compute service relies on of any network service, held against the embedded one, here and over the bus."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from kilonova.bus.local import LocalBus
from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    Conflict,
    InvalidInput,
    NetworkNotFound,
    NotFound,
    OverQuota,
    PortNotFound,
    ServiceUnavailable,
)
from kilonova.embedded.network import networks, quotas, routers, schema, security, subnet_pools
from kilonova.embedded.network import ports as ports_module
from kilonova.embedded.network.bodies import (
    GatewayBody,
    GroupBody,
    InterfaceBody,
    NetworkBody,
    PortBody,
    RouterBody,
    SubnetBody,
    SubnetPoolBody,
)
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring
from kilonova.services.identity import Token
from kilonova.services.network import PortRequest
from kilonova.services.network_calls import SIGNATURES, NetworkCalls, RemoteNetwork

OWNER, OTHER = "a" * 32, "b" * 32
INSTANCE, SECOND = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


class NoIdentity:
    async def validate(self, token: str, **_: Any) -> Token:
        raise AssertionError("the protocol needs no token")

    async def project_exists(self, project_id: str) -> bool:
        return True


class Listener:
    """Stands for the compute service: keeps events, and fails as often as told."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self.failures = 0

    async def __call__(self, name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ServiceUnavailable("not now")
        self.events.put_nowait((name, instance_uuid, tag))

    async def next(self) -> tuple[str, str, str]:
        return await asyncio.wait_for(self.events.get(), 10)


def make(database: Database, listener: Listener, wiring: FakeWiring | None = None) -> EmbeddedNetwork:
    return EmbeddedNetwork(database, SystemClock(), NoIdentity(), "http://identity", wiring or FakeWiring(), listener)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[Database]:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/network.db" if sqlite else request.getfixturevalue("postgres_url")
    database = Database.open(url)
    yield database
    await database.close()


class OverTheBus:
    """The service as another process of the control plane has it: what is in the protocol is called over a bus."""

    def __init__(self, service: EmbeddedNetwork, remote: RemoteNetwork) -> None:
        self._service = service
        self._remote = remote

    def __getattr__(self, name: str) -> Any:
        return getattr(self._remote if name in SIGNATURES else self._service, name)


@pytest.fixture(params=["here", "over the bus"])
async def network(request: pytest.FixtureRequest, database: Database, listener: Listener) -> AsyncIterator[Any]:
    service = make(database, listener)
    await service.start()
    bus = LocalBus()
    calls = NetworkCalls(service, bus)
    await calls.start()
    yield service if request.param == "here" else OverTheBus(service, RemoteNetwork(bus, SystemClock()))
    await calls.close()
    await bus.close()
    await service.close()


def context(project: str = OWNER) -> RequestContext:
    return RequestContext(request_id="req-1", user_id="u", project_id=project, roles=("member",))


def wanted(network_id: str, key: str = "one", **changes) -> PortRequest:
    values = {"network_id": network_id, "project_id": OWNER, "instance_uuid": INSTANCE, "host": "here"} | changes
    return PortRequest(key=key, **values)


async def test_bootstrap_makes_one_network_however_often(network: EmbeddedNetwork) -> None:
    first = await network.bootstrap(OWNER)
    assert await network.bootstrap(OWNER) == first
    (found,) = await network.networks(context(OTHER))
    assert (found.name, found.shared, found.has_subnets) == ("private", True, True)


async def test_a_repeated_request_gives_the_port_of_the_first(network: EmbeddedNetwork, listener: Listener) -> None:
    net = await network.bootstrap(OWNER)
    port = await network.create_port(wanted(net))
    assert await listener.next() == ("network-vif-plugged", INSTANCE, port)
    assert await network.create_port(wanted(net)) == port
    assert [summary.id for summary in await network.ports_of(INSTANCE)] == [port]
    assert await network.create_port(wanted(net, "two")) != port


async def test_a_network_that_is_not_shared_any_more_is_refused_again(
    network: EmbeddedNetwork, database: Database
) -> None:
    """Between the check of the API and the port its owner may have changed it."""
    net = await network.bootstrap(OWNER)
    with pytest.raises(NetworkNotFound, match=f"Network {INSTANCE} could not be found"):
        await network.create_port(wanted(INSTANCE))
    assert await network.create_port(wanted(net, project_id=OTHER))
    table = schema.networks
    await database.write(lambda conn: conn.execute(sa.update(table).values(shared=False)).rowcount)
    with pytest.raises(NetworkNotFound, match=f"Network {net} could not be found"):
        await network.create_port(wanted(net, "two", project_id=OTHER))
    assert await network.create_port(wanted(net, "two", project_id=OTHER, foreign=True))
    assert await network.create_port(wanted(net, "three"))


async def test_a_port_describes_what_the_guest_gets(network: EmbeddedNetwork) -> None:
    net = await network.bootstrap(OWNER, cidr="10.9.8.0/24")
    port = await network.create_port(wanted(net, tag="front"))
    (vif,) = await network.vifs(INSTANCE)
    assert (vif.id, vif.devname, vif.tag, vif.preserve_on_delete) == (port, f"tap{port[:11]}", "front", False)
    (fixed,) = vif.fixed_ips
    assert fixed.subnet.gateway == "10.9.8.1" and fixed.address.startswith("10.9.8.")
    assert vif.mac.startswith("fa:16:3e:")
    assert await network.instance_at(net, fixed.address) == INSTANCE
    assert await network.instance_at(net, "10.9.8.1") is None


async def test_interfaces_are_in_the_order_in_which_the_server_got_them(network: EmbeddedNetwork) -> None:
    """Not in that in which the ports were made: requests mix ports that there are and networks."""
    net = await network.bootstrap(OWNER)
    brought = await network.create_port(wanted(net, "brought", instance_uuid=SECOND))
    await network.unbind_port(brought, SECOND)
    first = await network.create_port(wanted(net, "first"))
    await network.bind_port(brought, INSTANCE, "host")
    last = await network.create_port(wanted(net, "last"))
    assert [vif.id for vif in await network.vifs(INSTANCE)] == [first, brought, last]
    await network.bind_port(brought, INSTANCE, "elsewhere")
    assert [port.id for port in await network.ports_of(INSTANCE)] == [first, brought, last]


async def test_a_bound_port_becomes_active_and_is_announced(network: EmbeddedNetwork, listener: Listener) -> None:
    net = await network.bootstrap(OWNER)
    await network.create_port(wanted(net))
    await listener.next()
    (vif,) = await network.vifs(INSTANCE)
    assert vif.active


@pytest.mark.spec("EMN-59")
async def test_an_event_that_is_refused_is_sent_again(network: EmbeddedNetwork, listener: Listener) -> None:
    net = await network.bootstrap(OWNER)
    listener.failures = 1
    port = await network.create_port(wanted(net))
    assert await listener.next() == ("network-vif-plugged", INSTANCE, port)


@pytest.mark.spec("EMN-63")
async def test_a_restart_announces_wired_ports_again_and_unplugs_none(
    database: Database, listener: Listener
) -> None:
    first = make(database, listener)
    await first.start()
    port = await first.create_port(wanted(await first.bootstrap(OWNER)))
    await listener.next()
    await first.close()
    second = make(database, listener)
    await second.start()
    assert await listener.next() == ("network-vif-plugged", INSTANCE, port)
    assert listener.events.empty()
    await second.close()


@pytest.mark.spec("EMN-61")
async def test_a_port_is_not_active_before_it_is_plugged(database: Database, listener: Listener) -> None:
    network = make(database, listener, FakeWiring(plugs_at_once=False))
    await network.start()
    port = await network.create_port(wanted(await network.bootstrap(OWNER)))
    (vif,) = await network.vifs(INSTANCE)
    assert not vif.active and listener.events.empty()
    await network.plugged(port)
    assert await listener.next() == ("network-vif-plugged", INSTANCE, port)
    await network.close()


async def test_a_port_of_another_device_cannot_be_bound(network: EmbeddedNetwork) -> None:
    port = await network.create_port(wanted(await network.bootstrap(OWNER)))
    await network.bind_port(port, INSTANCE, "here")
    with pytest.raises(Conflict):
        await network.bind_port(port, SECOND, "here")
    with pytest.raises(PortNotFound):
        await network.bind_port(SECOND, SECOND, "here")


@pytest.mark.spec("EMN-23", "EMN-24", "NET-21")
async def test_release_deletes_own_ports_and_keeps_given_ones(network: EmbeddedNetwork) -> None:
    net = await network.bootstrap(OWNER)
    own = await network.create_port(wanted(net))
    kept = await network.create_port(wanted(net, "kept"))
    before = await network.port(context(), kept)
    await network.release(INSTANCE, (kept,))
    after = await network.port(context(), kept)
    assert (after.device_id, after.device_owner, after.binding_host, after.status) == ("", "", "", "DOWN")
    assert (after.mac, after.addresses) == (before.mac, before.addresses)
    with pytest.raises(PortNotFound):
        await network.port(context(), own)
    assert await network.ports_of(INSTANCE) == []
    await network.release(INSTANCE)
    await network.bind_port(kept, SECOND, "here")


@pytest.mark.spec("NET-16")
async def test_ports_that_went_to_another_host_are_not_released_for_the_first(network: EmbeddedNetwork) -> None:
    net = await network.bootstrap(OWNER)
    left = await network.create_port(wanted(net))
    gone = await network.create_port(wanted(net, "gone"))
    await network.bind_port(gone, INSTANCE, "there")
    await network.release(INSTANCE, (gone,), "here")
    assert [(port.id, port.binding_host) for port in await network.ports_of(INSTANCE)] == [(gone, "there")]
    with pytest.raises(PortNotFound):
        await network.port(context(), left)
    await network.release(INSTANCE, (), "there")
    assert await network.ports_of(INSTANCE) == []


async def test_all_ports_go_with_their_server_and_leave_one_host_only(network: EmbeddedNetwork) -> None:
    net = await network.bootstrap(OWNER)
    first = await network.create_port(wanted(net))
    second = await network.create_port(wanted(net, "second"))
    before = {port.id: (port.mac, port.addresses) for port in await network.ports_of(INSTANCE)}
    await network.leave_host(INSTANCE, "there")
    assert [port.binding_host for port in await network.ports_of(INSTANCE)] == ["here", "here"]
    for _ in range(2):
        await network.leave_host(INSTANCE, "here")
        left = await network.ports_of(INSTANCE)
        assert [(port.id, port.binding_host, port.status) for port in left] == [
            (first, "", "DOWN"), (second, "", "DOWN")]
        assert {port.device_owner for port in left} == {"compute:nova"}
        assert {vif.vif_type for vif in await network.vifs(INSTANCE)} == {"unbound"} == {p.vif_type for p in left}
    for _ in range(2):
        await network.go_to_host(INSTANCE, "there", availability_zone="moon")
        gone = await network.ports_of(INSTANCE)
        assert [(port.binding_host, port.device_owner) for port in gone] == [("there", "compute:moon")] * 2
    await network.leave_host(INSTANCE, "here")
    assert {port.id: (port.mac, port.addresses) for port in await network.ports_of(INSTANCE)} == before
    assert {port.binding_host for port in await network.ports_of(INSTANCE)} == {"there"}


async def test_unbinding_and_deleting_twice_is_no_error(network: EmbeddedNetwork) -> None:
    port = await network.create_port(wanted(await network.bootstrap(OWNER)))
    await network.unbind_port(port, SECOND)
    assert (await network.port(context(), port)).device_id == INSTANCE
    await network.unbind_port(port, INSTANCE)
    await network.unbind_port(port, INSTANCE)
    await network.delete_port(port)
    await network.delete_port(port)
    await network.unbind_port(port, INSTANCE)


async def test_an_address_is_given_out_once(network: EmbeddedNetwork) -> None:
    net = await network.bootstrap(OWNER, cidr="10.9.8.0/28")
    made = await asyncio.gather(
        *(network.create_port(wanted(net, str(index))) for index in range(12)), return_exceptions=True
    )
    assert not [error for error in made if isinstance(error, Exception)]
    held = [address for port in await network.ports_of(INSTANCE) for address in port.addresses]
    assert len(held) == len(set(held)) == 12
    with pytest.raises(Conflict):
        await network.create_port(wanted(net, "none is left"))
    with pytest.raises(Conflict):
        await network.create_port(wanted(net, "taken", fixed_ip=held[0]))


async def test_an_exact_address_is_honoured(network: EmbeddedNetwork) -> None:
    net = await network.bootstrap(OWNER, cidr="10.9.8.0/24")
    port = await network.create_port(wanted(net, fixed_ip="10.9.8.77"))
    assert (await network.port(context(), port)).addresses == ("10.9.8.77",)
    with pytest.raises(InvalidInput):
        await network.create_port(wanted(net, "outside", fixed_ip="10.9.9.1"))


async def test_the_quota_of_ports_is_kept(network: EmbeddedNetwork, database: Database) -> None:
    net = await network.bootstrap(OWNER)
    await database.write(lambda conn: quotas.set_limits(conn, OTHER, {"port": 1}))
    await network.create_port(wanted(net, project_id=OTHER))
    with pytest.raises(OverQuota):
        await network.create_port(wanted(net, "two", project_id=OTHER))


async def test_networks_of_others_cannot_be_used(network: EmbeddedNetwork) -> None:
    with pytest.raises(NetworkNotFound):
        await network.create_port(wanted(SECOND))
    assert await network.networks(context(), (SECOND,)) == []


async def test_security_groups_are_found_by_name_and_id(network: EmbeddedNetwork) -> None:
    (default,) = await network.check_security_groups(context(), ("default",))
    assert await network.check_security_groups(context(), (default, "default")) == (default,)
    with pytest.raises(InvalidInput, match="nothing"):
        await network.check_security_groups(context(), ("nothing",))
    with pytest.raises(InvalidInput):
        await network.check_security_groups(context(OTHER), (default,))
    port = await network.create_port(wanted(await network.bootstrap(OWNER)))
    assert await network.security_groups_of((port,)) == ("default",)


@pytest.mark.spec("EMN-47")
async def test_ports_are_put_into_groups_and_taken_out(network: EmbeddedNetwork, database: Database) -> None:
    net, mine = await network.bootstrap(OWNER), context()
    for number in range(2):
        await network.create_port(wanted(net, f"k{number}"))
    bare = await network.create_port(wanted(net, "bare"))
    ports = tuple(port.id for port in await network.ports_of(INSTANCE))
    (default,) = await network.groups_of_ports(ports)
    assert (default.name, default.project_id) == ("default", OWNER)
    assert {(rule.ingress, rule.remote_group) for rule in default.rules} == {(True, "default"), (False, "")}

    def make_group(conn: Any) -> str:
        return security.create_group(conn, mine, GroupBody(name="web"), 0.0).id

    def bare_it(conn: Any) -> None:
        body = PortBody(security_groups=[], port_security_enabled=False)
        ports_module.update_port(conn, context(), bare, body, 0.0, lambda _host: True)

    web = await database.write(make_group)
    await database.write(bare_it)
    for _ in range(2):
        await network.change_group(mine, ports, "web", member=True)
        assert [group.name for group in await network.groups_of_ports(ports)] == ["default", "web"]
        assert await network.groups_of_ports((bare,)) == []
    await network.change_group(mine, ports, web, member=False)
    assert await network.groups_of_ports(ports) == [default]
    with pytest.raises(NotFound, match="not associated"):
        await network.change_group(mine, ports, "web", member=False)
    with pytest.raises(NotFound, match="nothing"):
        await network.change_group(mine, ports, "nothing", member=True)
    with pytest.raises(Conflict, match="cannot be applied"):
        await network.change_group(mine, (bare,), "web", member=True)
    with pytest.raises(NotFound):
        await network.change_group(context(OTHER), ports, web, member=True)
    await database.write(make_group)
    with pytest.raises(Conflict, match="Multiple"):
        await network.change_group(mine, ports, "web", member=True)


async def test_addresses_of_a_port_are_added_once_and_put_back(network: EmbeddedNetwork) -> None:
    net = await network.bootstrap(OWNER, cidr="10.9.8.0/29")
    port = await network.create_port(wanted(net))

    async def held() -> tuple[str, ...]:
        (found,) = [one for one in await network.ports_of(INSTANCE) if one.id == port]
        return found.addresses

    known = await held()
    for _ in range(2):
        await network.add_address(port, known)
        assert len(await held()) == 2 and (await held())[:1] == known
    both = await held()
    for wanted_now in (both[1:], both, known):
        for _ in range(2):
            await network.set_addresses(port, wanted_now)
            assert await held() == wanted_now
    other = await network.create_port(wanted(net, "two"))
    (taken,) = [one.addresses[0] for one in await network.ports_of(INSTANCE) if one.id == other]
    with pytest.raises(Conflict):
        await network.set_addresses(port, (taken,))
    for number in range(2):
        await network.create_port(wanted(net, f"more{number}"))
    with pytest.raises(Conflict):
        await network.add_address(port, known)
    with pytest.raises(PortNotFound):
        await network.add_address(SECOND, ())
    await network.set_addresses(SECOND, ())


@pytest.mark.spec("EMN-54", "EMN-55")
async def test_a_floating_ip_is_given_to_a_server_and_taken_back(
    network: EmbeddedNetwork, database: Database, listener: Listener
) -> None:
    inner = await network.bootstrap(OWNER)

    def unit(conn: Any) -> str:
        admin = RequestContext(request_id="", user_id="u", project_id=OWNER, roles=("admin",), is_admin=True)
        public = networks.create_network(conn, admin, NetworkBody(name="public", external=True), 0.0)
        networks.create_subnet(conn, admin, SubnetBody(network_id=public.id, cidr="203.0.113.0/24"), 0.0)
        gateway = RouterBody(external_gateway_info=GatewayBody(network_id=public.id))
        router = routers.create_router(conn, admin, gateway, 0.0)
        (subnet,) = networks.subnets_of(conn, inner)
        routers.add_interface(conn, admin, router.id, InterfaceBody(subnet_id=subnet.id), 0.0)
        return public.id

    public = await database.write(unit)
    port = await network.create_port(wanted(inner))
    made = await network.create_floating_ip(context(), public)
    assert (made.pool, made.port_id, made.device_id) == ("public", None, "")
    with pytest.raises(InvalidInput):
        await network.create_floating_ip(context(), inner)
    await network.associate_floating_ip(context(), made.id, port)
    while (await listener.next())[0] != "network-changed":
        pass
    (vif,) = await network.vifs(INSTANCE)
    assert vif.fixed_ips[0].floating == (made.address,)
    (found,) = await network.floating_ips(context())
    assert (found.port_id, found.fixed_address, found.device_id) == (port, vif.fixed_ips[0].address, INSTANCE)
    assert await network.floating_ips(context(OTHER)) == []
    with pytest.raises(NotFound):
        await network.associate_floating_ip(context(OTHER), made.id, None)
    await network.associate_floating_ip(context(), made.id, None)
    (vif,) = await network.vifs(INSTANCE)
    assert vif.fixed_ips[0].floating == ()
    await network.delete_floating_ip(context(), made.id)
    with pytest.raises(NotFound):
        await network.delete_floating_ip(context(), made.id)


@pytest.mark.spec("EMN-16")
async def test_a_project_is_given_a_network(network: EmbeddedNetwork, database: Database) -> None:
    assert await network.automatic_network(OTHER) is None

    def prepare(conn: Any) -> None:
        admin = RequestContext(request_id="", user_id="", project_id=OWNER, roles=("service",))
        public = networks.create_network(conn, admin, NetworkBody(name="public", external=True, is_default=True), 0.0)
        networks.create_subnet(conn, admin, SubnetBody(network_id=public.id, cidr="203.0.113.0/24"), 0.0)
        body = SubnetPoolBody(prefixes=["10.8.0.0/16"], default_prefixlen=26, shared=True, is_default=True)
        subnet_pools.create(conn, admin, body, 0.0)

    await database.write(prepare)
    (made,) = {await network.automatic_network(OTHER) for _ in range(3)}
    assert made is not None
    (found,) = await network.networks(context(OTHER), (made,))
    assert (found.project_id, found.has_subnets) == (OTHER, True)


async def test_the_audit_sees_ports_of_servers_only(network: EmbeddedNetwork) -> None:
    port = await network.create_port(wanted(await network.bootstrap(OWNER)))
    assert [summary.id for summary in await network.allocated()] == [port]
    await network.unbind_port(port, INSTANCE)
    assert await network.allocated() == []


async def test_a_call_waits_for_a_service_that_is_away(database: Database, listener: Listener) -> None:
    bus = LocalBus()
    asked = asyncio.create_task(RemoteNetwork(bus, SystemClock()).ports_of(INSTANCE))
    await asyncio.sleep(0)
    service = make(database, listener)
    await service.start()
    calls = NetworkCalls(service, bus)
    await calls.start()
    assert await asyncio.wait_for(asked, 10) == []
    await calls.close()
    await service.close()
    await bus.close()
