"""Whether a host that starts still has the TPMs that its servers were built with. Spec: INI-031, INI-032."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kilonova.domain.errors import InvalidInput
from kilonova.domain.instance import Instance
from kilonova.shapes.shape import shape_of
from kilonova.shapes.tpm import Tpm


def without_tpm(traits: Collection[str], servers: Iterable[Instance]) -> str:
    """Why the host cannot serve with what it can do, "" if it can.

    Args:
        traits: of the host. servers: those that are there and not deleted. One whose flavor contradicts itself does
            not count: it is not started anyway.
    """
    for server in servers:
        tpm = _tpm_of(server)
        lacking = sorted(set(tpm.traits) - set(traits)) if tpm is not None else []
        if lacking:
            return (f"Server {server.uuid} has a virtual TPM, but the host has no {', '.join(lacking)}; enable its "
                    "TPMs again (Debian: swtpm swtpm-tools).")
    return ""


def _tpm_of(server: Instance) -> Tpm | None:
    try:
        return shape_of(server.flavor, server.image).devices.tpm
    except InvalidInput:
        return None
