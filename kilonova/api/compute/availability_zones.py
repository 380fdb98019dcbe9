"""Availability zones, made from aggregates and services. Spec: API-231, API-232, API-470."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import hosts as answers
from kilonova.api.compute.service_hosts import KnownService, check_complete, known_hosts
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.domain.clock import iso_microseconds

LIST = Rule("os-availability-zone:list", Audience.ANY)
DETAIL = Rule("os-availability-zone:detail", Audience.ADMIN)


async def index(call: Call) -> Any:
    zones = await _zones(call)
    hidden = known_hosts(call).internal_zone
    return {"availabilityZoneInfo": [
        _entry(name, found, hosts=None) for name, found in _available_first(zones) if name != hidden
    ]}


async def detail(call: Call) -> Any:
    zones = await _zones(call)
    return {"availabilityZoneInfo": [
        _entry(name, found, hosts=_hosts(found) if _is_available(found) else None)
        for name, found in _available_first(zones)
    ]}


async def _zones(call: Call) -> dict[str, list[KnownService]]:
    services, silent = await known_hosts(call).services()
    check_complete(call, silent)
    zones: dict[str, list[KnownService]] = {}
    for known in services:
        zones.setdefault(known.zone, []).append(known)
    return zones


def _available_first(zones: dict[str, list[KnownService]]) -> list[tuple[str, list[KnownService]]]:
    return sorted(zones.items(), key=lambda zone: (not _is_available(zone[1]), zone[0]))


def _is_available(services: list[KnownService]) -> bool:
    return any(not known.record.disabled for known in services)


def _entry(name: str, services: list[KnownService], hosts: Any) -> dict[str, Any]:
    return {"zoneName": name, "zoneState": {"available": _is_available(services)}, "hosts": hosts}


def _hosts(services: list[KnownService]) -> dict[str, dict[str, Any]]:
    hosts: dict[str, dict[str, Any]] = {}
    for known in services:
        record = known.record
        hosts.setdefault(record.host, {})[record.binary] = {
            "available": known.up, "active": not record.disabled, "updated_at": iso_microseconds(record.seen_at),
        }
    return hosts


ROUTES = [
    Route(method="GET", path="/os-availability-zone", handler=index, rule=LIST, answer=answers.ZONES),
    Route(method="GET", path="/os-availability-zone/detail", handler=detail, rule=DETAIL, answer=answers.ZONES_DETAIL),
]
