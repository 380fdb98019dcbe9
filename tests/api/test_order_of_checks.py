"""What is checked first when a request is wrong in several ways."""

from typing import Any

import pytest
from compute_cloud import OTHER_PROJECT, PROJECT, ComputeCloud

from kilonova.domain.states import VmState

NOBODY = "00000000-0000-4000-8000-000000000000"
GOOD: dict[str, Any] = {"reboot": {"type": "HARD"}}
BAD: dict[str, Any] = {"reboot": {"type": "LUKEWARM"}}


@pytest.mark.spec("API-044")
@pytest.mark.parametrize(("as_", "server", "version", "body", "status"), [
    (None, NOBODY, "2.105", BAD, 401),
    ("stranger", NOBODY, "2.105", BAD, 406),
    ("stranger", NOBODY, "2.104", BAD, 400),
    ("stranger", "locked", "2.104", GOOD, 404),
    ("reader", "locked", "2.104", GOOD, 403),
    ("member", "locked", "2.104", GOOD, 409),
    ("member", "suspended", "2.104", {"reboot": {"type": "SOFT"}}, 409),
    ("member", "active", "2.104", GOOD, 202),
], ids=lambda value: str(value))
async def test_of_a_server_action(
    cloud: ComputeCloud, as_: str | None, server: str, version: str, body: dict[str, Any], status: int
) -> None:
    """Each row mends what the row before was refused for."""
    known = {
        "locked": (await cloud.boot(locked_by="admin", vm_state=VmState.SUSPENDED)).uuid,
        "suspended": (await cloud.boot(vm_state=VmState.SUSPENDED)).uuid, "active": (await cloud.boot()).uuid,
    }
    answer = await cloud.post(f"/servers/{known.get(server, server)}/action", body, as_=as_, version=version)
    assert answer.status_code == status, answer.text


@pytest.mark.spec("API-044", "API-064")
async def test_lock_before_state(cloud: ComputeCloud) -> None:
    server = await cloud.boot(locked_by="admin", vm_state=VmState.PAUSED)
    refused = await cloud.post(f"/servers/{server.uuid}/action", {"os-start": None})
    assert refused.json()["conflictingRequest"]["message"] == f"Instance {server.uuid} is locked"


@pytest.mark.spec("API-044", "API-061")
async def test_policy_before_quota(cloud: ComputeCloud) -> None:
    many = {f"key{n}": "" for n in range(200)}
    path = f"/servers/{(await cloud.boot()).uuid}/metadata"
    for as_, expected in (("reader", "Policy doesn't allow"), ("member", "Maximum number of metadata items")):
        refused = await cloud.post(path, {"metadata": many}, as_=as_)
        assert refused.status_code == 403
        assert refused.json()["forbidden"]["message"].startswith(expected)


@pytest.mark.spec("API-101")
async def test_the_root_below_a_project(cloud: ComputeCloud) -> None:
    for as_, path, status in (("reader", f"/{PROJECT}/", 200), ("reader", f"/{OTHER_PROJECT}/", 400),
                              (None, f"/{PROJECT}/", 401), ("reader", f"/{PROJECT}", 404)):
        assert (await cloud.get(path, as_=as_)).status_code == status
    assert (await cloud.get(f"/{PROJECT}/")).json() == (await cloud.get("/", as_=None)).json()
    assert (await cloud.get("", as_=None)).json() == (await cloud.get("/", as_=None)).json()
