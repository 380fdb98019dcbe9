"""Places of guests on hosts: what fits, what does not and why, and that nothing is ever given twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.domain.flavor import Flavor
from kilonova.shapes.fitting import DoesNotFit, fit
from kilonova.shapes.host import HostCell, HostTopology, Layout
from kilonova.shapes.shape import Shape, shape_of

THREADS = HostTopology(cells=(
    HostCell(id=0, memory_mib=4096, dedicated=(2, 3, 6, 7), shared=(0, 1), siblings=((2, 6), (3, 7), (0, 1)),
             pages={4: 524288, 2048: 1024}),
    HostCell(id=1, memory_mib=4096, dedicated=(10, 11, 14, 15), shared=(8, 9), siblings=((10, 14), (11, 15), (8, 9)),
             pages={4: 786432, 2048: 512}),
))
FLAT = HostTopology(cells=(HostCell(id=0, memory_mib=8192, dedicated=tuple(range(8)), pages={4: 2097152}),))


def shape(vcpus: int = 2, memory: int = 512, **extra_specs: str) -> Shape:
    specs = {f"hw:{key}": value for key, value in extra_specs.items()}
    flavor = Flavor(flavor_id="1", name="f", vcpus=vcpus, memory_mib=memory, root_gib=1, extra_specs=specs)
    return shape_of(flavor, None)


def place(wanted: Shape, topology: HostTopology | None = THREADS, taken: tuple[Layout, ...] = ()) -> Layout:
    found = fit(wanted, topology, taken)
    assert found is not None
    return found


def test_a_guest_without_wishes_needs_no_place() -> None:
    assert fit(shape(), None, ()) is None


def test_pinned_cpus_fill_cores() -> None:
    (only,) = place(shape(cpu_policy="dedicated")).places
    assert only.pins == {0: 2, 1: 6}
    assert (only.host_cell, only.floating, only.memory_mib) == (0, (), 512)


def test_cells_of_a_guest_are_in_different_cells_of_the_host() -> None:
    layout = place(shape(4, numa_nodes="2"))
    assert [one.host_cell for one in layout.places] == [0, 1]
    assert [one.floating for one in layout.places] == [(0, 1), (8, 9)]
    assert [one.cpus for one in layout.places] == [(0, 1), (2, 3)]
    assert layout.taken() == frozenset()
    with pytest.raises(DoesNotFit, match=r"3 NUMA cells, but the host has 2"):
        place(shape(3, 3072, numa_nodes="3"))


def test_a_guest_does_not_float_on_fewer_cpus_than_it_has() -> None:
    with pytest.raises(DoesNotFit, match="2 shared CPUs, the guest needs 3"):
        place(shape(3, numa_nodes="1"))


def test_mixed() -> None:
    (only,) = place(shape(3, cpu_policy="mixed", cpu_dedicated_mask="^0")).places
    assert (only.pins, only.floating) == ({1: 2, 2: 6}, (0, 1))


def test_isolated_threads_leave_their_siblings_idle() -> None:
    layout = place(shape(cpu_policy="dedicated", cpu_thread_policy="isolate"))
    (only,) = layout.places
    assert (only.pins, only.idle) == ({0: 2, 1: 3}, (6, 7))
    assert layout.taken() == {2, 3, 6, 7}
    (other,) = place(shape(4, cpu_policy="dedicated"), taken=(layout,)).places
    assert other.host_cell == 1
    with pytest.raises(DoesNotFit, match="whole cores"):
        place(shape(3, cpu_policy="dedicated", cpu_thread_policy="isolate"))


def test_required_threads() -> None:
    (only,) = place(shape(cpu_policy="dedicated", cpu_thread_policy="require")).places
    assert only.pins == {0: 2, 1: 6}
    with pytest.raises(DoesNotFit, match="more than one thread"):
        place(shape(cpu_policy="dedicated", cpu_thread_policy="require"), FLAT)
    with pytest.raises(DoesNotFit, match="do not fill"):
        place(shape(3, cpu_policy="dedicated", cpu_thread_policy="require"))


def test_threads_of_the_emulator() -> None:
    own = place(shape(cpu_policy="dedicated", emulator_threads_policy="isolate"))
    assert (own.emulator, own.own_emulator, own.taken()) == ((3,), True, {2, 6, 3})
    shared = place(shape(cpu_policy="dedicated", emulator_threads_policy="share"))
    assert (shared.emulator, shared.own_emulator, shared.taken()) == ((0, 1, 8, 9), False, {2, 6})
    with pytest.raises(DoesNotFit, match="cpu_shared_set"):
        place(shape(cpu_policy="dedicated", emulator_threads_policy="share"), FLAT)
    with pytest.raises(DoesNotFit, match="emulator"):
        place(shape(8, cpu_policy="dedicated", emulator_threads_policy="isolate"), FLAT)


@pytest.mark.parametrize(("size", "pages"), [("large", 2048), ("any", 2048), ("small", 4), ("2MB", 2048), ("4", 4)])
def test_pages(size: str, pages: int) -> None:
    assert place(shape(mem_page_size=size)).places[0].page_kib == pages


def test_pages_run_out() -> None:
    big = shape(memory=2048, mem_page_size="large")
    first = place(big)
    assert first.places[0].host_cell == 0  # the other has only 1024 MiB of them
    with pytest.raises(DoesNotFit, match="pages of 2048 KiB"):
        place(big, taken=(first,))
    assert place(shape(memory=2048, mem_page_size="any"), taken=(first,)).places[0].page_kib == 4
    with pytest.raises(DoesNotFit, match="1048576"):
        place(shape(memory=1024, mem_page_size="1GB"))
    with pytest.raises(DoesNotFit, match="no multiple"):
        place(shape(memory=511, mem_page_size="2MB"))


def test_memory_of_a_cell_is_not_given_twice() -> None:
    """The usual pages are one pool, whether their size is asked for or not; large pages are not part of it."""
    first = place(shape(memory=2048, numa_nodes="1"))
    second = place(shape(memory=2048, mem_page_size="small"), taken=(first,))
    assert {first.places[0].host_cell, second.places[0].host_cell} == {0, 1}
    with pytest.raises(DoesNotFit, match="MiB left"):
        place(shape(memory=2048, numa_nodes="1"), taken=(first, second))


def test_a_host_that_tells_nothing_takes_no_such_guest() -> None:
    with pytest.raises(DoesNotFit, match="does not tell"):
        fit(shape(numa_nodes="1"), None, ())


GUESTS = st.builds(
    lambda vcpus, policy, threads, nodes, emulator: (vcpus, {
        "cpu_policy": policy, **({"cpu_thread_policy": threads} if threads else {}),
        **({"numa_nodes": "2"} if nodes and vcpus % 2 == 0 else {}),
        **({"emulator_threads_policy": emulator} if emulator else {}),
    }),
    st.integers(1, 4), st.just("dedicated"), st.sampled_from(["", "prefer", "isolate", "require"]), st.booleans(),
    st.sampled_from(["", "isolate", "share"]),
)


@given(st.lists(GUESTS, max_size=8), st.data())
def test_no_cpu_is_ever_given_twice(guests: list[tuple[int, dict[str, str]]], data: st.DataObject) -> None:
    taken: list[Layout] = []
    for vcpus, specs in guests:
        if taken and data.draw(st.booleans()):
            taken.pop(data.draw(st.integers(0, len(taken) - 1)))
        try:
            layout = place(shape(vcpus, 64 * vcpus, **specs), taken=tuple(taken))
        except DoesNotFit:
            continue
        assert not any(layout.taken() & other.taken() for other in taken)
        for one in layout.places:
            (cell,) = [cell for cell in THREADS.cells if cell.id == one.host_cell]
            assert set(one.pins.values()) <= set(cell.dedicated)
            assert sorted(one.pins) == sorted(one.cpus)
        taken.append(layout)
