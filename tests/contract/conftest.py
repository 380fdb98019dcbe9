"""A private libvirtd for the real driver of a file of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from libvirt_installations import Installation, make_installation, remove_installation


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    made = make_installation()
    yield made
    asyncio.run(remove_installation(made))
