"""What an audit answers, as types."""

from __future__ import annotations

import msgspec

from kilonova.audit.differences import Kind


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """How much was compared. busy: servers left out, because operations work on them."""

    servers: int
    hosts: int
    ports: int
    images: int
    allocations: int
    busy: int


class DifferenceView(msgspec.Struct, frozen=True, kw_only=True):
    """A difference as operators see it."""

    kind: Kind
    object: str
    host: str
    subject: str
    cell: str
    what: str
    advice: str
    heals: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an audit. clean: everything that was compared agrees."""

    clean: bool
    differences: tuple[DifferenceView, ...]
    compared: Compared
    seconds: float


class HealedView(msgspec.Struct, frozen=True, kw_only=True):
    """What healing did about a difference; why not, if it did nothing."""

    what: str
    done: str
    why_not: str
    operation: str | None


class Healing(msgspec.Struct, frozen=True, kw_only=True):
    """What was healed, and the audit after it."""

    healed: tuple[HealedView, ...]
    after: Report
