"""The commands of operators, run as processes against an installation of their own with simulated hosts."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.cli.demo import _free_port
from kilonova.cli.installation import is_served, running_state
from kilonova.domain.states import PowerState
from kilonova.hypervisor.fake import FakeGuest
from tests.control_cloud import ControlCloud, control_cloud

LIMIT = 120


def kilonova(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kilonova", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT, check=False, env=os.environ | environment,
    )


def kill(pid: int) -> None:
    """Returns once the process is gone."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        assert select.select([process], [], [], LIMIT)[0]
    finally:
        os.close(process)


def document(ended: subprocess.CompletedProcess[str]) -> Any:
    return msgspec.json.decode(ended.stdout)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    base = tmp_path / "data"
    yield base
    if base.exists():
        kilonova("down", "--data-dir", str(base))


def test_an_installation_comes_up_survives_being_killed_and_goes_away(directory: Path) -> None:
    where = ("--data-dir", str(directory))
    options = ("--detach", *where, "--driver", "fake", "--port-base", str(_free_port()))
    up = kilonova("up", *options)
    assert up.returncode == 0, up.stderr
    assert "ready" in up.stderr and "OS_CLIENT_CONFIG_FILE" in up.stdout
    assert kilonova("status", *where).returncode == 0
    second = kilonova("up", *options)
    assert (second.returncode, second.stderr.count("\n")) == (1, 1) and "already runs" in second.stderr
    hidden = kilonova("status", KILONOVA_DATA_DIR=str(directory)).returncode
    assert hidden == 0, "a second start must not hide the first"

    state = running_state(directory)
    assert state is not None
    kill(state.pids["kilonova"])
    assert document(kilonova("status", *where, "--json"))["running"] is False
    assert document(kilonova("doctor", *where, "--driver", "fake", "--json"))["healthy"]
    again = kilonova("up", *options, "--json")
    assert document(again)["data_dir"] == str(directory)
    assert document(kilonova("audit", *where, "--json"))["clean"]

    assert kilonova("down", *where).returncode == 0
    assert not is_served(directory) and (directory / "installation.json").exists()
    (directory / "kilonova.toml").write_text("")
    assert kilonova("down", "--purge", "--yes", *where).returncode == 0
    assert [path.name for path in directory.iterdir()] == ["kilonova.toml"]


def test_a_start_that_fails_says_why_in_one_line(directory: Path) -> None:
    directory.mkdir()
    (directory / "kilonova.toml").write_text("[api]\nlisten = '192.0.2.77'\n")
    ended = kilonova("up", "--detach", "--data-dir", str(directory), "--driver", "fake", "--json")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("kilonova: Cannot listen on 192.0.2.77") and ended.stderr.count("\n") == 1
    assert not is_served(directory)


def test_an_interrupt_while_it_comes_up_leaves_nothing_running(directory: Path) -> None:
    command = [sys.executable, "-m", "kilonova", "up", "--data-dir", str(directory), "--driver", "fake",
               "--port-base", str(_free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "database" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(LIMIT) in (0, 1), said
    assert "Traceback" not in said
    assert not is_served(directory) and running_state(directory) is None


def test_the_demonstration_holds_and_leaves_nothing(tmp_path: Path) -> None:
    ended = kilonova("demo", "--driver", "fake", TMPDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1].startswith("clean: everything held")
    for part in (
        "image create", "network", "keypair create", "server create", "is ACTIVE on", "server event list", "| create |",
        "server delete", "audit", "removed",
    ):
        assert part in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demonstration_that_is_broken_off_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "kilonova", "demo", "--driver", "fake"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert " cloud " in process.stdout.readline()
        process.send_signal(number)
        said = process.stdout.read()
        assert process.wait(LIMIT) == 130, said
    assert "removed" in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
async def cloud(tmp_path: Path) -> Any:
    async with control_cloud(tmp_path) as running:
        yield running


async def run(cloud: ControlCloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(kilonova, *arguments, "--data-dir", cloud.state.data_dir)


async def test_operations_are_listed_shown_and_watched(cloud: ControlCloud) -> None:
    server = await cloud.server()
    listed = await run(cloud, "ops")
    (build,) = [line.split()[1] for line in listed.stdout.splitlines() if " build " in line]
    shown = await run(cloud, "ops", "show", build)
    assert shown.returncode == 0
    for part in (server.id, "succeeded", "create disks", "start guest", server.host):
        assert part in shown.stdout
    assert document(await run(cloud, "ops", "show", build, "--json"))["id"] == build
    watched = await run(cloud, "ops", "watch", build)
    assert watched.returncode == 0 and "succeeded after" in watched.stdout
    refused = await run(cloud, "ops", "cancel", build)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1) and "has ended" in refused.stderr
    unknown = await run(cloud, "ops", "show", str(uuid.uuid4()))
    assert unknown.returncode == 1 and "could not be found" in unknown.stderr


async def test_the_audit_lists_heals_and_tells_by_its_exit_code(cloud: ControlCloud) -> None:
    stray = str(uuid.uuid4())
    cloud.hypervisor("host-1").keep(
        FakeGuest(uuid=stray, name="stray", disks=True, defined=True, power_state=PowerState.RUNNING)
    )
    found = await run(cloud, "audit")
    assert found.returncode == 1 and stray in found.stdout and "audit --heal" in found.stdout
    doctor = await run(cloud, "doctor", "--driver", "fake", "--json")
    assert doctor.returncode == 1
    assert [one["name"] for one in document(doctor)["checks"] if one["outcome"] == "failed"] == ["leaks"]
    healed = await run(cloud, "audit", "--heal")
    assert healed.returncode == 0 and "healed: guest stray" in healed.stdout
    clean = await run(cloud, "audit", "--json")
    assert clean.returncode == 0 and document(clean)["differences"] == []


async def test_the_databases_of_a_running_installation_fit(cloud: ControlCloud) -> None:
    checked = await run(cloud, "db", "check", "--json")
    assert checked.returncode == 0
    schemas = document(checked)["schemas"]
    assert {one["schema"] for one in schemas} == {"api", "cell", "identity", "image", "network", "host"}
    assert all(one["revision"] == one["needed"] for one in schemas)
    assert "running" in (await run(cloud, "db", "upgrade")).stderr


async def test_operations_are_followed_on_a_terminal_and_in_a_pipe(tmp_path: Path) -> None:
    async with control_cloud(tmp_path, hosts=1, latency=0.3) as cloud:
        ours, theirs = os.openpty()
        on_terminal = _follow(cloud, theirs)
        os.close(theirs)
        in_pipe = _follow(cloud, subprocess.PIPE, "--json")
        assert in_pipe.stdout is not None
        try:
            drawn = await asyncio.to_thread(_read, ours, b"nothing to do; ")
            server = await cloud.server()
            drawn += await asyncio.to_thread(_read, ours, b"build ", b"succeeded", b"nothing to do; 2 ended")
            on_terminal.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(on_terminal.wait, LIMIT) == 0
            told: list[dict[str, Any]] = []
            while not told or (told[-1]["kind"], told[-1]["state"]) != ("build", "succeeded"):
                told.append(msgspec.json.decode(await asyncio.to_thread(in_pipe.stdout.readline)))
        finally:
            os.close(ours)
            for process in (on_terminal, in_pipe):
                process.kill()
                process.wait()
            in_pipe.stdout.close()
    assert b"OPERATION" in drawn and b"\x1b[" in drawn, "a table that is drawn in place"
    assert server.id.encode() in drawn
    assert {one["kind"] for one in told} == {"place", "build"}


def _follow(cloud: ControlCloud, output: int, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kilonova", "ops", "--follow", "--data-dir", cloud.state.data_dir, *options],
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "30"},
    )


def _read(terminal: int, *wanted: bytes) -> bytes:
    """What a terminal shows until it has shown all of these."""
    shown = b""
    while not all(one in shown for one in wanted):
        assert select.select([terminal], [], [], LIMIT)[0], shown
        shown += os.read(terminal, 65536)
    return shown
