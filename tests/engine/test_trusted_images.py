"""Servers that trust only who holds certain certificates, and hosts that demand signatures of all images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from signed_images import Signer, elliptic, rules
from small_cloud import CONTEXT, IMAGE, SmallCloud, in_cloud

from kilonova.domain.image import Image
from kilonova.domain.operation import OperationState
from kilonova.domain.states import VmState
from kilonova.operations.rebuild import REBUILD, Origin, RebuildServer
from kilonova.operations.rescue import RESCUE, RescueServer
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded

OTHER = Image(id="33333333-3333-4333-8333-333333333333")
V = VmState


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return elliptic(tmp_path)


async def checks(cloud: SmallCloud, directory: Path, **options: Any) -> None:
    """Hosts that look at signatures, and have told so."""
    for hypervisor in cloud.hypervisors.values():
        hypervisor.signatures = rules(directory, **options)
    await cloud.restart(*cloud.hypervisors)


async def trusting(cloud: SmallCloud, signer: Signer) -> str:
    """A server that runs from an image whose signer it trusts."""
    uuid = await cloud.build(image=signer.signed(IMAGE, b""), trusted_certs=(signer.id,))
    await cloud.change(uuid, trusted_certs=(signer.id,))
    return uuid


def failed(cloud: SmallCloud, uuid: str, kind: str, why: str) -> None:
    """Fail unless the last operation of that kind failed on the only host that tried, for that reason."""
    fault = cloud.fault(uuid)
    assert fault is not None
    assert why in fault.message
    assert cloud.operation(uuid, kind).state is OperationState.FAILED


@pytest.mark.spec("BLD-95")
@pytest.mark.parametrize("why", ["it lacks img_signature", "is not trusted", "its data is not what was signed"])
def test_a_build_from_an_image_that_is_not_trusted_fails_for_good(why: str, tmp_path: Path, signer: Signer) -> None:
    """No other host is tried, and nothing is left."""
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        await checks(cloud, tmp_path)
        trusted = elliptic(tmp_path) if why == "is not trusted" else signer
        image = IMAGE if why == "it lacks img_signature" else signer.signed(IMAGE, b"")
        for hypervisor in cloud.hypervisors.values():
            hypervisor.faults.forged.add(IMAGE.id)
        request = cloud.new(image=image)
        request.instance.trusted_certs = (trusted.id,)
        uuid = await cloud.ask(request)
        await cloud.rest()
        failed(cloud, uuid, "build", why)
        assert cloud.server(uuid).vm_state is V.ERROR
        assert len(cloud.calls("create_disks")) == 1
        assert (cloud.guest(uuid), cloud.ports(uuid), cloud.claims(uuid)) == (None, [], [])
        assert [hypervisor.images for hypervisor in cloud.hypervisors.values()] == [{}, {}]

    story()


def test_a_server_goes_to_a_host_that_checks_what_it_trusts(tmp_path: Path, signer: Signer) -> None:
    @in_cloud(hosts=3)
    async def story(cloud: SmallCloud) -> None:
        cloud.hypervisors["host1"].signatures = rules(tmp_path)
        await cloud.restart("host1")
        await cloud.until(lambda: not cloud.active())
        image = signer.signed(IMAGE, b"")
        for _ in range(3):
            uuid = await cloud.build(image=image, trusted_certs=(signer.id,))
            assert cloud.server(uuid).host == "host1"

    story()


def test_a_host_may_demand_signatures_of_all_images(tmp_path: Path, signer: Signer) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        await checks(cloud, tmp_path, verify_glance_signatures=True)
        await cloud.build(image=signer.signed(IMAGE, b""))
        uuid = await cloud.ask(cloud.new())
        await cloud.rest()
        failed(cloud, uuid, "build", "it lacks img_signature")

    story()


def test_a_rebuild_from_an_image_that_is_not_trusted_leaves_the_guest_alone(tmp_path: Path, signer: Signer) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        await checks(cloud, tmp_path)
        uuid = await trusting(cloud, signer)
        before = Origin.of((await cloud.located(uuid)).instance)
        cloud.effects.clear()
        for image, stays in ((OTHER, True), (signer.signed(OTHER, b""), False)):
            after = msgspec.structs.replace(before, image=image, image_ref=image.id)
            await cloud.act(uuid, REBUILD, RebuildServer(before=before, after=after))
            await cloud.rest()
            server = cloud.server(uuid)
            assert (server.vm_state, server.image == before.image) == (V.ACTIVE, stays)
            if stays:
                failed(cloud, uuid, "rebuild", "it lacks img_signature")
                assert cloud.calls("power_off", "destroy") == []

    story()


def test_a_rescue_from_an_image_that_is_not_trusted_leaves_the_guest_alone(tmp_path: Path, signer: Signer) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        await checks(cloud, tmp_path)
        uuid = await trusting(cloud, signer)
        cloud.effects.clear()
        await cloud.act(uuid, RESCUE, RescueServer(image=OTHER, admin_password="secret"))
        await cloud.rest()
        failed(cloud, uuid, "rescue", "it lacks img_signature")
        assert cloud.server(uuid).vm_state is V.ACTIVE
        assert cloud.calls("power_off") == []
        guest = cloud.guest(uuid)
        assert guest is not None
        assert guest.rescue is None
        await cloud.act(uuid, RESCUE, RescueServer(image=signer.signed(OTHER, b""), admin_password="secret"))
        await cloud.rest()
        assert cloud.server(uuid).vm_state is V.RESCUED

    story()


def test_an_unshelve_waits_until_its_image_is_signed(tmp_path: Path, signer: Signer) -> None:
    """Nobody has signed the image that the service made of the server. Its owner can."""
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        await checks(cloud, tmp_path)
        uuid = await trusting(cloud, signer)
        await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
        await cloud.rest()
        await cloud.act(uuid, SHELVE_OFFLOAD, OffloadServer())
        await cloud.rest()
        await cloud.act(uuid, UNSHELVE_OFFLOADED, UnshelveOffloaded(wiring_timeout=30.0))
        await cloud.rest()
        failed(cloud, uuid, "unshelve-offloaded", "it lacks img_signature")
        server = cloud.server(uuid)
        assert (server.vm_state, server.host, cloud.claims(uuid)) == (V.SHELVED_OFFLOADED, None, [])
        (image,) = cloud.images.kept()
        cloud.images.images[image.id] = signer.signed(cloud.images.images[image.id], b"")
        await cloud.act(uuid, UNSHELVE_OFFLOADED, UnshelveOffloaded(wiring_timeout=30.0))
        await cloud.rest()
        assert cloud.server(uuid).vm_state is V.ACTIVE

    story()
