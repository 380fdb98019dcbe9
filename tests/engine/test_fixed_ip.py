"""Adding and removing fixed addresses."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from simulation.network import NETWORK
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.domain.errors import Conflict, InvalidInput, KilonovaError, NotFound, ServiceUnavailable
from kilonova.engine.operation import Operation
from kilonova.operations.fixed_ip import ADD_FIXED_IP, REMOVE_FIXED_IP, AddFixedIp, RemoveFixedIp

NEW = "10.0.0.100"


async def wait_for(cloud: SmallCloud, uuid: str, definition: Operation, request: msgspec.Struct) -> None:
    await cloud.compute.ask_and_wait(CONTEXT, await cloud.located(uuid), definition, request)


async def add(cloud: SmallCloud, uuid: str) -> None:
    await wait_for(cloud, uuid, ADD_FIXED_IP, AddFixedIp(NETWORK))


async def remove(cloud: SmallCloud, uuid: str, address: str) -> None:
    await wait_for(cloud, uuid, REMOVE_FIXED_IP, RemoveFixedIp(address))


def agree(cloud: SmallCloud, uuid: str, *addresses: str) -> None:
    """Record and network service know these addresses."""
    (port,) = cloud.ports(uuid)
    assert cloud.net.ports[port].addresses == addresses
    assert tuple(ip.address for vif in cloud.server(uuid).network_info for ip in vif.fixed_ips) == addresses


@pytest.mark.spec("FIP-01", "FIP-02", "FIP-03")
@in_cloud()
async def test_an_address_comes_and_goes(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.server(uuid)
    cloud.effects.clear()
    await add(cloud, uuid)
    agree(cloud, uuid, "10.0.0.5", NEW)
    added = cloud.server(uuid)
    await remove(cloud, uuid, "10.0.0.5")
    agree(cloud, uuid, NEW)
    removed = cloud.server(uuid)
    for earlier, later in ((before, added), (added, removed)):
        assert (earlier.updated_at or 0) < (later.updated_at or 0)
        assert (earlier.vm_state, earlier.task_state, earlier.power_state) == (
            later.vm_state, later.task_state, later.power_state)
    assert [name for _, name in cloud.calls()] == ["vifs", "add_address", "vifs", "vifs", "set_addresses", "vifs"]


@pytest.mark.spec("FIP-04")
@pytest.mark.parametrize(
    ("error", "raised"),
    [(Conflict("no address is left"), InvalidInput), (KilonovaError("a mistake"), KilonovaError)],
)
def test_a_refusal_changes_nothing_but_the_fault(error: KilonovaError, raised: type[Exception]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        cloud.net.fail["add_address"] = [error]
        with pytest.raises(raised, match=error.message):
            await add(cloud, uuid)
        agree(cloud, uuid, "10.0.0.5")
        assert cloud.server(uuid) == before
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == error.message

    story()


@pytest.mark.spec("FIP-05")
@in_cloud()
async def test_a_change_that_cannot_be_read_back_is_taken_back(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for change in (add(cloud, uuid), remove(cloud, uuid, "10.0.0.5")):
        waiting = asyncio.ensure_future(change)
        await cloud.until(lambda: cloud.calls("add_address", "set_addresses"))
        cloud.net.fail["vifs"] = [ServiceUnavailable("down")] * 4
        with pytest.raises(KilonovaError):
            await waiting
        cloud.net.fail.clear()
        cloud.effects.clear()
        await cloud.rest(debts=True)
        agree(cloud, uuid, "10.0.0.5")


@pytest.mark.spec("FIP-06")
@in_cloud()
async def test_several_changes_at_once_take_turns(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await asyncio.gather(add(cloud, uuid), add(cloud, uuid), remove(cloud, uuid, "10.0.0.5"))
    agree(cloud, uuid, NEW, "10.0.0.101")


@pytest.mark.spec("FIP-07")
@pytest.mark.parametrize("place", ["look", "add address", "read interfaces"])
def test_an_address_is_added_once_whatever_crashes(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        crashed: list[str] = []

        def die(process: str) -> None:
            crashed.append(process)
            cloud.crash(process)

        cloud.at[place] = die
        adding = asyncio.ensure_future(add(cloud, uuid))
        await cloud.until(lambda: crashed)
        await cloud.restart(*crashed)
        await adding
        agree(cloud, uuid, "10.0.0.5", NEW)

    story()


@in_cloud()
async def test_what_is_not_the_server_s_is_refused(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    with pytest.raises(InvalidInput, match="not associated"):
        await remove(cloud, uuid, "10.0.0.9")
    with pytest.raises(NotFound, match="no interface"):
        await wait_for(cloud, uuid, ADD_FIXED_IP, AddFixedIp("another"))
    agree(cloud, uuid, "10.0.0.5")
    assert cloud.operations(uuid, "add-fixed-ip") == []
