"""Storage pools with their real daemon: what survives what, and what guests notice of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import pytest
from nbd_certificates import Authority
from nbd_guest import LONG, NbdGuest

from kilonova.config import Config
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Conflict, ExportInUse, InvalidInput, KilonovaError, Retryable, StoragePoolFull
from kilonova.roles.credentials import installation
from kilonova.roles.purge import purge
from kilonova.storage.directory import DirectoryPool
from kilonova.storage.files import internal_snapshots
from kilonova.storage.options import PoolOptions, VolumeOptions
from kilonova.storage.pool import Export, FromImage, FromVolume, Served

pytestmark = pytest.mark.servers

RECONNECTING = ("reconnect-delay=20",)
"""As guests do: a request waits for a lost connection to come back."""
ONE_GIB = 1 << 30


def options(directory: Path, format_: Literal["raw", "qcow2"] = "qcow2") -> PoolOptions:
    return PoolOptions(name="pool", directory=str(directory), format=format_)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short name, because sockets are made below it."""
    with tempfile.TemporaryDirectory(prefix="kn-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(params=["qcow2", "raw"])
async def pool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DirectoryPool]:
    made = DirectoryPool(options(tmp_path / "pool", request.param), SystemClock())
    await made.start(())
    yield made
    await made.stop()


def new_id() -> str:
    return str(uuid.uuid4())


def qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True)


def random_image(path: Path, mib: int) -> FromImage:
    path.write_bytes(os.urandom(mib << 20))
    return FromImage(path, "raw")


def daemon_of(directory: Path) -> int:
    return int((directory / "daemon" / "daemon.pid").read_text())


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def memory_faults(process: int) -> int:
    """How often it has got a page of memory from the kernel."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[7])


def left_in(directory: Path) -> list[str]:
    return [path.name for name in ("volumes", "snapshots") for path in (directory / name).iterdir()]


async def exported_volume(pool: DirectoryPool) -> Export:
    export = Export(id=new_id(), volume_id=new_id(), writable=True)
    await pool.create(export.volume_id, 1)
    await pool.add_export(export)
    return export


async def test_only_a_qcow2_is_to_be_flushed_at_once(tmp_path: Path) -> None:
    """Volumes keep their format when that of the pool is changed."""
    before, pool = (DirectoryPool(options(tmp_path / "pool", format_), SystemClock()) for format_ in ("qcow2", "raw"))
    first, second = (Export(id=new_id(), volume_id=new_id(), writable=True) for _ in range(2))
    try:
        await before.start(())
        await before.create(first.volume_id, 1)
        await before.close()
        await pool.start(())
        await pool.create(second.volume_id, 1)
        for _ in range(2):
            assert await pool.add_export(first) == Served(write_through=True)
            assert await pool.add_export(second) == Served(write_through=False)
    finally:
        await pool.stop()


@pytest.mark.spec("EMV-46")
async def test_guests_go_on_when_the_daemon_is_killed(pool: DirectoryPool, tmp_path: Path) -> None:
    exports = [await exported_volume(pool) for _ in range(3)]
    guest = NbdGuest(pool.address, exports[1].id, options=RECONNECTING)
    await guest.connect(writable=True)
    await guest.write("a")
    killed = daemon_of(tmp_path / "pool")
    os.kill(killed, signal.SIGKILL)
    since = time.monotonic()
    await guest.write("b")  # no error: the request waits
    assert time.monotonic() - since < 5
    assert await guest.read() == "b"
    assert {each.id for each in await pool.exports()} == {each.id for each in exports}
    assert daemon_of(tmp_path / "pool") != killed
    await guest.disconnect()


async def test_the_daemon_keeps_the_memory_of_large_requests(pool: DirectoryPool, tmp_path: Path) -> None:
    """What a request gets from the kernel anew is a fault for each of its 256 pages."""
    export = await exported_volume(pool)
    where = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={pool.address.socket}"
    before, mib = memory_faults(daemon_of(tmp_path / "pool")), 128
    image = f"{where},file.export={export.id}"
    await asyncio.to_thread(qemu_img, "bench", "-w", "-c", str(mib), "-d", "16", "-s", "1M", "--image-opts", image)
    assert memory_faults(daemon_of(tmp_path / "pool")) - before < 128 * mib


async def test_a_daemon_that_runs_is_adopted(pool: DirectoryPool, tmp_path: Path) -> None:
    export = await exported_volume(pool)
    guest = NbdGuest(pool.address, export.id)  # which does not connect again
    await guest.connect(writable=True)
    before = daemon_of(tmp_path / "pool")
    await pool.close()
    await guest.write("a")
    new = DirectoryPool(options(tmp_path / "pool"), SystemClock())
    await new.start([export])
    assert daemon_of(tmp_path / "pool") == before
    assert await new.exports() == [export]
    with pytest.raises(ExportInUse):
        await new.remove_export(export.id)
    await guest.write("b")
    await guest.disconnect()
    await new.close()


async def test_a_daemon_ends_with_the_service_if_it_serves_nothing(pool: DirectoryPool, tmp_path: Path) -> None:
    export = await exported_volume(pool)
    first = daemon_of(tmp_path / "pool")
    await pool.close()
    assert runs(first)
    await pool.start([export])
    assert daemon_of(tmp_path / "pool") == first
    await pool.remove_export(export.id)
    await pool.close()
    assert not runs(first)
    await pool.close()
    await pool.start([export])
    assert await pool.exports() == [export]


async def test_a_daemon_that_died_with_the_service_has_its_exports_again(
    pool: DirectoryPool, tmp_path: Path
) -> None:
    export = await exported_volume(pool)
    guest = NbdGuest(pool.address, export.id, options=RECONNECTING)
    await guest.connect(writable=True)
    await pool.close()
    os.kill(daemon_of(tmp_path / "pool"), signal.SIGKILL)
    writing = asyncio.create_task(guest.write("a"))
    new = DirectoryPool(options(tmp_path / "pool"), SystemClock())
    gone = Export(id=new_id(), volume_id=new_id(), writable=True)
    await new.start([gone, export])  # one whose volume is gone keeps no other from being served
    await writing
    assert await new.exports() == [export]
    await guest.disconnect()
    await new.close()


async def test_what_a_service_that_was_killed_had_begun_is_tidied_up(pool: DirectoryPool, tmp_path: Path) -> None:
    """A volume half made, a node without an export, a job that copies."""
    export = await exported_volume(pool)
    await NbdGuest(pool.address, export.id).write("a")
    half = tmp_path / "pool" / "volumes" / f"{new_id()}.raw.part"
    with half.open("wb") as file:
        file.truncate(ONE_GIB)
    await pool._daemon.command("blockdev-add", {
        "driver": "raw", "node-name": "c0123", "file": {"driver": "file", "filename": str(half)},
    })
    await pool._daemon.command("blockdev-backup", {
        "job-id": "c0123", "device": f"v{uuid.UUID(export.volume_id).hex[:30]}", "target": "c0123", "sync": "full",
        "speed": 1, "auto-dismiss": False,
    })
    await pool.close()
    await pool.start([export])
    assert await pool._daemon.command("query-jobs") == []
    assert not half.exists()
    assert [each for each in left_in(tmp_path / "pool") if not each.startswith(export.volume_id)] == []
    await pool.remove_export(export.id)
    assert await pool._daemon.command("query-named-block-nodes", {"flat": True}) == []


async def test_a_copy_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    pool = DirectoryPool(options(tmp_path / "pool", "raw"), SystemClock())
    await pool.start(())
    volume = new_id()
    await pool.create(volume, 1, random_image(tmp_path / "image", 64))
    snapshot = new_id()
    copying = asyncio.create_task(pool.create_snapshot(volume, snapshot))
    async with asyncio.timeout(30):
        while not await pool._daemon.command("query-jobs"):
            assert not copying.done()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert await pool._daemon.command("query-jobs") == []
    assert await pool._daemon.command("query-named-block-nodes", {"flat": True}) == []
    assert left_in(tmp_path / "pool") == [f"{volume}.raw"]
    await pool.create_snapshot(volume, snapshot)
    assert [[each.id for each in each.snapshots] for each in await pool.volumes()] == [[snapshot]]
    await pool.stop()


async def past_cache(pool: DirectoryPool) -> list[bool]:
    """Of each file of a volume that is open, whether its data go past the cache of the host."""
    nodes = await pool._daemon.command("query-named-block-nodes", {"flat": True})
    return [one["cache"]["direct"] for one in nodes if one["drv"] == "file"]


async def test_a_volume_that_is_being_filled_goes_past_the_cache(pool: DirectoryPool, tmp_path: Path) -> None:
    """Whoever dies meanwhile: the daemon, whose successor opens it the same way, or the service, whose successor ends
    what it has not begun."""
    volume, export = new_id(), new_id()
    await pool.create(volume, 1)
    await pool.begin_filling(volume)
    await pool.add_export(Export(id=export, volume_id=volume, writable=True))
    assert await past_cache(pool) == [True]
    os.kill(daemon_of(tmp_path / "pool"), signal.SIGKILL)
    guest = NbdGuest(pool.address, export)
    assert len(await asyncio.wait_for(_exports_of(pool), 30)) == 1
    await guest.write("a")
    assert await past_cache(pool) == [True]
    await pool.close()
    again = DirectoryPool(options(tmp_path / "pool"), SystemClock())
    await again.start(())
    assert await past_cache(again) == [True]
    for _ in range(2):
        await again.end_filling(volume)
        assert await past_cache(again) == [False]
    assert await guest.read() == "a"
    await again.remove_export(export)
    assert await again._daemon.command("query-named-block-nodes", {"flat": True}) == []
    await again.stop()


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Path]:
    """A file system that is nothing but cache."""
    path = tmp_path / "cached"
    path.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


async def test_a_file_system_that_always_uses_the_cache(cached: Path) -> None:
    pool = DirectoryPool(options(cached, "raw"), SystemClock())
    await pool.start(())
    try:
        volume, export = new_id(), new_id()
        await pool.create(volume, 1)
        await pool.begin_filling(volume)
        await pool.add_export(Export(id=export, volume_id=volume, writable=True))
        await NbdGuest(pool.address, export).write("a")
        assert await past_cache(pool) == [False]
        await pool.end_filling(volume)
    finally:
        await pool.stop()


async def test_what_was_cancelled_while_it_was_told_is_done_again(pool: DirectoryPool, tmp_path: Path) -> None:
    """Whether the daemon did it is not known then."""
    volume, export = new_id(), new_id()
    await pool.create(volume, 1)
    there = Export(id=export, volume_id=volume, writable=True)
    process = daemon_of(tmp_path / "pool")
    for turn in range(6):
        os.kill(process, signal.SIGSTOP)
        adding = asyncio.create_task(pool.add_export(there))
        for _ in range(turn):
            await asyncio.sleep(0.01)
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)
        os.kill(process, signal.SIGCONT)
        await pool.add_export(there)
        assert await pool.exports() == [there]
        await pool.remove_export(export)
    await pool.delete(volume)
    assert await pool._daemon.command("query-named-block-nodes", {"flat": True}) == []


async def test_a_daemon_that_hangs_is_waited_for_no_longer_than_that(
    pool: DirectoryPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilonova.storage.daemon.ANSWER_LIMIT", 0.2)
    export = await exported_volume(pool)
    process = daemon_of(tmp_path / "pool")
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(Retryable, match="does not answer"):
        await pool.exports()
    os.kill(process, signal.SIGCONT)
    monkeypatch.undo()
    assert await pool.exports() == [export]
    assert daemon_of(tmp_path / "pool") == process


async def test_a_copy_that_was_cut_off_leaves_nothing(tmp_path: Path) -> None:
    pool = DirectoryPool(options(tmp_path / "pool"), SystemClock())
    await pool.start(())
    volume = new_id()
    await pool.create(volume, 1)
    path = tmp_path / "pool" / "volumes" / f"{volume}.qcow2"
    qemu_img("snapshot", "-c", "copy", str(path))
    assert [each.snapshots for each in await pool.volumes()] == [()]
    await pool.create(new_id(), 1, FromVolume(volume))
    assert internal_snapshots(path) == []
    await pool.stop()


async def test_reverting_goes_on_after_a_crash(tmp_path: Path) -> None:
    """qemu-img has given the volume the size of the snapshot, and nobody has given it its own again."""
    pool = DirectoryPool(options(tmp_path / "pool"), SystemClock())
    await pool.start(())
    volume, snapshot = new_id(), new_id()
    await pool.create(volume, 1)
    await pool.create_snapshot(volume, snapshot)
    await pool.extend(volume, 3)
    (tmp_path / "pool" / "volumes" / f"{volume}.size").write_text(str(3 * ONE_GIB))
    path = tmp_path / "pool" / "volumes" / f"{volume}.qcow2"
    qemu_img("snapshot", "-a", snapshot, str(path))
    assert [each.size for each in await pool.volumes()] == [1]
    await pool.revert(volume, snapshot)
    assert [each.size for each in await pool.volumes()] == [3]
    await pool.delete_snapshot(volume, snapshot)
    await pool.delete(volume)
    assert left_in(tmp_path / "pool") == []
    await pool.stop()


async def test_extension_while_a_guest_writes(pool: DirectoryPool) -> None:
    """Its connection is lost for a moment, and it sees the size when it comes back."""
    export = await exported_volume(pool)
    guest = NbdGuest(pool.address, export.id, options=RECONNECTING)
    await guest.connect(writable=True)
    await guest.write("a")
    since = time.monotonic()
    await pool.extend(export.volume_id, 2)
    assert time.monotonic() - since < 5
    await guest.write("b", block=1)
    assert await guest.read() == "a"
    await guest.disconnect()
    assert await NbdGuest(pool.address, export.id).length() == 2


async def test_a_snapshot_holds_what_was_written_before_it(pool: DirectoryPool) -> None:
    """The blocks of a guest that writes one after the other are there up to one, and none after it."""
    export = await exported_volume(pool)
    guest = NbdGuest(pool.address, export.id)
    await guest.connect(writable=True)
    written: asyncio.Queue[int] = asyncio.Queue()

    async def write() -> None:
        for block in itertools.count():
            await guest.write("x", block)
            written.put_nowait(block + 1)

    writing = asyncio.create_task(write())
    snapshot = new_id()
    least = await count_to(10, written)
    await pool.create_snapshot(export.volume_id, snapshot)
    most = least + written.qsize() + 1
    until = await count_to(most + 10, written)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await guest.disconnect()

    copy = Export(id=new_id(), volume_id=new_id(), writable=False)
    await pool.create(copy.volume_id, 1, FromVolume(export.volume_id, snapshot))
    await pool.add_export(copy)
    reader = NbdGuest(pool.address, copy.id)
    await reader.connect()
    held = [await reader.read(block) for block in range(until)]
    await reader.disconnect()
    count = held.index("")
    assert least <= count <= most
    assert set(held[count:]) == {""}


async def count_to(number: int, written: asyncio.Queue[int]) -> int:
    """Wait until a writer is there. Returns where it is."""
    while (count := await asyncio.wait_for(written.get(), 30)) < number:
        pass
    return count


async def test_an_encrypted_volume_opens_with_its_passphrase_only(pool: DirectoryPool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"i" * LONG)
    export = Export(id=new_id(), volume_id=new_id(), writable=True)
    await pool.create(export.volume_id, 1, FromImage(image, "raw"), passphrase="open")
    await pool.add_export(export)
    assert await NbdGuest(pool.address, export.id, passphrase="open").read() == "i"
    with pytest.raises(Conflict, match="Invalid password"):
        await NbdGuest(pool.address, export.id, passphrase="shut").read()
    await pool.write_image(FromVolume(export.volume_id), tmp_path / "written", "raw")
    assert b"i" * 64 not in (tmp_path / "written").read_bytes()[:4 << 20]
    copy = Export(id=new_id(), volume_id=new_id(), writable=True)
    await pool.create(copy.volume_id, 2, FromVolume(export.volume_id))
    await pool.add_export(copy)
    assert await NbdGuest(pool.address, copy.id, passphrase="open").read() == "i"


async def test_replacing_the_data_of_an_encrypted_volume(pool: DirectoryPool, tmp_path: Path) -> None:
    image, large = tmp_path / "image", tmp_path / "large"
    image.write_bytes(b"i" * LONG)
    with large.open("wb") as file:
        file.truncate(ONE_GIB)
    export = Export(id=new_id(), volume_id=new_id(), writable=True)
    await pool.create(export.volume_id, 1, passphrase="open")
    with pytest.raises(InvalidInput):
        await pool.replace(export.volume_id, FromImage(large, "raw"), passphrase="open")
    with pytest.raises(InvalidInput):
        await pool.replace(export.volume_id, FromImage(image, "raw"), passphrase="shut")
    await pool.replace(export.volume_id, FromImage(image, "raw"), passphrase="open")
    await pool.add_export(export)
    assert await NbdGuest(pool.address, export.id, passphrase="open").read() == "i"


async def test_nothing_is_left(pool: DirectoryPool, tmp_path: Path) -> None:
    export = await exported_volume(pool)
    snapshot, copy = new_id(), new_id()
    await NbdGuest(pool.address, export.id).write("a")
    await pool.create_snapshot(export.volume_id, snapshot)
    await pool.create(copy, 2, FromVolume(export.volume_id, snapshot))
    await pool.remove_export(export.id)
    await pool.delete_snapshot(export.volume_id, snapshot)
    await pool.delete(export.volume_id)
    await pool.delete(copy)
    assert left_in(tmp_path / "pool") == []
    assert await pool._daemon.command("query-named-block-nodes", {"flat": True}) == []


async def test_what_guests_discard_is_given_back(pool: DirectoryPool, tmp_path: Path) -> None:
    export = await exported_volume(pool)
    guest = NbdGuest(pool.address, export.id)
    for block in range(8):
        await guest.write("a", block)
    [before] = [each.allocated for each in await pool.volumes()]
    await guest.discard(0, 8)
    [after] = [each.allocated for each in await pool.volumes()]
    assert before - after >= 8 * LONG
    assert await guest.read() == ""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("format_", ["qcow2", "raw"])
async def test_a_full_pool_says_so(small: Path, tmp_path: Path, format_: Literal["raw", "qcow2"]) -> None:
    pool = DirectoryPool(options(small, format_), SystemClock())
    await pool.start(())
    try:
        await fill(pool, small, tmp_path / "image")
    finally:
        await pool.stop()


async def fill(pool: DirectoryPool, directory: Path, image: Path) -> None:
    with pytest.raises(StoragePoolFull):
        await pool.create(new_id(), 1, random_image(image, 24))
    assert left_in(directory) == []
    volume = new_id()
    await pool.create(volume, 1, random_image(image, 10))
    before = left_in(directory)
    with pytest.raises(StoragePoolFull):
        await pool.create(new_id(), 1, FromVolume(volume))
    assert left_in(directory) == before
    if before[0].endswith(".raw"):
        with pytest.raises(StoragePoolFull):
            await pool.create_snapshot(volume, new_id())
        assert left_in(directory) == before
    said = "Storage pool pool is full" if before[0].endswith(".raw") else "no space left for an image"
    with pytest.raises(KilonovaError, match=said):  # a raw volume is copied in the pool first
        await pool.write_image(FromVolume(volume), directory / "image", "raw")
    assert left_in(directory) == before
    assert not (directory / "image").exists()
    capacity = await pool.capacity()
    assert capacity.total == 16 << 20
    assert capacity.free < 6 << 20
    assert capacity.provisioned == 1


async def test_who_may_connect(tmp_path: Path) -> None:
    pool = DirectoryPool(options(tmp_path / "pool"), SystemClock(), group=4242)
    await pool.start(())
    nbd, control = tmp_path / "pool" / "nbd.sock", tmp_path / "pool" / "daemon"
    assert (nbd.stat().st_gid, nbd.stat().st_mode & 0o777) == (4242, 0o660)
    assert (control.stat().st_uid, control.stat().st_mode & 0o777) == (os.getuid(), 0o700)
    await pool.stop()


async def test_a_purge_ends_the_daemons_and_leaves_directories_of_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    installation(data)
    elsewhere = PoolOptions(name="elsewhere", directory=str(tmp_path / "elsewhere"))
    pools = (PoolOptions(name="own"), elsewhere)
    processes = []
    for each in pools:
        pool = DirectoryPool(each.within(data), SystemClock())
        await pool.start(())
        await exported_volume(pool)
        await pool.close()
        processes.append(daemon_of(data / "volumes" / "own" if each is pools[0] else tmp_path / "elsewhere"))
    config = Config(data_dir=str(data), volume=VolumeOptions(pool=pools))
    assert await purge(config, lambda _what, _detail: None) == []
    assert not data.exists()
    assert len(left_in(tmp_path / "elsewhere")) == 1
    assert [runs(process) for process in processes] == [False, False]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilonovaError, match="too long for a socket") as raised:
        await DirectoryPool(options(tmp_path / ("d" * 80)), SystemClock()).start(())
    assert raised.value.hint == "choose a shorter directory"


async def test_a_daemon_that_cannot_start_says_why(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        pool = DirectoryPool(
            PoolOptions(
                name="pool", directory=str(tmp_path / "pool"), listen="127.0.0.1", port=taken.getsockname()[1]
            ),
            SystemClock(),
        )
        with pytest.raises(KilonovaError, match="Address already in use"):
            await pool.start(())
        await pool.close()


async def test_tls_lets_in_who_has_a_certificate(tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    ours.write(tmp_path / "server", "server")
    port = free_port()
    pool = DirectoryPool(
        PoolOptions(
            name="pool", directory=str(tmp_path / "pool"), listen="127.0.0.1", port=port, tls=str(tmp_path / "server")
        ),
        SystemClock(),
    )
    await pool.start(())
    try:
        export = await exported_volume(pool)
        using = ("tls-creds=tls", "tls-hostname=localhost")
        guest = NbdGuest(
            pool.address, export.id, objects=ours.write(tmp_path / "client", "client"), options=using
        )
        await guest.write("a")
        assert await guest.read() == "a"
        for stranger in (
            NbdGuest(pool.address, export.id),
            NbdGuest(pool.address, export.id, objects=theirs.write(tmp_path / "stranger", "client"), options=using),
        ):
            with pytest.raises(Conflict):
                await stranger.read()
        assert not (tmp_path / "pool" / "nbd.sock").exists()
        await guest.connect()
        os.kill(daemon_of(tmp_path / "pool"), signal.SIGKILL)
        await guest.disconnect()
        assert await asyncio.wait_for(_exports_of(pool), 30) == [export]  # at the same port
        assert await guest.read() == "a"
    finally:
        await pool.stop()


async def _exports_of(pool: DirectoryPool) -> list[Export]:
    """When its daemon is there again: who asks at the moment of its end is told to try again."""
    while True:
        try:
            return await pool.exports()
        except Retryable:
            await asyncio.sleep(0.05)
