"""Domain XML: golden files, and a check that every declared property is in one of them.

`KILONOVA_UPDATE_GOLDEN=1 pytest tests/unit/test_domain_xml.py` writes the files anew; read the difference.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import typing
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from domain_cases import FILES, GUESTS, UUID, capabilities, domains, guest, local, vif

from kilonova.domain.errors import InvalidInput, NotSupported, TooManyDisks, TryElsewhere
from kilonova.hypervisor.guest import GuestShare
from kilonova.hypervisor.libvirt import domain as domain_package
from kilonova.hypervisor.libvirt.description import Describer, domain_name, root_device_name
from kilonova.hypervisor.libvirt.domain.mark import Mark, installation_of
from kilonova.hypervisor.libvirt.properties import hardware

GOLDEN = Path(__file__).parent / "domain_xml"
VERSION_LINE = "entry name=\"version\""


@pytest.mark.parametrize("name", GUESTS)
def test_the_xml_is_the_golden_one(name: str) -> None:
    file = GOLDEN / f"{name}.xml"
    text = _pretty(domains()[name].element())
    if os.environ.get("KILONOVA_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.spec("BDM-11")
@pytest.mark.parametrize("name", [name for name, (_, guest) in GUESTS.items() if guest.image or guest.volumes])
def test_the_root_device_is_named_as_the_xml_does(name: str) -> None:
    first = domains()[name].element().find("devices/disk/target")
    assert first is not None
    assert root_device_name(GUESTS[name][1]) == f"/dev/{first.get('dev')}"


def test_a_host_without_the_program_gives_no_shares() -> None:
    describer = Describer(host=dataclasses.replace(capabilities(), sharing=None), installation="i", cache="none")
    with pytest.raises(TryElsewhere, match="shares"):
        describer.describe(guest(shares=(GuestShare("data", "/srv/data"),)), FILES)


@pytest.mark.spec("BDM-14")
def test_a_guest_with_more_disks_than_there_are_names_is_refused() -> None:
    disks = tuple(local(str(number), volume_size=1) for number in range(26))
    for count in (25, 26):
        many = guest(ephemeral_gib=26, block_devices=disks[:count])
        describer = Describer(host=capabilities(), installation="i", cache="none")
        if count == 25:
            assert len(describer.describe(many, FILES).element().findall("devices/disk")) == 26
        else:
            with pytest.raises(TooManyDisks, match="at most 26 disks"):
                describer.describe(many, FILES)


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.xml")} == set(GUESTS)


def _pretty(element: ET.Element) -> str:
    ET.indent(element)
    lines = ET.tostring(element, encoding="unicode").splitlines(keepends=True)
    return "".join(line for line in lines if VERSION_LINE not in line) + "\n"


# --- Every declared property is exercised ----------------------------------------------------------


def _declared() -> list[type[Any]]:
    found = set()
    for module in pkgutil.iter_modules(domain_package.__path__):
        loaded = importlib.import_module(f"{domain_package.__name__}.{module.name}")
        found |= {
            one for _, one in inspect.getmembers(loaded, inspect.isclass)
            if dataclasses.is_dataclass(one) and one.__module__ == loaded.__name__
        }
    return sorted(found, key=lambda one: one.__name__)


def _instances(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for one in dataclasses.fields(value):
            yield from _instances(getattr(value, one.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _instances(item)


def _render(instance: Any) -> bytes:
    if hasattr(instance, "element"):
        return ET.tostring(instance.element())
    parent = ET.Element("parent")
    instance.add_to(parent)
    return ET.tostring(parent)


def _another(instance: Any, name: str) -> Any:
    """A value of the same type that differs."""
    value = getattr(instance, name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, tuple):
        return value[:-1]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        first = next(one.name for one in dataclasses.fields(value) if getattr(value, one.name) is not None)
        return dataclasses.replace(value, **{first: _another(value, first)})
    annotation = typing.get_type_hints(type(instance))[name]
    choices = [choice for choice in typing.get_args(annotation) if isinstance(choice, str)]
    if choices:
        return next(choice for choice in choices if choice != value)
    return f"{value}x" if isinstance(value, str) else None


@pytest.mark.parametrize("declared", _declared(), ids=lambda one: one.__name__)
def test_every_declared_property_is_in_a_golden_file(declared: type[Any]) -> None:
    instances = [one for domain in domains().values() for one in _instances(domain) if type(one) is declared]
    for one in dataclasses.fields(declared):
        set_somewhere = [instance for instance in instances if getattr(instance, one.name) is not None]
        assert set_somewhere, f"no golden file sets {declared.__name__}.{one.name}"
        for instance in set_somewhere:
            changed = dataclasses.replace(instance, **{one.name: _another(instance, one.name)})
            assert _render(changed) != _render(instance), f"{declared.__name__}.{one.name} is not in the XML"


# --- Values from users stay values -----------------------------------------------------------------


def test_a_hostile_name_stays_text() -> None:
    mark = Mark(installation="i", name="</kilonova:name><evil/>\x00", project_id="p", user_id="u")
    parsed = ET.fromstring(ET.tostring(mark.element()))
    assert [child.tag.rpartition("}")[2] for child in parsed] == ["installation", "name", "project_id", "user_id"]
    assert parsed[1].text == "</kilonova:name><evil/>\N{REPLACEMENT CHARACTER}"


def test_the_mark_names_its_installation() -> None:
    mark = Mark(installation="9b2f", name="n", project_id="p", user_id="u")
    assert installation_of(ET.tostring(mark.element(), encoding="unicode")) == "9b2f"
    assert installation_of("<other><thing/></other>") is None


def test_names_are_unique_beyond_the_first_group_of_the_uuid() -> None:
    assert domain_name(UUID) == "instance-6ba7b8109dad"
    assert domain_name(UUID.replace("9dad", "9dae")) != domain_name(UUID)


@pytest.mark.spec("EMG-34")
@pytest.mark.parametrize(("key", "value"), [
    ("hw_disk_bus", "floppy"), ("hw_vif_model", "ne3k"), ("hw_firmware_type", "coreboot"),
    ("hw_machine_type", "q35' x='"), ("hw_video_model", "glass"), ("hw_cdrom_bus", ""),
    ("hw_qemu_guest_agent", "perhaps"),
])
def test_an_unknown_value_of_a_property_is_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=key):
        hardware({key: value}, {})


def test_a_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidInput, match="quota:cpu_shares"):
        hardware({}, {"quota:cpu_shares": "many"})


def test_an_interface_that_libvirt_cannot_make_is_refused() -> None:
    with pytest.raises(NotSupported, match="port-1"):
        _describe(guest(vifs=(vif(1, vif_type="ovs"),)))
    with pytest.raises(NotSupported):
        _describe(guest(vifs=(vif(1, bridge=""),)))


def test_uefi_on_a_host_without_firmware_is_tried_elsewhere() -> None:
    host = dataclasses.replace(capabilities(), uefi=None)
    with pytest.raises(TryElsewhere, match="UEFI"):
        _describe(guest(properties={"hw_firmware_type": "uefi"}), host)


def test_slots_are_left_for_devices_plugged_in_later() -> None:
    """A PCIe guest can only be given devices where a root port was declared at its start."""
    for vifs in (0, 20):
        xml = _describe(guest(vifs=tuple(vif(number % 10) for number in range(vifs))))
        ports = len(xml.findall(".//controller[@model='pcie-root-port']"))
        # Besides disks and interfaces, the serial bus, the balloon and the entropy source take one each.
        assert ports >= 1 + vifs + 3 + 5


def _describe(one: Any, host: Any = None) -> ET.Element:
    return Describer(host=host or capabilities(), installation="i", cache="none").describe(one, FILES).element()
