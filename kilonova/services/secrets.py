"""Secrets of servers as a host needs them: what the state of a TPM or a disk is encrypted with."""

from __future__ import annotations

import enum
from typing import Protocol

from kilonova.domain.errors import NotFound, NotSupported
from kilonova.services.volumes import VolumeService


class Purpose(enum.StrEnum):
    """What a secret of a server is for; a server has at most one of each."""

    TPM = "tpm"
    DISKS = "disks"


class SecretStore(Protocol):
    """A store that encrypts what it keeps. All calls may be repeated."""

    async def make(self, instance: str, purpose: Purpose, owner: str) -> None:
        """Make a secret of a server at random, unless it has one.

        Args:
            owner: the id of the user whose it is, "" for the deployment's own.

        Raises:
            InstanceNotFound: there is no such server, or no more. NotSupported: nothing is kept here.
        """
        ...

    async def value(self, instance: str, purpose: Purpose) -> str:
        """The secret, as text. Raises NotFound."""
        ...


class VolumeKeys(Protocol):
    """What the encrypted volumes of servers are opened with."""

    async def passphrase(self, instance: str, volume_id: str) -> str:
        """That of a volume which the server has, or is being given. Raises NotFound."""
        ...


class VolumeServiceKeys:
    """The keys that the volume service knows. volumes: the service."""

    def __init__(self, volumes: VolumeService) -> None:
        self._volumes = volumes

    async def passphrase(self, instance: str, volume_id: str) -> str:
        return await self._volumes.passphrase(volume_id)


class NoVolumeKeys:
    """The store of a host that reaches none."""

    async def passphrase(self, instance: str, volume_id: str) -> str:
        raise NotFound(f"The key of volume {volume_id} of instance {instance} is not known on this host.")


class NoSecrets:
    """The store of a host that reaches none."""

    async def make(self, instance: str, purpose: Purpose, owner: str) -> None:
        raise NotSupported("This host reaches no store of secrets.")

    async def value(self, instance: str, purpose: Purpose) -> str:
        raise NotFound(f"The secret of instance {instance} for its {purpose} is not known on this host.")
