"""Every operation, killed at every boundary, with every step failing and every effect repeated.

A case runs alone by its id: `pytest tests/crash -k build/start_guest/do/effect`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash_matrix.cases import FAMILIES, Case
from crash_matrix.client import Matrix
from crash_matrix.scenarios import SCENARIOS

from kilonova.operations.catalogue import API_OPERATIONS, CELL_OPERATIONS

CASES = {case.id: case for family in FAMILIES for case in family()}


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    wanted = [i.callspec.params["case"] for i in request.session.items if "matrix" in getattr(i, "fixturenames", ())]
    running = Matrix(tmp_path_factory.mktemp("clouds"), wanted)
    yield running
    running.close()
    results = running.results
    bad = sum(bool(result.problems) for result in results)
    print(f"\ncrash matrix: {len(results)} cases, {bad} bad")


def test_every_operation_has_a_scenario() -> None:
    assert {operation.name for operation in (*API_OPERATIONS, *CELL_OPERATIONS)} == set(SCENARIOS)


@pytest.mark.timeout(600)
@pytest.mark.spec("VOL-27", "VOL-28", "VOL-29", "VOL-45")
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.id)
def test_nothing_is_stuck_and_nothing_leaks(matrix: Matrix, case: Case) -> None:
    result = matrix.result(case)
    assert not result.problems, "\n".join([*result.problems, result.log])
    if case.like:
        expected = matrix.result(CASES[case.like])
        assert result.end == expected.end
