"""PCI devices of a host, read from what libvirt says of them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from domain_cases import port, vif

from kilonova.domain.errors import TryElsewhere
from kilonova.hypervisor.libvirt.calls.devices import address_in, read_device
from kilonova.hypervisor.libvirt.interfaces import name_of
from kilonova.hypervisor.libvirt.netdevs import address_of, netdev_of
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


def test_network_devices_and_their_pci_devices_are_found(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:82:02.1"
    (device / "net/eth7").mkdir(parents=True)
    (tmp_path / "class/net/eth7").mkdir(parents=True)
    (tmp_path / "class/net/eth7/device").symlink_to(device)
    (tmp_path / "class/net/lo").mkdir()
    assert netdev_of("0000:82:02.1", tmp_path) == "eth7"
    assert [address_of(name, tmp_path) for name in ("eth7", "lo", "absent")] == ["0000:82:02.1", "", ""]
    with pytest.raises(TryElsewhere, match="has no network device"):
        netdev_of("0000:82:02.2", tmp_path)


@pytest.mark.parametrize(("xml", "address"), [
    ("<hostdev type='pci'><source><address bus='0x82' slot='2' function='1'/></source></hostdev>", "0000:82:02.1"),
    ("<hostdev type='usb'><source><address bus='1' device='2'/></source></hostdev>", ""),
    ("<interface type='hostdev'><mac address='m'/><source><address type='pci' domain='0x0000' bus='0x82' slot='0x02' "
     "function='0x1'/></source><address type='pci' bus='0x01'/></interface>", "0000:82:02.1"),
    ("<interface type='bridge'><source bridge='b'/></interface>", ""), ("<memballoon/>", ""),
    ("<interface type='direct'><source dev='lo' mode='passthrough'/></interface>", ""),
])
def test_the_pci_device_that_a_device_of_a_guest_is(xml: str, address: str) -> None:
    assert address_in(ET.fromstring(xml)) == address


def test_an_interface_is_known_by_its_mac_address_or_as_a_card() -> None:
    assert [name_of(one) for one in (vif(1), port(1, "direct"), port(1, "macvtap"), port(1, "direct-physical"))] == [
        vif(1).mac, vif(1).mac, vif(1).mac, "0000:82:02.1"
    ]
