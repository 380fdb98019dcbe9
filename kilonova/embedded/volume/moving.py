"""Moving volumes between pools, and giving them other types. Spec: EMV-32 to EMV-37."""

from __future__ import annotations

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.domain.operation import ExternalEvent
from kilonova.embedded.volume import volume_types, volumes
from kilonova.embedded.volume.backends import fits
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.migrate import MIGRATE, MigrateVolume
from kilonova.embedded.volume.operations.migrate_in_use import MIGRATE_IN_USE, SWAPPED
from kilonova.embedded.volume.operations.retype import RETYPE, RetypeVolume, must_move
from kilonova.embedded.volume.records import Volume
from kilonova.embedded.volume.states import IDLE_MIGRATIONS, VolumeStatus
from kilonova.embedded.volume.work import VolumeWork

POLICIES = ("never", "on-demand")


class Moving:
    """The moves of one volume service."""

    def __init__(self, environment: VolumeEnvironment, work: VolumeWork) -> None:
        self._environment = environment
        self._database = environment.database
        self._work = work

    async def migrate(self, caller: RequestContext, volume_id: str, host: str, *, lock: bool = False) -> None:
        """Begin to migrate a volume to another pool.

        Args:
            host: of the pool; the part before `#`, by which services call it, is enough. lock: nobody may use the
                volume meanwhile.

        Raises:
            VolumeNotFound. InvalidInput: there is no such pool. InvalidVolume. Spec: EMV-36.
        """
        volume = await self._database.read(lambda conn: volumes.visible(conn, caller, volume_id))
        pool = next((pool for pool in self._environment.pools if host in (pool, pool.partition("#")[0])), None)
        if pool is None:
            raise InvalidInput(f"There is no storage pool {host}.")
        await self._migrate(caller, volume, MigrateVolume(host=pool, lock=lock))

    async def _migrate(self, caller: RequestContext, volume: Volume, request: MigrateVolume) -> None:
        operation = MIGRATE if volume.status is VolumeStatus.AVAILABLE else MIGRATE_IN_USE
        await self._work.begin(caller, operation, volume.id, request)

    async def retype(self, caller: RequestContext, volume_id: str, new_type: str, policy: str = "never") -> None:
        """Begin to give a volume another type. policy: never or on-demand, whether it may migrate for that.

        Raises:
            VolumeNotFound, VolumeTypeNotFound. InvalidInput: the policy, the same type, or another encryption.
            InvalidVolume. Spec: EMV-34.
        """
        if policy not in POLICIES:
            raise InvalidInput(f"migration_policy must be {' or '.join(POLICIES)}, not {policy!r}.")
        volume, type_ = await self._database.read(
            lambda conn: (volumes.visible(conn, caller, volume_id), volume_types.named(conn, caller, new_type))
        )
        if policy == "never" or not must_move(volume, type_):
            await self._work.begin(caller, RETYPE, volume_id, RetypeVolume(type_.id))
            return
        hosts = [host for host in self._environment.pools if fits(host, type_.extra_specs)]
        if not hosts:
            raise InvalidInput(f"No storage pool is as the type {type_.name} wants it.")
        await self._migrate(caller, volume, MigrateVolume(host=min(hosts), type_id=type_.id))

    async def complete(self, caller: RequestContext, volume_id: str, new_volume: str, *, error: bool) -> str:
        """Compute has switched a server from a volume to another, or could not.

        Returns:
            The volume that the server keeps in its records.

        Raises:
            VolumeNotFound. InvalidVolume: it migrates, but to another volume.
        """
        old, new = await self._database.read(
            lambda conn: (volumes.visible(conn, caller, volume_id), volumes.find(conn, new_volume))
        )
        if new is None or new.migration_target_of is None:
            if old.migration_status in IDLE_MIGRATIONS:  # swapped by a user, or told of before
                return old.id if error or new is None else new.id
            raise InvalidVolume(volume_id, f"does not migrate to volume {new_volume}")
        if new.migration_target_of != volume_id:
            raise InvalidVolume(volume_id, f"does not migrate to volume {new_volume}")
        await self._work.deliver(ExternalEvent(
            subject=volume_id, name=SWAPPED, tag=new_volume, status="failed" if error else "completed",
        ))
        return volume_id
