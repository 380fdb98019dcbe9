"""Starting, stopping and forgetting one guest: what is done to libvirt in one thread, and can be repeated."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.errors import Conflict, KilonovaError
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor.libvirt.domain.domain import Domain
from kilonova.hypervisor.libvirt.domain.mark import NAMESPACE, installation_of
from kilonova.hypervisor.libvirt.events import power_state

ELEMENT = libvirt.VIR_DOMAIN_METADATA_ELEMENT
KEPT_PAUSED = "urn:kilonova:paused:1"
"""Marks a running guest that a user has paused while it stood still because a disk had failed."""
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM  # files of the instance, which go with its disks
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
)


def find(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain | None:
    """The guest, or None."""
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def defined(connection: libvirt.virConnect, uuid: str) -> str:
    """The definition of a guest. Raises libvirtError for one that is not known."""
    described: str = connection.lookupByUUIDString(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    return described


def runs_from(connection: libvirt.virConnect, uuid: str, disk: Path) -> bool:
    """Whether the guest runs and has the disk."""
    domain = find(connection, uuid)
    if domain is None or not domain.isActive():
        return False
    disks = ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk/source")
    return any(source.get("file") == str(disk) for source in disks)


def state(connection: libvirt.virConnect, uuid: str) -> PowerState:
    """NOSTATE for a guest that libvirt does not know."""
    domain = find(connection, uuid)
    if domain is None:
        return PowerState.NOSTATE
    try:
        return _state_of(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # went between the two calls
            return PowerState.NOSTATE
        raise


def _state_of(domain: libvirt.virDomain) -> PowerState:
    return power_state(*domain.state(), saved=bool(domain.hasManagedSaveImage()))


def is_ending(domain: libvirt.virDomain) -> bool:
    """Whether the guest has shut down and only its QEMU is left, which will end by itself."""
    return bool(domain.state()[0] == libvirt.VIR_DOMAIN_SHUTDOWN)


def saved(connection: libvirt.virConnect) -> set[str]:
    """UUIDs of the guests whose memory was saved."""
    return {domain.UUIDString() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)}


def start(connection: libvirt.virConnect, described: Domain, *, paused: bool) -> None:
    """Define and start. A guest that runs is left alone, unless it is just ending; one that was only defined is
    defined anew, and memory that was saved is dropped."""
    domain = find(connection, described.uuid)
    if domain is not None and is_ending(domain):
        cut(connection, described.uuid)
    elif domain is not None and domain.isActive():
        return
    domain = connection.defineXML(described.xml())
    flags = libvirt.VIR_DOMAIN_START_FORCE_BOOT | (libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
    try:
        domain.createWithFlags(flags)
    except libvirt.libvirtError:
        if not domain.isActive():  # else a repeated command overtook this one
            raise


def resume(connection: libvirt.virConnect, uuid: str) -> None:
    """Let the CPUs run. Raises libvirtError for a guest that is not known, KilonovaError for one that is off."""
    domain = connection.lookupByUUIDString(uuid)
    found = power_state(*domain.state())
    if found is PowerState.PAUSED:
        if is_kept_paused(domain):
            domain.setMetadata(ELEMENT, None, None, KEPT_PAUSED, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        domain.resume()
    elif found is not PowerState.RUNNING:
        raise KilonovaError(f"Instance {uuid} cannot be resumed: its guest is {found.name.lower()}.")


def pause(connection: libvirt.virConnect, uuid: str) -> None:
    """Stop the CPUs. Raises libvirtError for a guest that is not known, KilonovaError for one that is off."""
    domain = connection.lookupByUUIDString(uuid)
    found = power_state(*domain.state())
    if found is PowerState.RUNNING:
        domain.suspend()
    elif has_stalled(domain):
        domain.setMetadata(ELEMENT, "<paused/>", "kept", KEPT_PAUSED, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    elif found is not PowerState.PAUSED:
        raise KilonovaError(f"Instance {uuid} cannot be paused: its guest is {found.name.lower()}.")


def has_stalled(domain: libvirt.virDomain) -> bool:
    """Whether the guest stands still because a disk has failed."""
    return list(domain.state()) == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]


def is_kept_paused(domain: libvirt.virDomain) -> bool:
    """Whether the guest was paused while it stood still anyway."""
    try:
        domain.metadata(ELEMENT, KEPT_PAUSED, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return False
        raise
    return True


def suspend(connection: libvirt.virConnect, uuid: str) -> None:
    """Save the memory and switch off. Raises libvirtError for a guest that is not known or that cannot be saved,
    KilonovaError for one that does not run."""
    domain = connection.lookupByUUIDString(uuid)
    found = _state_of(domain)
    if found is PowerState.RUNNING:
        domain.managedSave(libvirt.VIR_DOMAIN_SAVE_RUNNING)
    elif found is not PowerState.SUSPENDED:
        raise KilonovaError(f"Instance {uuid} cannot be suspended: its guest is {found.name.lower()}.")


def wake(connection: libvirt.virConnect, uuid: str) -> None:
    """Start from the saved memory. Raises libvirtError for a guest that is not known or whose memory cannot be read,
    KilonovaError for one without saved memory."""
    domain = connection.lookupByUUIDString(uuid)
    found = _state_of(domain)
    if found is PowerState.SUSPENDED:
        domain.create()
    elif found is not PowerState.RUNNING:
        raise KilonovaError(f"Instance {uuid} cannot be resumed: the memory of its guest was not saved.")


def inject_nmi(connection: libvirt.virConnect, uuid: str) -> None:
    """Raises libvirtError for a guest that is not known, Conflict for one that is off."""
    domain = connection.lookupByUUIDString(uuid)
    if not domain.isActive():
        raise Conflict(f"Instance {uuid} is not running.")
    domain.injectNMI()


def cut(connection: libvirt.virConnect, uuid: str) -> None:
    """Take the power away, also from memory that was saved. A guest that is off or not known is fine."""
    domain = find(connection, uuid)
    if domain is None:
        return
    try:
        if domain.isActive():
            domain.destroy()
        if domain.hasManagedSaveImage():
            domain.managedSaveRemove()
    except libvirt.libvirtError:
        found = find(connection, uuid)
        if found is not None and _state_of(found) not in GUEST_OFF:  # else it ended by itself meanwhile
            raise


def forget(connection: libvirt.virConnect, uuid: str) -> None:
    """Take the power away and drop the definition."""
    cut(connection, uuid)
    domain = find(connection, uuid)
    if domain is None:
        return
    try:
        domain.undefineFlags(UNDEFINE)
    except libvirt.libvirtError:
        if find(connection, uuid) is not None:
            raise


def press_button(connection: libvirt.virConnect, uuid: str) -> PowerState:
    """Press the power button of a guest that runs. Returns the state it was found in."""
    domain = find(connection, uuid)
    if domain is None:
        return PowerState.NOSTATE
    found = _state_of(domain)
    if found is PowerState.RUNNING and not is_ending(domain):
        try:
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        except libvirt.libvirtError:
            if domain.isActive():
                raise
    return found


def is_marked(connection: libvirt.virConnect, uuid: str, installation: str) -> bool:
    """Whether the guest carries the mark of this installation."""
    domain = find(connection, uuid)
    return domain is not None and carries_mark(domain, installation)


def carries_mark(domain: libvirt.virDomain, installation: str) -> bool:
    try:
        metadata = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return False
        raise
    return installation_of(metadata) == installation
