"""Diagnostics, crash dumps and network information."""

from __future__ import annotations

import pytest
from compute_cloud import ComputeCloud

from kilonova.domain.states import VmState
from kilonova.operations.crash_dump import TriggerCrashDump
from kilonova.operations.inject_network_info import InjectNetworkInfo

COUNTS = {
    "memory_details": {"maximum": 1024, "used": 512},
    "cpu_details": [{"id": 0, "time": 5000000000, "utilisation": 50}],
    "nic_details": [{
        "mac_address": "fa:16:3e:00:00:01", "rx_octets": 3000, "rx_errors": 1, "rx_drop": 2, "rx_packets": 30,
        "rx_rate": 3, "tx_octets": 2000, "tx_errors": 4, "tx_drop": 5, "tx_packets": 20, "tx_rate": 6,
    }],
    "disk_details": [{
        "read_bytes": 40960, "read_requests": 10, "write_bytes": 81920, "write_requests": 20, "errors_count": 1,
    }],
}


@pytest.mark.spec("API-155", "API-471", "API-548")
async def test_diagnostics(cloud: ComputeCloud) -> None:
    server = await cloud.boot(config_drive="True", launched_at=cloud.clock.now() - 90)
    path = f"/servers/{server.uuid}/diagnostics"
    assert (await cloud.get(path, as_="member", version="2.48")).status_code == 403
    answer = await cloud.get(path, as_="admin", version="2.48")
    assert answer.status_code == 200
    shown = answer.json()
    assert 90 <= shown.pop("uptime") < 100
    assert shown == {
        "state": "running", "driver": "libvirt", "hypervisor": "fake", "hypervisor_os": "none", "config_drive": True,
        "num_cpus": 1, "num_nics": 1, "num_disks": 1, **COUNTS,
    }
    own = (await cloud.get(path, as_="admin", version="2.47")).json()
    assert own["cpu0_time"] == 5000000000
    assert "cpu_details" not in own
    assert (await cloud.get("/servers/no-such/diagnostics", as_="admin", version="2.48")).status_code == 404


@pytest.mark.spec("API-140", "API-199", "API-517")
async def test_trigger_crash_dump(cloud: ComputeCloud) -> None:
    server = await cloud.boot(vm_state=VmState.PAUSED)
    path, body = f"/servers/{server.uuid}/action", {"trigger_crash_dump": None}
    assert (await cloud.post(path, body, version="2.16")).status_code == 404
    assert (await cloud.post(path, body, version="2.17", as_="reader")).status_code == 403
    for bad in ({}, "now", 1):
        assert (await cloud.post(path, {"trigger_crash_dump": bad}, version="2.17")).status_code == 400
    answer = await cloud.post(path, body, version="2.17")
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("trigger-crash-dump", server.uuid, TriggerCrashDump())]
    old = await cloud.boot()
    answer = await cloud.post(f"/os-volumes_boot/{old.uuid}/action", body, version="2.17")
    assert answer.status_code == 202
    stopped = await cloud.boot(vm_state=VmState.STOPPED)
    answer = await cloud.post(f"/servers/{stopped.uuid}/action", body, version="2.17")
    assert answer.json()["conflictingRequest"]["message"] == (
        f"Cannot 'trigger_crash_dump' instance {stopped.uuid} while it is in vm_state stopped")
    homeless = await cloud.boot(host=None, vm_state=VmState.STOPPED)
    answer = await cloud.post(f"/servers/{homeless.uuid}/action", body, version="2.17")
    assert answer.json()["conflictingRequest"]["message"] == f"Instance {homeless.uuid} is not ready"


@pytest.mark.spec("API-142", "API-143")
async def test_inject_network_info(cloud: ComputeCloud) -> None:
    server = await cloud.boot(vm_state=VmState.ERROR, launched_at=None)
    path = f"/servers/{server.uuid}/action"
    assert (await cloud.post(path, {"injectNetworkInfo": None}, as_="manager")).status_code == 403
    answer = await cloud.post(path, {"injectNetworkInfo": None}, as_="admin")
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("inject-network-info", server.uuid, InjectNetworkInfo())]
    assert (await cloud.post(path, {"resetNetwork": None}, as_="admin")).status_code == 410
