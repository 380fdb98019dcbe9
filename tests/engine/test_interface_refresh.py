"""What the network service tells of interfaces reaches the records of servers."""

from __future__ import annotations

import msgspec
import pytest
from simulation.process import SimClock
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.errors import ServiceUnavailable
from kilonova.domain.network import Vif
from kilonova.operations.interface_refresh import refresh_interfaces


async def refresh(cloud: SmallCloud, uuid: str, port_id: str = "") -> None:
    await refresh_interfaces(
        cloud.databases.cell, cloud.net.client(cloud.processes["api"]), SimClock(cloud.loop), uuid, port_id
    )


def readdress(cloud: SmallCloud, uuid: str) -> None:
    """Every port of the server has another address."""
    for number, port in enumerate(cloud.ports(uuid), start=20):
        cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], addresses=(f"10.0.0.{number}",))


def addresses(cloud: SmallCloud, uuid: str) -> list[str]:
    return [ip.address for vif in cloud.server(uuid).network_info for ip in vif.fixed_ips]


@pytest.mark.spec("EMN-62")
@in_cloud()
async def test_only_the_interface_that_changed_is_read_anew(cloud: SmallCloud) -> None:
    uuid = await cloud.build(networks=2)
    before = cloud.server(uuid)
    readdress(cloud, uuid)
    await refresh(cloud, uuid, cloud.ports(uuid)[1])
    assert addresses(cloud, uuid) == ["10.0.0.5", "10.0.0.21"]
    await refresh(cloud, uuid)
    assert addresses(cloud, uuid) == ["10.0.0.20", "10.0.0.21"]
    after = cloud.server(uuid)
    assert [vif.active for vif in after.network_info] == [vif.active for vif in before.network_info]
    await refresh(cloud, uuid)
    assert cloud.server(uuid) == after


@in_cloud()
async def test_an_interface_comes_and_goes_by_operations_only(cloud: SmallCloud) -> None:
    uuid = await cloud.build(networks=2)
    before = cloud.server(uuid).network_info
    del cloud.net.ports[cloud.ports(uuid)[0]]
    await refresh(cloud, uuid)
    assert cloud.server(uuid).network_info == before
    await cloud.change(uuid, network_info=before[:1])
    await refresh(cloud, uuid)
    assert cloud.server(uuid).network_info == before[:1]


@in_cloud()
async def test_a_server_that_is_gone_and_a_service_that_is_away(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.net.fail["vifs"] = [ServiceUnavailable("down")]
    with pytest.raises(ServiceUnavailable):
        await refresh(cloud, uuid)
    await cloud.delete(uuid)
    await cloud.rest()
    await refresh(cloud, uuid)


@pytest.mark.spec("PER-23")
@in_cloud()
async def test_what_was_read_before_another_change_does_not_replace_it(cloud: SmallCloud) -> None:
    """An interface is taken away while the network service answers."""
    uuid = await cloud.build(networks=2)
    before = cloud.server(uuid).network_info
    readdress(cloud, uuid)
    client = cloud.net.client(cloud.processes["api"])
    asked = client.vifs

    async def slow(instance_uuid: str) -> tuple[Vif, ...]:
        found = await asked(instance_uuid)
        if len(cloud.server(uuid).network_info) == 2:
            await cloud.change(uuid, network_info=before[1:])
            readdress(cloud, uuid)
        return found

    client.vifs = slow  # type: ignore[method-assign]
    await refresh_interfaces(cloud.databases.cell, client, SimClock(cloud.loop), uuid)
    assert [vif.id for vif in cloud.server(uuid).network_info] == [before[1].id]
    assert addresses(cloud, uuid) == ["10.0.0.21"]
