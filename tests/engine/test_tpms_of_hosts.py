"""A host that starts without the TPMs that its servers were built with."""

from __future__ import annotations

import pytest
from small_cloud import FLAVOR, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.conductor.tpms import without_tpm
from kilonova.db import instances
from kilonova.domain.flavor import Flavor
from kilonova.domain.states import VmState
from kilonova.hypervisor.fake_state import TRAITS

WITH_TPM = Flavor(flavor_id="3", name="tpm", vcpus=1, memory_mib=512, root_gib=1, extra_specs={
    "hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb"})
NONE = tuple(trait for trait in TRAITS if "TPM" not in trait)


async def refusal(cloud: SmallCloud, host: str = "host0") -> str:
    """Why the host does not begin to serve when it is started anew, "" if it does."""
    cloud.crash(host)
    with capture_logs() as logs:
        cloud.loop.create_task(cloud.boot(host))
        await cloud.until(lambda: _listens(cloud, host) or any(
            entry["event"] == "this host must not serve" for entry in logs))
    found = [entry["reason"] for entry in logs if entry["event"] == "a host cannot serve its servers"]
    return str(found[0]) if found and not _listens(cloud, host) else ""


def _listens(cloud: SmallCloud, host: str) -> bool:
    return any(s.process.alive and s.process.name == host for s in cloud.wire.subscribers)


@pytest.mark.spec("INI-015", "INI-031")
@in_cloud()
async def test_a_host_without_tpms_does_not_serve_and_nothing_is_changed(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=WITH_TPM)
    before, guest = cloud.server(uuid), cloud.guest(uuid)
    cloud.hypervisors["host0"].traits = NONE
    told = await refusal(cloud)
    assert uuid in told
    assert "enable its TPMs" in told
    assert (cloud.server(uuid), cloud.guest(uuid)) == (before, guest)
    cloud.hypervisors["host0"].traits = TRAITS
    assert await refusal(cloud) == ""


@pytest.mark.spec("INI-032")
@in_cloud()
async def test_a_host_with_tpms_or_servers_without_serves(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=WITH_TPM)
    await cloud.build(flavor=FLAVOR)
    assert await refusal(cloud) == ""
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.DELETED)
    cloud.hypervisors["host0"].traits = NONE
    assert await refusal(cloud) == ""


@in_cloud()
async def test_the_model_counts_too(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=WITH_TPM)
    servers = cloud.cell(lambda conn: instances.on_host(conn, "host0"))
    assert without_tpm(TRAITS, servers) == ""
    found = without_tpm([trait for trait in TRAITS if trait != "COMPUTE_SECURITY_TPM_CRB"], servers)
    assert f"Server {uuid}" in found
    assert "COMPUTE_SECURITY_TPM_CRB" in found
