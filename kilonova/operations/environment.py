"""What the conductor's steps may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kilonova.cells.registry import Cells
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.operations.options import OperationOptions
from kilonova.services.accelerators import AcceleratorService
from kilonova.services.image import ImageService
from kilonova.services.network import NetworkService
from kilonova.services.placement import PlacementService, SchedulerService
from kilonova.services.volumes import VolumeService


@dataclass(frozen=True)
class Environment:
    """For operations of a cell. database: the cell's."""

    cell: str
    database: Database
    networks: NetworkService
    placement: PlacementService
    clock: Clock
    options: OperationOptions
    images: ImageService
    accelerators: AcceleratorService
    volumes: VolumeService


@dataclass(frozen=True)
class PlacingEnvironment:
    """For operations over the API database. wake: tells a cell's conductors that there is work."""

    cells: Cells
    scheduler: SchedulerService
    placement: PlacementService
    clock: Clock
    options: OperationOptions
    wake: Callable[[str], None]
