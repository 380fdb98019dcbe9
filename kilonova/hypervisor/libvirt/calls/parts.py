"""What all calls of the driver work with."""

from __future__ import annotations

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.domain.states import PowerState
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import host, power
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.description import Describer
from kilonova.hypervisor.libvirt.disks import GuestDisks
from kilonova.hypervisor.libvirt.domain.domain import Domain
from kilonova.hypervisor.libvirt.events import Events
from kilonova.hypervisor.libvirt.secrets import LibvirtSecret, guest_secret, needed, volume_secret
from kilonova.hypervisor.libvirt.volume_disks import encrypted_volumes
from kilonova.services.secrets import SecretStore, VolumeKeys


class Calls:
    """The parts of a driver; whoever starts it sets them."""

    _clock: Clock
    _connection: Connection
    _describer: Describer
    _disks: GuestDisks
    _events: Events
    _host: host.HostCapabilities
    _secrets: SecretStore
    _volume_keys: VolumeKeys
    _ours: set[str]
    """UUIDs of the guests that this driver made or found."""

    async def power_state(self, uuid: str) -> PowerState:
        """Always asked of the hypervisor. Spec: FND-40, FND-41, FND-42, PWR-01, PWR-02, PWR-03."""
        return await self._connection.call(lambda connection: power.state(connection, uuid), uuid=uuid)

    def _describe(self, guest: Guest) -> Domain:
        return self._describer.describe(guest, self._disks.names_for_qemu(guest.uuid))

    async def _values(self, uuid: str, described: str) -> dict[LibvirtSecret, str]:
        """The secrets that the described guest cannot be started without."""
        own = {guest_secret(uuid, one): await self._secrets.value(uuid, one) for one in needed(uuid, described)}
        return own | await self._passphrases(uuid, encrypted_volumes(described))

    async def _passphrases(self, uuid: str, volumes: list[str]) -> dict[LibvirtSecret, str]:
        return {volume_secret(uuid, one): await self._volume_keys.passphrase(uuid, one) for one in volumes}

    async def _drop_rescue(self, uuid: str) -> None:
        """Nothing that the guest runs from."""
        if not await self._disks.has_rescue(uuid):
            return
        disk = self._disks.names_for_qemu(uuid).rescue
        if not await self._connection.call(lambda connection: power.runs_from(connection, uuid, disk), uuid=uuid):
            await self._disks.drop_rescue(uuid)

    async def _require_no_guest(self, uuid: str) -> None:
        if await self._connection.call(lambda connection: power.find(connection, uuid) is not None, uuid=uuid):
            raise KilonovaError(f"The guest of instance {uuid} still uses its disks.", hint="destroy it first")
