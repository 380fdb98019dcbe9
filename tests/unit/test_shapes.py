"""What flavor and image ask of a guest: what is understood, and which contradictions are refused."""

from __future__ import annotations

import pytest

from kilonova.api.compute.extra_spec_effects import EFFECTS, OF_IMAGES
from kilonova.api.compute.extra_spec_rules import EXACT
from kilonova.api.compute.image_property_effects import DEVICES
from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.asked import Asked
from kilonova.shapes.cpu import CpuTopology
from kilonova.shapes.limits import Bandwidth, CpuLimits
from kilonova.shapes.resources import resources_of, traits_of
from kilonova.shapes.shape import Shape, read_shape, shape_of
from kilonova.shapes.traits import LOCKED_MEMORY


def shape(
    extra_specs: dict[str, str] | None = None, properties: dict[str, str] | None = None, *, vcpus: int = 4,
    memory: int = 2048,
) -> Shape:
    flavor = Flavor(flavor_id="1", name="f", vcpus=vcpus, memory_mib=memory, root_gib=1, extra_specs=extra_specs or {})
    return shape_of(flavor, Image(id="i", properties=properties or {}))


def test_nothing_asked_needs_no_place() -> None:
    found = shape()
    assert (found.cpu.policy, found.cpu.dedicated, found.cells) == ("shared", frozenset(), ())
    assert found.cpu.topology == CpuTopology(4, 1, 1)


@pytest.mark.parametrize(("flavor", "image", "policy"), [
    (None, "dedicated", "dedicated"), ("dedicated", "shared", "dedicated"), ("dedicated", None, "dedicated"),
    ("shared", "shared", "shared"), (None, None, "shared"),
])
def test_who_chooses_the_cpu_policy(flavor: str | None, image: str | None, policy: str) -> None:
    found = shape({"hw:cpu_policy": flavor} if flavor else {}, {"hw_cpu_policy": image} if image else {})
    assert found.cpu.policy == policy
    assert found.cpu.dedicated == (frozenset(range(4)) if policy == "dedicated" else frozenset())
    assert bool(found.cells) == (policy == "dedicated")


@pytest.mark.parametrize(("extra_specs", "properties", "named"), [
    ({"hw:cpu_policy": "shared"}, {"hw_cpu_policy": "dedicated"}, "hw_cpu_policy"),
    ({"hw:cpu_policy": "pinned"}, {}, "hw:cpu_policy"),
    ({"hw:cpu_policy": "mixed"}, {}, "hw:cpu_dedicated_mask"),
    ({"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "0-3"}, {}, "not all"),
    ({"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "0-4"}, {}, "0 to 3"),
    ({"hw:cpu_policy": "dedicated", "hw:cpu_dedicated_mask": "0"}, {}, "mixed"),
    ({"hw:emulator_threads_policy": "isolate"}, {}, "dedicated"),
    ({"hw:cpu_thread_policy": "require"}, {}, "dedicated"),
    ({"hw:cpu_policy": "dedicated", "hw:cpu_thread_policy": "prefer"}, {"hw_cpu_thread_policy": "isolate"},
     "permitted"),
    ({"hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "^0"}, {}, "dedicated"),
    ({"hw:cpu_policy": "dedicated", "hw:cpu_realtime": "yes"}, {}, "hw:cpu_realtime_mask"),
    ({"hw:cpu_max_sockets": "1", "hw:cpu_max_cores": "1", "hw:cpu_max_threads": "2"}, {}, "No CPU topology"),
    ({"hw:cpu_max_cores": "2"}, {"hw_cpu_max_cores": "4"}, "exceeds"),
    ({"hw:cpu_max_cores": "2"}, {"hw_cpu_cores": "4"}, "exceeds"),
    ({"hw:numa_nodes": "2"}, {"hw_numa_nodes": "2"}, "not permitted"),
    ({"hw:numa_nodes": "3"}, {}, "evenly"),
    ({"hw:numa_nodes": "2", "hw:numa_cpus.0": "0-3", "hw:numa_mem.0": "2048"}, {}, "both"),
    ({"hw:numa_nodes": "1", "hw:numa_cpus.1": "0"}, {}, "cell 1"),
    ({"hw:numa_cpus.0": "0"}, {}, "not set"),
    ({"hw:numa_nodes": "2", "hw:numa_cpus.0": "0-2", "hw:numa_cpus.1": "2-3", "hw:numa_mem.0": "1024",
      "hw:numa_mem.1": "1024"}, {}, "vCPU 2 is in two"),
    ({"hw:numa_nodes": "2", "hw:numa_cpus.0": "0-1", "hw:numa_cpus.1": "2", "hw:numa_mem.0": "1024",
      "hw:numa_mem.1": "1024"}, {}, "vCPU 3 is in no"),
    ({"hw:numa_nodes": "2", "hw:numa_cpus.0": "0-1", "hw:numa_cpus.1": "2-3", "hw:numa_mem.0": "1024",
      "hw:numa_mem.1": "512"}, {}, "1536 MiB"),
    ({}, {"hw_mem_page_size": "large"}, "hw_mem_page_size"),
    ({"hw:mem_page_size": "small"}, {"hw_mem_page_size": "large"}, "hw_mem_page_size"),
    ({"hw:mem_page_size": "huge"}, {}, "hw:mem_page_size"),
    ({"hw:locked_memory": "true"}, {}, "hw:mem_page_size"),
    ({"hw:mem_encryption": "true"}, {}, "uefi"),
    ({"hw:mem_encryption": "true"}, {"hw_firmware_type": "uefi", "hw_machine_type": "pc"}, "q35"),
    ({"hw:mem_encryption": "true"}, {"hw_mem_encryption": "false", "hw_firmware_type": "uefi"}, "not permitted"),
    ({"hw:pmu": "true"}, {"hw_pmu": "false"}, "not permitted"),
    ({"hw:maxphysaddr_bits": "42"}, {}, "hw:maxphysaddr_mode"),
    ({"quota:cpu_shares": "many"}, {}, "quota:cpu_shares"),
])
def test_contradictions_are_refused_and_named(
    extra_specs: dict[str, str], properties: dict[str, str], named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        shape(extra_specs, properties)


def test_a_mask_leaves_some_vcpus_shared() -> None:
    found = shape({"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "^0-1"})
    assert found.cpu.dedicated == {2, 3}
    flavor = Flavor(flavor_id="1", name="f", vcpus=4, memory_mib=1, root_gib=0, extra_specs={
        "hw:cpu_policy": "mixed", "hw:cpu_realtime": "1", "hw:cpu_realtime_mask": "2",
        "hw:emulator_threads_policy": "isolate",
    })
    assert resources_of(flavor) == {"VCPU": 3, "PCPU": 2, "MEMORY_MB": 1}
    assert shape_of(flavor, None).cpu.realtime == {2}


def test_a_flavor_that_asks_for_pcpu_is_pinned() -> None:
    assert shape({"resources:PCPU": "4", "resources:VCPU": "0"}).cpu.policy == "dedicated"


@pytest.mark.parametrize(("extra_specs", "properties", "topology"), [
    ({}, {}, (8, 1, 1)),
    ({"hw:cpu_sockets": "2"}, {}, (2, 4, 1)),
    ({"hw:cpu_max_sockets": "1"}, {}, (1, 8, 1)),
    ({"hw:cpu_max_sockets": "1", "hw:cpu_threads": "2"}, {}, (1, 4, 2)),
    ({"hw:cpu_cores": "4"}, {"hw_cpu_cores": "2", "hw_cpu_threads": "2"}, (1, 4, 2)),
    ({"hw:cpu_threads": "3"}, {}, (8, 1, 1)),
])
def test_topologies(
    extra_specs: dict[str, str], properties: dict[str, str], topology: tuple[int, int, int]
) -> None:
    assert shape(extra_specs, properties, vcpus=8).cpu.topology == CpuTopology(*topology)


def test_cells() -> None:
    even = shape({"hw:numa_nodes": "2"})
    assert [(set(cell.cpus), cell.memory_mib) for cell in even.cells] == [({0, 1}, 1024), ({2, 3}, 1024)]
    said = {"hw:numa_nodes": "2", "hw:numa_cpus.0": "0,2-3", "hw:numa_cpus.1": "1", "hw:numa_mem.0": "1536",
            "hw:numa_mem.1": "512"}
    assert [(set(cell.cpus), cell.memory_mib) for cell in shape(said).cells] == [({0, 2, 3}, 1536), ({1}, 512)]
    of_image = shape(properties={key.replace(":", "_", 1): value for key, value in said.items()})
    assert of_image.cells == shape(said).cells


@pytest.mark.parametrize(("text", "size"), [
    ("large", "large"), ("2048", 2048), ("2MB", 2048), ("1GiB", 1 << 20), ("4kB", 4),
])
def test_page_sizes(text: str, size: int | str) -> None:
    found = shape({"hw:mem_page_size": text})
    assert found.memory.page_size == size
    assert len(found.cells) == 1


def test_an_image_chooses_among_the_sizes_that_its_flavor_leaves_open() -> None:
    assert shape({"hw:mem_page_size": "any"}, {"hw_mem_page_size": "2MB"}).memory.page_size == 2048


def test_encryption_needs_a_host_that_can() -> None:
    flavor = Flavor(flavor_id="1", name="f", vcpus=1, memory_mib=1, root_gib=0, extra_specs={"hw:mem_encryption": "1"})
    image = Image(id="i", properties={"hw_firmware_type": "uefi"})
    assert resources_of(flavor, image)["MEM_ENCRYPTION_CONTEXT"] == 1
    assert traits_of(flavor, image).required >= {"HW_CPU_X86_AMD_SEV"}


@pytest.mark.parametrize("specs", [
    {"hw:locked_memory": "true", "hw:mem_page_size": "small"},
    {"hw:cpu_policy": "dedicated", "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "^0"},
])
def test_locked_memory_needs_a_host_that_can(specs: dict[str, str]) -> None:
    flavor = Flavor(flavor_id="1", name="f", vcpus=2, memory_mib=512, root_gib=1, extra_specs=specs)
    assert LOCKED_MEMORY in traits_of(flavor, Image(id="i")).required



def test_limits() -> None:
    found = shape({"quota:cpu_quota": "-1", "quota:vif_inbound_average": "10", "quota:vif_outbound_peak": "1"}).limits
    assert found.cpu == CpuLimits(quota=-1)
    assert (found.inbound, found.outbound, found.disk) == (Bandwidth(average=10), None, None)


def test_every_effect_that_is_documented_is_of_an_extra_spec() -> None:
    known = {
        *EXACT, "aggregate_instance_extra_specs:*", "capabilities:*", "hw:numa_cpus.N", "hw:numa_mem.N",
        "resources[group]:CLASS", "trait[group]:TRAIT",
    }
    assert EFFECTS.keys() <= known


class Read(dict[str, str]):
    """Properties of which none is there, and the names that were looked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.names.add(name)
        return default

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return False


def test_every_image_property_that_is_read_is_on_its_page() -> None:
    read = Read()
    read_shape(1, 64, Asked({}, read))
    told = set(DEVICES) | {name for names in OF_IMAGES for name in names.split(", ")}
    assert read.names - told == set()
