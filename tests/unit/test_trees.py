"""Which providers of a tree serve the groups of a request."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.resources import groups_of, isolates, own_resources_of, resources_of, traits_of
from kilonova.shapes.trees import Assignment, Branch, ResourceGroup, assign

BW = "NET_BW_EGR_KILOBIT_PER_SEC"


def branch(name: str, free: int = 1000, *traits: str, resource: str = BW) -> Branch:
    return Branch(provider=name, offers={resource: (free, 0, 1, free, 1)}, traits=frozenset(traits))


ROOT = branch("host", 4, resource="VCPU")


def group(suffix: str, amount: int, *required: str, forbidden: str = "", resource: str = BW) -> ResourceGroup:
    return ResourceGroup(
        suffix=suffix, resources={resource: amount}, required=frozenset(required),
        forbidden=frozenset({forbidden} if forbidden else ()),
    )


def flavor(**extra_specs: str) -> Flavor:
    specs = {name.replace("__", ":"): value for name, value in extra_specs.items()}
    return Flavor(flavor_id="1", name="m", vcpus=2, memory_mib=512, root_gib=0, extra_specs=specs)


def test_each_group_is_served_by_one_provider() -> None:
    tree = (ROOT, branch("a", 500, "CUSTOM_A"), branch("b", 800))
    found = assign({"VCPU": 2}, (group("1", 600), group("2", 400)), tree, isolate=False)
    assert found == Assignment({"host": {"VCPU": 2}, "a": {BW: 400}, "b": {BW: 600}}, {"1": "b", "2": "a"})
    assert assign({}, (group("1", 900),), tree, isolate=False) is None
    assert assign({}, (group("1", 400, "CUSTOM_A"), group("2", 400, "CUSTOM_A")), tree, isolate=False) is None
    assert assign({}, (group("1", 100, forbidden="CUSTOM_A"),), tree, isolate=False) == Assignment(
        {"b": {BW: 100}}, {"1": "b"})
    assert assign({"VCPU": 5}, (), tree, isolate=False) is None


def test_groups_share_a_provider_unless_they_are_isolated() -> None:
    tree = (ROOT, branch("a"))
    pair = (group("1", 400), group("2", 400))
    assert assign({}, pair, tree, isolate=False) == Assignment({"a": {BW: 800}}, {"1": "a", "2": "a"})
    assert assign({}, pair, tree, isolate=True) is None
    assert assign({}, pair, (*tree, branch("b")), isolate=True) is not None
    cpus = (group("1", 1, resource="VCPU"), group("2", 400))
    assert assign({"VCPU": 3}, cpus, tree, isolate=True) == Assignment(
        {"host": {"VCPU": 4}, "a": {BW: 400}}, {"1": "host", "2": "a"})


def test_what_no_group_asks_for_comes_of_the_host_if_it_has_that() -> None:
    tree = (ROOT, branch("a", 8, resource="VCPU"), branch("b"))
    assert assign({"VCPU": 5}, (), tree, isolate=False) is None
    assert assign({"VCPU": 1, BW: 7}, (), tree, isolate=False) == Assignment(
        {"host": {"VCPU": 1}, "b": {BW: 7}}, {})


def test_who_served_it_before_is_tried_first() -> None:
    tree = (ROOT, branch("a"), branch("b"))
    assert assign({}, (group("1", 1),), tree, isolate=False, preferred={"1": "b"}) == Assignment(
        {"b": {BW: 1}}, {"1": "b"})
    assert assign({}, (group("1", 1),), tree, isolate=False, preferred={"1": "gone"}) == Assignment(
        {"a": {BW: 1}}, {"1": "a"})


def test_portions_are_kept() -> None:
    odd = Branch(provider="a", offers={BW: (100, 0, 10, 50, 5)})
    for amount, fits in ((5, False), (10, True), (12, False), (50, True), (55, False)):
        assert (assign({}, (group("1", amount),), (ROOT, odd), isolate=False) is not None) is fits


@given(
    frees=st.lists(st.integers(1, 4), min_size=1, max_size=3), amounts=st.lists(st.integers(1, 4), max_size=4),
    isolate=st.booleans(),
)
def test_it_finds_a_way_exactly_if_there_is_one(frees: list[int], amounts: list[int], isolate: bool) -> None:
    tree = (ROOT, *(branch(str(number), free) for number, free in enumerate(frees)))
    groups = [group(str(number), amount) for number, amount in enumerate(amounts)]
    possible = any(
        all(sum(a for a, at in zip(amounts, way, strict=True) if at == n) <= free for n, free in enumerate(frees))
        and (not isolate or len(set(way)) == len(way))
        for way in product(range(len(frees)), repeat=len(amounts))
    )
    found = assign({}, groups, tree, isolate=isolate)
    assert (found is not None) is possible
    if found is not None:
        for number, free in enumerate(frees):
            assert sum(a for n, a in enumerate(amounts) if found.groups[str(n)] == str(number)) <= free


def test_what_a_flavor_asks_for_in_groups() -> None:
    asked = flavor(resources1__CUSTOM_X="2", trait1__CUSTOM_FAST="required", trait1__CUSTOM_SLOW="forbidden",
                   resources_NET__CUSTOM_X="1", trait2__CUSTOM_ALONE="required", resources3__VCPU="0",
                   trait__CUSTOM_OWN="required", group_policy="isolate")
    assert groups_of(asked) == (
        ResourceGroup(suffix="1", resources={"CUSTOM_X": 2}, required=frozenset({"CUSTOM_FAST"}),
                      forbidden=frozenset({"CUSTOM_SLOW"})),
        ResourceGroup(suffix="_NET", resources={"CUSTOM_X": 1}),
    )
    assert isolates(asked) and not isolates(flavor(group_policy="none"))
    assert own_resources_of(asked) == {"VCPU": 2, "MEMORY_MB": 512}
    assert resources_of(asked) == {"VCPU": 2, "MEMORY_MB": 512, "CUSTOM_X": 3}
    assert traits_of(asked, Image(id="i")).required == {"CUSTOM_OWN", "CUSTOM_ALONE"}
    with pytest.raises(InvalidInput):
        groups_of(flavor(resources1__CUSTOM_X="many"))
