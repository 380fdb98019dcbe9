"""Building servers with volumes: reserving them, making them, connecting them to a host, and giving up."""

from __future__ import annotations

import pytest
from asked_volumes import ROOT, WITHOUT_ID, of_image, of_user
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.block_device import AttachState


@pytest.mark.spec("BDM-15", "BDM-21", "BDM-33")
@in_cloud()
async def test_a_server_boots_from_a_volume_that_is_made_for_it(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    uuid = await cloud.build(image=WITHOUT_ID, block_devices=(of_image(), of_user(brought)))
    root, other = cloud.devices(uuid)
    assert {root.state, other.state} == {AttachState.ATTACHED}
    assert (root.volume_id, other.volume_id) == (ROOT, brought)
    for device in (root, other):
        assert device.attachment_id and device.connection_info and device.volume_id
        assert cloud.volumes.find(device.volume_id).status == "in-use"
    guest = cloud.guest(uuid)
    assert guest is not None
    assert set(guest.volumes) == {ROOT, brought}
    assert cloud.server(uuid).root_device_name == "/dev/vda"
    assert cloud.server(uuid).image_ref == ""
