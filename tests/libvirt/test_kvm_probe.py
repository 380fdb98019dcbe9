"""Whether KVM is usable is found out by trying, once per boot."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.hypervisor.libvirt import kvm


def ended(output: str, code: int = 0, errors: str = "") -> Any:
    return lambda *_arguments, **_options: subprocess.CompletedProcess([], code, output, errors)


def test_the_answer_is_kept_for_this_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "kvm.json"
    monkeypatch.setattr(subprocess, "run", ended("usable\n"))
    assert kvm.verdict(cache).usable
    monkeypatch.setattr(subprocess, "run", ended("KVM refuses\n"))
    assert kvm.verdict(cache).usable
    cache.write_bytes(msgspec.json.encode(kvm.Verdict("another boot", "")))
    assert kvm.verdict(cache).reason == "KVM refuses"


def test_a_probe_that_dies_or_hangs_means_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", ended("", 1, "Traceback\nMemoryError: no\n"))
    assert kvm.verdict(tmp_path / "a").reason == "the probe failed: MemoryError: no"

    def hang(*_arguments: object, **_options: object) -> Any:
        raise subprocess.TimeoutExpired("probe", 5)

    monkeypatch.setattr(subprocess, "run", hang)
    assert "did not come back" in kvm.verdict(tmp_path / "b").reason


@pytest.mark.parametrize(("times", "usable"), [([0.06, 0.07, 0.05], False), ([0.06, 0.001], True), ([0.0002], True)])
def test_the_fastest_of_three_counts(times: list[float], usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(times)
    monkeypatch.setattr(kvm, "_timed_loop", lambda: next(left))
    assert (kvm.probe() == "") is usable


def test_a_machine_without_kvm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise FileNotFoundError(2, "No such file or directory", "/dev/kvm")

    monkeypatch.setattr(kvm, "_timed_loop", refuse)
    assert "No such file" in kvm.probe()


def test_the_real_probe_comes_to_an_answer(tmp_path: Path) -> None:
    verdict = kvm.verdict(tmp_path / "kvm.json")
    assert verdict.boot_id == kvm.BOOT_ID.read_text().strip()
    assert verdict.usable or verdict.reason.startswith("KVM ")
