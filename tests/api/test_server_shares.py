"""Shares of servers, in a cloud without a share service."""

from __future__ import annotations

from typing import Any

import pytest
from compute_cloud import ComputeCloud

from kilonova.domain.states import VmState

SHARE = "77777777-7777-4777-8777-777777777777"
ATTACH = {"share": {"share_id": SHARE}}


async def status(cloud: ComputeCloud, method: str, path: str, body: Any = None, **more: Any) -> int:
    more = {"json": body, "version": "2.97", **more} if body is not None else {"version": "2.97", **more}
    return (await cloud.request(method, path, **more)).status_code


async def test_servers_have_no_shares(cloud: ComputeCloud) -> None:
    path = f"/servers/{(await cloud.boot(vm_state=VmState.STOPPED)).uuid}/shares"
    assert (await cloud.get(path, as_="reader", version="2.97")).json() == {"shares": []}
    assert await status(cloud, "GET", path, version="2.96") == 404
    assert await status(cloud, "GET", path, as_="nobody") == 403
    assert await status(cloud, "GET", f"{path}/{SHARE}", as_="reader") == 404
    assert await status(cloud, "DELETE", f"{path}/{SHARE}") == 404
    assert await status(cloud, "POST", path, ATTACH) == 404
    assert await status(cloud, "POST", path, ATTACH, as_="reader") == 403


@pytest.mark.parametrize("share", [{}, {"share_id": "x"}, {"share_id": SHARE, "tag": "a_b"},
                                   {"share_id": SHARE, "tag": "x" * 256}, {"share_id": SHARE, "mode": "rw"}])
async def test_bodies_are_checked(cloud: ComputeCloud, share: dict[str, str]) -> None:
    path = f"/servers/{(await cloud.boot(vm_state=VmState.STOPPED)).uuid}/shares"
    assert await status(cloud, "POST", path, {"share": share}) == 400


async def test_lock_and_states_come_first(cloud: ComputeCloud) -> None:
    for fields, attach, detach in (
        ({"vm_state": VmState.ACTIVE}, 409, 409), ({"vm_state": VmState.ERROR}, 409, 404),
        ({"vm_state": VmState.STOPPED, "locked_by": "admin"}, 409, 409),
    ):
        path = f"/servers/{(await cloud.boot(**fields)).uuid}/shares"
        assert await status(cloud, "POST", path, ATTACH) == attach
        assert await status(cloud, "DELETE", f"{path}/{SHARE}") == detach
