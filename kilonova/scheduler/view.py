"""The hosts as columns: what filters and weighers compute on.

Row `n` of every column is the same host. Rows are never moved; a host that goes leaves a hole (`alive` False) that
the next new host fills.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from kilonova.db.placement.changes import Changes, HostRow

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]

H = TypeVar("H", bound=Hashable)

INITIAL_ROWS = 64


class Offers:
    """What the hosts have of one resource class. Hosts without it have capacity 0."""

    def __init__(self, size: int) -> None:
        self.capacity: Numbers = np.zeros(size, np.int64)
        self.used: Numbers = np.zeros(size, np.int64)
        self.held: Numbers = np.zeros(size, np.int64)
        self.min_unit: Numbers = np.ones(size, np.int64)
        self.max_unit: Numbers = np.zeros(size, np.int64)
        self.step_size: Numbers = np.ones(size, np.int64)

    def free(self) -> Numbers:
        """What is left, counting what this process has promised."""
        return self.capacity - self.used - self.held

    def set(self, row: int, numbers: tuple[int, int, int, int, int]) -> None:
        self.capacity[row], self.used[row], self.min_unit[row], self.max_unit[row], self.step_size[row] = numbers

    def grow(self, size: int) -> None:
        for name, value in vars(self).items():
            setattr(self, name, _grown(value, size, fill=1 if name in ("min_unit", "step_size") else 0))


class Labels(Generic[H]):
    """A column of few distinct values, stored as codes: a question is answered once for each value."""

    def __init__(self, size: int) -> None:
        self.codes: Numbers = np.zeros(size, np.int64)
        self.values: list[H] = []
        self._code_of: dict[H, int] = {}

    def set(self, row: int, value: H) -> None:
        code = self._code_of.get(value)
        if code is None:
            code = self._code_of[value] = len(self.values)
            self.values.append(value)
        self.codes[row] = code

    def where(self, answers: Iterable[bool]) -> Mask:
        """The rows for whose value the answer is True; one answer for each of `values`, in order."""
        table: Mask = np.fromiter(answers, np.bool_, len(self.values))
        return table[self.codes] if len(table) else np.zeros(len(self.codes), np.bool_)

    def grow(self, size: int) -> None:
        self.codes = _grown(self.codes, size)


class HostView:
    """All hosts, as of the last changes applied, less what this process has promised since.

    `nested` tells, by resource class, for which hosts a provider below the host's own has some of it.

    `hold` notes a promise until the host is read again; promises are hints that keep decisions made close together
    apart, while the claim in the database decides.
    """

    def __init__(self) -> None:
        size = INITIAL_ROWS
        self.alive: Mask = np.zeros(size, np.bool_)
        self.seen_at: NDArray[np.float64] = np.zeros(size, np.float64)
        self.io_ops: Numbers = np.zeros(size, np.int64)
        self.instances: Numbers = np.zeros(size, np.int64)
        self.held_instances: Numbers = np.zeros(size, np.int64)
        self.failed_builds: Numbers = np.zeros(size, np.int64)
        self.hypervisor_version: Numbers = np.zeros(size, np.int64)
        self.hypervisor_type: Labels[str] = Labels(size)
        self.cell: Labels[str] = Labels(size)
        self.cpu_info: Labels[str] = Labels(size)
        self.supported: Labels[tuple[tuple[str, str, str], ...]] = Labels(size)
        self.rows: list[HostRow | None] = [None] * size
        self.offers: dict[str, Offers] = {}
        self.nested: dict[str, Mask] = {}
        self._traits: dict[str, Mask] = {}
        self._aggregates: dict[str, Mask] = {}
        self._row_of: dict[int, int] = {}
        self._rows_on: dict[str, list[int]] = {}
        self._free_rows = list(range(size - 1, -1, -1))
        self._held_rows: dict[int, float] = {}
        self.since = 0
        self.seen_since = 0.0

    def __len__(self) -> int:
        return len(self._row_of)

    # --- What filters ask ---------------------------------------------------------------------------

    def with_trait(self, trait: str) -> Mask:
        return self._traits.get(trait, self._nowhere())

    def in_aggregate(self, aggregate: str) -> Mask:
        return self._aggregates.get(aggregate, self._nowhere())

    def on(self, hosts: Iterable[str]) -> Mask:
        """The rows of the named hosts."""
        mask = self._nowhere()
        for host in hosts:
            mask[self._rows_on.get(host, [])] = True
        return mask

    def counted(self, counts: Mapping[str, int]) -> Numbers:
        """A number for each host, spread over its rows."""
        column: Numbers = np.zeros(len(self.alive), np.int64)
        for host, count in counts.items():
            column[self._rows_on.get(host, [])] = count
        return column

    def row(self, index: int) -> HostRow:
        row = self.rows[index]
        assert row is not None, "a row that is not alive was asked for"
        return row

    def _nowhere(self) -> Mask:
        return np.zeros(len(self.alive), np.bool_)

    # --- Promises -----------------------------------------------------------------------------------

    def hold(self, row: int, resources: Mapping[str, int], now: float) -> None:
        """Count resources as taken that are about to be claimed."""
        for name, amount in resources.items():
            if name in self.offers:
                self.offers[name].held[row] += amount
        self.held_instances[row] += 1
        self._held_rows[row] = now

    def unhold(self, row: int, resources: Mapping[str, int]) -> None:
        for name, amount in resources.items():
            if name in self.offers:
                self.offers[name].held[row] -= amount
        self.held_instances[row] -= 1

    def forget_holds(self, before: float) -> bool:
        """Drop promises made before that time. Returns whether there were any."""
        stale = [row for row, at in self._held_rows.items() if at < before]
        for row in stale:
            self._drop_holds(row)
        return bool(stale)

    def _drop_holds(self, row: int) -> None:
        if self._held_rows.pop(row, None) is not None:
            for offers in self.offers.values():
                offers.held[row] = 0
            self.held_instances[row] = 0

    # --- Keeping up -----------------------------------------------------------------------------------

    def apply(self, changes: Changes) -> None:
        """Bring the columns up to date. Applying the same changes twice is the same as once."""
        for gone in changes.gone:
            self._remove(gone)
        for host in changes.hosts:
            self._put(host)
        for provider_id, seen_at in changes.seen:
            row = self._row_of.get(provider_id)
            if row is not None:
                self.seen_at[row] = seen_at
                self.seen_since = max(self.seen_since, seen_at)
        self.since = max(self.since, changes.before)

    def _put(self, host: HostRow) -> None:
        row = self._row_of.get(host.id)
        if row is None:
            row = self._row_of[host.id] = self._new_row()
            self._rows_on.setdefault(host.host, []).append(row)
        before = self.rows[row]
        self.rows[row] = host
        self._drop_holds(row)
        self.alive[row] = True
        self.seen_at[row] = host.seen_at
        self.io_ops[row] = host.io_ops
        self.instances[row] = host.instances
        self.failed_builds[row] = host.failed_builds
        self.hypervisor_version[row] = host.hypervisor_version
        self.hypervisor_type.set(row, host.hypervisor_type)
        self.cell.set(row, host.cell)
        self.cpu_info.set(row, host.cpu_info)
        self.supported.set(row, host.supported)
        self._put_offers(row, host.offers, before.offers if before else {})
        none: frozenset[str] = frozenset()
        self._put_names(self._traits, row, host.traits, before.traits if before else none)
        self._put_names(self._aggregates, row, host.aggregates, before.aggregates if before else none)
        self._put_names(self.nested, row, _classes(host), _classes(before) if before else none)

    def _put_offers(
        self, row: int, offers: Mapping[str, tuple[int, int, int, int, int]], before: Mapping[str, object]
    ) -> None:
        for name, numbers in offers.items():
            if name not in self.offers:
                self.offers[name] = Offers(len(self.alive))
            self.offers[name].set(row, numbers)
        for name in before.keys() - offers.keys():
            self.offers[name].set(row, (0, 0, 1, 0, 1))

    def _put_names(self, columns: dict[str, Mask], row: int, names: frozenset[str], before: frozenset[str]) -> None:
        if names is before:
            return
        for name in names - before:
            if name not in columns:
                columns[name] = self._nowhere()
            columns[name][row] = True
        for name in before - names:
            columns[name][row] = False

    def _remove(self, provider_id: int) -> None:
        row = self._row_of.pop(provider_id, None)
        if row is None:
            return
        host = self.row(row)
        self._drop_holds(row)
        self._put_offers(row, {}, host.offers)
        self._put_names(self._traits, row, frozenset(), host.traits)
        self._put_names(self._aggregates, row, frozenset(), host.aggregates)
        self._put_names(self.nested, row, frozenset(), _classes(host))
        self._rows_on[host.host].remove(row)
        if not self._rows_on[host.host]:
            del self._rows_on[host.host]
        self.alive[row] = False
        self.rows[row] = None
        self._free_rows.append(row)

    def _new_row(self) -> int:
        if not self._free_rows:
            self._grow(2 * len(self.alive))
        return self._free_rows.pop()

    def _grow(self, size: int) -> None:
        before = len(self.alive)
        for name in (
            "alive",
            "seen_at",
            "io_ops",
            "instances",
            "held_instances",
            "failed_builds",
            "hypervisor_version",
        ):
            setattr(self, name, _grown(getattr(self, name), size))
        for labels in (self.hypervisor_type, self.cell, self.cpu_info):
            labels.grow(size)
        self.supported.grow(size)
        for offers in self.offers.values():
            offers.grow(size)
        for masks in (self._traits, self._aggregates, self.nested):
            for name, mask in masks.items():
                masks[name] = _grown(mask, size)
        self.rows.extend([None] * (size - before))
        self._free_rows.extend(range(size - 1, before - 1, -1))


def _classes(host: HostRow) -> frozenset[str]:
    """The resource classes that the providers below a host's own have."""
    return frozenset(name for branch in host.below for name in branch.offers)


A = TypeVar("A", NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64])


def _grown(column: A, size: int, fill: int = 0) -> A:
    grown = np.full(size, fill, column.dtype)
    grown[: len(column)] = column
    return grown
