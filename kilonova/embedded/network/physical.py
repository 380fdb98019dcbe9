"""Networks of the world outside, and ports on them.

Some ports are PCI devices of the host of their server. This service wires nothing of those: hosts give the device to
the guest, and set its MAC address and its VLAN. Others are wired as those of other networks are, if an interface of
the machine leads to the physical network.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast, get_args

import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from kilonova.db.prepared import Prepared
from kilonova.db.upsert import insert_missing
from kilonova.domain.errors import InvalidInput
from kilonova.domain.network import DEVICE_OF, BoundDevice, DeviceVnic, PortDevice, PortNeed
from kilonova.domain.pci import NumaPolicy
from kilonova.embedded.network import qos, schema
from kilonova.embedded.network.errors import FlatNetworkInUse, VlanIdInUse
from kilonova.embedded.network.physical_schema import Physical, numa_policies, physical_networks
from kilonova.embedded.network.port_records import existing_port
from kilonova.shapes.port_devices import profile_of

NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")
VLANS = range(1, 4095)
VIF_TYPES = {"normal": "bridge", "direct": "hw_veb", "macvtap": "hw_veb", "direct-physical": "hostdev_physical"}
"""How a bound port is plugged, by the type of the port."""
OF_COMPUTE = "compute:"
_PHYSICAL = Prepared(
    sa.select(physical_networks.c.name, physical_networks.c.vlan)
    .where(physical_networks.c.network_id == sa.bindparam("network"))
)
_POLICY = Prepared(sa.select(numa_policies.c.policy).where(numa_policies.c.port_id == sa.bindparam("port")))
_FORGET_POLICY = Prepared(sa.delete(numa_policies).where(numa_policies.c.port_id == sa.bindparam("port")))


def checked(values: dict[str, Any]) -> Physical | None:
    """What a network is to be outside, by the attributes that were sent; None for a network of this machine."""
    kind, name = values.get("provider_network_type"), values.get("provider_physical_network")
    vlan = values.get("provider_segmentation_id")
    if kind in (None, "local"):
        if name or vlan:
            raise InvalidInput("Invalid input for operation: a network of provider type 'local' has no physical "
                               "network and no segmentation id.")
        return None
    if kind not in ("flat", "vlan"):
        raise InvalidInput("Invalid input for operation: only networks of provider types 'local', 'flat' and 'vlan' "
                           "are offered.")
    if not name or not NAME.fullmatch(name):
        raise InvalidInput(f"Invalid input for operation: a network of provider type '{kind}' needs the name of a "
                           "physical network, of letters, digits and _.-")
    if kind == "flat" and vlan:
        raise InvalidInput("Invalid input for operation: a network of provider type 'flat' has no segmentation id.")
    if kind == "vlan" and vlan not in VLANS:
        raise InvalidInput("Invalid input for operation: a network of provider type 'vlan' needs a segmentation id "
                           f"of {VLANS.start} to {VLANS.stop - 1}.")
    return Physical(name=name, vlan=vlan or 0)


def join(conn: sa.Connection, network_id: str, physical: Physical) -> None:
    """Let a new network be that. Raises FlatNetworkInUse, VlanIdInUse: another one is."""
    row = {"network_id": network_id, "name": physical.name, "vlan": physical.vlan}
    if not insert_missing(conn, physical_networks, row):
        raise VlanIdInUse(physical.vlan, physical.name) if physical.vlan else FlatNetworkInUse(physical.name)


def leave(conn: sa.Connection, network_id: str) -> None:
    conn.execute(physical_networks.delete().where(physical_networks.c.network_id == network_id))


def of_network(conn: sa.Connection, network_id: str) -> Physical | None:
    row = _PHYSICAL.first(conn, network=network_id)
    return None if row is None else Physical(name=row.name, vlan=row.vlan)


def check_network(conn: sa.Connection, network_id: str) -> None:
    """Raises InvalidInput: it guarantees something to ports that are devices, of which nobody has any."""
    ports = schema.ports.c
    devices = sa.select(ports.id).where(ports.network_id == network_id, ports.vnic_type.in_(DEVICE_OF))
    if qos.guarantees(conn, network_id) and conn.execute(devices.limit(1)).first():
        raise InvalidInput(f"Network {network_id} has ports that are devices of hosts: they cannot be guaranteed a "
                           "bandwidth or a packet rate.")


def check_port(conn: sa.Connection, id_: str, wires: Callable[[str], bool]) -> None:
    """Raises InvalidInput: a port of such a type cannot be on such a network, or have such a policy.

    Args:
        wires: whether ports that are no devices can be on a physical network.
    """
    port = existing_port(conn, id_)
    physical = of_network(conn, port.network_id)
    if port.vnic_type in DEVICE_OF and physical is None:
        raise InvalidInput(f"Invalid input for binding:vnic_type: a port of type '{port.vnic_type}' must be on a "
                           f"network with a physical network, network {port.network_id} has none.")
    own = port.device_owner.startswith("network:")
    if port.vnic_type not in DEVICE_OF and physical is not None and not own and not wires(physical.name):
        raise InvalidInput(f"Invalid input for binding:vnic_type: network {port.network_id} is the physical network "
                           f"{physical.name}, to which no interface is configured to lead: only ports of these types "
                           f"can be on it: {', '.join(DEVICE_OF)}.")
    if port.vnic_type in DEVICE_OF and qos.need_of(conn, port, "") is not None:
        raise InvalidInput(f"A port of type '{port.vnic_type}' cannot be guaranteed a bandwidth or a packet rate.")


def set_policy(conn: sa.Connection, port: schema.Port, policy: str | UnsetType | None) -> None:
    """Where the device of a port is to be beside the guest. Raises InvalidInput: there is no such policy, or a server
    has the port."""
    if policy is UNSET or policy == _POLICY.scalar(conn, port=port.id):
        return
    if policy is not None and policy not in get_args(NumaPolicy):
        raise InvalidInput(f"Invalid input for numa_affinity_policy: '{policy}' is none of "
                           f"{', '.join(get_args(NumaPolicy))}.")
    if port.device_owner.startswith(OF_COMPUTE):
        raise InvalidInput(f"The numa_affinity_policy of port {port.id} cannot be changed: a server has it.")
    forget_policy(conn, port.id)
    if policy is not None:
        conn.execute(numa_policies.insert().values(port_id=port.id, policy=policy))


def forget_policy(conn: sa.Connection, port_id: str) -> None:
    _FORGET_POLICY.run(conn, port=port_id)


def need_of(conn: sa.Connection, port: schema.Port) -> PortNeed | None:
    """What a port asks of its host: a device, or what its policy guarantees; None for nothing."""
    physical = of_network(conn, port.network_id)
    if port.vnic_type not in DEVICE_OF:
        return qos.need_of(conn, port, physical.name if physical is not None else "")
    assert physical is not None, "checked when the port was made"
    return PortNeed(port_id=port.id, device=PortDevice(
        vnic_type=cast(DeviceVnic, port.vnic_type), physical_network=physical.name,
        numa_policy=_POLICY.scalar(conn, port=port.id),
    ))


def serve(conn: sa.Connection, port: schema.Port, device: BoundDevice, now: float) -> None:
    """Let the binding of a port name its device. Nobody has to wire it, so it is up."""
    profile = port.profile | profile_of(device)
    if port.vif_type == VIF_TYPES.get(port.vnic_type) and (profile, "ACTIVE") != (port.profile, port.status):
        schema.touch(conn, schema.ports, port.id, now, profile=profile, status="ACTIVE")


def network_view(conn: sa.Connection, view: dict[str, Any], *, privileged: bool) -> dict[str, Any]:
    """The view of a network with what it is outside."""
    physical = of_network(conn, view["id"])
    if privileged and physical is not None:
        view |= {
            "provider:network_type": physical.network_type, "provider:physical_network": physical.name,
            "provider:segmentation_id": physical.vlan or None,
        }
    return view


def port_view(conn: sa.Connection, port: schema.Port, view: dict[str, Any], *, privileged: bool) -> dict[str, Any]:
    """The view of a port with its NUMA policy, what it asks for, and its VLAN."""
    view["numa_affinity_policy"] = _POLICY.scalar(conn, port=port.id)
    if privileged:
        view["resource_request"] = qos.resource_request(need_of(conn, port))
    physical = of_network(conn, port.network_id) if port.vnic_type in DEVICE_OF else None
    if privileged and physical is not None and physical.vlan and port.host:
        view["binding:vif_details"] = view["binding:vif_details"] | {"vlan": str(physical.vlan)}
    return view
