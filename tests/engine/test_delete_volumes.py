"""Deleting servers with volumes: none stays attached, and those that were to go with the server go."""

from __future__ import annotations

import pytest
from asked_volumes import WITHOUT_ID, of_image, of_user
from small_cloud import SmallCloud, in_cloud


@pytest.mark.spec("DEL-05", "DEL-13", "DEL-14", "DEL-16", "DEL-23", "DEL-41")
@in_cloud()
async def test_volumes_are_freed_and_those_that_go_with_the_server_deleted(cloud: SmallCloud) -> None:
    brought = cloud.volumes.add()
    uuid = await cloud.build(
        image=WITHOUT_ID, block_devices=(of_image(delete_on_termination=True), of_user(brought)),
    )
    late = await cloud.attach(uuid)
    await cloud.delete(uuid)
    await cloud.rest(debts=True)
    cloud.gone(uuid)
    assert cloud.devices(uuid) == []
    assert set(cloud.volumes.volumes) == {brought, late}
    assert {cloud.volumes.find(one).status for one in (brought, late)} == {"available"}
    assert not cloud.volumes.held
