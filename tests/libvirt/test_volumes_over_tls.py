"""Volumes of a pool that serves only who has a certificate."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path

import msgspec
import pytest
import uvloop
from clouds import free_port
from libvirt_installations import empty_guest, make_installation, remove_installation
from nbd_certificates import Authority

from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import KilonovaError
from kilonova.hypervisor.volumes import GuestVolume, NbdSource
from kilonova.storage.directory import DirectoryPool
from kilonova.storage.options import PoolOptions
from kilonova.storage.pool import Export


@pytest.mark.parametrize("known", [True, False])
def test_a_guest_reaches_a_volume_over_tls_with_the_certificate_of_its_host(*, known: bool) -> None:
    directory = Path(tempfile.mkdtemp(prefix="kn-tls-", dir="/var/tmp"))  # QEMU runs as another user
    directory.chmod(0o755)
    ours = Authority("ours")
    ours.write(directory / "server", "server")
    (ours if known else Authority("theirs")).write(directory / "client", "client")
    (directory / "client" / "client-key.pem").chmod(0o644)
    uvloop.run(_reach(directory, known=known))


async def _reach(directory: Path, *, known: bool) -> None:
    installation = make_installation()
    installation.nbd_tls = directory / "client"
    pool = DirectoryPool(PoolOptions(
        name="p", directory=str(directory / "pool"), listen="127.0.0.1", port=free_port(), tls=str(directory / "server")
    ), SystemClock())
    driver = installation.driver()
    export = Export(id=str(uuid.uuid4()), volume_id=str(uuid.uuid4()), writable=True)
    try:
        await pool.start(())
        await pool.create(export.volume_id, 1)
        await pool.add_export(export)
        await driver.start(lambda _event: None)
        guest = empty_guest()
        await driver.create_disks(guest)
        await driver.spawn(guest)
        at = pool.address
        source = NbdSource(export=export.id, host=at.host, port=at.port, tls=at.tls)
        volume = GuestVolume(id=export.volume_id, source=source, device_name="/dev/vdb")
        with_it = msgspec.structs.replace(guest, volumes=(volume,))
        if known:
            await driver.attach_volume(with_it, volume)
            (held,) = (await driver.held_volumes())[guest.uuid]
            assert held.running == source
        else:
            with pytest.raises(KilonovaError):
                await driver.attach_volume(with_it, volume)
            assert await driver.held_volumes() == {}
        await driver.destroy(guest.uuid)
        await driver.close()
    finally:
        await pool.stop()
        await remove_installation(installation)
        shutil.rmtree(directory)
