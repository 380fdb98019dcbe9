"""A host that starts with other sets of CPUs than its servers were built for."""

from __future__ import annotations

import msgspec
import pytest
from host_cells import DEDICATED, TWO_CELLS
from small_cloud import FLAVOR, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.conductor.cpu_sets import objection, policies
from kilonova.db import instances
from kilonova.domain.flavor import Flavor
from kilonova.domain.states import VmState
from kilonova.shapes.cpu import Policy
from kilonova.shapes.host import HostTopology

PINNED = Flavor(flavor_id="3", name="pinned", vcpus=2, memory_mib=512, root_gib=1, extra_specs=DEDICATED)
MIXED = msgspec.structs.replace(PINNED, extra_specs={"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "0"})


def with_sets(*, dedicated: bool, shared: bool) -> HostTopology:
    return HostTopology(cells=tuple(
        msgspec.structs.replace(
            cell, dedicated=cell.dedicated if dedicated else (), shared=cell.shared if shared else ()
        )
        for cell in TWO_CELLS.cells
    ))


@pytest.mark.spec("INI-026", "INI-027", "INI-028")
@pytest.mark.parametrize(("policy", "dedicated", "shared", "asks_for"), [
    ("shared", True, False, "cpu_shared_set"), ("shared", True, True, ""), ("shared", False, True, ""),
    ("dedicated", False, True, "cpu_dedicated_set"), ("dedicated", True, False, ""), ("dedicated", True, True, ""),
    ("mixed", False, True, "cpu_dedicated_set"), ("mixed", True, False, "cpu_shared_set"), ("mixed", True, True, ""),
])
def test_which_sets_a_server_needs(policy: Policy, dedicated: bool, shared: bool, asks_for: str) -> None:
    found = objection(with_sets(dedicated=dedicated, shared=shared), {"server": policy})
    assert asks_for in found
    assert bool(found) == bool(asks_for)


@pytest.mark.spec("INI-033")
@in_cloud(topology=TWO_CELLS)
async def test_policies_are_read_from_the_records(cloud: SmallCloud) -> None:
    made = {await cloud.build(flavor=flavor): policy
            for flavor, policy in ((FLAVOR, "shared"), (PINNED, "dedicated"), (MIXED, "mixed"))}
    assert policies(cloud.cell(lambda conn: instances.on_host(conn, "host0"))) == made


async def refused(cloud: SmallCloud) -> bool:
    """Whether the host does not begin to serve when it is started anew."""
    cloud.crash("host0")
    with capture_logs() as logs:
        cloud.loop.create_task(cloud.boot("host0"))
        await cloud.until(lambda: any(
            entry["event"] in ("this host must not serve", "served") for entry in logs
        ) or _listens(cloud))
    return not _listens(cloud)


def _listens(cloud: SmallCloud) -> bool:
    return any(s.process.alive and s.process.name == "host0" for s in cloud.wire.subscribers)


@pytest.mark.spec("INI-026")
@in_cloud(topology=TWO_CELLS)
async def test_a_refused_host_has_changed_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before, offered = cloud.server(uuid), cloud.hypervisors["host0"].vcpus
    cloud.hypervisors["host0"].topology = with_sets(dedicated=True, shared=False)
    assert await refused(cloud)
    assert cloud.server(uuid) == before
    cloud.hypervisors["host0"].topology = TWO_CELLS
    assert offered == 8
    assert not await refused(cloud)


@pytest.mark.spec("INI-024", "INI-025")
@in_cloud(topology=TWO_CELLS)
async def test_no_check_without_cells_and_for_deleted_servers(cloud: SmallCloud) -> None:
    hypervisor = cloud.hypervisors["host0"]
    uuid = await cloud.build(flavor=PINNED)
    hypervisor.topology = None
    assert not await refused(cloud)
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.DELETED)
    hypervisor.topology = with_sets(dedicated=False, shared=True)
    assert not await refused(cloud)


@pytest.mark.spec("INI-029", "INI-030")
@in_cloud(topology=TWO_CELLS)
async def test_cpus_that_are_no_longer_dedicated_are_told_of(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=PINNED)
    first = msgspec.structs.replace(TWO_CELLS.cells[0], dedicated=(2, 3))
    cloud.hypervisors["host0"].topology = HostTopology(cells=(first, TWO_CELLS.cells[1]))
    with capture_logs() as logs:
        await cloud.restart("host0")
    (warning,) = [entry for entry in logs if entry["event"].startswith("server is pinned")]
    assert (warning["instance"], warning["cpus"]) == (uuid, [1])
