"""What the operations of the volume service work with."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import ServiceUnavailable
from kilonova.services.image import ImageService
from kilonova.storage.pool import StoragePool


class ComputeServers(Protocol):
    """What the volume service asks of the compute service, with the credentials of a service."""

    async def tell(self, event: str, server: str, *, volume: str, status: str = "completed") -> None:
        """Send an external event with the volume as its tag. Spec: EMV-27, EMV-38, EMV-42.

        Raises:
            NotFound, InvalidInput: the server does not await it. Retryable: no answer.
        """
        ...

    async def swap_volume(self, server: str, old: str, new: str) -> None:
        """Let a server copy a volume to another one and use that. Repeating it changes nothing.

        Raises:
            KilonovaError: it is refused. Retryable: no answer.
        """
        ...

    async def holds(self, server: str, volume: str, attachment: str) -> bool:
        """Whether a server uses a volume by this attachment. Raises Retryable: no answer. Spec: EMV-22, EMV-23."""
        ...


class VolumeKeys:
    """Passphrases of encrypted volumes: derived from the installation's key, so that none is kept.

    Args:
        key: of the installation, random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def passphrase(self, key_id: str) -> str:
        """What a volume with this `encryption_key_id` is encrypted with."""
        return hmac.new(self._key, b"volume " + key_id.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class VolumeEnvironment:
    """Args:
    pools: by the host that volumes in them show, `host@backend#pool`.
    keys: None if no volume can be encrypted.
    directory: of the service's own files: data on their way, and backups.
    """

    database: Database
    pools: Mapping[str, StoragePool]
    images: ImageService
    compute: ComputeServers
    keys: VolumeKeys | None
    clock: Clock
    directory: Path

    def pool(self, host: str) -> StoragePool:
        """Raises ServiceUnavailable: it is not one of this service's any more."""
        found = self.pools.get(host)
        if found is None:
            raise ServiceUnavailable(f"Storage pool {host} is not configured.", hint="configure it again")
        return found

    def staged(self, operation_id: str) -> Path:
        """Where an operation may put data on their way."""
        return self.directory / "staging" / operation_id

    def backup(self, backup_id: str) -> Path:
        """The file of a backup, a qcow2."""
        return self.directory / "backups" / backup_id

    def passphrase(self, key_id: str | None) -> str | None:
        """Raises ServiceUnavailable: the volume is encrypted and there is no key manager."""
        if key_id is None:
            return None
        if self.keys is None:
            raise ServiceUnavailable("There is no key manager.", hint="configure one")
        return self.keys.passphrase(key_id)
