"""The record of a serial console."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilonova.hypervisor.libvirt import console


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def test_the_tail_is_the_last_bytes(record: Path) -> None:
    record.write_bytes(b"one two three")
    assert console.tail(record, 5) == b"three"
    assert console.tail(record, 500) == b"one two three"
    with pytest.raises(FileNotFoundError):
        console.tail(record.with_name("none"), 5)


def test_a_long_record_gives_back_its_older_part_while_it_is_written(record: Path) -> None:
    with record.open("ab", buffering=0) as qemu:
        for number in range(80_000):
            qemu.write(b"%099d\n" % number)
        before = record.stat()
        console.trim(record)
        qemu.write(b"after\n")
    after = record.stat()
    assert after.st_size == before.st_size + 6
    assert after.st_blocks * 512 < 2 * console.KEPT
    kept = console.tail(record, after.st_size)
    assert kept.endswith(b"%099d\nafter\n" % 79_999)
    assert console.KEPT <= len(kept) < 2 * console.KEPT


def test_a_short_record_is_left_alone(record: Path) -> None:
    record.write_bytes(b"x" * 100_000)
    console.trim(record)
    assert console.tail(record, 200_000) == b"x" * 100_000
