"""Filters, weighers and decisions on a view that is filled by hand."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.db.placement.changes import Changes, HostRow
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.grouping import Aggregate, GroupPolicy, ServerGroup
from kilonova.domain.image import Image
from kilonova.domain.instance import RequestSpec
from kilonova.domain.network import RequestedNetwork
from kilonova.scheduler.decision import NoHostLeft, Preferences, Selection, decide
from kilonova.scheduler.demand import demand_of, hint_values
from kilonova.scheduler.filters.image import version_allowed
from kilonova.scheduler.filters.operators import matches
from kilonova.scheduler.view import HostView
from kilonova.shapes.resources import resources_of, traits_of
from kilonova.shapes.trees import Branch

NOW = 1000.0


def host(number: int, **changes: Any) -> HostRow:
    fields: dict[str, Any] = {
        "id": number, "provider": f"rp{number}", "host": f"h{number}", "node": f"n{number}", "cell": "c1",
        "hypervisor_type": "QEMU", "hypervisor_version": 7002022, "host_ip": "127.0.0.1",
        "cpu_info": '{"arch": "x86_64", "features": ["vmx", "avx"]}',
        "supported": (("x86_64", "kvm", "hvm"), ("x86_64", "qemu", "hvm")),
        "io_ops": 0, "failed_builds": 0, "seen_at": NOW,
        "offers": {"VCPU": (32, 0, 1, 8, 1), "MEMORY_MB": (8192, 0, 1, 8192, 1), "DISK_GB": (100, 0, 1, 100, 1)},
    }
    return HostRow(**{**fields, **changes})


def offers(vcpus: int = 32, memory: int = 8192, disk: int = 100) -> dict[str, tuple[int, int, int, int, int]]:
    return {"VCPU": (vcpus, 0, 1, 8, 1), "MEMORY_MB": (memory, 0, 1, 8192, 1), "DISK_GB": (disk, 0, 1, 100, 1)}


def view_of(*hosts: HostRow) -> HostView:
    view = HostView()
    view.apply(Changes(before=1, hosts=list(hosts), gone=[], seen=[]))
    return view


def request(extra_specs: dict[str, str] | None = None, properties: dict[str, str] | None = None,
            memory: int = 512, **changes: Any) -> RequestSpec:
    return RequestSpec(
        instance_uuid="server", project_id="p", user_id="u",
        flavor=Flavor(flavor_id="1", name="m", vcpus=1, memory_mib=memory, root_gib=1, extra_specs=extra_specs or {}),
        image=Image(id="i", properties=properties or {}), **changes,
    )


def chosen(view: HostView, spec: RequestSpec, *, count: int = 1, alternates: int = 0,
           preferences: Preferences | None = None, seed: int = 1, **facts: Any) -> list[Selection]:
    return decide(view, demand_of(spec, now=NOW, **facts), count=count, alternates=alternates,
                  random=Random(seed), preferences=preferences or Preferences())


def able(view: HostView, spec: RequestSpec, **facts: Any) -> set[str]:
    """All hosts that pass."""
    try:
        (selection,) = chosen(view, spec, alternates=99, **facts)
    except NoHostLeft:
        return set()
    view.forget_holds(before=float("inf"))
    return {selection.host} | {other.host for other in selection.alternates}


# --- Filters ---------------------------------------------------------------------------------------


def test_room_counts_every_class_and_the_units_a_host_gives() -> None:
    view = view_of(
        host(1, offers=offers(memory=511)), host(2, offers=offers(vcpus=0)), host(3), host(4, offers={}),
        host(5, offers={**offers(), "MEMORY_MB": (8192, 0, 1024, 8192, 1)}),
        host(6, offers={**offers(), "MEMORY_MB": (8192, 0, 1, 8192, 500)}),
        host(7, offers={**offers(), "MEMORY_MB": (8192, 7681, 1, 8192, 1)}),
    )
    assert able(view, request()) == {"h3"}


def test_custom_resources_are_asked_of_the_host() -> None:
    view = view_of(host(1), host(2, offers={**offers(), "CUSTOM_GPU": (2, 1, 1, 2, 1)}))
    assert able(view, request({"resources:CUSTOM_GPU": "1"})) == {"h2"}
    assert able(view, request({"resources:CUSTOM_GPU": "2"})) == set()


def test_traits_of_flavor_and_image() -> None:
    view = view_of(host(1, traits=frozenset({"A", "B"})), host(2, traits=frozenset({"A"})), host(3))
    assert able(view, request({"trait:A": "required"})) == {"h1", "h2"}
    assert able(view, request({"trait:A": "required"}, {"trait:B": "required"})) == {"h1"}
    assert able(view, request({"trait:B": "forbidden"})) == {"h2", "h3"}
    assert able(view, request({"trait:NOBODY_HAS": "required"})) == set()


@pytest.mark.spec("BLD-33")
def test_hints_are_those_of_the_request_or_none() -> None:
    assert hint_values(request(scheduler_hints={"same_host": ["a", "b"]}), "same_host") == ["a", "b"]
    assert hint_values(request(scheduler_hints={"same_host": ["a"]}), "different_host") == []
    assert request().scheduler_hints == {}
    assert hint_values(request(), "same_host") == []


@pytest.mark.spec("BLD-32")
def test_device_tags_need_a_host_that_can_tag() -> None:
    view = view_of(host(1), host(2, traits=frozenset({"COMPUTE_DEVICE_TAGGING"})))
    network = RequestedNetwork(network_id="n", tag="red")
    disk = BlockDevice(uuid="b", source_type="blank", destination_type="local", tag="blue")
    assert able(view, request(requested_networks=(network,))) == {"h2"}
    assert able(view, request(block_devices=(disk,))) == {"h2"}


@pytest.mark.spec("BLD-32")
def test_a_bus_that_is_asked_for_needs_a_host_that_has_it() -> None:
    view = view_of(host(1), host(2, traits=frozenset({"COMPUTE_STORAGE_BUS_SATA"})))
    disk = BlockDevice(uuid="b", source_type="blank", destination_type="local", disk_bus="sata")
    assert able(view, request(block_devices=(disk,))) == {"h2"}


@pytest.mark.spec("BLD-32")
def test_trusted_certificates_need_a_host_that_checks_images_against_them() -> None:
    view = view_of(host(1, traits=frozenset({"COMPUTE_DEVICE_TAGGING"})),
                   host(2, traits=frozenset({"COMPUTE_TRUSTED_CERTS"})))
    assert able(view, request(trusted_certs=("c",))) == {"h2"}
    assert able(view, request()) == {"h1", "h2"}


def test_groups_of_resources_need_a_tree_that_serves_them() -> None:
    def below(*frees: int) -> tuple[Branch, ...]:
        return tuple(Branch(provider=f"b{n}", offers={"CUSTOM_X": (free, 0, 1, 9, 1)}) for n, free in enumerate(frees))

    view = view_of(host(1), host(2, below=below(2)), host(3, below=below(2, 2)))
    pair = {"resources1:CUSTOM_X": "1", "resources2:CUSTOM_X": "1"}
    assert able(view, request({"resources1:CUSTOM_X": "2"})) == {"h2", "h3"}
    assert able(view, request({**pair, "group_policy": "none"})) == {"h2", "h3"}
    assert able(view, request({**pair, "group_policy": "isolate"})) == {"h3"}
    assert able(view, request({"resources:CUSTOM_X": "2"})) == {"h2", "h3"}
    assert able(view, request({"resources:CUSTOM_X": "3"})) == set()
    assert able(view, request({"resources1:VCPU": "8", "resources2:VCPU": "8", "group_policy": "none"})) == set()
    view.apply(Changes(before=2, hosts=[host(3)], gone=[2], seen=[]))
    assert able(view, request({"resources1:CUSTOM_X": "2"})) == set()
    with pytest.raises(NoHostLeft, match="No host has a provider for each of the groups"):
        chosen(view, request({"resources1:CUSTOM_X": "2"}))


def test_disabled_dead_and_ignored_hosts_are_left_out() -> None:
    view = view_of(host(1, traits=frozenset({"COMPUTE_STATUS_DISABLED"})), host(2, seen_at=NOW - 61), host(3),
                   host(4, seen_at=NOW - 59))
    assert able(view, request()) == {"h3", "h4"}
    assert able(view, request(ignore_hosts=("h3",))) == {"h4"}
    view.apply(Changes(before=2, hosts=[], gone=[], seen=[(2, NOW)]))
    assert able(view, request()) == {"h2", "h3", "h4"}


def test_a_forced_host_needs_room_but_passes_the_other_filters() -> None:
    view = view_of(host(1, seen_at=0.0), host(2), host(3, offers=offers(memory=1)),
                   host(4, traits=frozenset({"COMPUTE_STATUS_DISABLED"})))
    spec = {"availability_zone": "elsewhere"}
    assert able(view, request(force_host="h1", **spec)) == {"h1"}
    assert able(view, request(force_node="n2", **spec)) == {"h2"}
    assert able(view, request(force_host="h1", force_node="n2")) == set()
    assert able(view, request(force_host="h3")) == set()
    assert able(view, request(force_host="h4")) == set()
    assert able(view, request(force_host="nowhere")) == set()


def test_a_requested_host_passes_every_filter() -> None:
    view = view_of(host(1, seen_at=0.0), host(2), host(3))
    assert able(view, request(requested_host="h1")) == set()
    assert able(view, request(requested_host="h2")) == {"h2"}
    assert able(view, request(requested_host="n3")) == {"h3"}


def test_zones_are_aggregates_and_the_rest_is_the_default_zone() -> None:
    aggregates = [Aggregate(uuid="a1", name="one", metadata={"availability_zone": "east"}),
                  Aggregate(uuid="a2", name="two", metadata={"availability_zone": "west"}),
                  Aggregate(uuid="a3", name="three", metadata={"ssd": "true"})]
    view = view_of(host(1, aggregates=frozenset({"a1", "a3"})), host(2, aggregates=frozenset({"a2"})),
                   host(3, aggregates=frozenset({"a3"})), host(4))

    def in_zone(zone: str | None) -> set[str]:
        return able(view, request(availability_zone=zone), aggregates=aggregates)

    assert in_zone("east") == {"h1"}
    assert in_zone("west") == {"h2"}
    assert in_zone("nova") == {"h3", "h4"}
    assert in_zone("moon") == set()
    assert in_zone(None) == {"h1", "h2", "h3", "h4"}
    spec = request({"aggregate_instance_extra_specs:ssd": "true"})
    assert able(view, spec, aggregates=aggregates) == {"h1", "h3"}


def test_capabilities_are_compared_with_the_host() -> None:
    view = view_of(host(1), host(2, hypervisor_type="fake", hypervisor_version=1000),
                   host(3, cpu_info='{"arch": "aarch64", "features": []}', offers=offers(memory=1024)))
    asked = {
        ("capabilities:hypervisor_type", "QEMU"): {"h1", "h3"},
        ("capabilities:hypervisor_version", ">= 7000000"): {"h1", "h3"},
        ("capabilities:cpu_info:arch", "aarch64"): {"h3"},
        ("capabilities:cpu_info:features", "<in> avx"): {"h1", "h2"},
        ("capabilities:cpu_info:features", "<all-in> avx vmx"): {"h1", "h2"},
        ("capabilities:cpu_info:features", "<all-in> avx sse9"): set(),
        ("free_ram_mb", ">= 2048"): {"h1", "h2"},
        ("hypervisor_hostname", "<or> n1 <or> n3"): {"h1", "h3"},
        ("unheard_of", "1"): set(),
        ("hw:cpu_policy", "shared"): {"h1", "h2", "h3"},
        ("hide_hypervisor_id", "true"): {"h1", "h2", "h3"},
    }
    for (key, value), expected in asked.items():
        assert able(view, request({key: value})) == expected, (key, value)


@pytest.mark.parametrize(("value", "wanted", "expected"), [
    ("5", "= 5", True), ("6", "= 5", True), ("4", "= 5", False), ("5", "== 5", True), ("6", "== 5", False),
    ("6", "!= 5", True), ("6", ">= 5", True), ("6", "<= 5", False), ("x", ">= 5", False), ("5", ">=", False),
    ("abc", "s== abc", True), ("abc", "s!= abc", False), ("abc", "s< abd", True), ("abc", "s>= abd", False),
    ("abcdef", "<in> cde", True), ("abcdef", "<in> xyz", False), ("b", "<or> a <or> b", True),
    ("c", "<or> a <or> b", False), ("plain", "plain", True), ("plain", "other", False), ("", "", True),
])
def test_comparisons_of_extra_specs(value: str, wanted: str, expected: bool) -> None:
    assert matches(value, wanted) is expected


@given(st.text(max_size=12), st.text(max_size=20))
def test_no_extra_spec_breaks_a_decision(value: str, wanted: str) -> None:
    assert matches(value, wanted) in (True, False)
    able(view_of(host(1)), request({"capabilities:cpu_info": wanted, "free_ram_mb": value}))


def test_image_properties_need_a_hypervisor_that_fits() -> None:
    view = view_of(host(1), host(2, supported=(("aarch64", "kvm", "hvm"),)),
                   host(3, supported=(("x86_64", "xen", "xen"),), hypervisor_version=4_017_000))
    asked = [
        ({"hw_architecture": "x86_64"}, {"h1", "h3"}), ({"hw_architecture": "arm64"}, {"h2"}),
        ({"img_hv_type": "KVM"}, {"h1", "h2"}), ({"hw_vm_mode": "xen"}, {"h3"}),
        ({"hw_architecture": "x86_64", "img_hv_type": "kvm", "hw_vm_mode": "hvm"}, {"h1"}),
        ({"img_hv_requested_version": ">=5.0, <8"}, {"h1", "h2"}), ({"hw_architecture": "sparc"}, set()),
        ({"hw_boot_menu": "yes"}, {"h1", "h2", "h3"}),
    ]
    for properties, expected in asked:
        assert able(view, request(properties=properties)) == expected, properties


def test_versions_are_compared_by_their_parts() -> None:
    assert version_allowed(7_002_022, "7.2.22")
    assert version_allowed(7_002_022, ">7.2,<=7.2.22,!=7.2.21")
    assert not version_allowed(7_002_022, ">=7.10")
    assert not version_allowed(7_002_022, "seven")


def test_same_and_different_host_hints() -> None:
    view = view_of(host(1), host(2), host(3))
    located = [("h1", "a"), ("h2", "b")]
    assert able(view, request(scheduler_hints={"same_host": ["a"]}), located=located) == {"h1"}
    assert able(view, request(scheduler_hints={"same_host": ["a", "b"]}), located=located) == {"h1", "h2"}
    assert able(view, request(scheduler_hints={"same_host": ["gone"]}), located=located) == set()
    assert able(view, request(scheduler_hints={"different_host": ["a", "b"]}), located=located) == {"h3"}
    assert able(view, request(scheduler_hints={"different_host": ["gone"]}), located=located) == {"h1", "h2", "h3"}


@pytest.mark.spec("BLD-11", "BLD-12", "BLD-13", "BLD-14", "BLD-20")
def test_server_groups() -> None:
    view = view_of(host(1), host(2), host(3))
    members, located = ("a", "b", "server"), [("h1", "a"), ("h1", "b"), ("h3", "server")]

    def allowed(policy: GroupPolicy, limit: int = 1) -> set[str]:
        group = ServerGroup(uuid="g", policy=policy, max_per_host=limit, members=members)
        return able(view, request(), group=group, located=located)

    assert allowed(GroupPolicy.ANTI_AFFINITY) == {"h2", "h3"}
    assert allowed(GroupPolicy.ANTI_AFFINITY, 2) == {"h2", "h3"}
    assert allowed(GroupPolicy.ANTI_AFFINITY, 3) == {"h1", "h2", "h3"}
    assert allowed(GroupPolicy.AFFINITY) == {"h1"}
    assert allowed(GroupPolicy.SOFT_AFFINITY) == {"h1", "h2", "h3"}
    assert allowed(GroupPolicy.SOFT_ANTI_AFFINITY) == {"h1", "h2", "h3"}
    assert able(view, request(), group=None, located=located) == {"h1", "h2", "h3"}
    first = ServerGroup(uuid="g", policy=GroupPolicy.AFFINITY, members=("server",))
    assert able(view, request(), group=first) == {"h1", "h2", "h3"}


def test_a_flavor_that_wants_pci_devices_finds_no_host() -> None:
    assert able(view_of(host(1)), request({"pci_passthrough:alias": "gpu:1"})) == set()


# --- Weighers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("better", "worse"), [
    ({"offers": offers(memory=8192)}, {"offers": offers(memory=4096)}),
    ({"offers": offers(vcpus=32)}, {"offers": offers(vcpus=16)}),
    ({"offers": offers(disk=100)}, {"offers": offers(disk=50)}),
    ({"io_ops": 0}, {"io_ops": 3}),
    ({"failed_builds": 0}, {"failed_builds": 1, "io_ops": 0}),
    ({"hypervisor_version": 8000000}, {"hypervisor_version": 7000000}),
])
def test_what_makes_a_host_better(better: dict[str, Any], worse: dict[str, Any]) -> None:
    for first, second in ((better, worse), (worse, better)):
        (selection,) = chosen(view_of(host(1, **first), host(2, **second)), request())
        assert selection.host == ("h1" if first is better else "h2")


def test_failed_builds_outweigh_all_else() -> None:
    view = view_of(host(1, failed_builds=1), host(2, offers=offers(1, 512, 1), io_ops=9, hypervisor_version=1))
    assert chosen(view, request())[0].host == "h2"


def test_soft_groups_choose_but_do_not_refuse() -> None:
    located = [("h2", "a"), ("h3", "b")]
    for policy, expected in ((GroupPolicy.SOFT_AFFINITY, {"h2", "h3"}), (GroupPolicy.SOFT_ANTI_AFFINITY, {"h1"})):
        group = ServerGroup(uuid="g", policy=policy, members=("a", "b"))
        (selection,) = chosen(view_of(host(1), host(2), host(3)), request(), group=group, located=located)
        assert selection.host in expected


def test_multipliers_can_be_set() -> None:
    view = view_of(host(1, offers=offers(memory=8192)), host(2, offers=offers(memory=4096)))
    stacking = Preferences(multipliers={"ram": -1.0})
    assert chosen(view, request(), preferences=stacking)[0].host == "h2"


# --- Decisions -------------------------------------------------------------------------------------


def test_servers_of_one_request_spread() -> None:
    view = view_of(*(host(number) for number in range(1, 6)))
    hosts = [selection.host for selection in chosen(view, request(), count=10)]
    assert sorted(hosts) == sorted([f"h{number}" for number in range(1, 6)] * 2)


def test_servers_of_one_request_keep_to_their_group() -> None:
    view = view_of(*(host(number) for number in range(1, 4)))
    apart = ServerGroup(uuid="g", policy=GroupPolicy.ANTI_AFFINITY)
    assert len({selection.host for selection in chosen(view, request(), count=3, group=apart)}) == 3
    with pytest.raises(NoHostLeft):
        chosen(view_of(host(1), host(2)), request(), count=3, group=apart)
    together = ServerGroup(uuid="g", policy=GroupPolicy.AFFINITY)
    assert len({selection.host for selection in chosen(view, request(), count=3, group=together)}) == 1


def test_when_not_all_fit_none_is_noted() -> None:
    view = view_of(host(1), host(2))
    with pytest.raises(NoHostLeft):
        chosen(view, request(memory=4096), count=5)
    assert len(chosen(view, request(memory=4096), count=4)) == 4


def test_alternates_are_the_next_best_of_the_same_cell() -> None:
    view = view_of(host(1, offers=offers(memory=8000)), host(2, offers=offers(memory=7000), cell="c2"),
                   host(3, offers=offers(memory=6000)), host(4, offers=offers(memory=5000)))
    (selection,) = chosen(view, request(), alternates=1)
    assert (selection.host, [other.host for other in selection.alternates]) == ("h1", ["h3"])
    assert selection.resources == {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1}
    assert selection.limits["MEMORY_MB"] == 8000


def test_the_choice_among_the_best_is_drawn_and_repeats_with_the_seed() -> None:
    rows = [host(number, offers=offers(memory=8192 - number)) for number in range(10)]
    some = Preferences(host_subset_size=3)
    drawn = [chosen(view_of(*rows), request(), preferences=some, seed=seed)[0].host for seed in range(40)]
    assert set(drawn) == {"h0", "h1", "h2"}
    assert drawn == [chosen(view_of(*rows), request(), preferences=some, seed=seed)[0].host for seed in range(40)]


def test_no_valid_host_says_what_each_filter_left() -> None:
    view = view_of(host(1), host(2, offers=offers(memory=100)), host(3, seen_at=0.0))
    with pytest.raises(NoHostLeft) as caught:
        chosen(view, request(availability_zone="moon"))
    assert caught.value.left == (("start", 3), ("EnabledStatus", 3), ("ComputeFilter", 2), ("AvailabilityZone", 0),
                                 ("Resources", 0))
    assert caught.value.message == "No valid host was found. There are not enough hosts available."


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12000)), max_size=80), st.integers(1, 12))
def test_never_a_host_without_room(sizes: list[tuple[int, int]], count: int) -> None:
    rows = [host(n, offers=offers(vcpus, memory)) for n, (vcpus, memory) in enumerate(sizes)]
    room = sum(min(vcpus, memory // 512, 100) for vcpus, memory in sizes)
    try:
        selections = chosen(view_of(*rows), request(), count=count)
    except NoHostLeft:
        assert room < count
        return
    assert room >= count
    for number, (vcpus, memory) in enumerate(sizes):
        placed = sum(selection.host == f"h{number}" for selection in selections)
        assert placed <= vcpus
        assert placed * 512 <= memory


# --- The view --------------------------------------------------------------------------------------


HISTORY = st.lists(st.tuples(st.integers(0, 90), st.booleans(), st.integers(0, 3)), max_size=200)


@given(HISTORY)
def test_a_view_kept_up_to_date_equals_one_made_anew(history: list[tuple[int, bool, int]]) -> None:
    view, truth = HostView(), {}
    for step, (number, present, kind) in enumerate(history):
        if present:
            row = host(number, host=f"h{number // 2}", traits=frozenset("ABC"[:kind]),
                       aggregates=frozenset("XYZ"[kind:]), offers=offers(memory=600 * kind), seen_at=NOW - kind,
                       hypervisor_type=f"hv{kind}")
            truth[number] = row
            view.apply(Changes(before=step, hosts=[row], gone=[], seen=[]))
        else:
            truth.pop(number, None)
            view.apply(Changes(before=step, hosts=[], gone=[number], seen=[]))
    fresh = view_of(*truth.values())
    assert len(view) == len(truth)
    for asked in (view, fresh):
        rows = {asked.row(index).id: index for index in asked.alive.nonzero()[0]}
        assert rows.keys() == truth.keys()
        for number, index in rows.items():
            row = truth[number]
            assert {t for t in "ABC" if asked.with_trait(t)[index]} == set(row.traits)
            assert {a for a in "XYZ" if asked.in_aggregate(a)[index]} == set(row.aggregates)
            assert asked.offers["MEMORY_MB"].free()[index] == row.offers["MEMORY_MB"][0]
            assert asked.hypervisor_type.values[asked.hypervisor_type.codes[index]] == row.hypervisor_type
            assert asked.on([row.host])[index]
        assert not asked.on(["h0", "h1"])[~asked.alive].any()


# --- What a server takes ----------------------------------------------------------------------------


def flavor(**changes: Any) -> Flavor:
    return Flavor(**{"flavor_id": "1", "name": "m", "vcpus": 2, "memory_mib": 1024, "root_gib": 10, **changes})


def test_resources_of_a_flavor() -> None:
    assert resources_of(flavor()) == {"VCPU": 2, "MEMORY_MB": 1024, "DISK_GB": 10}
    assert resources_of(flavor(ephemeral_gib=5, swap_mib=1))["DISK_GB"] == 16
    assert resources_of(flavor(swap_mib=1024))["DISK_GB"] == 11
    assert resources_of(flavor(swap_mib=1025))["DISK_GB"] == 12
    assert "DISK_GB" not in resources_of(flavor(), volume_backed=True)
    assert resources_of(flavor(swap_mib=1), volume_backed=True)["DISK_GB"] == 1


def test_extra_specs_replace_resources() -> None:
    specs = {"resources:VCPU": "0", "resources:CUSTOM_GOLD": "3", "resources1:CUSTOM_GOLD": "2",
             "resources:MEMORY_MB": "2048"}
    assert resources_of(flavor(extra_specs=specs)) == {"MEMORY_MB": 2048, "DISK_GB": 10, "CUSTOM_GOLD": 5}
    with pytest.raises(InvalidInput):
        resources_of(flavor(extra_specs={"resources:VCPU": "-1"}))


def test_dedicated_cpus() -> None:
    dedicated = {"hw:cpu_policy": "dedicated"}
    assert resources_of(flavor(extra_specs=dedicated))["PCPU"] == 2
    assert "VCPU" not in resources_of(flavor(extra_specs=dedicated))
    isolated = {**dedicated, "hw:emulator_threads_policy": "isolate"}
    assert resources_of(flavor(extra_specs=isolated))["PCPU"] == 3
    mixed = resources_of(flavor(vcpus=4, extra_specs={"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "^0-1"}))
    assert (mixed["PCPU"], mixed["VCPU"]) == (2, 2)
    assert resources_of(flavor(), Image(id="i", properties={"hw_cpu_policy": "dedicated"}))["PCPU"] == 2


def test_contradicting_traits_are_refused() -> None:
    with pytest.raises(InvalidInput):
        traits_of(flavor(extra_specs={"trait:A": "forbidden"}), Image(id="i", properties={"trait:A": "required"}))


def test_what_no_host_can_do_is_named() -> None:
    view = view_of(host(1), host(2))
    with pytest.raises(NoHostLeft, match=r"COMPUTE_SECURITY_TPM_2_0 \(hw:tpm_version\)"):
        chosen(view, request({"hw:tpm_version": "2.0"}))
    with pytest.raises(NoHostLeft, match="not enough hosts"):
        chosen(view, request(memory=1 << 20))
