"""The configuration: one typed tree, read from `kilonova.toml` and the environment.

An option that means the same as an OpenStack one has its name. Environment variables override the file:
`KILONOVA__OPERATIONS__SHUTDOWN_TIMEOUT=30`, and for a list `KILONOVA__BUS__SERVERS='["nats://192.0.2.1:4222"]'`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from kilonova.agent.image_cache import ImageCacheOptions
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.shares import ShareOptions
from kilonova.imaging.signatures import SignatureOptions
from kilonova.metadata.vendor_data import VendorDataOptions
from kilonova.notifications.options import NotificationOptions
from kilonova.operations.consoles import ConsoleOptions
from kilonova.operations.options import OperationOptions
from kilonova.services.cinder import VolumeServiceOptions
from kilonova.services.cyborg import AcceleratorOptions
from kilonova.shapes.pci_requests import PciOptions
from kilonova.storage.options import PoolOptions, VolumeOptions

PREFIX = "KILONOVA__"


class DatabaseOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where state lives."""

    api: str = ""
    """URL of the API database; empty for a SQLite file in the data directory."""
    cell: str = ""
    """URL of this process's cell database; empty for the same file as the API database."""
    pool_size: int = 8
    """Connections to PostgreSQL that one process opens."""


class BusOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How processes reach each other."""

    servers: tuple[str, ...] = ()
    """NATS servers, for example `nats://192.0.2.1:4222`; none for the bus within one process."""
    credentials: str = ""
    """File with the credentials of this process on the bus, as it was made when the process was added."""
    authority: str = ""
    """PEM file of the certificate that signed those of the servers; without it nothing is encrypted."""
    listen: str = "127.0.0.1"
    """Where `kilonova bus serve` listens."""
    port: int = 4222
    """Port of `kilonova bus serve`."""
    certificate: str = ""
    """PEM file with the certificate of `kilonova bus serve`; without it nothing is encrypted."""
    key: str = ""
    """PEM file with the key of that certificate."""


class CellOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cell this process belongs to."""

    name: str = "cell1"
    """Name of the cell."""


class PhysicalNetworkOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network of the world outside that the host reaches."""

    interface: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,15}$")]
    """By which interface: a card, a bond, or, for VLANs only, a bridge."""
    egress_kbps: int = 0
    """Kbit/s that it carries from guests, to be guaranteed to ports; 0 guarantees none."""
    ingress_kbps: int = 0
    """Kbit/s that it carries to guests, to be guaranteed to ports; 0 guarantees none."""


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hypervisor host."""

    host: str = ""
    """Name of the host; empty for the machine's own."""
    driver: Literal["libvirt", "fake"] = "libvirt"
    """Hypervisor driver."""
    hosts: int = 1
    """With the fake driver: how many hosts this process simulates."""
    libvirt_uri: str = ""
    """libvirt to use; empty for a private one in the data directory."""
    nbd_tls: str = ""
    """Directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`, readable for QEMU's user, with which guests
    reach volumes of pools that demand TLS. A libvirt of `libvirt_uri` has its own (`nbd_tls_x509_cert_dir`)."""
    max_concurrent_builds: int = 10
    """Builds that one host works on at once; 0 for no limit."""
    max_concurrent_disk_ops: int = 0
    """Makings and copies of disks that one host works on at once; 0 for no limit."""
    max_concurrent_snapshots: int = 5
    """Snapshots that one host works on at once; 0 or less for no limit."""
    report_interval: float = 10.0
    """Seconds between reports of a host."""
    fake_latency: float = 0.0
    """With the fake driver: seconds that every call takes."""
    cpu_dedicated_set: str = ""
    """CPUs of the host that are given to one guest at a time, for example `2-7,^4`; empty for none."""
    cpu_shared_set: str = ""
    """CPUs of the host on which guests without CPUs of their own run; empty for all, or none beside a
    `cpu_dedicated_set`."""
    network_egress_kbps: int = 0
    """Kbit/s that the host carries from guests of networks that are on no physical network, to be guaranteed to ports;
    0 guarantees none."""
    network_ingress_kbps: int = 0
    """Kbit/s that the host carries to guests of networks that are on no physical network, to be guaranteed to ports;
    0 guarantees none."""
    network_kpps: int = 0
    """1000 packets per second that the host forwards from and to guests together, to be guaranteed to ports by rules
    for any direction; 0 guarantees none."""
    network_egress_kpps: int = 0
    """1000 packets per second that the host forwards from guests, to be guaranteed to ports; 0 guarantees none. Only
    without `network_kpps`."""
    network_ingress_kpps: int = 0
    """1000 packets per second that the host forwards to guests, to be guaranteed to ports; 0 guarantees none. Only
    without `network_kpps`."""
    physical_networks: dict[str, PhysicalNetworkOptions] = {}
    """Networks of the world outside that guests can be on, by name. Each has an `interface` of the host, and may have
    `egress_kbps` and `ingress_kbps`: kbit/s that it carries from and to guests, to be guaranteed to ports."""
    resume_guests_state_on_host_boot: bool = False
    """Start guests that ran when their host went down."""

    def __post_init__(self) -> None:
        if self.network_kpps and (self.network_egress_kpps or self.network_ingress_kpps):
            raise ValueError("network_kpps cannot be given together with network_egress_kpps or network_ingress_kpps")


class ApiProcessOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The API process."""

    listen: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8774
    """Port to listen on."""
    public_url: str = ""
    """URL under which clients reach it; empty for the address and port it listens on."""
    policy_file: str = ""
    """Overrides of policy rules; empty for `policy.yaml` in the data directory."""
    quota_limits: Literal["records", "identity"] = "records"
    """Where the quotas on servers come from: what operators set in the Compute API, or the unified limits of service
    `nova` in the identity service, which know one of disk space (`class:DISK_GB`) too. With these, those of service
    `glance` are quotas on images; else there are none."""


class SchedulerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choosing hosts."""

    service_down_time: float = 60.0
    """Seconds of silence after which a host counts as down."""
    default_availability_zone: str = "nova"
    """Zone of hosts that are in no aggregate with a zone."""
    initial_cpu_allocation_ratio: float = 4.0
    """How far CPUs of a new host are overcommitted."""
    initial_ram_allocation_ratio: float = 1.0
    """How far memory of a new host is overcommitted."""
    initial_disk_allocation_ratio: float = 1.0
    """How far disk of a new host is overcommitted."""
    reserved_host_memory_mb: int = 512
    """Memory of a host that guests may not have, in MiB."""
    reserved_host_cpus: int = 0
    """CPUs of a host that guests may not have."""
    reserved_host_disk_mb: int = 0
    """Disk of a host that guests may not have, in MiB."""


class MetricsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process counts and times, for Prometheus."""

    listen: str = "127.0.0.1"
    """Address of the page of metrics."""
    port: int = 0
    """Port of the page `/metrics`; 0 for none."""


class TracingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of requests, operations and steps, for OpenTelemetry."""

    endpoint: str = ""
    """URL that takes OTLP over HTTP, for example `http://127.0.0.1:4318/v1/traces`; empty for no traces."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole tree."""

    data_dir: str = ""
    """Directory for everything this installation keeps; empty for `/var/lib/kilonova`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of log lines."""
    lease_seconds: float = 10.0
    """How long a conductor that died holds up the operations it drove."""
    database: DatabaseOptions = DatabaseOptions()
    bus: BusOptions = BusOptions()
    cell: CellOptions = CellOptions()
    api: ApiProcessOptions = ApiProcessOptions()
    agent: AgentOptions = AgentOptions()
    scheduler: SchedulerOptions = SchedulerOptions()
    operations: OperationOptions = OperationOptions()
    image_cache: ImageCacheOptions = ImageCacheOptions()
    image_signatures: SignatureOptions = SignatureOptions()
    consoles: ConsoleOptions = ConsoleOptions()
    notifications: NotificationOptions = NotificationOptions()
    shares: ShareOptions = ShareOptions()
    volume: VolumeOptions = VolumeOptions()
    volume_service: VolumeServiceOptions = VolumeServiceOptions()
    pci: PciOptions = PciOptions()
    accelerator: AcceleratorOptions = AcceleratorOptions()
    vendor_data: VendorDataOptions = VendorDataOptions()
    metrics: MetricsOptions = MetricsOptions()
    tracing: TracingOptions = TracingOptions()

    @property
    def directory(self) -> Path:
        return Path(self.data_dir or "/var/lib/kilonova").absolute()

    @property
    def pools(self) -> tuple[PoolOptions, ...]:
        """The storage pools of this process: those that are configured, or one of its own if all that could use it is
        on this machine."""
        if self.volume.pool:
            return self.volume.pool
        alone = self.agent.driver == "libvirt" and not self.bus.servers and not self.volume_service.endpoint
        return (PoolOptions(name="local"),) if alone and self.volume.default_pool else ()

    def database_url(self, which: Literal["api", "cell"]) -> str:
        """URL of a database, SQLite in the data directory unless given."""
        given = self.database.api if which == "api" else self.database.cell or self.database.api
        return given or f"sqlite:///{self.directory}/kilonova.db"


def load(file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration.

    Args:
        file: a TOML file; None or a missing one is empty. overrides: from the command line; they win.

    Raises:
        InvalidInput: naming the option that is unknown or has a wrong value.
    """
    tree: dict[str, Any] = {}
    if file is not None and file.exists():
        try:
            tree = tomllib.loads(file.read_text())
        except tomllib.TOMLDecodeError as error:
            raise InvalidInput(f"{file} is not valid TOML: {error}.") from error
    for name, value in sorted(environment.items()):
        if name.startswith(PREFIX):
            _place(tree, name.removeprefix(PREFIX).lower().split("__"), _parsed(name, value))
    for dotted, value in (overrides or {}).items():
        _place(tree, dotted.split("."), value)
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"Invalid configuration: {error}.", hint="see `kilonova config explain`") from error


def _parsed(name: str, value: str) -> str | list[str]:
    """The value of an environment variable: a list in brackets, anything else as it is."""
    if not value.startswith("["):
        return value
    try:
        return msgspec.json.decode(value, type=list[str])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{name} is not a list: {error}.", hint="write it as [\"one\", \"two\"]") from error


def _place(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InvalidInput(f"Option {'.'.join(path)} does not exist.")
    tree[path[-1]] = value
