"""A fresh Compute API for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from compute_cloud import ComputeCloud, compute_cloud
from known_volumes import KnownVolumes
from volume_cloud import VolumeCloud


@pytest.fixture
async def cloud() -> AsyncIterator[ComputeCloud]:
    async with compute_cloud() as running:
        yield running


@pytest.fixture
def volumes() -> KnownVolumes:
    return KnownVolumes()


@pytest.fixture
async def volume_cloud(volumes: KnownVolumes) -> AsyncIterator[ComputeCloud]:
    """A cloud with a volume service."""
    async with compute_cloud(volumes=volumes) as running:
        yield running


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[VolumeCloud]:
    """A volume service that is real, for a cloud to use."""
    made = VolumeCloud(tmp_path)
    await made.start()
    yield made
    await made.close()
