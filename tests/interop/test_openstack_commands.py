"""A long walk through the commands of the unmodified `openstack` client: each exits as it should."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
from clouds import RealCloud, real_cloud
from openstackclient.shell import OpenStackShell

pytestmark = pytest.mark.servers

SCRIPT = Path(__file__).parent / "openstack_commands.txt"
LINE = re.compile(r"(?:(?P<code>[012?])|(?P<name>[A-Z_]+) :=) (?P<command>.*?)(?: => (?P<expected>.*))?")
PATIENCE = 30.0
"""Seconds for which a line that waits is repeated."""
FEWEST = 150
FALLS_BACK = re.compile(r"fall(ing|s)? ?back|failed to discover", re.IGNORECASE)
"""What the client says when the cloud is not what it expects."""


class _Terminal(io.StringIO):
    """Where nobody types: the client reads no image from a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("fake", configuration='[[volume.pool]]\nname = "one"\n') as running:
        yield running


def _run(command: str) -> tuple[int, str]:
    """The client itself, in this process: exit code and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = OpenStackShell().run(shlex.split(command))
        except SystemExit as left:
            code = int(left.code or 0)
    return code, printed.getvalue()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[requests.Response]:
    """Every answer that the client gets, as `--debug` shows them."""
    send, got = requests.Session.send, []

    def watched(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        got.append(send(session, request, **options))
        return got[-1]

    monkeypatch.setattr(requests.Session, "send", watched)
    return got


def _follow(line: str, known: dict[str, str], answers: list[requests.Response]) -> str | None:
    """Do what a line says; returns what was wrong."""
    match = LINE.fullmatch(line)
    assert match is not None, line

    def filled(text: str) -> str:
        return re.sub(r"\$([A-Z_]+)", lambda found: known[found[1]], text)

    command, expected = filled(match["command"]), match["expected"]
    wanted = 0 if match["code"] in (None, "?") else int(match["code"])
    give_up = time.monotonic() + (PATIENCE if match["code"] == "?" else 0)
    while True:
        answers.clear()
        code, printed = _run(command)
        fits = code == wanted and (expected is None or re.search(filled(expected), printed) is not None)
        if fits or time.monotonic() >= give_up:
            break
    if not fits:
        return f"{command}: exit code {code}\n{printed}"
    if match["name"]:
        known[match["name"]] = printed.strip()
    refused = [answer for answer in answers if answer.status_code >= 400 and not _looks_up(answer, command)]
    if code == 0 and (refused or FALLS_BACK.search(printed)):
        told = [f"{answer.request.method} {answer.url} {answer.status_code}" for answer in refused]
        return f"{command}: {', '.join(told)}\n{printed}"
    return None


def _looks_up(answer: requests.Response, command: str) -> bool:
    """Whether the client asks if a name that it was given is an id, if there is an extension, or if what it has deleted
    is gone."""
    collection, _, asked = unquote(urlsplit(answer.url).path).rpartition("/")
    named = asked in re.split(r"[\s=,]+", command)
    expected = named or collection.endswith("/extensions") or "--wait" in command
    return answer.request.method == "GET" and answer.status_code in (400, 404) and expected


@pytest.mark.spec("API-019", "TMP-15")
@pytest.mark.timeout(600)
def test_every_command_exits_as_it_should(
    cloud: RealCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[requests.Response]
) -> None:
    """And gets no refusals on its way, but when it looks for something by name."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(cloud.directory / "clouds.yaml"))
    monkeypatch.setenv("OS_CLOUD", "kilonova")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdin", _Terminal())
    (tmp_path / "image").write_bytes(b"\0" * 4096)
    known = {"FILE": str(tmp_path / "image"), "CLOUD": str(tmp_path)}
    known["PROJECT"] = _run("token issue -f value -c project_id")[1].strip()
    lines = [line for line in SCRIPT.read_text().splitlines() if line and not line.startswith("#")]
    commands = {match["command"] for line in lines if (match := LINE.fullmatch(line))}
    assert len(commands) >= FEWEST
    wrong = [problem for line in lines if (problem := _follow(line, known, answers))]
    assert not wrong, "\n".join(wrong)
    assert cloud.differences() == []
