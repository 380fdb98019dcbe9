"""What the simulated hypervisor counts: always the same.

The Compute API has a closed list of drivers, none of which is simulated: it poses as one of them.
"""

from __future__ import annotations

from kilonova.hypervisor.diagnostics import (
    CpuDiagnostics,
    Diagnostics,
    DiskDiagnostics,
    MemoryDiagnostics,
    NicDiagnostics,
    OwnDiagnostics,
)

OWN: OwnDiagnostics = {
    "cpu0_time": 5000000000, "memory": 1024, "vda_read": 40960, "vda_read_req": 10, "vda_write": 81920,
    "vda_write_req": 20, "vda_errors": -1,
}
COMMON = Diagnostics(
    state="running", driver="libvirt", hypervisor="fake", hypervisor_os="none",
    memory=MemoryDiagnostics(maximum=1024, used=512),
    cpus=(CpuDiagnostics(id=0, time=5000000000, utilisation=50),),
    nics=(NicDiagnostics(
        mac_address="fa:16:3e:00:00:01", rx_octets=3000, rx_errors=1, rx_drop=2, rx_packets=30, rx_rate=3,
        tx_octets=2000, tx_errors=4, tx_drop=5, tx_packets=20, tx_rate=6,
    ),),
    disks=(DiskDiagnostics(
        read_bytes=40960, read_requests=10, write_bytes=81920, write_requests=20, errors_count=1,
    ),),
)
