"""Creating servers with accelerators, and what cannot be done with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest
from compute_cloud import NETWORK, TINY, ComputeCloud, compute_cloud, create
from cyborg import FPGA, StandIn

from kilonova.domain.errors import ServiceUnavailable
from kilonova.services.cyborg import Cyborg
from kilonova.shapes.accelerators import DEVICE_PROFILE


class Direct(StandIn):
    """Called without HTTP."""

    away = False

    async def __call__(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        if self.away:
            raise ServiceUnavailable("The accelerator service does not answer.")
        return self.answer(method, path, query or {}, body)[1]


@pytest.fixture
def service() -> Direct:
    return Direct()


@pytest.fixture
async def cloud(service: Direct) -> AsyncIterator[ComputeCloud]:
    async with compute_cloud(accelerators=Cyborg(service)) as running:
        yield running


async def flavor(cloud: ComputeCloud, profile: str) -> None:
    specs = {DEVICE_PROFILE: profile, "hw:cpu_sockets": "1"}
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="f", name="f", extra_specs=specs))


@pytest.mark.spec("EMP-09")
async def test_the_profile_is_kept_with_what_was_asked(cloud: ComputeCloud, service: Direct) -> None:
    await flavor(cloud, "fpga")
    service.profiles["fpga"][0]["trait:CUSTOM_FAST"] = "required"
    answer = await create(cloud, flavorRef="f", networks=[{"uuid": NETWORK}])
    assert answer.status_code == 202, answer.text
    (request,) = cloud.compute.created
    shown = {DEVICE_PROFILE: "fpga", "hw:cpu_sockets": "1"}
    assert request.instance.flavor.extra_specs == shown
    assert request.spec.flavor.extra_specs == {
        **shown, f"resources_device_profile_0:{FPGA}": "1", "trait_device_profile_0:CUSTOM_FAST": "required",
    }
    assert service.calls == ["GET /v2/device_profiles name=fpga"]


@pytest.mark.parametrize(("profile", "said"), [
    ("unknown", "Device profile unknown could not be found."), ("empty", "Device profile empty asks for no device."),
])
async def test_a_profile_that_cannot_be_is_refused(cloud: ComputeCloud, profile: str, said: str) -> None:
    await flavor(cloud, profile)
    answer = await create(cloud, flavorRef="f")
    assert (answer.status_code, answer.json()["badRequest"]["message"]) == (400, said)
    assert cloud.compute.created == []


async def test_without_the_service_nothing_is_accepted(cloud: ComputeCloud, service: Direct) -> None:
    await flavor(cloud, "fpga")
    service.away = True
    answer = await create(cloud, flavorRef="f")
    assert answer.status_code == 503
    assert cloud.compute.created == []


@pytest.mark.parametrize(("action", "body"), [
    ("resize", {"flavorRef": "1"}), ("migrate", None), ("suspend", None),
    ("os-migrateLive", {"host": None, "block_migration": False, "disk_over_commit": False}),
])
async def test_what_such_servers_cannot_do(cloud: ComputeCloud, action: str, body: Any) -> None:
    await cloud.flavor()
    server = await cloud.boot(flavor=msgspec.structs.replace(TINY, extra_specs={DEVICE_PROFILE: "fpga"}))
    answer = await cloud.post(f"/servers/{server.uuid}/action", {action: body}, as_="admin")
    assert answer.status_code == 400
    assert "accelerators" in answer.json()["badRequest"]["message"]
