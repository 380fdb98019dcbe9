"""A host with two NUMA cells, for simulated hypervisors, and a flavor whose guests have CPUs of their own there."""

from __future__ import annotations

from kilonova.shapes.host import HostCell, HostTopology

TWO_CELLS = HostTopology(cells=(
    HostCell(id=0, memory_mib=8192, dedicated=(1, 2, 3), shared=(0, 8, 9, 10), pages={4: 2097152}),
    HostCell(id=1, memory_mib=8192, dedicated=(5, 6, 7), shared=(4, 11, 12, 13), pages={4: 2097152}),
))
DEDICATED = {"hw:cpu_policy": "dedicated"}
