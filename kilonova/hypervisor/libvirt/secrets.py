"""Secrets of guests as libvirt wants them: it knows one only while it starts the guest, and keeps none on a disk."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import libvirt  # type: ignore[import-untyped]

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.services.secrets import Purpose

LIBVIRT_SECRETS = uuid.UUID("7be1f3f6-1a3c-4d25-8f2b-6f2f9c6b7f10")


@dataclass(frozen=True)
class LibvirtSecret:
    """What libvirt is told of a secret beside its value.

    Args:
        id: the UUID by which it knows it. kind, tag: what it calls the use of the secret, and the element with the name
            of who uses it.
    """

    id: str
    kind: str
    tag: str
    user: str


def guest_secret(instance: str, purpose: Purpose) -> LibvirtSecret:
    """A secret that is the guest's own."""
    kind, tag = ("vtpm", "name") if purpose is Purpose.TPM else ("volume", "volume")
    return LibvirtSecret(secret_id(instance, purpose), kind, tag, f"{instance}-{purpose}")


def volume_secret(instance: str, volume_id: str) -> LibvirtSecret:
    """The passphrase of a volume that a guest has."""
    return LibvirtSecret(secret_id(instance, volume_id), "volume", "volume", f"{instance}-{volume_id}")


def secret_id(instance: str, what: str) -> str:
    """The UUID by which libvirt knows a secret of a guest. what: its purpose, or the id of a volume."""
    return str(uuid.uuid5(LIBVIRT_SECRETS, f"{instance} {what}"))


def needed(instance: str, described: str) -> list[Purpose]:
    """The secrets of its own that a description of a guest names."""
    return [purpose for purpose in Purpose if secret_id(instance, purpose) in described]


@contextmanager
def known(connection: libvirt.virConnect, values: Mapping[LibvirtSecret, str]) -> Iterator[None]:
    """Let libvirt know the secrets meanwhile."""
    defined: list[libvirt.virSecret] = []
    try:
        for one, value in values.items():
            secret = connection.secretDefineXML(_element(one))
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


def _element(one: LibvirtSecret) -> str:
    secret = make("secret", ephemeral=True, private=True)
    add(secret, "uuid", one.id)
    add(add(secret, "usage", type=one.kind), one.tag, one.user)
    return ET.tostring(secret, encoding="unicode")
