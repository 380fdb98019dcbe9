"""What every hypervisor driver does with volumes that are files: snapshots for a volume service, and their end."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from libvirt_installations import (
    empty_guest,
    eventually,
    started,
)

from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Conflict, InvalidInput, KilonovaError, NotFound, NotSupported
from kilonova.domain.states import PowerState
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.volumes import FileMerge, FileSource, GuestVolume, MergeState, NbdSource

SIZE = "4M"


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=pytest.mark.servers)])
async def driver(request: pytest.FixtureRequest) -> AsyncIterator[Driver]:
    made: Driver
    if request.param == "fake":
        made = FakeDriver(FakeHypervisor("host"), SystemClock())
    else:
        made = request.getfixturevalue("installation").driver()
    async with started(made):
        yield made


class Files:
    """The files of one volume, as a volume service makes them. Each begins with a letter of its own, raw or qcow2."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="files-", dir="/tmp"))
        self.directory.chmod(0o755)
        self._make("create", "-f", "raw", "base", SIZE)
        self._newest = "base"

    def above(self, name: str) -> FileSource:
        """An empty file above the newest."""
        kind = "raw" if self._newest == "base" else "qcow2"
        self._make("create", "-f", "qcow2", "-b", self._newest, "-F", kind, name)
        self._newest = name
        return FileSource(path=str(self.directory / name), format="qcow2")

    def below(self, name: str) -> list[str]:
        """The names of the files that a file needs."""
        told = subprocess.run(
            ["/usr/bin/qemu-img", "info", "-U", "--backing-chain", "--output=json", name], cwd=self.directory,
            check=True, capture_output=True,
        ).stdout
        return [Path(one["filename"]).name for one in msgspec.json.decode(told)][1:]

    def _make(self, *arguments: str) -> None:
        subprocess.run(
            ["/usr/bin/qemu-img", *arguments], cwd=self.directory, check=True, capture_output=True
        )
        for file in self.directory.iterdir():
            file.chmod(0o666)


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    shutil.rmtree(made.directory)


@pytest.fixture
async def guest(driver: Driver, files: Files) -> Guest:
    """It runs with one volume, which is a file."""
    source = FileSource(path=str(files.directory / "base"))
    made = msgspec.structs.replace(empty_guest(), volumes=(GuestVolume(id=str(uuid.uuid4()), source=source),))
    await driver.create_disks(made)
    await driver.spawn(made)
    return made


async def uses(driver: Driver, guest: Guest) -> set[str]:
    """The names of the files that the guest, and its definition, have the volume from."""
    (held,) = (await driver.held_volumes())[guest.uuid]
    sources = [one for one in (held.running, held.defined) if one is not None]
    return {Path(one.path).name for one in sources if isinstance(one, FileSource)}


async def merged(driver: Driver, guest: Guest, merge: FileMerge) -> None:
    volume = guest.volumes[0].id

    async def done() -> bool:
        return await driver.merge_state(guest.uuid, volume, merge) is MergeState.DONE

    for _ in range(2):
        await driver.start_merge(guest.uuid, volume, merge)
    await eventually(done)
    for _ in range(2):
        await driver.start_merge(guest.uuid, volume, merge)
        await driver.abort_merge(guest.uuid, volume)  # too late
        assert await done()


@pytest.mark.spec("SNP-33", "EMV-40")
async def test_a_guest_writes_to_one_file_after_another_and_they_are_merged(
    driver: Driver, guest: Guest, files: Files
) -> None:
    """What is merged is needed no more, also when the guest is started anew."""
    volume, real = guest.volumes[0].id, not isinstance(driver, FakeDriver)
    for name in ("first", "second", "third"):
        overlay = files.above(name)
        for _ in range(2):
            await driver.put_file_above(guest.uuid, volume, overlay)
            assert await uses(driver, guest) == {name}
    down, own, everything = (
        FileMerge(file="first", into="base"), FileMerge(file="base"), FileMerge(file=None)
    )
    assert await driver.merge_state(guest.uuid, volume, down) is MergeState.NONE
    with pytest.raises(InvalidInput):
        await driver.start_merge(guest.uuid, volume, FileMerge(file="second", into="absent"))
    await merged(driver, guest, down)
    assert not real or files.below("third") == ["second", "base"]
    await merged(driver, guest, own)
    assert not real or files.below("third") == ["base"]
    await merged(driver, guest, everything)
    assert not real or files.below("third") == []
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert await uses(driver, guest) == {"third"}
    now = msgspec.structs.replace(guest.volumes[0], source=files_source(files, "third"))
    await driver.hard_reboot(msgspec.structs.replace(guest, volumes=(now,)))
    assert await uses(driver, guest) == {"third"}
    assert await driver.merge_state(guest.uuid, volume, everything) is MergeState.DONE


def files_source(files: Files, name: str) -> FileSource:
    return FileSource(path=str(files.directory / name), format="qcow2")


@pytest.mark.spec("SNP-34", "SNP-35")
async def test_what_cannot_be_done_changes_nothing(driver: Driver, guest: Guest, files: Files) -> None:
    volume, overlay, merge = guest.volumes[0].id, files.above("first"), FileMerge(file=None)
    absent = files_source(files, "absent")
    if not isinstance(driver, FakeDriver):
        with pytest.raises(KilonovaError):
            await driver.put_file_above(guest.uuid, volume, absent)
        assert await uses(driver, guest) == {"base"}
    for about in (guest.uuid, str(uuid.uuid4())):
        with pytest.raises(NotFound):
            await driver.put_file_above(about, "absent", overlay)
        with pytest.raises(NotFound):
            await driver.start_merge(about, "absent", merge)
        with pytest.raises(NotFound):
            await driver.merge_state(about, "absent", merge)
        await driver.abort_merge(about, "absent")
    await driver.power_off(guest.uuid, grace=0, interval=0)
    with pytest.raises(Conflict):
        await driver.put_file_above(guest.uuid, volume, overlay)
    with pytest.raises(Conflict):
        await driver.start_merge(guest.uuid, volume, merge)
    assert await driver.merge_state(guest.uuid, volume, merge) is MergeState.NONE
    await driver.abort_merge(guest.uuid, volume)
    assert await uses(driver, guest) == {"base"}
    assert await driver.power_state(guest.uuid) is PowerState.SHUTDOWN


@pytest.mark.spec("SNP-34")
async def test_a_volume_that_is_served_is_no_file() -> None:
    """A simulated one, as a real one needs a server."""
    driver, served = FakeDriver(FakeHypervisor("host"), SystemClock()), NbdSource(export="one", socket="/x")
    guest = msgspec.structs.replace(empty_guest(), volumes=(GuestVolume(id="one", source=served),))
    await driver.create_disks(guest)
    await driver.spawn(guest)
    with pytest.raises(NotSupported):
        await driver.put_file_above(guest.uuid, "one", FileSource(path="/x"))
    with pytest.raises(NotSupported):
        await driver.start_merge(guest.uuid, "one", FileMerge(file=None))
