"""A Compute API on in-memory databases, with honest stand-ins for everything behind it.

    async with compute_cloud() as cloud:
        answer = await cloud.get("/servers", version="2.79", as_="reader")
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import sqlalchemy as sa
from group_cloud import RealGroups

import kilonova.db.flavors
import kilonova.db.keypairs
from kilonova.agent.reports import Answer, ConsoleAddressQuery
from kilonova.api.cloud import ApiOptions
from kilonova.api.compute.application import ComputeApi
from kilonova.api.compute.quota_check import Limits, RecordQuotas
from kilonova.bus.local import LocalBus
from kilonova.bus.subjects import to_host
from kilonova.cells.registry import Cell, Cells, Located
from kilonova.db import build_requests, instances, outbox
from kilonova.db.api_schema import api_metadata
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.database import Database
from kilonova.db.journal import cell_journal
from kilonova.domain.console import ConsoleAddress
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    Conflict,
    Forbidden,
    ImageNotFound,
    InstanceInvalidState,
    InstanceLocked,
    InstanceNotReady,
    InvalidInput,
    KilonovaError,
    NotFound,
    NoValidHost,
    PortNotFound,
    Unauthorized,
    Unreachable,
)
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import BuildRequest, Fault, Instance
from kilonova.domain.network import FixedIp, Subnet, Vif
from kilonova.domain.notification import Listeners
from kilonova.domain.operation import Asker, ExternalEvent, OperationRecord
from kilonova.domain.states import PowerState, VmState
from kilonova.embedded.shares import DirectoryShares, SharedDirectory, ShareOptions
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.hypervisor import fake_diagnostics
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.operations.action_log import Action
from kilonova.operations.backup import BACKUP, BackupServer
from kilonova.operations.consoles import ConsoleOptions, Consoles
from kilonova.operations.options import OperationOptions
from kilonova.operations.password import CHANGE_PASSWORD, ChangePassword
from kilonova.operations.refused_moves import Move, refuse_move
from kilonova.operations.server_images import describe_image
from kilonova.operations.shelve import SHELVE, UNSHELVE, ShelveServer, UnshelveServer
from kilonova.operations.snapshot import SNAPSHOT, SnapshotServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded
from kilonova.services.accelerators import AcceleratorService, NoAccelerators
from kilonova.services.identity import ServiceRequest, Token
from kilonova.services.image import NewImage
from kilonova.services.network import FloatingIpSummary, NetworkSummary, PortSummary
from kilonova.services.no_volumes import no_volumes
from kilonova.services.placement import Pin
from kilonova.services.security_groups import GroupSummary
from kilonova.services.volumes import VolumeService

PROJECT = "a" * 32
OTHER_PROJECT = "b" * 32
IDENTITY_URL = "http://identity.test/identity"

CIRROS = "11111111-1111-4111-8111-111111111111"
NETWORK = "22222222-2222-4222-8222-222222222222"
HOST = "host-1"
SHARE, SECOND_SHARE, FOREIGN_SHARE = (f"{n}0000000-7777-4777-8777-777777777777" for n in (7, 8, 9))
SHARES = ShareOptions(directories={
    SHARE: SharedDirectory(path="/srv/one"), SECOND_SHARE: SharedDirectory(path="/srv/two", projects=(PROJECT,)),
    FOREIGN_SHARE: SharedDirectory(path="/srv/three", projects=(OTHER_PROJECT,)),
})
TINY = Flavor(flavor_id="1", name="tiny", vcpus=1, memory_mib=512, root_gib=1, extra_specs={"hw:cpu_policy": "shared"})

PERSONAS: dict[str, Token] = {
    name: Token(user_id=f"user-of-{name}", user_name=name, user_domain_id="default", project_id=project,
                project_name="demo", project_domain_id="default", roles=roles, system=system)
    for name, project, roles, system in (
        ("admin", PROJECT, ("admin",), False),
        ("manager", PROJECT, ("manager",), False),
        ("member", PROJECT, ("member", "reader"), False),
        ("colleague", PROJECT, ("member", "reader"), False),
        ("reader", PROJECT, ("reader",), False),
        ("service", PROJECT, ("service",), False),
        ("stranger", OTHER_PROJECT, ("member", "reader"), False),
        ("system", None, ("admin",), True),
        ("nobody", PROJECT, (), False),
    )
}


class SteppingClock:
    """Stands still unless told; every record made in between has the same time."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class KnownIdentity:
    """Tokens are the names of PERSONAS; `expired-` before it makes one that has expired lately.

    allowed: the requests that tokens are limited to, if they are.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.allowed: set[ServiceRequest] | None = None
        self.unified: dict[str | None, dict[str, int]] = {}

    async def validate(
        self, token: str, *, request: ServiceRequest | None = None, allow_expired: bool = False
    ) -> Token:
        if self.failure:
            raise self.failure
        known = PERSONAS.get(token.removeprefix("expired-"))
        limited = self.allowed is not None and request not in self.allowed
        if known is None or limited or (token.startswith("expired-") and not allow_expired):
            raise Unauthorized("The request you have made requires authentication.")
        return known

    async def project_exists(self, project_id: str) -> bool:
        return project_id in (PROJECT, OTHER_PROJECT)

    async def limits(self, service: str, project_id: str | None) -> dict[str, int]:
        """The registered ones are those of None."""
        assert service == "nova"
        return self.unified.get(None, {}) | self.unified.get(project_id, {})


class ShelfOfImages:
    """Images by id; private ones are hidden from other projects."""

    def __init__(self) -> None:
        times = {"created_at": "2023-11-14T22:13:20Z", "updated_at": "2023-11-14T22:13:20Z"}
        self.images = {CIRROS: Image(id=CIRROS, name="cirros", size=1 << 20, visibility="public", **times)}
        self.filters: list[tuple[str, str]] = []

    def add(self, **fields: Any) -> Image:
        image = Image(**{"id": str(uuid.uuid4()), "visibility": "public", **fields})
        self.images[image.id] = image
        return image

    async def show(self, context: RequestContext | None, image_id: str) -> Image:
        image = self.images.get(image_id)
        hidden = image and context and image.visibility == "private" and image.owner != context.project_id
        if image is None or hidden:
            raise ImageNotFound(image_id)
        return image

    def data(self, image_id: str) -> AsyncIterator[bytes]:
        raise ImageNotFound(image_id)

    def local_path(self, image_id: str) -> Path | None:
        return None

    async def delete(self, image_id: str) -> None:
        self.images.pop(image_id, None)

    async def page(self, context: RequestContext, filters: Sequence[tuple[str, str]], *, limit: int,
                   marker: str | None) -> list[Image]:
        """As put in; of the filters only the name and properties are judged, `filters` keeps all."""
        self.filters = list(filters)
        seen = [i for i in self.images.values() if i.visibility == "public" or i.owner == context.project_id]
        for name, value in filters:
            if name == "name" or name not in ("status", "updated_at", "min_ram", "min_disk"):
                seen = [i for i in seen if (i.name if name == "name" else i.properties.get(name)) == value]
        ids = [image.id for image in seen]
        if marker is not None and marker not in ids:
            raise InvalidInput(f"The marker {marker} names no image.")
        start = 0 if marker is None else ids.index(marker) + 1
        return seen[start : start + limit]

    async def set_properties(self, context: RequestContext, image_id: str, properties: Mapping[str, str]) -> Image:
        await self._check_owner(context, image_id)
        changed = msgspec.structs.replace(self.images[image_id], properties=dict(properties))
        self.images[image_id] = changed
        return changed

    async def remove(self, context: RequestContext, image_id: str) -> None:
        await self._check_owner(context, image_id)
        del self.images[image_id]

    async def _check_owner(self, context: RequestContext, image_id: str) -> None:
        image = await self.show(context, image_id)
        if image.owner != context.project_id and not context.is_admin:
            raise Forbidden(f"Image {image_id} is not yours.")


class DrawnNetworks(RealGroups):
    """Networks and ports as they are put in; only what the API asks is here."""

    def __init__(self) -> None:
        super().__init__()
        self.all = [NetworkSummary(id=NETWORK, name="private", project_id=PROJECT)]
        self.ports: dict[str, PortSummary] = {}
        self.known_groups = {"default": "33333333-3333-4333-8333-333333333333"}
        self.group_names: dict[str, str] = {}
        self.floating: dict[str, FloatingIpSummary] = {}
        self.no_more_addresses = False
        self.full_groups: list[GroupSummary] = []
        self.changed_groups: list[tuple[tuple[str, ...], str, bool]] = []
        self.interfaces: dict[str, tuple[Vif, ...]] = {}

    async def networks(self, context: RequestContext, ids: tuple[str, ...] = ()) -> list[NetworkSummary]:
        seen = [n for n in self.all if context.is_admin or n.shared or n.external
                or n.project_id == context.project_id]
        return [n for n in seen if not ids or n.id in ids]

    async def port(self, context: RequestContext, port_id: str) -> PortSummary:
        found = self.ports.get(port_id)
        if found is None or not (context.is_admin or found.project_id == context.project_id):
            raise PortNotFound(port_id)
        return found

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        return self.interfaces.get(instance_uuid, ())

    async def ports_of(self, instance_uuid: str) -> list[PortSummary]:
        return [port for port in self.ports.values() if port.device_id == instance_uuid]

    async def check_security_groups(self, context: RequestContext, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in self.known_groups and name not in self.known_groups.values():
                raise InvalidInput(f"Security group {name} not found for project {context.project_id}.")
        return tuple(self.known_groups.get(name, name) for name in names)

    async def floating_ips(self, context: RequestContext) -> list[FloatingIpSummary]:
        return list(self.floating.values())

    async def create_floating_ip(self, context: RequestContext, network_id: str) -> FloatingIpSummary:
        if self.no_more_addresses:
            raise Conflict("No more IP addresses available.")
        number = len(self.floating) + 1
        made = FloatingIpSummary(id=str(uuid.UUID(int=number)), address=f"203.0.113.{number}", network_id=network_id,
                                 pool="public")
        self.floating[made.id] = made
        return made

    async def delete_floating_ip(self, context: RequestContext, id_: str) -> None:
        del self.floating[id_]

    async def associate_floating_ip(
        self, context: RequestContext, id_: str, port_id: str | None, fixed_address: str | None = None
    ) -> None:
        device = next((server for server, vifs in self.interfaces.items() if port_id in {v.id for v in vifs}), "")
        others = {(f.port_id, f.fixed_address) for f in self.floating.values() if f.id != id_}
        if port_id is not None and (port_id, fixed_address) in others:
            raise Conflict(f"Address {fixed_address} has a floating IP already.")
        self.floating[id_] = msgspec.structs.replace(
            self.floating[id_], port_id=port_id, fixed_address=fixed_address, device_id=device)

    async def groups_of_ports(self, port_ids: tuple[str, ...]) -> list[GroupSummary]:
        return self.full_groups

    async def change_group(
        self, context: RequestContext, port_ids: tuple[str, ...], group: str, *, member: bool
    ) -> None:
        if group not in self.known_groups:
            raise NotFound(f"Security group {group} not found.")
        self.changed_groups.append((port_ids, group, member))

    async def security_groups_of(self, port_ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.group_names[p] for p in port_ids if p in self.group_names))


class QuietHost(LocalBus):
    """A bus with one host, HOST, whose driver only knows consoles: `address` or `error` is its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.address = ConsoleAddress(host="127.0.0.1", port=5900)
        self.error: KilonovaError | None = None
        self.asked: list[ConsoleAddressQuery] = []

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        if subject != to_host(HOST, "query"):
            raise Unreachable(f"nobody listens on {subject}")
        self.asked.append(msgspec.msgpack.decode(payload, type=ConsoleAddressQuery))
        if self.error is not None:
            return msgspec.msgpack.encode(Answer(error=self.error.message, status=self.error.status))
        return msgspec.msgpack.encode(Answer(address=self.address))


class ListedHosts:
    """Hosts with a status, and zones that are not available."""

    def __init__(self) -> None:
        self.known = {HOST: "UP"}
        self.empty_zones = {"mars"}
        self.zones = {HOST: "nova"}

    async def statuses(self, hosts: Collection[str]) -> dict[str, str]:
        return {host: self.known[host] for host in hosts if host in self.known}

    async def zone_available(self, zone: str) -> bool:
        return zone not in self.empty_zones

    async def zone_of(self, host: str) -> str | None:
        return self.zones.get(host)

    async def exists(self, *, host: str | None, node: str | None) -> bool:
        return all(name in self.known for name in (host, node) if name)


class RecordedActions:
    """Actions of servers, as put in."""

    def __init__(self) -> None:
        self.recorded: list[Action] = []

    async def actions(self, instance_uuid: str, *, limit: int | None = None, marker: str | None = None,
                      changes_since: float | None = None, changes_before: float | None = None) -> list[Action]:
        found = [a for a in reversed(self.recorded) if a.instance_uuid == instance_uuid]
        if marker is not None:
            ids = [a.request_id for a in found]
            if marker not in ids:
                raise NotFound(f"Marker {marker} could not be found.")
            found = found[ids.index(marker) + 1:]
        if changes_since is not None:
            found = [a for a in found if (a.updated_at or a.start_time) >= changes_since]
        if changes_before is not None:
            found = [a for a in found if (a.updated_at or a.start_time) <= changes_before]
        return found[:limit]

    async def action(self, instance_uuid: str, request_id: str) -> Action | None:
        return next((a for a in self.recorded
                     if a.instance_uuid == instance_uuid and a.request_id == request_id), None)


class PatientCompute:
    """Does what operations do to the records, at once; `build` is a call of the test."""

    def __init__(self, cells: Cells, clock: SteppingClock) -> None:
        self.cells = cells
        self.clock = clock
        self.consoles: dict[str, str] = {}
        self.created: list[BuildRequest] = []
        self.calls: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str, msgspec.Struct]] = []
        self.ends: dict[str, Callable[[OperationRecord], OperationRecord]] = {}
        self.told: list[ExternalEvent] = []

    async def create(self, context: RequestContext, requests: list[BuildRequest]) -> None:
        self.created += requests
        await self.cells.api.write(lambda conn: build_requests.accept(conn, requests))

    async def delete(self, context: RequestContext, server: Located, *, force: bool = False) -> None:
        self._check(context, server, "delete", states=None)
        self.calls.append(("delete for good" if force else "delete", server.instance.uuid))
        uuid_ = server.instance.uuid
        if server.cell is None:
            await self.cells.api.write(lambda conn: build_requests.discard(conn, uuid_))
            return
        now = self.clock.now()
        await self._change(server, vm_state=VmState.DELETED, deleted_at=now, terminated_at=now)

    async def stop(self, context: RequestContext, server: Located, *, clean: bool = True) -> None:
        self._check(context, server, "stop", states={VmState.ACTIVE, VmState.ERROR})
        await self._change(server, vm_state=VmState.STOPPED, power_state=PowerState.SHUTDOWN)

    async def ask(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> None:
        """The real operation begins, with its own checks, and is kept in `asked`; it does not go on by itself."""
        if server.instance.locked_by and not context.is_admin:
            raise InstanceLocked(server.instance.uuid)
        await self._begin(server, definition, request)

    async def _begin(self, server: Located, definition: Operation, request: msgspec.Struct) -> None:
        assert server.cell is not None
        instance, now = server.instance, self.clock.now()
        await server.cell.database.write(
            lambda conn: submit.submit(
                Tx(conn, now), cell_journal, definition, instance.uuid, request, Asker(),
                operation_id=str(uuid.uuid4()),
            )
        )
        self.asked.append((definition.name, instance.uuid, request))

    async def ask_and_wait(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> OperationRecord:
        """The same; what the operation becomes is a call of the test."""
        await self.ask(context, server, definition, request)
        record = await self._journaled(server)
        return self.ends[definition.name](record)

    async def ask_and_wait_for(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct, step: str
    ) -> OperationRecord:
        """Answers at once, as if the step were done."""
        await self.ask(context, server, definition, request)
        return await self._journaled(server)

    async def _journaled(self, server: Located) -> OperationRecord:
        assert server.cell is not None
        uuid_ = server.instance.uuid
        return (await server.cell.database.read(lambda conn: cell_journal.of_subject(conn, uuid_)))[0]
    async def create_image(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str]
    ) -> str:
        image = self._image(context, server, name, "snapshot", metadata)
        await self._begin(server, SNAPSHOT, SnapshotServer(image=image))
        return image.id

    async def create_backup(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str], *, backup_type: str,
        rotation: int,
    ) -> str:
        image = self._image(context, server, name, "backup", metadata)
        await self._begin(server, BACKUP, BackupServer(image=image, backup_type=backup_type, rotation=rotation))
        return image.id

    async def cache_images(
        self, context: RequestContext, cell: Cell, aggregate: str, hosts: Sequence[str], images: Sequence[str]
    ) -> None:
        self.calls.append((f"cache {','.join(images)} in {cell.name} on {','.join(hosts)}", aggregate))

    async def shelve(self, context: RequestContext, server: Located) -> None:
        image = self._image(context, server, f"{server.instance.display_name}-shelved", "snapshot", {})
        await self.ask(context, server, SHELVE, ShelveServer(image=image, grace=60.0, interval=10.0))

    async def unshelve(
        self, context: RequestContext, server: Located, *, host: str | None = None, pin: Pin | None = None
    ) -> None:
        if server.instance.vm_state is VmState.SHELVED_OFFLOADED:
            await self.ask(context, server, UNSHELVE_OFFLOADED, UnshelveOffloaded(host=host, pin=pin))
        else:
            await self.ask(context, server, UNSHELVE, UnshelveServer())

    def _image(
        self, context: RequestContext, server: Located, name: str, kind: str, metadata: dict[str, str]
    ) -> NewImage:
        return describe_image(
            context, server.instance, OperationOptions(), image_id=str(uuid.uuid4()), name=name, kind=kind,
            metadata=metadata,
        )

    async def reboot(self, context: RequestContext, server: Located, *, hard: bool) -> None:
        self._check(context, server, "reboot", states={VmState.ACTIVE, *([VmState.STOPPED] if hard else [])})
        self.calls.append(("reboot hard" if hard else "reboot soft", server.instance.uuid))
        await self._change(server, vm_state=VmState.ACTIVE)

    async def refuse_move(self, context: RequestContext, server: Located, move: Move) -> NoValidHost:
        return await refuse_move(self.clock, context, server, move)

    async def reset_state(self, context: RequestContext, server: Located, *, active: bool) -> None:
        state = VmState.ACTIVE if active else VmState.ERROR
        await self._change(server, vm_state=state, task_state=None)

    async def lock(self, context: RequestContext, server: Located, reason: str | None) -> None:
        owner = "owner" if context.project_id == server.instance.project_id else "admin"
        await self._change(server, locked_by=owner, locked_reason=reason)

    async def unlock(self, context: RequestContext, server: Located) -> None:
        await self._change(server, locked_by=None, locked_reason=None)

    async def tell(self, server: Located, event: ExternalEvent) -> None:
        self.told.append(event)

    async def change_password(self, context: RequestContext, server: Located, password: str) -> None:
        """As the guest takes it: one that asks for `refused` is refused."""
        await self.ask(context, server, CHANGE_PASSWORD, ChangePassword(key=str(uuid.uuid4())))
        if password == "refused":
            raise Conflict("The agent in the guest refused to set the password.")
        self.calls.append((f"password {password}", server.instance.uuid))

    async def diagnostics(self, server: Located) -> Diagnostics:
        return fake_diagnostics.COMMON

    async def own_diagnostics(self, server: Located) -> OwnDiagnostics:
        return fake_diagnostics.OWN

    async def console_output(self, context: RequestContext, server: Located, lines: int | None) -> str:
        if server.instance.host is None:
            raise InstanceNotReady(server.instance.uuid)
        text = self.consoles.get(server.instance.uuid, "")
        if lines is None or lines < 0:
            return text
        return "".join(text.splitlines(keepends=True)[-lines:] if lines else [])

    async def _change(self, server: Located, **changes: Any) -> Instance:
        assert server.cell is not None
        now, uuid_ = self.clock.now(), server.instance.uuid
        return await server.cell.database.write(lambda conn: instances.update(conn, uuid_, now=now, **changes))

    def _check(self, context: RequestContext, server: Located, action: str, states: set[VmState] | None) -> None:
        instance = server.instance
        if instance.locked_by and not context.is_admin:
            raise InstanceLocked(instance.uuid)
        if states is None:
            return
        if instance.host is None:
            raise InstanceNotReady(instance.uuid)
        if instance.vm_state not in states:
            raise InstanceInvalidState(instance.uuid, action, "vm_state", instance.vm_state.value)


class ComputeCloud:
    """The running API and what stands behind it."""

    def __init__(self, *, policy_file: Path | None = None, options: ApiOptions | None = None,
                 limits: Limits | None = None, consoles: ConsoleOptions | None = None,
                 accelerators: AcceleratorService | None = None, volumes: VolumeService | None = None) -> None:
        told = {outbox.OPTION: Listeners(sinks=("listener",), host="here")}
        api, cell = Database.open("sqlite://", options=told), Database.open("sqlite://", options=told)
        api_metadata.create_all(api.engine)
        cell_metadata.create_all(cell.engine)
        self.clock = SteppingClock()
        self.cell = Cell("cell1", "44444444-4444-4444-8444-444444444444", cell)
        self.cells = Cells(api, (self.cell,))
        self.identity = KnownIdentity()
        self.images = ShelfOfImages()
        self.networks = DrawnNetworks()
        self.actions = RecordedActions()
        self.host = QuietHost()
        self.consoles = Consoles(self.cells, self.host, self.clock, consoles or ConsoleOptions(), "http://cloud.test")
        self.hosts = ListedHosts()
        self.compute = PatientCompute(self.cells, self.clock)
        self.app = ComputeApi(
            cells=self.cells, compute=self.compute, identity=self.identity, images=self.images,
            networks=self.networks, actions=self.actions, clock=self.clock, policy_file=policy_file,  # type: ignore[arg-type]
            consoles=self.consoles, shares=DirectoryShares(SHARES),
            accelerators=accelerators or NoAccelerators(), volumes=volumes or no_volumes(),
            identity_url=IDENTITY_URL, hosts=self.hosts, options=options, quotas=RecordQuotas(self.cells, limits),
        )
        self.flavors_made = 0
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=True, root_path="/compute"),
            base_url="http://cloud.test",
        )

    async def request(self, method: str, path: str, *, version: str | None = None, as_: str | None = "member",
                      root: str = "/v2.1", headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        """A request; `as_` names a persona, None sends no token."""
        sent = dict(headers or {})
        if as_ is not None:
            sent.setdefault("X-Auth-Token", as_)
        if version is not None:
            sent.setdefault("OpenStack-API-Version", f"compute {version}")
        return await self.client.request(method, f"/compute{root}{path}", headers=sent, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.request("GET", path, **more)

    async def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return await self.request("POST", path, json=body, **more)

    async def put(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return await self.request("PUT", path, json=body, **more)

    async def delete(self, path: str, **more: Any) -> httpx.Response:
        return await self.request("DELETE", path, **more)

    async def flavor(self, flavor: Flavor = TINY) -> Flavor:
        self.flavors_made += flavor is TINY
        return await self.cells.api.write(lambda conn: kilonova.db.flavors.create(conn, flavor, now=self.clock.now()))

    async def boot(self, **fields: Any) -> Instance:
        """Put a running server of project PROJECT straight into the cell."""
        given = {
            "uuid": str(uuid.uuid4()), "project_id": PROJECT, "user_id": "user-of-member", "display_name": "vm",
            "hostname": "vm", "vm_state": VmState.ACTIVE, "task_state": None, "power_state": PowerState.RUNNING,
            "host": HOST, "node": HOST, "availability_zone": "nova", "image_ref": CIRROS, "flavor": TINY,
            "created_at": self.clock.now(), "launched_at": self.clock.now(), "reservation_id": "r-abcdefgh", **fields,
        }
        instance = Instance(**given)

        def mapped(conn: sa.Connection) -> None:
            conn.execute(sa.insert(build_requests.instance_mappings), {
                "uuid": instance.uuid, "project_id": instance.project_id, "cell": self.cell.name,
                "created_at": instance.created_at})

        await self.cells.api.write(mapped)
        await self.boot_record(instance)
        return instance

    async def boot_record(self, instance: Instance) -> None:
        """Only the record in the cell."""
        await self.cell.database.write(lambda conn: instances.insert(conn, instance))

    async def build(self, server_id: str, **changes: Any) -> Instance:
        """Finish the build of an accepted server: hand it to the cell and start it."""
        request = await self.cells.api.read(lambda conn: build_requests.get(conn, server_id))
        assert request is not None
        instance = msgspec.structs.replace(request.instance, **{
            "vm_state": VmState.ACTIVE, "task_state": None, "power_state": PowerState.RUNNING, "host": HOST,
            "node": HOST, "launched_at": self.clock.now(), **changes})
        await self.cell.database.write(lambda conn: instances.insert(conn, instance))
        await self.cells.api.write(lambda conn: build_requests.consume(conn, server_id, self.cell.name))
        return instance

    async def fail(self, server_id: str, fault: Fault) -> None:
        await self.cell.database.write(
            lambda conn: instances.add_fault(conn, server_id, str(uuid.uuid4()), fault))

    async def forget_operations(self) -> None:
        """As if all that was asked for had ended."""
        await self.cell.database.write(lambda conn: conn.execute(sa.delete(cell_journal.operations)))

    async def stored(self, server_id: str) -> Instance:
        return await self.cell.database.read(lambda conn: instances.get(conn, server_id, deleted=True))

    async def close(self) -> None:
        await self.client.aclose()
        await self.cells.api.close()
        await self.cell.database.close()
        await self.networks.close()


@asynccontextmanager
async def compute_cloud(**arguments: Any) -> AsyncIterator[ComputeCloud]:
    cloud = ComputeCloud(**arguments)
    try:
        yield cloud
    finally:
        await cloud.close()


def link(answer: dict[str, Any], rel: str) -> str:
    """The href of one link of a resource."""
    return next(entry["href"] for entry in answer["links"] if entry["rel"] == rel)


async def create(cloud: ComputeCloud, version: int = 1, as_: str = "member", hints: Any = None,
                 **fields: Any) -> httpx.Response:
    """Ask for a tiny server; a field given as None is left out."""
    if not cloud.flavors_made:
        await cloud.flavor()
    server = {"name": "vm", "flavorRef": "1", "imageRef": CIRROS, **fields}
    if version >= 37:
        server.setdefault("networks", "none")
    body: dict[str, Any] = {"server": {name: value for name, value in server.items() if value is not None}}
    if hints is not None:
        body["os:scheduler_hints"] = hints
    return await cloud.post("/servers", body, version=f"2.{version}", as_=as_)


def vif(*, floating: tuple[str, ...] = ()) -> Vif:
    four = FixedIp(address="10.0.0.5", subnet=Subnet(id="s4", cidr="10.0.0.0/24"), floating=floating)
    six = FixedIp(address="fd00::5", subnet=Subnet(id="s6", cidr="fd00::/64", version=6))
    return Vif(id=str(uuid.uuid4()), mac="fa:16:3e:00:00:01", network_id="n", network_name="private",
               devname="tap0", fixed_ips=(four, six))
