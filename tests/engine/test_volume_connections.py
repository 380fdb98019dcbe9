"""Servers keep their volumes while other things are done to them."""

from __future__ import annotations

from small_cloud import SmallCloud, in_cloud

from kilonova.domain.block_device import AttachState
from kilonova.hypervisor.volumes import NbdSource


def export(cloud: SmallCloud, uuid: str, volume: str) -> str:
    """Where the running guest has a volume from, "" for nowhere."""
    guest = cloud.guest(uuid)
    found = guest.volumes.get(volume) if guest is not None else None
    return found.running.export if found is not None and isinstance(found.running, NbdSource) else ""


@in_cloud()
async def test_a_hard_reboot_keeps_the_volumes(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    (device,) = cloud.devices(uuid)
    assert device.state is AttachState.ATTACHED
    assert export(cloud, uuid, volume) == device.attachment_id
    assert cloud.volumes.find(volume).status == "in-use"
