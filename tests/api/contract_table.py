"""The rows of docs/reference/behaviour/10-compute-api.md: what each route takes, answers and lets whom do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kilonova.api.microversions import FIRST, LATEST
from kilonova.api.policy import Audience
from kilonova.api.routes import Route

PAGE = Path(__file__).parents[2] / "docs/reference/behaviour/10-compute-api.md"
ROLES = {
    "R": Audience.READER, "M": Audience.MEMBER, "MG": Audience.MANAGER, "A": Audience.ADMIN, "S": Audience.SERVICE,
    "any": Audience.ANY, "U": Audience.USER, "nobody": Audience.NOBODY,
}
_ROW = re.compile(r"^\| \*\*(API-\d+)\*\* \| (.*) \|$")
_RULE = re.compile(r"\b([a-z][\w-]+(?::[\w-]+)*) \((R|MG|M|A|S|any|U|nobody)\)")
_ACTIONS_OF_SERVERS = "## Server actions"

Key = tuple[str, str, str | None]
"""Method, path with `{}` for each variable, action."""


@dataclass(frozen=True)
class Row:
    """One row of a table of routes. rules: of the policy column, the one that is always checked first."""

    id: str
    key: Key
    since: int
    until: int
    statuses: frozenset[int]
    rules: tuple[tuple[str, Audience], ...]


def key_of(route: Route) -> Key:
    return route.method, re.sub(r"{\w+}", "{}", route.path), route.action


def rows() -> list[Row]:
    """Every row that describes an operation of its own, retired ones left out."""
    found: list[Row] = []
    section = ""
    for line in PAGE.read_text().splitlines():
        section = line if line.startswith("## ") else section
        match = _ROW.match(line)
        if match is None:
            continue
        cells = [cell.strip() for cell in match[2].split("|")]
        keys = _keys(cells[0], section)
        if len(cells) < 5 or not re.search(r"all|\d\.\d", cells[1]) or cells[4] == "see remarks":
            continue
        since, until = _range(cells[1])
        statuses = frozenset(int(code) for code in re.findall(r"\b[2-5]\d\d\b", cells[2]))
        rules = tuple(_rules(cells[4]).items())
        found += [Row(match[1], key, since, until, statuses, rules) for key in keys]
    return found


def _keys(cell: str, section: str) -> list[Key]:
    quoted = re.findall(r"`([^`]+)`", cell)
    if section == _ACTIONS_OF_SERVERS:
        return [("POST", "/servers/{}/action", quoted[0])]
    if not quoted or not quoted[0].startswith("/"):
        return []
    methods = re.findall(r"\b(GET|POST|PUT|DELETE)\b", cell.partition("`")[0])
    path = re.sub(r"{\w+}", "{}", quoted[0])
    actions: list[str | None] = list(quoted[1:]) if quoted[1:] else [None]
    return [(method, path, action) for method in methods for action in actions]


def _rules(text: str) -> dict[str, Audience]:
    found = {name: ROLES[role] for name, role in _RULE.findall(text)}
    found.pop("none", None)
    return found


def _range(cell: str) -> tuple[int, int]:
    if cell == "all":
        return FIRST, LATEST
    numbers = [int(number) for number in re.findall(r"2\.(\d+)", cell)]
    if cell.startswith("≤"):
        return FIRST, numbers[0]
    return numbers[0], numbers[1] if len(numbers) > 1 else LATEST


def audiences() -> dict[str, Audience]:
    """Every rule that the page names anywhere, and whom it lets pass by default."""
    return _rules(PAGE.read_text())
