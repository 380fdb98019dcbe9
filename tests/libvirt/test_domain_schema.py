"""libvirt's own schema accepts every golden guest."""

from __future__ import annotations

import libvirt
import pytest
from domain_cases import GUESTS, domains
from libvirt_installations import Installation

from kilonova.hypervisor.libvirt.driver import LibvirtDriver


@pytest.mark.parametrize("name", GUESTS)
async def test_libvirt_accepts_the_golden_guests(
    name: str, driver: LibvirtDriver, shared_installation: Installation
) -> None:
    described = domains("qemu")[name]
    connection = libvirt.open(shared_installation.daemon().uri)
    try:
        defined = connection.defineXMLFlags(described.xml(), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        defined.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    finally:
        connection.close()
