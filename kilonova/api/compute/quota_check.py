"""Quotas on servers: the limits of a project, what it uses, and refusing what is too much.

Spec: API-058 to API-061, API-640, API-641.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from kilonova.cells.registry import Cells
from kilonova.db import server_usage
from kilonova.db.server_usage import Usage
from kilonova.domain.errors import OverQuota
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance
from kilonova.shapes.resources import is_volume_backed, local_gib

UNLIMITED = -1


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one project (or user in it); -1 is none. ram in MiB, disk in GiB, contents in bytes. Spec: API-640."""

    instances: int = 10
    cores: int = 20
    ram: int = 51200
    disk: int = UNLIMITED
    metadata_items: int = 128
    key_pairs: int = 100
    server_groups: int = 10
    server_group_members: int = 10
    injected_files: int = 5
    injected_file_content_bytes: int = 10240
    injected_file_path_bytes: int = 255


class Quotas(Protocol):
    """Limits and usage of a project."""

    async def limits(self, project_id: str, user_id: str | None = None) -> Limits:
        """What the project may use, or that user in it."""
        ...

    async def usage(self, project_id: str, user_id: str | None = None) -> Usage:
        """What the servers of the project take, those without a cell included."""
        ...


class RecordQuotas:
    """The same limits for every project; usage counted from the records."""

    def __init__(self, cells: Cells, limits: Limits | None = None) -> None:
        self._cells = cells
        self._limits = limits or Limits()

    async def limits(self, project_id: str, user_id: str | None = None) -> Limits:
        return self._limits

    async def usage(self, project_id: str, user_id: str | None = None) -> Usage:
        return await count_usage(self._cells, project_id, user_id)


async def count_usage(cells: Cells, project_id: str, user_id: str | None = None) -> Usage:
    """Count servers, cores, memory and disks from build requests and cells; a server in both counts once."""
    waiting = await cells.api.read(lambda conn: server_usage.of_build_requests(conn, project_id, user_id))
    total = Usage()
    for cell in cells.all:
        used, handed_over = await cell.database.read(
            lambda conn: (
                server_usage.of_instances(conn, project_id, user_id),
                server_usage.known(conn, list(waiting)),
            )
        )
        total = total.plus(used)
        for uuid in handed_over:
            waiting.pop(uuid, None)
    for used in waiting.values():
        total = total.plus(used)
    return total


async def allowed_count(
    quotas: Quotas, project_id: str, user_id: str, flavor: Flavor, fewest: int, most: int, *, volume_backed: bool
) -> int:
    """How many servers of this flavor may be made: `most`, or fewer but at least `fewest`.

    Raises:
        OverQuota: there is no room for `fewest`. Spec: API-059.
    """
    limits = await quotas.limits(project_id, user_id)
    sizes = {"instances": 1, **_sizes(flavor, volume_backed=volume_backed)}
    bounded = {name: limit for name in sizes if (limit := getattr(limits, name)) != UNLIMITED}
    if not bounded:
        return most
    usage = await quotas.usage(project_id)
    room = most
    for name, limit in bounded.items():
        if sizes[name]:
            room = min(room, max(0, limit - getattr(usage, name)) // sizes[name])
    if room >= fewest:
        return room
    raise _too_much(bounded, usage, {name: size * fewest for name, size in sizes.items()})


async def check_growth(quotas: Quotas, instance: Instance, flavor: Flavor) -> None:
    """Whether a server may have another flavor: what it takes more than now must fit.

    Raises:
        OverQuota: cores, memory or disks would exceed the limits of its project. Spec: API-059, API-061.
    """
    volume_backed = is_volume_backed(instance.block_devices)
    now, then = (_sizes(one, volume_backed=volume_backed) for one in (instance.flavor, flavor))
    more = {name: size - now[name] for name, size in then.items()}
    limits = await quotas.limits(instance.project_id, instance.user_id)
    bounded = {
        name: limit for name, wanted in more.items() if wanted > 0 and (limit := getattr(limits, name)) != UNLIMITED
    }
    if not bounded:
        return
    usage = await quotas.usage(instance.project_id)
    if any(getattr(usage, name) + more[name] > limit for name, limit in bounded.items()):
        raise _too_much(bounded, usage, more)


def _sizes(flavor: Flavor, *, volume_backed: bool) -> dict[str, int]:
    """What a server of this flavor takes of what has a limit."""
    disk = local_gib(flavor, volume_backed=volume_backed)
    return {"cores": flavor.vcpus, "ram": flavor.memory_mib, "disk": disk}


def _too_much(bounded: Mapping[str, int], usage: Usage, asked: Mapping[str, int]) -> OverQuota:
    """What is asked beyond the limits. Spec: API-059."""
    over = [name for name, limit in bounded.items() if asked[name] + getattr(usage, name) > limit]
    names = ", ".join(over)
    return OverQuota(
        f"Quota exceeded for {names}: Requested {', '.join(str(asked[name]) for name in over)}, but already used "
        f"{', '.join(str(getattr(usage, name)) for name in over)} of {', '.join(str(bounded[name]) for name in over)} "
        f"{names}"
    )


def check_metadata(limits: Limits, count: int) -> None:
    """Raises OverQuota for more metadata items than allowed. Spec: API-060."""
    if limits.metadata_items != UNLIMITED and count > limits.metadata_items:
        raise OverQuota(f"Maximum number of metadata items exceeds {limits.metadata_items}")
