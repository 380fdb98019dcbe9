"""The image cache: fetched once, whole or not at all, inspected before anything else reads it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from libvirt_installations import FileImages, empty_guest
from signed_images import elliptic, rules

from kilonova.domain.errors import InvalidInput, KilonovaError, Retryable, TryElsewhere
from kilonova.domain.image import Image
from kilonova.hypervisor.libvirt.daemon import SystemDaemon
from kilonova.hypervisor.libvirt.disks import GuestDisks
from kilonova.hypervisor.libvirt.images import ImageCache
from kilonova.metadata.vendor_data import VendorData

MIB = 1 << 20


@pytest.fixture
def images() -> FileImages:
    return FileImages()


@pytest.fixture
async def cache(tmp_path: Path, images: FileImages) -> AsyncIterator[ImageCache]:
    workers = ThreadPoolExecutor(4)
    cache = ImageCache(tmp_path / "cache", images, rules(tmp_path / "certificates"), workers)
    cache.prepare()
    yield cache
    workers.shutdown()


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def qcow2(path: Path, size: str = "4M") -> Path:
    qemu_img("create", "-q", "-f", "qcow2", path, size)
    return path


def cached(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "cache").iterdir())


@pytest.mark.spec("IMC-12")
async def test_an_image_asked_for_at_once_is_fetched_once(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    image = images.add(qcow2(tmp_path / "a"))
    images.hold = asyncio.Event()
    asking = [asyncio.create_task(cache.get(image, None)) for _ in range(5)]
    while not images.fetches:  # noqa: ASYNC110 - the cache has no event for it
        await asyncio.sleep(0)
    images.hold.set()
    got = await asyncio.gather(*asking)
    assert images.fetches == {image.id: 1}
    assert {one.path.name for one in got} == {f"{image.id}.qcow2"}
    assert got[0].virtual_size == 4 * MIB
    await cache.get(image, None)
    assert images.fetches == {image.id: 1}


@pytest.mark.spec("IMC-12")
async def test_one_image_does_not_wait_for_another(cache: ImageCache, images: FileImages, tmp_path: Path) -> None:
    slow, quick = images.add(qcow2(tmp_path / "a")), images.add(qcow2(tmp_path / "b"))
    await cache.get(quick, None)
    images.hold = asyncio.Event()
    waiting = asyncio.create_task(cache.get(slow, None))
    await asyncio.wait_for(cache.get(quick, None), 10)
    assert not waiting.done()
    images.hold.set()
    await waiting


@pytest.mark.spec("IMC-07", "IMC-12")
async def test_a_fetch_that_is_cut_leaves_nothing(cache: ImageCache, images: FileImages, tmp_path: Path) -> None:
    image = images.add(qcow2(tmp_path / "a"))
    images.hold = asyncio.Event()
    fetching = asyncio.create_task(cache.get(image, None))
    while not images.fetches:  # noqa: ASYNC110
        await asyncio.sleep(0)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert cached(tmp_path) == []
    images.hold = None
    await cache.get(image, None)
    assert cached(tmp_path) == [f"{image.id}.qcow2"]


@pytest.mark.spec("IMC-07")
async def test_what_a_killed_process_left_is_removed(cache: ImageCache, tmp_path: Path) -> None:
    (tmp_path / "cache" / ".x.qcow2.0000.partial").write_bytes(b"half")
    cache.prepare()
    assert cached(tmp_path) == []


async def test_bytes_that_are_not_all_there_are_fetched_again(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    image = images.add(qcow2(tmp_path / "a"), size=10 * MIB)
    with pytest.raises(Retryable, match="did not arrive whole"):
        await cache.get(image, None)
    wrong = msgspec.structs.replace(images.add(qcow2(tmp_path / "b")), checksum="0" * 32)
    with pytest.raises(Retryable):
        await cache.get(wrong, None)
    digest = hashlib.md5((tmp_path / "b").read_bytes(), usedforsecurity=False).hexdigest()
    await cache.get(msgspec.structs.replace(wrong, checksum=digest), None)
    assert cached(tmp_path) == [f"{wrong.id}.qcow2"]


async def test_an_image_that_names_another_file_is_refused(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", tmp_path / "evil", "4M")
    with pytest.raises(InvalidInput, match="backing file"):
        await cache.get(images.add(tmp_path / "evil"), None)
    assert cached(tmp_path) == []


async def test_an_image_that_is_not_what_it_claims_is_refused(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(b"hello" * 1000)
    with pytest.raises(InvalidInput):
        await cache.get(images.add(tmp_path / "text"), None)
    with pytest.raises(InvalidInput):
        await cache.get(images.add(qcow2(tmp_path / "q"), disk_format="raw"), None)
    assert cached(tmp_path) == []


async def test_an_image_larger_than_the_disk_is_refused(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    image = images.add(qcow2(tmp_path / "a", "2G"))
    await cache.get(image, 2 << 30)
    with pytest.raises(InvalidInput, match="exceeds"):
        await cache.get(image, 1 << 30)


async def test_a_foreign_format_becomes_qcow2(cache: ImageCache, images: FileImages, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"kilonova" * 8192)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", tmp_path / "raw", tmp_path / "a.vmdk")
    base = await cache.get(images.add(tmp_path / "a.vmdk", disk_format="vmdk"), None)
    assert (base.format, base.virtual_size) == ("qcow2", 65536)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", base.path, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"kilonova" * 8192
    assert cached(tmp_path) == [base.path.name]


async def test_an_image_on_this_machine_is_copied(cache: ImageCache, images: FileImages, tmp_path: Path) -> None:
    images.local = True
    source = qcow2(tmp_path / "a")
    base = await cache.get(images.add(source), None)
    assert images.fetches == {}
    assert base.path.read_bytes() == source.read_bytes()
    assert base.path.stat().st_ino != source.stat().st_ino


async def test_a_full_disk_sends_the_guest_elsewhere(images: FileImages, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"\x01" * 3 * MIB)
    workers = ThreadPoolExecutor(2)
    with small_disk(tmp_path / "small"):
        cache = ImageCache(tmp_path / "small" / "cache", images, rules(tmp_path / "certificates"), workers)
        cache.prepare()
        announced = images.add(tmp_path / "large", disk_format="raw")
        unannounced = images.add(tmp_path / "large", disk_format="raw", size=0)
        packed = tmp_path / "packed"  # little to fetch, much to convert
        qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", tmp_path / "large", packed)
        for image in (announced, unannounced, images.add(packed, disk_format="vmdk")):
            with pytest.raises(TryElsewhere, match="no disk space") as raised:
                await cache.get(image, None)
            assert raised.value.hint
        assert list((tmp_path / "small" / "cache").iterdir()) == []
    workers.shutdown()


def nothing() -> set[str]:
    return set()


@pytest.mark.spec("IMC-04")
async def test_an_image_that_is_used_or_young_stays(cache: ImageCache, images: FileImages, tmp_path: Path) -> None:
    used, young, old = (images.add(qcow2(tmp_path / name)) for name in "abc")
    for image in (used, old):
        assert await cache.fetch(image)
        os.utime(tmp_path / "cache" / f"{image.id}.qcow2", (1000.0, 1000.0))
    assert await cache.fetch(young)
    assert not await cache.fetch(young)
    (tmp_path / "cache" / "notes.txt").write_text("not an image")
    removed = await cache.age(lambda: {f"{used.id}.qcow2"}, now=time.time(), minimum_age=100.0)
    assert removed == [old.id]
    assert cached(tmp_path) == sorted([f"{used.id}.qcow2", f"{young.id}.qcow2", "notes.txt"])
    assert await cache.fetch(old)  # it comes again when it is needed


@pytest.mark.spec("IMC-04")
async def test_an_image_that_is_asked_for_is_young_again(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    image = images.add(qcow2(tmp_path / "a"))
    path = (await cache.get(image, None)).path
    os.utime(path, (1000.0, 1000.0))
    await cache.get(image, None)
    assert await cache.age(nothing, now=time.time(), minimum_age=100.0) == []


@pytest.mark.spec("IMC-04", "IMC-07")
@pytest.mark.parametrize("moment", ["before", "during"])
async def test_an_image_that_a_disk_is_being_made_of_stays(
    cache: ImageCache, images: FileImages, tmp_path: Path, moment: str
) -> None:
    """Even if no age is asked for, and although its disk was not there when the disks were looked at."""
    image = images.add(qcow2(tmp_path / "a"))
    looked, made = threading.Event(), threading.Event()

    def look() -> set[str]:
        looked.set()
        made.wait(10.0)
        return set()

    async def age() -> list[str]:
        return await cache.age(look, now=time.time() + 1.0, minimum_age=0.0)

    if moment == "before":
        async with cache.using(image, None) as base:
            ageing = asyncio.create_task(age())
            await asyncio.to_thread(looked.wait, 10.0)
    else:
        ageing = asyncio.create_task(age())
        await asyncio.to_thread(looked.wait, 10.0)
        async with cache.using(image, None) as base:
            pass
    made.set()
    assert await ageing == []
    assert base.path.exists()
    assert await cache.age(nothing, now=time.time() + 1.0, minimum_age=0.0) == [image.id]


@pytest.mark.spec("IMC-04")
async def test_what_disks_are_made_of_is_told_by_the_disks(tmp_path: Path, images: FileImages) -> None:
    """Disks that were put aside count, other files do not, and a disk that cannot be understood ends the look."""
    workers = ThreadPoolExecutor(4)
    cache = ImageCache(tmp_path / "images", images, rules(tmp_path / "certificates"), workers)
    disks = GuestDisks(tmp_path, SystemDaemon(), cache, workers, VendorData())
    disks.make_directories()
    guest, other = empty_guest(), empty_guest()
    for one, image in ((guest, images.add(qcow2(tmp_path / "a"))), (other, images.add(qcow2(tmp_path / "b")))):
        await disks.create(msgspec.structs.replace(one, image=image, root_gib=1), key=None)
    await disks.delete(other.uuid)
    aside = tmp_path / "instances" / guest.uuid / "old"
    aside.mkdir()
    (tmp_path / "instances" / guest.uuid / "disk").rename(aside / "disk")
    os.mkfifo(tmp_path / "instances" / guest.uuid / "pipe")
    removed = await disks.age_cache(now=time.time() + 1.0, minimum_age=0.0)
    assert len(removed) == 1
    assert len(list((tmp_path / "images").iterdir())) == 1
    (aside / "disk").write_bytes(b"QFI\xfb" + b"\xff" * 100)
    with pytest.raises(KilonovaError):
        await disks.age_cache(now=time.time() + 1.0, minimum_age=0.0)
    assert len(list((tmp_path / "images").iterdir())) == 1
    workers.shutdown()


async def test_an_id_that_is_a_path_is_refused(cache: ImageCache) -> None:
    with pytest.raises(InvalidInput):
        await cache.get(Image(id="../../etc/passwd", disk_format="raw"), None)


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def test_a_signed_image_is_verified_before_anything_else_reads_it(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    signer = elliptic(tmp_path / "certificates")
    source = qcow2(tmp_path / "a")
    image = signer.signed(images.add(source, size=0), source.read_bytes())
    source.write_bytes(b"QFI\xfb" + bytes(4096))  # of which the inspection would complain
    for local in (False, True):
        images.local = local
        with pytest.raises(InvalidInput, match="its data is not what was signed"):
            await cache.get(image, None, (signer.id,))
        assert cached(tmp_path) == []
    qcow2(source)
    image = signer.signed(image, source.read_bytes())
    for _ in range(2):
        base = await cache.get(image, None, (signer.id,))
    assert [base.path.name] == cached(tmp_path)
    assert base.path.read_bytes() == source.read_bytes()


async def test_the_signature_of_a_foreign_format_is_that_of_what_was_uploaded(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    signer = elliptic(tmp_path / "certificates")
    qemu_img("create", "-q", "-f", "vmdk", tmp_path / "a", "1M")
    image = images.add(tmp_path / "a", disk_format="vmdk")
    base = await cache.get(signer.signed(image, (tmp_path / "a").read_bytes()), None, (signer.id,))
    assert (base.format, base.virtual_size) == ("qcow2", MIB)


async def test_what_was_not_verified_is_never_taken_for_what_was(
    cache: ImageCache, images: FileImages, tmp_path: Path
) -> None:
    """An image that somebody used who trusts everybody is fetched again, and both age."""
    signer, other = elliptic(tmp_path / "certificates"), elliptic(tmp_path / "certificates")
    source = qcow2(tmp_path / "a")
    image = signer.signed(images.add(source, size=0), source.read_bytes())
    plain = await cache.get(image, None)
    signed = await cache.get(image, None, (signer.id,))
    assert plain.path != signed.path
    assert images.fetches == {image.id: 2}
    with pytest.raises(InvalidInput, match="is not trusted"):
        await cache.get(image, None, (other.id,))
    source.write_bytes(b"forged")
    with pytest.raises(InvalidInput, match="is not what was signed"):
        await cache.get(other.signed(image, b"another"), None, (other.id,))
    assert len(cached(tmp_path)) == 2
    in_use = {signed.path.name}
    assert await cache.age(lambda: in_use, now=time.time() + 1.0, minimum_age=0.0) == [image.id]
    assert cached(tmp_path) == [signed.path.name]
