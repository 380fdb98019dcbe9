"""From an instance record to the guest that a driver is asked to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kilonova.db import block_devices, instances
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import BOOT_ROLES, GUEST_PASSWORD, InjectedFile, Instance
from kilonova.domain.network import Vif
from kilonova.domain.states import VmState
from kilonova.engine.operation import Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest, GuestMetadata, GuestShare, HostDevice, TaggedDisk
from kilonova.hypervisor.volumes import GuestVolume, guest_volume
from kilonova.operations.accelerators import read_devices
from kilonova.operations.environment import Environment
from kilonova.operations.options import OperationOptions
from kilonova.operations.volumes import refresh_connections
from kilonova.shapes.disk_names import local_names
from kilonova.shapes.host import Layout
from kilonova.shapes.port_devices import is_of_port, with_own_devices


class Host(msgspec.Struct, frozen=True):
    """The host of the server."""

    host: str


class Described(msgspec.Struct, frozen=True):
    """The guest as it is to be now, and the host it is on."""

    guest: Guest
    host: str


def wants_config_drive(instance: Instance, options: OperationOptions, files: Sequence[InjectedFile] = ()) -> bool:
    """A config drive is made on request, by image property, for all by option, and for files: they are nowhere else."""
    mandatory = instance.image is not None and instance.image.properties.get("img_config_drive") == "mandatory"
    asked = instance.config_drive.lower() in ("true", "1", "yes", "on", "t")
    return options.force_config_drive or mandatory or asked or bool(files)


def guest_of(
    instance: Instance, vifs: tuple[Vif, ...], *, config_drive: bool, layout: Layout | None, admin_password: str = "",
    files: tuple[InjectedFile, ...] = (), devices: tuple[str, ...] = (), volumes: Sequence[BlockDevice] = (),
) -> Guest:
    """Describe the guest of a record.

    Args:
        vifs: its interfaces as the network service tells them now.
        layout: its place on its host, and the devices of it that are its own, those of its ports among them.
        admin_password, files: secrets and files of a first boot; later boots have none.
        devices: addresses of its accelerators on the host.
        volumes: its volumes; those that are on no host yet are left out.
    """
    held = layout.devices if layout is not None else ()
    vifs = with_own_devices(vifs, held)
    metadata = metadata_of(instance, vifs, volumes, admin_password=admin_password, files=files)
    image = instance.image
    return Guest(
        uuid=instance.uuid,
        name=instance.display_name,
        project_id=instance.project_id,
        user_id=instance.user_id,
        vcpus=instance.flavor.vcpus,
        memory_mib=instance.flavor.memory_mib,
        root_gib=instance.flavor.root_gib,
        ephemeral_gib=instance.flavor.ephemeral_gib,
        swap_mib=instance.flavor.swap_mib,
        image=image if image is not None and image.id else None,
        vifs=vifs,
        config_drive=config_drive,
        metadata=metadata,
        properties=dict(image.properties) if image is not None else {},
        extra_specs=instance.flavor.extra_specs,
        trusted_certs=instance.trusted_certs or (),
        rescue=instance.rescue.image if instance.vm_state is VmState.RESCUED and instance.rescue else None,
        layout=layout if layout is not None and layout.places else None,
        host_devices=tuple(map(HostDevice, (*(one.address for one in held if not is_of_port(one)), *devices))),
        block_devices=instance.block_devices,
        shares=tuple(GuestShare(one.tag, one.export_location) for one in instance.shares if one.described),
        volumes=tuple(guest_volume(one) for one in volumes if one.connection_info is not None),
    )


def with_volumes(guest: Guest, volumes: tuple[GuestVolume, ...]) -> Guest:
    """The guest of a server of whose volumes none was connected when it was described."""
    tagged = (TaggedDisk(one.device_name, one.tag, one.id) for one in volumes if one.tag is not None)
    metadata = msgspec.structs.replace(guest.metadata, disks=(*tagged, *guest.metadata.disks))
    return msgspec.structs.replace(guest, volumes=volumes, metadata=metadata)


def metadata_of(
    instance: Instance, vifs: tuple[Vif, ...], volumes: Sequence[BlockDevice], *, admin_password: str = "",
    files: tuple[InjectedFile, ...] = (),
) -> GuestMetadata:
    """What the guest may learn of itself. volumes: those of its record; what has left that is not told any more. Spec:
    VOL-46, VOL-48, VOL-49."""
    keys = {instance.key_name: instance.key_data} if instance.key_name and instance.key_data else {}
    return GuestMetadata(
        instance_uuid=instance.uuid,
        name=instance.display_name,
        hostname=instance.hostname,
        project_id=instance.project_id,
        flavor_name=instance.flavor.name,
        availability_zone=instance.availability_zone or "",
        launch_index=instance.launch_index,
        user_data=instance.user_data,
        keys=keys,
        metadata=instance.metadata,
        image_ref=instance.image_ref,
        reservation_id=instance.reservation_id,
        security_groups=instance.security_groups,
        admin_password=admin_password,
        told_password=instance.system_metadata.get(GUEST_PASSWORD, ""),
        files=files,
        vifs=vifs,
        disks=_tagged_disks(instance, volumes),
        root_device_name=instance.root_device_name or "/dev/vda",
        boot_roles=instance.system_metadata.get(BOOT_ROLES, ""),
    )


def _tagged_disks(instance: Instance, volumes: Sequence[BlockDevice]) -> tuple[TaggedDisk, ...]:
    """Volumes that the guest has, and local disks."""
    local = local_names(volumes, flavor=instance.flavor, image=instance.image, asked=instance.block_devices)
    return (
        *(TaggedDisk(one.device_name or "", one.tag, one.volume_id)
          for one in volumes if one.tag is not None and one.connection_info is not None),
        *(TaggedDisk(f"/dev/{name}", tag) for name, tag in local.items() if tag is not None),
    )


def find_host(tx: Tx, run: Run[msgspec.Struct]) -> Host:
    """A step: where the server is now."""
    host = instances.get(tx.conn, run.subject).host
    assert host is not None
    return Host(host)


async def describe(env: Environment, run: Run[Any]) -> Described:
    """A step: the guest that is to be started, with what its network and its volumes are now. Spec: PWR-17, RBT-06."""
    await refresh_connections(env, run.subject)
    return await describe_as_is(env, run)


async def describe_as_is(env: Environment, run: Run[Any]) -> Described:
    """A step: the guest that is not to be started; its volumes are reached as before."""
    instance = await env.database.read(lambda conn: instances.get(conn, run.subject))
    assert instance.host is not None
    guest = await describe_with(env, run.subject, instance.flavor, instance.host)
    return Described(guest, instance.host)


async def describe_with(
    env: Environment, server: str, flavor: Flavor, host: str, *, holder: str | None = None
) -> Guest:
    """The guest of a server with that flavor on that host, its network information read anew.

    Args:
        holder: the migration that holds its place there; None if the server does.
    """
    instance, volumes = await env.database.read(
        lambda conn: (instances.get(conn, server), block_devices.of_server(conn, server))
    )
    vifs = await env.networks.vifs(server)
    layout = await env.placement.layout(holder or server, host)
    devices = await read_devices(env, instance)
    return guest_of(
        msgspec.structs.replace(instance, flavor=flavor), vifs, layout=layout,
        config_drive=wants_config_drive(instance, env.options), devices=devices, volumes=volumes,
    )
