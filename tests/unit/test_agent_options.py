"""What a host may be configured to carry, and its servers to have."""

from __future__ import annotations

import pytest

from kilonova.config import load
from kilonova.domain.errors import InvalidInput


def test_a_packet_rate_is_of_both_directions_or_of_each() -> None:
    for given in ({"network_kpps": 5}, {"network_egress_kpps": 5, "network_ingress_kpps": 6}):
        agent = load(None, {f"KILONOVA__AGENT__{name.upper()}": str(value) for name, value in given.items()}).agent
        assert {name: getattr(agent, name) for name in given} == given
    for way in ("egress", "ingress"):
        with pytest.raises(InvalidInput, match="network_kpps cannot be given together"):
            load(None, {}, {"agent.network_kpps": 5, f"agent.network_{way}_kpps": 5})


@pytest.mark.spec("INI-005")
def test_a_limit_of_disks_leaves_room_for_one() -> None:
    for most in (-1, 1, 26):
        operations = load(None, {}, {"operations.max_disk_devices_to_attach": most}).operations
        assert operations.max_disk_devices_to_attach == most
    with pytest.raises(InvalidInput, match=r"no server could boot; it is -1 for no limit, or at least 1"):
        load(None, {}, {"operations.max_disk_devices_to_attach": 0})
