"""The PCI devices that hosts offer to guests, and the names by which flavors ask for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.domain.pci import DeviceMatch, DeviceRequest, DeviceType, NumaPolicy
from kilonova.shapes.pci import OfferedDevice, PciDevice

ALIAS = "pci_passthrough:alias"
MOST_DEVICES = 64
_ID = re.compile(r"[0-9a-f]{4}")
_ADDRESS = re.compile(r"([0-9a-f]{4,8}|\*):([0-9a-f]{2}|\*):([0-9a-f]{2}|\*)\.([0-7]|\*)")
_CLASS = re.compile(r"CUSTOM_[A-Z0-9_]{1,248}")
_TRAIT = re.compile(r"[A-Z0-9_]{1,255}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_ASKED = re.compile(r"(?P<name>[A-Za-z0-9_.-]+):(?P<count>[0-9]{1,4})")


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices of hosts that guests may have: those that have all that is given.

    Args:
        vendor_id, product_id: four hexadecimal digits each.
        address: `0000:81:00.1`, a `*` in place of a number means any. A device that is divided is meant with its parts.
        resource_class: what they count as in placement, "" for one named after their ids.
        traits: by which aliases may tell them apart.
        physical_network: the one that they lead to, as networks name it: they are for ports of such networks, and not
            for aliases.
    """

    vendor_id: str = ""
    product_id: str = ""
    address: str = ""
    resource_class: str = ""
    traits: tuple[str, ...] = ()
    physical_network: str = ""

    def __post_init__(self) -> None:
        _check(self.vendor_id, self.product_id, self.resource_class, self.traits)
        if self.physical_network and not _NAME.fullmatch(self.physical_network):
            raise ValueError(
                f"the physical_network {self.physical_network!r} has other characters than letters, digits and _.-"
            )
        if not (self.vendor_id or self.product_id or self.address):
            raise ValueError("a device_spec needs a vendor_id, a product_id or an address")
        if self.address and not _ADDRESS.fullmatch(self.address):
            raise ValueError(f"the address {self.address!r} is not like 0000:81:00.1 or 0000:81:*.*")

    def means(self, device: PciDevice) -> bool:
        ids = self.vendor_id in ("", device.vendor_id) and self.product_id in ("", device.product_id)
        places = (device.address, device.parent)
        return ids and (not self.address or any(fnmatchcase(one, self.address) for one in places))


class PciAlias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name for devices, by which flavors ask for them. Several of one name mean the devices of any of them.

    Args:
        device_type: `type-PCI`, `type-PF` or `type-VF`; none for any but one that can be divided.
        numa_policy: where devices are beside a guest with NUMA cells.
    """

    name: str
    vendor_id: str = ""
    product_id: str = ""
    device_type: DeviceType | None = None
    resource_class: str = ""
    traits: tuple[str, ...] = ()
    numa_policy: NumaPolicy = "legacy"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"the name {self.name!r} of an alias has other characters than letters, digits and _.-")
        _check(self.vendor_id, self.product_id, self.resource_class, self.traits)
        if not (self.vendor_id or self.product_id or self.resource_class):
            raise ValueError(f"the alias {self.name} needs a vendor_id, a product_id or a resource_class")


class PciOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PCI devices for guests."""

    device_spec: tuple[DeviceSpec, ...] = ()
    """Devices of this host that guests may have. Each has one or more of `vendor_id`, `product_id` and `address` (with
    a `*` for any number), and may have a `resource_class` and `traits`. Those with a `physical_network` are for ports
    on networks of that name, and for no alias."""
    alias: tuple[PciAlias, ...] = ()
    """Names by which flavors ask for devices. Each has a `name`, one or more of `vendor_id`, `product_id` and
    `resource_class`, and may have a `device_type`, `traits` and a `numa_policy`."""

    def __post_init__(self) -> None:
        policies: dict[str, NumaPolicy] = {}
        for one in self.alias:
            if policies.setdefault(one.name, one.numa_policy) != one.numa_policy:
                raise ValueError(f"the alias {one.name} is given with two different values of numa_policy")


def offered(devices: Iterable[PciDevice], specs: Iterable[DeviceSpec]) -> tuple[OfferedDevice, ...]:
    """Those that guests may have; the first specification that means a device counts."""
    found = []
    given = tuple(specs)
    for device in devices:
        spec = next((spec for spec in given if spec.means(device)), None)
        if spec is not None:
            own = f"CUSTOM_PCI_{device.vendor_id}_{device.product_id}".upper()
            found.append(OfferedDevice(
                **msgspec.structs.asdict(device), resource_class=spec.resource_class or own, traits=spec.traits,
                physical_network=spec.physical_network,
            ))
    return tuple(found)


def read_requests(extra_specs: Mapping[str, str], aliases: Iterable[PciAlias]) -> tuple[DeviceRequest, ...]:
    """What the extra specs of a flavor ask for.

    Raises:
        InvalidInput: an alias that is not defined, or a count that makes no sense.
    """
    if ALIAS not in extra_specs:
        return ()
    counts: dict[str, int] = {}
    for part in extra_specs[ALIAS].split(","):
        asked = _ASKED.fullmatch(part.strip())
        if asked is None:
            raise InvalidInput(f"Invalid value {extra_specs[ALIAS]!r} of {ALIAS}: it is a list of name:count.")
        counts[asked["name"]] = counts.get(asked["name"], 0) + int(asked["count"])
    meant: dict[str, list[PciAlias]] = {}
    for alias in aliases:
        meant.setdefault(alias.name, []).append(alias)
    unknown = sorted(counts.keys() - meant.keys())
    if unknown:
        raise InvalidInput(f"PCI alias {', '.join(unknown)} is not defined.")
    if not 0 < min(counts.values()) <= sum(counts.values()) <= MOST_DEVICES:
        raise InvalidInput(f"{ALIAS} asks for no device, or for more than {MOST_DEVICES}.")
    return tuple(
        DeviceRequest(
            alias=name, count=count, numa_policy=meant[name][0].numa_policy,
            matches=tuple(DeviceMatch(
                vendor_id=one.vendor_id, product_id=one.product_id, device_type=one.device_type,
                resource_class=one.resource_class, traits=one.traits,
            ) for one in meant[name]),
        )
        for name, count in counts.items()
    )


def _check(vendor_id: str, product_id: str, resource_class: str, traits: tuple[str, ...]) -> None:
    for name, value in (("vendor_id", vendor_id), ("product_id", product_id)):
        if value and not _ID.fullmatch(value):
            raise ValueError(f"the {name} {value!r} is not four hexadecimal digits in small letters")
    if resource_class and not (_CLASS.fullmatch(resource_class) or resource_class in ("PGPU", "FPGA")):
        raise ValueError(f"the resource_class {resource_class!r} is not PGPU, FPGA or a name that begins with CUSTOM_")
    for trait in traits:
        if not _TRAIT.fullmatch(trait):
            raise ValueError(f"the trait {trait!r} has other characters than capital letters, digits and _")
