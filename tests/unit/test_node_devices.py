"""PCI devices of a host, read from what libvirt says of them."""

from __future__ import annotations

import pytest

from kilonova.hypervisor.libvirt.calls.devices import read_device
from kilonova.shapes.pci import PciDevice


def described(function: int, extra: str, *, kind: str = "0x020000") -> str:
    return (
        f"<device><name>n</name><capability type='pci'><class>{kind}</class><domain>0</domain><bus>129</bus>"
        f"<slot>16</slot><function>{function}</function><product id='0x154c'>a card</product>"
        f"<vendor id='0x8086'>its maker</vendor>{extra}<pci-express/></capability></device>"
    )


@pytest.mark.parametrize(("extra", "device_type", "parent", "cell"), [
    ("", "type-PCI", "", None),
    ("<numa node='1'/>", "type-PCI", "", 1),
    ("<capability type='virt_functions' maxCount='8'/><numa node='0'/>", "type-PF", "", 0),
    ("<capability type='phys_function'><address domain='0x0000' bus='0x81' slot='0x00' function='0x1'/></capability>",
     "type-VF", "0000:81:00.1", None),
])
def test_a_device_is_read(extra: str, device_type: str, parent: str, cell: int | None) -> None:
    assert read_device(described(3, extra)) == PciDevice(
        address="0000:81:10.3", vendor_id="8086", product_id="154c", device_type=device_type,  # type: ignore[arg-type]
        parent=parent, numa_cell=cell,
    )


def test_a_bridge_is_no_device_for_guests() -> None:
    assert read_device(described(0, "", kind="0x060400")) is None
