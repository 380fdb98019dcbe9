"""What the demonstration asks of a cloud, through the same public APIs that any client uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a server's history. Times as the API gives them."""

    action: str
    event: str
    result: str
    start: str
    finish: str


class DemoCloud:
    """One project's view of a running cloud."""

    def __init__(self, state: State, session: Session) -> None:
        self._state = state
        self._session = session

    def upload_image(self, name: str, file: Path, disk_format: str, progress: Callable[[int], None]) -> str:
        """Make an image with data; returns its id."""
        body = {"name": name, "disk_format": disk_format, "container_format": "bare", "visibility": "private"}
        image = self._session.post(f"{self._state.image_url}/v2/images", body)
        self._session.upload(f"{self._state.image_url}/v2/images/{image['id']}/file", file, progress)
        status = self._session.get(f"{self._state.image_url}/v2/images/{image['id']}")["status"]
        if status != "active":
            raise KilonovaError(f"Image {image['id']} is {status} after its upload.")
        return str(image["id"])

    def delete_image(self, image: str) -> None:
        self._delete(f"{self._state.image_url}/v2/images/{image}")

    def network(self, name: str) -> tuple[str, str]:
        """(id, address range) of a network. Raises KilonovaError."""
        found = self._session.get(f"{self._state.network_url}/v2.0/networks?name={name}")["networks"]
        if not found:
            raise KilonovaError(f"There is no network {name!r}.", hint="a new installation has one")
        subnets = self._session.get(f"{self._state.network_url}/v2.0/subnets?network_id={found[0]['id']}")["subnets"]
        return str(found[0]["id"]), ", ".join(subnet["cidr"] for subnet in subnets)

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

    def add_key(self, name: str, public_key: str) -> None:
        self._compute("POST", "/os-keypairs", {"keypair": {"name": name, "public_key": public_key}})

    def delete_key(self, name: str) -> None:
        self._delete(f"{self._state.compute_url}/os-keypairs/{name}")

    def flavor(self, name: str) -> str:
        """The id of a flavor. Raises KilonovaError."""
        for flavor in self._compute("GET", "/flavors")["flavors"]:
            if flavor["name"] == name:
                return str(flavor["id"])
        raise KilonovaError(f"There is no flavor {name!r}.", hint="a new installation has it")

    def create_server(self, name: str, *, image: str, flavor: str, network: str, group: str, key: str) -> str:
        """Ask for a server; returns its id as soon as it is accepted."""
        body = {"server": {
            "name": name, "imageRef": image, "flavorRef": flavor, "key_name": key, "networks": [{"uuid": network}],
            "security_groups": [{"name": group}], "config_drive": False,
        }}
        return str(self._compute("POST", "/servers", body)["server"]["id"])

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

    def events(self, server: str) -> list[Event]:
        """The history of a server, oldest first."""
        found = []
        for action in reversed(self._compute("GET", f"/servers/{server}/os-instance-actions")["instanceActions"]):
            path = f"/servers/{server}/os-instance-actions/{action['request_id']}"
            for event in reversed(self._compute("GET", path)["instanceAction"]["events"]):
                found.append(Event(
                    action=action["action"], event=event["event"], result=event["result"] or "running",
                    start=event["start_time"], finish=event["finish_time"] or "",
                ))
        return found

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
