"""PCI devices of simulated hosts, and flavors that ask for them."""

from __future__ import annotations

from kilonova.domain.flavor import Flavor
from kilonova.shapes.pci import PciDevice
from kilonova.shapes.pci_requests import ALIAS, DeviceSpec, PciAlias, read_requests

GPU_CLASS = "CUSTOM_PCI_10DE_1DB6"
SPECS = (
    DeviceSpec(vendor_id="10de", product_id="1db6"),
    DeviceSpec(address="0000:81:*.*", resource_class="CUSTOM_NIC", traits=("CUSTOM_FAST",)),
    DeviceSpec(address="0000:82:*.*", physical_network="physnet1"),
)
GPUS = tuple(
    PciDevice(address=f"0000:{bus}:00.0", vendor_id="10de", product_id="1db6", numa_cell=cell)
    for bus, cell in (("3b", 0), ("af", 1), ("d8", 1))
)
CARD = PciDevice(address="0000:81:00.0", vendor_id="8086", product_id="1572", device_type="type-PF", numa_cell=0)
FUNCTIONS = tuple(
    PciDevice(address=f"0000:81:02.{n}", vendor_id="8086", product_id="154c", device_type="type-VF",
              parent=CARD.address, numa_cell=0)
    for n in range(2)
)
PORT_CARD = PciDevice(address="0000:82:00.0", vendor_id="8086", product_id="1572", device_type="type-PF", numa_cell=0)
PORT_FUNCTIONS = tuple(
    PciDevice(address=f"0000:82:02.{n}", vendor_id="8086", product_id="154c", device_type="type-VF",
              parent=PORT_CARD.address, numa_cell=n % 2)
    for n in range(4)
)
"""For ports on a physical network."""
PORT_CLASS = "CUSTOM_PCI_8086_154C"
OTHER = PciDevice(address="0000:00:1f.2", vendor_id="8086", product_id="a102")
"""Not for guests."""
ALIASES = (
    PciAlias(name="gpu", vendor_id="10de", product_id="1db6"),
    PciAlias(name="nic", resource_class="CUSTOM_NIC", traits=("CUSTOM_FAST",)),
    PciAlias(name="card", vendor_id="8086", product_id="1572", device_type="type-PF"),
    PciAlias(name="near", vendor_id="10de", numa_policy="required"),
    PciAlias(name="either", vendor_id="8086", product_id="154c"),
    PciAlias(name="either", vendor_id="10de", product_id="1db6"),
)


def with_devices(flavor: Flavor, asked: str, **extra_specs: str) -> Flavor:
    """A flavor as a server has it. asked: for example `gpu:1,nic:2`."""
    specs = {**flavor.extra_specs, ALIAS: asked, **extra_specs}
    return Flavor(**{name: getattr(flavor, name) for name in Flavor.__struct_fields__}
                  | {"extra_specs": specs, "pci_requests": read_requests(specs, ALIASES)})
