"""The catalogue's records: services, endpoints and regions."""

from __future__ import annotations

import uuid
from typing import Literal

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.identity.api.access import Caller
from kilonova.embedded.identity.api.bodies import Attributes, Name, ShortText, Text, chosen, given, required
from kilonova.embedded.identity.api.resource import Resource
from kilonova.embedded.identity.records import Endpoint, Region, Service
from kilonova.embedded.identity.store import endpoints, regions, services


class ServiceBody(msgspec.Struct, frozen=True):
    type: Name | UnsetType = UNSET
    name: ShortText | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class Services(Resource[Service, ServiceBody]):
    singular, plural = "service", "services"
    collection = services
    body = ServiceBody
    filters = ("type", "name")

    async def make(self, caller: Caller, body: ServiceBody, extra: Attributes) -> Service:
        required(body, "type")
        return Service(id=str(uuid.uuid4()), type=chosen(body.type, ""), name=chosen(body.name, ""),
                       description=chosen(body.description, ""), enabled=chosen(body.enabled, True))

    async def changes(self, body: ServiceBody, extra: Attributes) -> Attributes:
        return _without_nulls(given(body))

    def render(self, request: Request, record: Service) -> Attributes:
        return {
            "id": record.id, "type": record.type, "name": record.name, "description": record.description,
            "enabled": record.enabled, "links": self.links(request, record),
        }


class EndpointBody(msgspec.Struct, frozen=True):
    service_id: str | UnsetType = UNSET
    interface: Literal["public", "internal", "admin"] | UnsetType = UNSET
    url: Text | UnsetType = UNSET
    region_id: ShortText | UnsetType | None = UNSET
    region: ShortText | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class Endpoints(Resource[Endpoint, EndpointBody]):
    singular, plural = "endpoint", "endpoints"
    collection = endpoints
    body = EndpointBody
    filters = ("service_id", "interface", "region_id")

    async def make(self, caller: Caller, body: EndpointBody, extra: Attributes) -> Endpoint:
        required(body, "service_id", "interface", "url")
        return Endpoint(
            id=str(uuid.uuid4()), service_id=chosen(body.service_id, ""), interface=chosen(body.interface, ""),
            url=_checked_url(chosen(body.url, "")), enabled=chosen(body.enabled, True),
            region_id=chosen(body.region_id, None) or chosen(body.region, None),
        )

    def check(self, conn: sa.Connection, record: Endpoint) -> None:
        _require_parts(conn, record.service_id, record.region_id)

    async def changes(self, body: EndpointBody, extra: Attributes) -> Attributes:
        changes = given(body)
        if "region" in changes:
            changes.setdefault("region_id", changes["region"])
            del changes["region"]
        if "url" in changes:
            _checked_url(changes["url"])
        return changes

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> Endpoint:
        known = endpoints.get(conn, id)
        _require_parts(conn, changes.get("service_id", known.service_id), changes.get("region_id"))
        return super().change(conn, id, changes)

    def render(self, request: Request, record: Endpoint) -> Attributes:
        return {
            "id": record.id, "service_id": record.service_id, "interface": record.interface, "url": record.url,
            "region": record.region_id, "region_id": record.region_id, "enabled": record.enabled,
            "links": self.links(request, record),
        }


class RegionBody(msgspec.Struct, frozen=True):
    id: Name | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET
    parent_region_id: ShortText | UnsetType | None = UNSET


class Regions(Resource[Region, RegionBody]):
    singular, plural = "region", "regions"
    collection = regions
    body = RegionBody
    filters = ("parent_region_id",)

    async def make(self, caller: Caller, body: RegionBody, extra: Attributes) -> Region:
        return Region(id=chosen(body.id, uuid.uuid4().hex), description=chosen(body.description, ""),
                      parent_region_id=chosen(body.parent_region_id, None))

    def check(self, conn: sa.Connection, record: Region) -> None:
        if record.parent_region_id is not None:
            regions.get(conn, record.parent_region_id)

    async def changes(self, body: RegionBody, extra: Attributes) -> Attributes:
        changes = given(body)
        changes.pop("id", None)
        if "description" in changes:
            changes["description"] = chosen(body.description, "")
        return changes

    def change(self, conn: sa.Connection, id: str, changes: Attributes) -> Region:
        above = changes.get("parent_region_id")
        while above is not None:
            if above == id:
                raise InvalidInput("A region cannot be below itself.")
            above = regions.get(conn, above).parent_region_id
        return super().change(conn, id, changes)

    def render(self, request: Request, record: Region) -> Attributes:
        return {
            "id": record.id, "description": record.description, "parent_region_id": record.parent_region_id,
            "links": self.links(request, record),
        }

    def may_read(self, caller: Caller, record: Region) -> bool:
        return True

    def visible(self, caller: Caller) -> list[sa.ColumnElement[bool]]:
        return []


def _without_nulls(changes: Attributes) -> Attributes:
    return {name: "" if value is None else value for name, value in changes.items()}


def _checked_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InvalidInput("The url of an endpoint begins with http:// or https://.")
    return url


def _require_parts(conn: sa.Connection, service_id: str, region_id: str | None) -> None:
    """Raises InvalidInput unless both exist."""
    if services.find(conn, service_id) is None:
        raise InvalidInput(f"Could not find service: {service_id}.")
    if region_id is not None and regions.find(conn, region_id) is None:
        raise InvalidInput(f"Could not find region: {region_id}.")
