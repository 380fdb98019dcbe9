"""Secrets of guests as libvirt wants them: it knows one only while it starts the guest, and keeps none on a disk."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import libvirt  # type: ignore[import-untyped]

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.services.secrets import Purpose

LIBVIRT_SECRETS = uuid.UUID("7be1f3f6-1a3c-4d25-8f2b-6f2f9c6b7f10")
USAGES = {Purpose.TPM: ("vtpm", "name"), Purpose.DISKS: ("volume", "volume")}
"""What libvirt calls the use of a secret, and the element with the name of who uses it."""


def secret_id(instance: str, purpose: Purpose) -> str:
    """The UUID by which libvirt knows a secret of a guest."""
    return str(uuid.uuid5(LIBVIRT_SECRETS, f"{instance} {purpose}"))


def needed(instance: str, described: str) -> list[Purpose]:
    """The secrets that a description of a guest names."""
    return [purpose for purpose in Purpose if secret_id(instance, purpose) in described]


@contextmanager
def known(connection: libvirt.virConnect, instance: str, values: Mapping[Purpose, str]) -> Iterator[None]:
    """Let libvirt know the secrets meanwhile."""
    defined: list[libvirt.virSecret] = []
    try:
        for purpose, value in values.items():
            secret = connection.secretDefineXML(_element(instance, purpose))
            defined.append(secret)
            secret.setValue(value.encode())
        yield
    finally:
        for secret in defined:
            _undefine(secret)


def _undefine(secret: libvirt.virSecret) -> None:
    try:
        secret.undefine()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:  # else a repeated command overtook this one
            raise


def _element(instance: str, purpose: Purpose) -> str:
    secret = make("secret", ephemeral=True, private=True)
    add(secret, "uuid", secret_id(instance, purpose))
    kind, tag = USAGES[purpose]
    usage = add(secret, "usage", type=kind)
    add(usage, tag, f"{instance}-{purpose}")
    return ET.tostring(secret, encoding="unicode")
