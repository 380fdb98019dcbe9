"""Actions that are refused because of what a guest has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from compute_cloud import CIRROS, TINY, ComputeCloud

from kilonova.domain.image import Image
from kilonova.domain.states import VmState

TPM = {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb"}
ACCELERATED = {"accel:device_profile": "fpga"}
LUKS = {"hw:ephemeral_encryption": "true"}
ENCRYPTED = {"hw:mem_encryption": "true"}


@pytest.mark.spec("API-068", "API-069")
@pytest.mark.parametrize(("specs", "body"), [
    (TPM, {"rebuild": {"imageRef": CIRROS}}), (TPM, {"shelve": None}), (TPM, {"rescue": None}),
    (ACCELERATED, {"suspend": None}), (ACCELERATED, {"resize": {"flavorRef": "1"}}), (ENCRYPTED, {"suspend": None}),
    (LUKS, {"shelve": None}), (LUKS, {"createImage": {"name": "i"}}),
    (LUKS, {"createBackup": {"name": "i", "backup_type": "daily", "rotation": 1}}),
])
async def test_a_feature_is_refused_before_lock_and_states(
    cloud: ComputeCloud, specs: dict[str, str], body: dict[str, Any]
) -> None:
    await cloud.flavor()
    image = Image(id=CIRROS, properties={"hw_firmware_type": "uefi"})
    flavor = msgspec.structs.replace(TINY, extra_specs=specs)
    server = await cloud.boot(flavor=flavor, image=image, locked_by="admin", vm_state=VmState.PAUSED)
    answer = await cloud.post(f"/servers/{server.uuid}/action", body)
    assert answer.status_code == 400, answer.text
    assert cloud.compute.asked == []


@pytest.mark.parametrize(("specs", "body"), [
    (TPM, {"suspend": None}), (TPM, {"pause": None}), (ENCRYPTED, {"shelve": None}),
    ({"hw:tpm_secret_security": "user"}, {"shelve": None}),
])
async def test_what_the_feature_does_not_forbid_is_allowed(
    cloud: ComputeCloud, specs: dict[str, str], body: dict[str, Any]
) -> None:
    image = Image(id=CIRROS, properties={"hw_firmware_type": "uefi"})
    server = await cloud.boot(flavor=msgspec.structs.replace(TINY, extra_specs=specs), image=image)
    assert (await cloud.post(f"/servers/{server.uuid}/action", body)).status_code == 202


async def test_encryption_of_disks_does_not_change(cloud: ComputeCloud) -> None:
    await cloud.flavor()
    await cloud.flavor(msgspec.structs.replace(TINY, flavor_id="luks", name="luks", vcpus=1, extra_specs=LUKS))
    server = await cloud.boot(image=Image(id=CIRROS))
    encrypted = await cloud.boot(image=Image(id=CIRROS), flavor=msgspec.structs.replace(TINY, extra_specs=LUKS))
    image = cloud.images.add(properties={"hw_ephemeral_encryption": "true"})
    for one, body in (
        (server, {"resize": {"flavorRef": "luks"}}), (server, {"rebuild": {"imageRef": image.id}}),
    ):
        answer = await cloud.post(f"/servers/{one.uuid}/action", body)
        assert (answer.status_code, "cannot be changed" in answer.text) == (400, True), answer.text
    answer = await cloud.post(f"/servers/{encrypted.uuid}/action", {"rebuild": {"imageRef": image.id}})
    assert answer.status_code == 202, answer.text
