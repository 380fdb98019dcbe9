"""Making XML elements."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Protocol

Attribute = str | int | bool | None


class Device(Protocol):
    """Anything that has an element of its own below `<devices>`."""

    def element(self) -> ET.Element: ...


def make(tag: str, text: str | int | None = None, /, **attributes: Attribute) -> ET.Element:
    """An element. Attributes that are None are left out; True and False become `yes` and `no`."""
    element = ET.Element(tag)
    _fill(element, text, attributes)
    return element


def add(parent: ET.Element, tag: str, text: str | int | None = None, /, **attributes: Attribute) -> ET.Element:
    """The same, as the last child of `parent`."""
    element = ET.SubElement(parent, tag)
    _fill(element, text, attributes)
    return element


def _fill(element: ET.Element, text: str | int | None, attributes: dict[str, Attribute]) -> None:
    if text is not None:
        element.text = str(text)
    for name, value in attributes.items():
        if isinstance(value, bool):
            element.set(name, "yes" if value else "no")
        elif value is not None:
            element.set(name, str(value))
