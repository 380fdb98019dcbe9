"""The driver protocol: what an agent asks of a hypervisor.

Every call is idempotent: repeating it after a crash at any point gives the same end state, and removing what is
already gone succeeds. Blocking work runs in bounded threads inside the driver.

Errors: `TryElsewhere` when this host cannot do it but another may (out of disk, hypervisor refuses);
`InvalidInput` when no host can (corrupt or hostile image, disk too small); `Retryable` when it may work in a
moment (libvirt restarting); any other `KilonovaError` is final.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.image import Image
from kilonova.domain.network import Vif
from kilonova.domain.states import PowerState
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.hypervisor.guest import BesideDisks, Guest, GuestEvent, GuestOnHost, HostInventory
from kilonova.hypervisor.volume_calls import VolumeDriver
from kilonova.shapes.pci import PciDevice
from kilonova.shapes.quiesce import Quiesce


class Driver(VolumeDriver, Protocol):
    """One hypervisor host. All implementations pass `tests/contract/test_driver.py`."""

    name: str

    async def start(self, on_event: Callable[[GuestEvent], None]) -> None:
        """Connect; tell of guest events from now on. Raises KilonovaError with a hint when it cannot work."""
        ...

    async def close(self) -> None:
        """Disconnect. Guests keep running."""
        ...

    async def inventory(self) -> HostInventory: ...

    async def guests(self) -> list[GuestOnHost]:
        """All guests of this product on the host, running or not."""
        ...

    async def pci_devices(self) -> list[PciDevice]:
        """The PCI devices of the host, whether guests may have them or not, without the bridges between them."""
        ...

    async def held_devices(self) -> dict[str, tuple[str, ...]]:
        """The addresses of the PCI devices in the definitions of this product's guests, running or not. Guests
        without any are left out."""
        ...

    async def disks(self) -> list[str]:
        """UUIDs of all instances that have files on the host, for the audit."""
        ...

    async def power_state(self, uuid: str) -> PowerState:
        """NOSTATE for a guest the hypervisor does not know. Spec: PWR-01, PWR-02."""
        ...

    async def create_disks(self, guest: Guest) -> None:
        """Fetch the image into the cache, inspect it, make root, ephemeral, swap and config-drive disks.

        Raises:
            InvalidInput: the image is not what it claims, has a backing or data file, or is larger than the
                flavor's disk. TryElsewhere: no space here.
        """
        ...

    async def cache_image(self, image: Image) -> bool:
        """Fetch an image into the cache. Returns False for one that is there. Raises as `create_disks`; NotSupported:
        this driver keeps no images."""
        ...

    async def age_cache(self, *, minimum_age: float) -> list[str]:
        """Remove the images from the cache that no disk here is made of, and that were neither fetched nor used for
        `minimum_age` seconds. Returns their ids.

        Raises:
            KilonovaError: what the disks are made of cannot be told; nothing is removed. NotSupported.
        """
        ...

    def root_device_name(self, guest: Guest) -> str:
        """Under which name the guest finds its first disk, for example `/dev/vda`. Spec: BDM-11.

        Raises:
            InvalidInput: an image property has a value that is not known.
        """
        ...

    async def delete_disks(self, uuid: str) -> None:
        """Remove every file of the instance. Raises KilonovaError while its guest exists."""
        ...

    async def prepare_disks(self, guest: Guest, *, keep_ephemeral: bool) -> None:
        """Make new disks of a guest beside those it has, which are not touched. Calling it again makes them anew.

        Args:
            keep_ephemeral: none for ephemeral and swap; the guest keeps those it has.

        Raises:
            As `create_disks`.
        """
        ...

    async def replace_disks(self, guest: Guest) -> None:
        """Put the prepared disks in the place of the others, which are put aside, and make what is missing then.

        Raises:
            KilonovaError: the guest still exists.
        """
        ...

    async def restore_disks(self, uuid: str) -> None:
        """Put the disks that were put aside back in their place, and remove those that were prepared.

        Raises:
            KilonovaError: disks were put aside and the guest still exists.
        """
        ...

    async def drop_old_disks(self, uuid: str) -> None:
        """Remove the disks that were put aside."""
        ...

    async def resize_disks(self, old: Guest, new: Guest, *, keep: str) -> None:
        """Give a guest that is off the disks of another shape, with what the old ones hold, and keep the old ones.

        Args:
            old, new: the guest with the shape that it has and with the one it is to have.
            keep: the name under which the old disks are kept; what is kept under another name is removed.

        Raises:
            InvalidInput: the root or ephemeral disk would become smaller. TryElsewhere: no space here.
            KilonovaError: the guest is not off, or has no disks.
        """
        ...

    async def revert_disks(self, old: Guest, *, keep: str) -> None:
        """Put the kept disks back in place of those made since; nothing kept is fine. Raises KilonovaError for a
        guest that is not off.
        """
        ...

    async def drop_kept_disks(self, uuid: str, *, keep: str) -> None:
        """Remove the disks kept under that name; none is fine."""
        ...

    async def prepare_rescue(self, guest: Guest) -> None:
        """Make the disk that `guest.rescue` asks for, and its config drive, beside those of the guest. Calling it
        again makes them anew.

        Raises:
            As `create_disks`; InvalidInput also for a way of attaching it that this hypervisor does not know.
        """
        ...

    async def drop_rescue(self, uuid: str) -> None:
        """Remove what was made for a rescue, unless the guest runs from it: then it goes when the guest is started
        from its own disks."""
        ...

    async def beside_disks(self) -> list[BesideDisks]:
        """What lies beside the disks of instances, for the audit; those that have nothing of it are left out."""
        ...

    async def tidy_disks(self, uuid: str, *, kept: bool) -> None:
        """Remove what lies beside the disks of an instance, and of a rescue what `drop_rescue` removes. The disks
        that its guest has are not touched.

        Args:
            kept: also what a resize has kept.
        """
        ...

    async def plug(self, guest: Guest) -> None:
        """Prepare what interfaces need on the host before the guest starts."""
        ...

    async def unplug(self, uuid: str, vif_devnames: tuple[str, ...]) -> None: ...

    async def attach_interface(self, guest: Guest, vif: Vif) -> None:
        """Give a guest one more interface, while it runs and whenever it is started from its definition. One that
        it has already is left alone; a guest that is not defined gets it with its next start.

        Raises:
            KilonovaError: the guest cannot take it.
        """
        ...

    async def detach_interface(self, uuid: str, vif: Vif) -> None:
        """Take an interface from a guest and from its definition. No error if guest or interface are not there.

        Raises:
            DeviceDetachFailed: the running guest does not let go of it. Its definition has it no more or still,
            but a repeated call or a start of the guest ends the same.
        """
        ...

    async def absent_shares(self, directories: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the directories that this host cannot give to guests now, because it does not have them."""
        ...

    async def spawn(self, guest: Guest, *, paused: bool = False) -> None:
        """Define and start a guest whose disks exist. A guest that already runs is left alone.

        Args:
            paused: start with the CPUs stopped; `resume` lets it run (after its interfaces are wired).

        Raises:
            TryElsewhere: the host lacks what the guest needs, for example the directory of a share or a PCI device
                that no other guest has.
        """
        ...

    async def resume(self, uuid: str) -> None:
        """Let a paused guest run. A running guest is left alone. Raises NotFound, or KilonovaError for one that is
        off."""
        ...

    async def pause(self, uuid: str) -> None:
        """Stop the CPUs of a running guest; its memory stays. A paused guest is left alone.

        Raises:
            NotFound: there is no such guest. KilonovaError: it does not run.
        """
        ...

    async def suspend(self, uuid: str) -> None:
        """Write the memory of a running guest to the host's disk and switch it off; its power state is then
        SUSPENDED, also for a later driver. A suspended guest is left alone. Whatever starts, stops or forgets the
        guest in another way than `wake` drops what was saved.

        Raises:
            NotFound: there is no such guest. NotSupported: it cannot be saved. KilonovaError: it does not run, or
                could not be saved.
        """
        ...

    async def wake(self, uuid: str) -> None:
        """Let a suspended guest go on from its saved memory. A running guest is left alone.

        Raises:
            NotFound: there is no such guest. KilonovaError: nothing was saved, or it cannot be read.
        """
        ...

    async def destroy(self, uuid: str) -> None:
        """Stop at once and forget the guest (disks stay)."""
        ...

    async def power_off(self, uuid: str, *, grace: float, interval: float) -> None:
        """Ask the guest to shut down, repeating the signal; then cut the power. No guest is no error.

        Args:
            grace: seconds to wait; 0 cuts the power at once. interval: seconds between signals.
        """
        ...

    async def power_on(self, guest: Guest) -> None:
        """Start a guest from what is described now (its definition is made anew)."""
        ...

    async def soft_reboot(self, guest: Guest, *, wait: float) -> bool:
        """Ask the guest to shut down and start it again.

        Returns:
            False if it did not shut down within `wait` seconds and was left running.
        """
        ...

    async def hard_reboot(self, guest: Guest) -> None:
        """Cut the power, make the definition anew, start."""
        ...

    async def set_password(self, uuid: str, user: str, password: str) -> None:
        """Set the password of a user of a running guest, with the help of an agent inside of it.

        Raises:
            GuestAgentAway: no agent answers. Conflict: there cannot be one, or it refuses. NotSupported: this driver
            cannot.
        """
        ...

    async def inject_nmi(self, uuid: str) -> None:
        """Give a guest a non-maskable interrupt.

        Raises:
            NotFound: there is no such guest. Conflict: it is off. NotSupported: this driver cannot.
        """
        ...

    async def diagnostics(self, uuid: str) -> Diagnostics:
        """What is counted for a running guest, in the form of all drivers. Raises NotFound, NotSupported."""
        ...

    async def own_diagnostics(self, uuid: str) -> OwnDiagnostics:
        """The same in the driver's own form."""
        ...

    async def console_output(self, uuid: str, limit: int) -> bytes:
        """The last `limit` bytes that the guest wrote to its serial console. Raises NotFound without one."""
        ...

    async def console(self, uuid: str, kind: ConsoleKind) -> ConsoleAddress:
        """Where a console of a guest listens now, as long as the guest runs.

        Raises:
            NotFound: the hypervisor does not know the guest. Conflict: it is off. NotSupported: it has no console
            of this kind. Spec: CON-15, CON-16.
        """
        ...

    async def snapshot(self, uuid: str, image_id: str, *, quiesce: Quiesce = Quiesce.NO) -> None:
        """Copy the root disk, as it is at one moment, into a file of the host that depends on no other. A guest that
        runs goes on running. One that was made already is kept.

        A guest whose file systems are held still for that moment is always let go again: also by `start`, if the
        process died meanwhile.

        Cancelling it ends the copy; `discard_snapshot` removes what is left of it.

        Args:
            image_id: the image that it is to become.
            quiesce: whether the file systems of a guest that runs are held still at that moment.

        Raises:
            NotFound: the instance has no disk here. TryElsewhere: no space here. NotSupported: the guest runs, and its
            file systems must be held still and cannot. KilonovaError: they may still be held.
        """
        ...

    async def freeze(self, uuid: str, *, quiesce: Quiesce) -> None:
        """Hold the file systems of a guest still until `thaw`, for at most a minute: somebody else takes snapshots of
        its volumes. A guest that is off needs nothing.

        Raises:
            NotSupported: the guest runs, and its file systems must be held still and cannot. KilonovaError: they may
            still be held.
        """
        ...

    async def thaw(self, uuid: str) -> None:
        """Let the file systems of a guest go. Not held, or not there, is fine. Raises KilonovaError: they may still be
        held."""
        ...

    def snapshot_data(self, uuid: str, image_id: str) -> AsyncIterator[bytes]:
        """The bytes of that file, a qcow2, in chunks. Raises NotFound without one."""
        ...

    async def discard_snapshot(self, uuid: str, image_id: str) -> None:
        """End the copy if it is being made and remove the file. Neither need exist."""
        ...
