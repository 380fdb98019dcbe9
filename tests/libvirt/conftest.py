"""A private libvirtd that the tests share, one of their own for those that kill things, and a driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from libvirt_installations import FileImages, Installation, Listener, make_installation, remove_installation, started

from kilonova.hypervisor.libvirt.driver import LibvirtDriver


@pytest.fixture(scope="session")
def shared_installation() -> Iterator[Installation]:
    installation = make_installation()
    yield installation
    asyncio.run(remove_installation(installation))


@pytest.fixture
async def own_installation() -> AsyncIterator[Installation]:
    """For tests that kill things."""
    installation = make_installation()
    yield installation
    await remove_installation(installation)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def driver(shared_installation: Installation, listener: Listener) -> AsyncIterator[LibvirtDriver]:
    async with started(shared_installation.driver(), listener) as driver:
        yield driver


@pytest.fixture
def images(shared_installation: Installation) -> FileImages:
    return shared_installation.images
