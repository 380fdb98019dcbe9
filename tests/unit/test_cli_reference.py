"""The reference of the command line names every command and every option there is, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from kilonova.cli import main

PAGE = Path(__file__).parent.parent.parent / "docs/reference/command-line.md"
EVERYWHERE = {"--help", "--data-dir"}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if path:
        yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def described() -> dict[str, str]:
    """Command line -> what its row says."""
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {re.sub(r"( [A-Z]+)+$", "", name): text for name, text in rows if not name.startswith(("GET", "POST"))}


def every_command() -> dict[str, Any]:
    if not main.app.registered_commands:
        main._register()
    found = {" ".join(path): command for path, command in commands(typer.main.get_command(main.app))}
    groups = {name for name in found if any(other.startswith(f"{name} ") for other in found)}
    return {name: command for name, command in found.items() if name not in groups - {"ops"}}


def test_every_command_is_described() -> None:
    assert sorted(described()) == sorted(every_command())


def test_every_option_is_described() -> None:
    missing = [
        f"{name} {option}"
        for name, command in every_command().items()
        for parameter in command.params if parameter.param_type_name == "option"
        for option in parameter.opts if option.startswith("--")
        if option not in EVERYWHERE and option not in described()[name]
        and not (option == "--json" and name in JSON_BELOW)
    ]
    assert missing == []


JSON_BELOW = {"ops cancel", "ops resume", "ops skip", "ops force"}
"""They print what `ops show` prints."""
