"""A decision stays fast as hosts are added. Counts processor time, so that a busy machine does not matter."""

from __future__ import annotations

import time
from random import Random

import pytest

from kilonova.db.placement.changes import Changes, HostRow
from kilonova.domain.flavor import Flavor
from kilonova.domain.grouping import GroupPolicy, ServerGroup
from kilonova.domain.image import Image
from kilonova.domain.instance import RequestSpec
from kilonova.scheduler.decision import Preferences, decide
from kilonova.scheduler.demand import demand_of
from kilonova.scheduler.view import HostView

TRAITS = frozenset(f"HW_{number}" for number in range(60))


def full_view(count: int) -> HostView:
    view = HostView()
    view.apply(Changes(before=1, gone=[], seen=[], hosts=[
        HostRow(
            id=number, provider=f"rp{number}", host=f"h{number}", node=f"n{number}", cell="c",
            hypervisor_type="QEMU", hypervisor_version=7002022, host_ip="127.0.0.1", cpu_info="{}",
            supported=(("x86_64", "kvm", "hvm"),), io_ops=number % 3, failed_builds=0, seen_at=1000.0,
            offers={"VCPU": (128, number % 64, 1, 32, 1), "MEMORY_MB": (131072, 512 * (number % 99), 1, 131072, 1),
                    "DISK_GB": (1000, number % 500, 1, 1000, 1)},
            traits=TRAITS,
        )
        for number in range(count)
    ]))
    return view


@pytest.mark.parametrize(("hosts", "limit"), [(100, 0.002), (10_000, 0.05)])
def test_a_decision_is_fast(hosts: int, limit: float) -> None:
    view = full_view(hosts)
    spec = RequestSpec(
        instance_uuid="server", project_id="p", user_id="u", image=Image(id="i", properties={"img_hv_type": "kvm"}),
        flavor=Flavor(flavor_id="1", name="m", vcpus=2, memory_mib=2048, root_gib=10,
                      extra_specs={"trait:HW_1": "required"}),
    )
    members = tuple(f"m{number}" for number in range(50))
    group = ServerGroup(uuid="g", policy=GroupPolicy.ANTI_AFFINITY, members=members)
    located = [(f"h{number}", member) for number, member in enumerate(members)]

    def once() -> float:
        began = time.process_time()
        demand = demand_of(spec, group=group, located=located, now=1000.0)
        decide(view, demand, count=1, alternates=3, random=Random(1), preferences=Preferences())
        return time.process_time() - began

    assert min(once() for _ in range(7)) < limit
