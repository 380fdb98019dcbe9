"""What the demonstration asks of a cloud beside the `openstack` client, through the same public APIs."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.cli.installation import State
from kilonova.cli.session import Session
from kilonova.domain.errors import KilonovaError, NotFound

VERSION = "2.79"
"""Microversion of the Compute API."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server. task: what is being done to it, "" if nothing. fault: why it is in ERROR."""

    id: str
    status: str
    task: str
    fault: str
    addresses: tuple[str, ...]
    host: str


class DemoCloud:
    """One project's view of a running cloud."""

    def __init__(self, state: State, session: Session) -> None:
        self._state = state
        self._session = session

    def delete_image(self, name: str) -> None:
        for image in self._session.get(f"{self._state.image_url}/v2/images?name={name}")["images"]:
            self._delete(f"{self._state.image_url}/v2/images/{image['id']}")

    def addresses(self, network: str) -> str:
        """The address range of a network. Raises KilonovaError."""
        base = f"{self._state.network_url}/v2.0"
        found = self._session.get(f"{base}/networks?name={network}")["networks"]
        if not found:
            raise KilonovaError(f"There is no network {network!r}.", hint="a new installation has one")
        subnets = self._session.get(f"{base}/subnets?network_id={found[0]['id']}")["subnets"]
        return ", ".join(subnet["cidr"] for subnet in subnets)

    def open_group(self, name: str, tcp_ports: tuple[int, ...]) -> str:
        """A security group that lets in ICMP and these ports; returns its id."""
        base = f"{self._state.network_url}/v2.0"
        groups, rules = f"{base}/security-groups", f"{base}/security-group-rules"
        group = self._session.post(groups, {"security_group": {"name": name}})["security_group"]["id"]
        rule = {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4"}
        self._session.post(rules, {"security_group_rule": rule | {"protocol": "icmp"}})
        for port in tcp_ports:
            opened = {"protocol": "tcp", "port_range_min": port, "port_range_max": port}
            self._session.post(rules, {"security_group_rule": rule | opened})
        return str(group)

    def delete_group(self, group: str) -> None:
        self._delete(f"{self._state.network_url}/v2.0/security-groups/{group}")

    def delete_key(self, name: str) -> None:
        self._delete(f"{self._state.compute_url}/os-keypairs/{name}")

    def server(self, server: str) -> Server | None:
        """None once it is gone."""
        try:
            body = self._compute("GET", f"/servers/{server}")["server"]
        except NotFound:
            return None
        addresses = tuple(one["addr"] for ports in body["addresses"].values() for one in ports)
        return Server(
            id=body["id"], status=body["status"], task=body.get("OS-EXT-STS:task_state") or "", addresses=addresses,
            fault=body.get("fault", {}).get("message", ""), host=body.get("OS-EXT-SRV-ATTR:host") or "",
        )

    def console(self, server: str) -> str:
        """What the guest has written to its serial console so far."""
        return str(self._compute("POST", f"/servers/{server}/action", {"os-getConsoleOutput": {}})["output"])

    def named(self, name: str) -> Server | None:
        """The server of that name, None if there is none."""
        found = self._compute("GET", f"/servers?name=^{name}$")["servers"]
        return self.server(found[0]["id"]) if found else None

    def delete_server(self, server: str) -> None:
        self._delete(f"{self._state.compute_url}/servers/{server}")

    def _delete(self, url: str) -> None:
        """What is gone already is fine."""
        try:
            self._session.delete(url)
        except NotFound:
            return

    def _compute(self, method: str, path: str, body: Any = None) -> Any:
        url = f"{self._state.compute_url}{path}"
        if method == "GET":
            return self._session.get(url, version=VERSION)
        return self._session.post(url, body, version=VERSION)
