"""A fresh Compute API for each test."""

from collections.abc import AsyncIterator

import pytest
from compute_cloud import ComputeCloud, compute_cloud


@pytest.fixture
async def cloud() -> AsyncIterator[ComputeCloud]:
    async with compute_cloud() as running:
        yield running
