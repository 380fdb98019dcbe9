"""What a host may be configured to carry."""

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
