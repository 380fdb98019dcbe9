"""What an agent tells the conductors by itself, and what it can be asked. Observations: nothing depends on them."""

from __future__ import annotations

import msgspec

from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.states import PowerState
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.hypervisor.guest import BesideDisks, GuestOnHost, HostInventory
from kilonova.hypervisor.volumes import HeldVolume, VolumeUsage

REFUSED = b"refused: "
"""With this begins the answer to a host that must not serve; the reason follows."""


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """Sent at start and every `report_interval` seconds.

    Args:
        started: this is the first report of the process: debts to the host are due, its records are compared.
        guests: all guests with their power states.
    """

    host: str
    driver: str
    started: bool
    version: str
    inventory: HostInventory
    guests: tuple[GuestOnHost, ...]
    services_up_since: float = 0.0


class PowerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A guest changed its power state by itself."""

    host: str
    uuid: str
    power_state: PowerState
    transition: str


class ConsoleQuery(msgspec.Struct, frozen=True, kw_only=True, tag="console"):
    """The last `limit` bytes of a guest's serial console."""

    uuid: str
    limit: int


class ConsoleAddressQuery(msgspec.Struct, frozen=True, kw_only=True, tag="console-address"):
    """Where a guest's console of this kind listens."""

    uuid: str
    kind: ConsoleKind


class PasswordQuery(msgspec.Struct, frozen=True, kw_only=True, tag="password"):
    """Set the password of a user of the guest. Not written down anywhere. Spec: PWD-10."""

    uuid: str
    user: str
    password: str

    def __repr__(self) -> str:
        return f"PasswordQuery(uuid={self.uuid!r}, user={self.user!r})"


class DiagnosticsQuery(msgspec.Struct, frozen=True, kw_only=True, tag="diagnostics"):
    """What the hypervisor counts for a running guest."""

    uuid: str


class OwnDiagnosticsQuery(msgspec.Struct, frozen=True, kw_only=True, tag="own-diagnostics"):
    """The same in the driver's own form."""

    uuid: str


class FoundQuery(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    """Everything the host has of this product, for the audit."""


class VolumeUsageQuery(msgspec.Struct, frozen=True, kw_only=True, tag="volume-usage"):
    """What all guests have done with their volumes."""


Query = (
    ConsoleQuery | ConsoleAddressQuery | PasswordQuery | DiagnosticsQuery | OwnDiagnosticsQuery | FoundQuery
    | VolumeUsageQuery
)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Guests, instances with files on the host, what lies beside their disks, and by guest the addresses of the PCI
    devices and the volumes that it has. volumes: None from an agent that does not tell."""

    guests: tuple[GuestOnHost, ...]
    disks: tuple[str, ...]
    beside: tuple[BesideDisks, ...] = ()
    devices: dict[str, tuple[str, ...]] = {}
    volumes: dict[str, tuple[HeldVolume, ...]] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a query; error is "" if it could be answered, status its HTTP-like code otherwise.

    Args:
        agent_away: it could not, because no agent answers in the guest.
        volume_usage: by guest and volume.
    """

    console: bytes = b""
    found: Found | None = None
    address: ConsoleAddress | None = None
    diagnostics: Diagnostics | None = None
    own_diagnostics: OwnDiagnostics = {}
    volume_usage: dict[str, dict[str, VolumeUsage]] = {}
    error: str = ""
    status: int = 200
    agent_away: bool = False
