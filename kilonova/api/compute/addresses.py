"""Addresses of a server. Spec: API-156, API-157, API-410."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.domain.errors import NotFound
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState

Addresses = dict[str, list[dict[str, Any]]]


def addresses_of(instance: Instance, *, extended: bool) -> Addresses:
    """Addresses by network label, fixed before floating; none while the server is building.

    Args:
        extended: with type and MAC address of each.
    """
    found: Addresses = {}
    if instance.vm_state is VmState.BUILDING:
        return found
    for vif in instance.network_info:
        entries = found.setdefault(vif.network_name, [])
        kinds = [(ip.address, ip.subnet.version, "fixed") for ip in vif.fixed_ips]
        floating = (address for ip in vif.fixed_ips for address in ip.floating)
        kinds += [(address, 6 if ":" in address else 4, "floating") for address in floating]
        for address, version, kind in kinds:
            entry: dict[str, Any] = {"version": version, "addr": address}
            if extended:
                entry["OS-EXT-IPS:type"] = kind
                entry["OS-EXT-IPS-MAC:mac_addr"] = vif.mac
            entries.append(entry)
    return found


async def index(call: Call) -> Any:
    return {"addresses": addresses_of(call.server.instance, extended=False)}


async def show(call: Call) -> Any:
    label = call.path["id"]
    found = addresses_of(call.server.instance, extended=False)
    if label not in found:
        raise NotFound("Instance is not a member of specified network")
    return {label: found[label]}


ROUTES = [
    Route(method="GET", path="/servers/{server_id}/ips", handler=index, look_up=find_server,
          rule=Rule("ips:index", Audience.READER), answer=answers.ADDRESSES),
    Route(method="GET", path="/servers/{server_id}/ips/{id}", handler=show, look_up=find_server,
          rule=Rule("ips:show", Audience.READER), answer=answers.NETWORK_ADDRESSES),
]
