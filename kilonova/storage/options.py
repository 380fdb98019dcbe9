"""What an operator says about storage pools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

VOLUMES = "volumes"
"""Directory in the data directory where pools are that name no other."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A storage pool: a directory with volumes, and the daemon that serves them.

    Args:
        name: of the pool. directory: where it is; empty for one of that name in the data directory.
        format: of new volumes; `qcow2` has snapshots at no cost, `raw` is a little faster.
        listen: address on which other hosts reach its volumes; empty for a socket that only this host has.
        port: with `listen`. tls: directory with `ca-cert.pem`, `server-cert.pem` and `server-key.pem`; clients must
            then show a certificate of that authority. Empty for no encryption, on networks that only hosts are in.
    """

    name: str
    directory: str = ""
    format: Literal["qcow2", "raw"] = "qcow2"
    listen: str = ""
    port: int = 10809
    tls: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name {self.name!r} of a pool is not one of letters, digits, '_', '.' and '-'")
        for path in (self.directory, self.tls):
            if path and not path.startswith("/"):
                raise ValueError(f"the path {path!r} of pool {self.name} is not absolute")
        if self.tls and not self.listen:
            raise ValueError(f"pool {self.name} has certificates and no address to listen on")

    def within(self, data: Path) -> PoolOptions:
        """The same with a directory: one in the data directory, unless another is named."""
        return msgspec.structs.replace(self, directory=self.directory or str(data / VOLUMES / self.name))


class VolumeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Volumes."""

    pool: tuple[PoolOptions, ...] = ()
    """Places that keep volumes, each in a table `[[volume.pool]]` with `name`, `directory` (empty for one in the data
    directory), `format` (`qcow2` or `raw`), and to serve other hosts `listen`, `port` and `tls`."""
    default_pool: bool = True
    """Whether `kilonova up` with real guests has the pool `local` in the data directory when no pool is configured, and
    no `volume_service`."""
    default_volume_type: str = "__DEFAULT__"
    """Name of the type of volumes that are made without one. Projects may have another one for that."""

    def __post_init__(self) -> None:
        names = [pool.name for pool in self.pool]
        if len(names) != len(set(names)):
            raise ValueError("two pools have the same name")
