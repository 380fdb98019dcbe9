"""Extra specs of flavors, and the checks of 2.86."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.api.compute.extra_spec_rules import check_extra_spec
from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor

ALL = "/flavors/1/os-extra_specs"


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        await running.flavor(Flavor(flavor_id="1", name="f", vcpus=1, memory_mib=1, root_gib=1, extra_specs={"a": "1"}))
        await running.flavor(
            Flavor(flavor_id="2", name="hidden", vcpus=1, memory_mib=1, root_gib=1, is_public=False,
                   extra_specs={"a": "1"}))
        yield running


async def stored(cloud: ResourceCloud) -> dict[str, str]:
    specs: dict[str, str] = (await cloud.get(ALL)).json()["extra_specs"]
    return specs


@pytest.mark.spec("API-209", "API-211")
async def test_read(cloud: ResourceCloud) -> None:
    assert (await cloud.get(ALL, as_="reader")).json() == {"extra_specs": {"a": "1"}}
    assert (await cloud.get(f"{ALL}/a", as_="reader")).json() == {"a": "1"}
    for path in (f"{ALL}/b", "/flavors/9/os-extra_specs", "/flavors/2/os-extra_specs", "/flavors/2/os-extra_specs/a"):
        assert (await cloud.get(path, as_="reader")).status_code == 404
    assert (await cloud.get("/flavors/2/os-extra_specs", as_="admin")).status_code == 200
    assert (await cloud.get(ALL, as_="nobody")).status_code == 403
    assert (await cloud.get(f"{ALL}/a", as_="nobody")).status_code == 403


@pytest.mark.spec("API-210")
async def test_create_merges_and_echoes(cloud: ResourceCloud) -> None:
    body = {"extra_specs": {"a": "2", "b c": 3, "d": 1.5}}
    answer = await cloud.post(ALL, body, as_="admin")
    assert (answer.status_code, answer.json()) == (200, body)
    assert await stored(cloud) == {"a": "2", "b c": "3", "d": "1.5"}
    assert (await cloud.post("/flavors/9/os-extra_specs", body, as_="admin")).status_code == 404


@pytest.mark.spec("API-210", "API-212", "API-057", "API-651")
@pytest.mark.parametrize("specs", [
    {"k": None}, {"k": True}, {"k": ["x"]}, {"k": "x" * 256}, {"": "x"}, {"k" * 256: "x"}, {"a/b": "x"}, {"é": "x"},
])
async def test_bad_specs(cloud: ResourceCloud, specs: dict[str, Any]) -> None:
    assert (await cloud.post(ALL, {"extra_specs": specs}, as_="admin")).status_code == 400
    assert (await cloud.put(f"{ALL}/k", specs, as_="admin")).status_code == 400
    assert await stored(cloud) == {"a": "1"}


@pytest.mark.spec("API-212")
async def test_update_one(cloud: ResourceCloud) -> None:
    answer = await cloud.put(f"{ALL}/b", {"b": "5"}, as_="admin")
    assert (answer.status_code, answer.json()) == (200, {"b": "5"})
    assert await stored(cloud) == {"a": "1", "b": "5"}
    for body in ({"c": "5"}, {"b": "1", "c": "2"}, {}, None):
        assert (await cloud.put(f"{ALL}/b", body, as_="admin")).status_code == 400
    assert (await cloud.put("/flavors/9/os-extra_specs/b", {"b": "5"}, as_="admin")).status_code == 404


@pytest.mark.spec("API-213", "API-033")
async def test_delete_one(cloud: ResourceCloud) -> None:
    answer = await cloud.delete(f"{ALL}/a", as_="admin")
    assert (answer.status_code, answer.content) == (200, b"")
    assert await stored(cloud) == {}
    assert (await cloud.delete(f"{ALL}/a", as_="admin")).status_code == 404
    assert (await cloud.delete("/flavors/9/os-extra_specs/a", as_="admin")).status_code == 404


@pytest.mark.spec("API-210", "API-212", "API-213", "API-041")
@pytest.mark.parametrize("as_", ["manager", "member", "reader"])
async def test_only_admins_write(cloud: ResourceCloud, as_: str) -> None:
    answers = {
        "create": await cloud.post(ALL, {"extra_specs": {"x": "y"}}, as_=as_),
        "update": await cloud.put(f"{ALL}/a", {"a": "2"}, as_=as_),
        "delete": await cloud.delete(f"{ALL}/a", as_=as_),
    }
    for name, answer in answers.items():
        assert answer.status_code == 403
        assert f"os_compute_api:os-flavor-extra-specs:{name} " in answer.text
    assert await stored(cloud) == {"a": "1"}


@pytest.mark.spec("API-586", "API-650", "API-652", "API-210", "API-212")
async def test_checked_from_2_86(cloud: ResourceCloud) -> None:
    for specs in ({"hw:cpu_policy": "odd"}, {"hw:unknown": "x"}):
        (key,) = specs
        assert (await cloud.post(ALL, {"extra_specs": specs}, as_="admin", version="2.85")).status_code == 200
        answer = await cloud.post(ALL, {"extra_specs": {"good": "1", **specs}}, as_="admin", version="2.86")
        assert answer.status_code == 400
        assert answer.json()["badRequest"]["message"].startswith("Validation failed; ")
        answer = await cloud.put(f"{ALL}/{key}", specs, as_="admin", version="2.86")
        assert answer.status_code == 400
    assert "good" not in await stored(cloud)
    answer = await cloud.post(ALL, {"extra_specs": {"hw:cpu_policy": "dedicated"}}, as_="admin", version="2.86")
    assert answer.status_code == 200


GOOD: dict[str, tuple[str, ...]] = {
    "accel:device_profile": ("x",),
    "aggregate_instance_extra_specs:ssd:fast": ("true", "<or> 1 <or> 2"),
    "capabilities:vcpus": (">= 4",),
    "capabilities:updated": ("x",),
    "capabilities:cpu_info:topology:cores": ("s== 1",),
    "capabilities:instances": ("x",),
    "hw:cpu_realtime": ("true", "No", "1", "off", "T"),
    "hw:hide_hypervisor_id": ("yes",), "hw:locked_memory": ("1",), "hw:boot_menu": ("on",),
    "hw:vif_multiqueue_enabled": ("y",), "hw:mem_encryption": ("n",), "hw:pmu": ("f",),
    "hw:virtio_packed_ring": ("0",), "hw:ephemeral_encryption": ("true",),
    "hw:cpu_realtime_mask": ("^0-1", "0-3,^2", "5"), "hw:cpu_dedicated_mask": ("0,2",), "hw:numa_cpus.1": ("0-3",),
    "hw:cpu_policy": ("dedicated", "shared", "mixed"), "hw:cpu_thread_policy": ("prefer", "isolate", "require"),
    "hw:emulator_threads_policy": ("isolate", "share"),
    "hw:mem_page_size": ("large", "small", "any", "2048", "1GB", "2MiB"),
    "hw:numa_nodes": ("1",), "hw:numa_mem.0": ("512",), "hw:cpu_sockets": ("1",), "hw:cpu_cores": ("2",),
    "hw:cpu_threads": ("2",), "hw:cpu_max_sockets": ("4",), "hw:cpu_max_cores": ("4",), "hw:cpu_max_threads": ("4",),
    "hw:serial_port_count": ("0", "2"),
    "hw:pci_numa_affinity_policy": ("required", "preferred", "legacy", "socket"),
    "hw:maxphysaddr_mode": ("passthrough", "emulate"), "hw:maxphysaddr_bits": ("42",),
    "hw:mem_encryption_model": ("amd-sev", "amd-sev-es", "amd-sev-snp", "intel-tdx"),
    "hw:pmem": ("a", "a_1, b-2"), "hw:tpm_model": ("tpm-tis", "tpm-crb"), "hw:tpm_version": ("1.2", "2.0"),
    "hw:tpm_secret_security": ("user", "host", "deployment"),
    "hw:watchdog_action": ("none", "pause", "poweroff", "reset", "disabled"),
    "hw:viommu_model": ("intel", "smmuv3", "virtio", "auto"),
    "hw:sound_model": ("sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "virtio"),
    "hw:usb_model": ("none", "nec-xhci", "qemu-xhci"), "hw:redirected_usb_ports": ("0", "15"),
    "hw:ephemeral_encryption_format": ("plain", "luks", "luksv2"),
    "hw_rng:allowed": ("True",), "hw_rng:rate_bytes": ("0",), "hw_rng:rate_period": ("9",),
    "hw_video:ram_max_mb": ("0",), "os:secure_boot": ("disabled", "required"),
    "pci_passthrough:alias": ("gpu:1", "a:1,b:2"),
    "quota:cpu_limit": ("0",), "quota:vif_shares_share": ("1",), "quota:cpu_shares": ("1",),
    "quota:cpu_period": ("1",), "quota:disk_read_bytes_sec": ("1",), "quota:disk_total_iops_sec": ("1",),
    "quota:vif_inbound_average": ("1",), "quota:vif_outbound_burst": ("1",),
    "quota:cpu_reservation": ("-1",), "quota:cpu_quota": ("-1", "5"),
    "quota:cpu_shares_level": ("custom", "high", "normal", "low"), "quota:disk_io_shares_level": ("low",),
    "resources:VCPU": ("2",), "resources1:CUSTOM_X_9": ("0",), "resources_NET-a:MEMORY_MB": ("1",),
    "trait:HW_CPU_X86_AVX": ("required", "forbidden"), "trait_a:CUSTOM_GOLD": ("required",),
    "vmware:hw_version": ("x",), "vmware:storage_policy": ("x",), "group_policy": ("isolate", "none"),
    "hide_hypervisor_id": ("false",),
    "mine": ("anything",), "mine:thing": ("anything",), "filter:x:y": ("z",),
}
BAD: dict[str, tuple[str, ...]] = {
    "accel:profile": ("x",), "capabilities:colour": ("x",), "capabilities:vcpus:x": ("1",), "capabilities": (),
    "hw:pmu": ("maybe", ""), "hw:cpu_realtime_mask": ("a", "1-", "0,,1"), "hw:numa_cpus.x": ("0",),
    "hw:cpu_policy": ("Shared",), "hw:mem_page_size": ("huge", "-1"), "hw:numa_nodes": ("0", "x", "1.5"),
    "hw:numa_mem.": ("1",), "hw:serial_port_count": ("-1",), "hw:tpm_version": ("2",),
    "hw:redirected_usb_ports": ("16", "-1"), "hw:pmem": ("a b",), "hw_rng:allowed": ("2",), "hw_rng:x": ("1",),
    "hw_video:x": ("1",), "os:x": ("1",), "pci_passthrough:alias": ("gpu", "gpu:x"), "quota:x": ("1",),
    "quota:cpu_limit": ("-1",), "quota:cpu_quota": ("x",), "quota:vif_shares_level": ("mid",),
    "resources:VCPUS": ("1",), "resources:VCPU": ("x",), "resources1:vcpu": ("1",),
    "trait:NOT_A_TRAIT": ("required",), "trait:CUSTOM_A": ("wanted",), "trait:custom_a": ("required",),
    "vmware:x": ("1",), "group_policy": ("x",), "hide_hypervisor_id": ("x",),
    "aggregate_instance_extra_specs:": ("x",), "k" * 256: ("x",),
}


@pytest.mark.spec("API-651", "API-652", "API-653")
@pytest.mark.parametrize("key", GOOD)
def test_good_extra_specs(key: str) -> None:
    for value in GOOD[key]:
        check_extra_spec(key, value)


@pytest.mark.spec("API-651", "API-652", "API-653")
@pytest.mark.parametrize("key", [key for key, values in BAD.items() if values])
def test_bad_extra_specs(key: str) -> None:
    for value in BAD[key]:
        with pytest.raises(InvalidInput, match=r"^Validation failed; "):
            check_extra_spec(key, value)
