"""Local disks without contents: those asked for, or those of the flavor."""

from __future__ import annotations

import pytest
from domain_cases import local

from kilonova.shapes.blank_disks import blank_disks, bus_traits


def named(*asked: object, ephemeral: int = 4, swap: int = 64) -> list[tuple[str, int]]:
    return [(disk.name, disk.mib) for disk in blank_disks(asked, ephemeral, swap)]  # type: ignore[arg-type]


SWAP = {"guest_format": "swap"}
ROOT = local("r", source_type="image", boot_index=0)


def test_without_a_request_they_are_those_of_the_flavor() -> None:
    assert named(ROOT) == named() == [("ephemeral", 4096), ("swap", 64)]
    assert named(ephemeral=0, swap=0) == []


def test_a_request_replaces_those_of_its_kind() -> None:
    assert named(local("a", volume_size=1), ROOT, local("b", volume_size=2)) == [
        ("ephemeral", 1024), ("ephemeral1", 2048), ("swap", 64)]
    assert named(local("s", volume_size=32, **SWAP)) == [("ephemeral", 4096), ("swap", 32)]


def test_without_a_size_they_follow_the_flavor() -> None:
    asked = (local("a"), local("s", **SWAP))
    assert named(*asked) == [("ephemeral", 4096), ("swap", 64)]
    assert named(*asked, ephemeral=5, swap=128) == [("ephemeral", 5120), ("swap", 128)]


def test_swap_is_never_larger_than_that_of_the_flavor() -> None:
    swap = local("s", volume_size=32, **SWAP)
    assert [named(swap, ephemeral=0, swap=flavor) for flavor in (0, 16, 64)] == [
        [], [("swap", 16)], [("swap", 32)]]


@pytest.mark.parametrize(("bus", "traits"), [
    (None, set()), ("sata", {"COMPUTE_STORAGE_BUS_SATA"}), ("nvme", {"CUSTOM_STORAGE_BUS_NVME"})])
def test_a_host_must_have_the_bus(bus: str | None, traits: set[str]) -> None:
    assert set(bus_traits((local("a", disk_bus=bus),))) == traits
