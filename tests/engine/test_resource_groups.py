"""Servers whose flavors ask for groups of resources, each of one provider of their host."""

from __future__ import annotations

import uuid as uuids

import msgspec
import sqlalchemy as sa
from small_cloud import FLAVOR, SmallCloud, in_cloud

from kilonova.db import placement
from kilonova.db.placement import Inventory
from kilonova.db.placement.providers import inventories_of
from kilonova.db.placement.trees import groups_held
from kilonova.domain.states import VmState
from kilonova.operations.confirm_resize import CONFIRM_RESIZE, ConfirmResize
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize

CLASS = "CUSTOM_X"


def asking(*amounts: int, memory: int = FLAVOR.memory_mib, policy: str = "isolate") -> object:
    specs = {f"resources{number}:{CLASS}": str(amount) for number, amount in enumerate(amounts, start=1)}
    return msgspec.structs.replace(FLAVOR, memory_mib=memory, extra_specs={**specs, "group_policy": policy})


async def give(cloud: SmallCloud, host: str, *amounts: int) -> list[str]:
    """The host has that much of the class below it, in one provider each."""
    made, root = [str(uuids.uuid4()) for _ in amounts], cloud.provider(host)

    def unit(conn: sa.Connection) -> None:
        for uuid, amount in zip(made, amounts, strict=True):
            placement.create_provider(conn, uuid, uuid, parent=root, now=1.0)
            placement.set_inventories(conn, uuid, {CLASS: Inventory(total=amount)})

    await cloud.databases.api.write(unit)
    return made


def served(cloud: SmallCloud, consumer: str) -> dict[str, str]:
    found: dict[str, str] = cloud.api(
        lambda conn: {suffix: one.provider for suffix, one in groups_held(conn, consumer).items()}
    )
    return found


def left(cloud: SmallCloud, providers: list[str]) -> list[dict[str, int]]:
    found: list[dict[str, int]] = cloud.api(lambda conn: [
        {name: one.used for name, one in inventories_of(
            conn, placement.find_provider(conn, uuid).id).items()} for uuid in providers
    ])
    return found


@in_cloud(hosts=2)
async def test_a_server_goes_where_its_groups_are_served_and_takes_them_with_it(cloud: SmallCloud) -> None:
    one, two = await give(cloud, "host1", 4, 4)
    uuid = await cloud.build(flavor=asking(3, 4))
    assert cloud.server(uuid).host == "host1"
    assert served(cloud, uuid) == {"1": one, "2": two}
    assert cloud.held(uuid)[uuid][CLASS] in (3, 4)
    other = await cloud.ask(cloud.new(flavor=asking(2)))
    await cloud.rest()
    fault = cloud.fault(other)
    assert cloud.server(other).vm_state is VmState.ERROR
    assert fault is not None and "each of the groups" in fault.message
    await cloud.delete(uuid)
    await cloud.rest()
    assert (served(cloud, uuid), left(cloud, [one, two])) == ({}, [{CLASS: 0}, {CLASS: 0}])
    cloud.nothing_left(uuid)


@in_cloud()
async def test_a_resize_holds_the_groups_of_both_flavors_until_it_is_decided(cloud: SmallCloud) -> None:
    one, two = await give(cloud, "host0", 4, 4)
    for decision in (CONFIRM_RESIZE, REVERT_RESIZE):
        uuid = await cloud.build(flavor=asking(2))
        assert served(cloud, uuid) == {"1": one}
        await cloud.act(uuid, RESIZE, ResizeServer(flavor=asking(3, memory=1024)))  # type: ignore[arg-type]
        await cloud.rest()
        (migration,) = cloud.migrations(uuid)
        assert (served(cloud, uuid), served(cloud, migration.uuid)) == ({"1": two}, {"1": one})
        await cloud.act(uuid, decision, ConfirmResize() if decision is CONFIRM_RESIZE else RevertResize())
        await cloud.rest()
        kept = {"1": two} if decision is CONFIRM_RESIZE else {"1": one}
        assert (served(cloud, uuid), served(cloud, migration.uuid)) == (kept, {})
        assert [x[CLASS] for x in left(cloud, [one, two])] == ([0, 3] if decision is CONFIRM_RESIZE else [2, 0])
        await cloud.delete(uuid)
        await cloud.rest()
        assert left(cloud, [one, two]) == [{CLASS: 0}, {CLASS: 0}]
