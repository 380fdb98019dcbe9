"""The catalogue: which services there are and where, as a token shows them, and the ones of one-machine mode.

Spec: EMI-20, EMI-23.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa

from kilonova.embedded.identity import schema
from kilonova.embedded.identity.records import Endpoint, Region, Service
from kilonova.embedded.identity.store import endpoints, regions, services

REGION = "RegionOne"
INTERFACES = ("public", "internal", "admin")

_OWN_IDS = uuid.UUID("2f8d2f0e-6a43-4cf5-9a5e-0f3f7b7ad6c1")
_TEMPLATE = re.compile(r"[$%]\((\w+)\)s")


class Offer(msgspec.Struct, frozen=True):
    """A service that this process serves. path: appended to the public base URL."""

    type: str
    name: str
    path: str


ONE_MACHINE = (
    Offer("identity", "keystone", "/identity"),
    Offer("compute", "nova", "/compute/v2.1"),
    Offer("image", "glance", "/image"),
    Offer("network", "neutron", "/network"),
    Offer("placement", "placement", "/placement"),
)
VOLUMES = (Offer("block-storage", "cinder", "/volume/v3"), Offer("volumev3", "cinderv3", "/volume/v3"))
"""The volume service, under both types that clients look for. Spec: EMI-21."""


class CatalogueEndpoint(msgspec.Struct, frozen=True):
    id: str
    interface: str
    region: str | None
    region_id: str | None
    url: str


class CatalogueEntry(msgspec.Struct, frozen=True):
    id: str
    type: str
    name: str
    endpoints: list[CatalogueEndpoint]


class Catalogue(msgspec.Struct, frozen=True):
    """The enabled services and endpoints, before they are filled in for a token."""

    services: list[Service]
    endpoints: list[Endpoint]

    def entries(self, values: Mapping[str, str]) -> list[CatalogueEntry]:
        """The catalogue for a token.

        Args:
            values: replaces templates in URLs; an endpoint whose template has no value is left out.
        """
        by_service: dict[str, list[CatalogueEndpoint]] = {}
        for endpoint in self.endpoints:
            url = _fill(endpoint.url, values)
            if url is not None:
                by_service.setdefault(endpoint.service_id, []).append(CatalogueEndpoint(
                    endpoint.id, endpoint.interface, endpoint.region_id, endpoint.region_id, url
                ))
        return [
            CatalogueEntry(service.id, service.type, service.name, by_service[service.id])
            for service in self.services if service.id in by_service
        ]


def load(conn: sa.Connection) -> Catalogue:
    return Catalogue(
        services.matching(conn, schema.services.c.enabled.is_(True)),
        endpoints.matching(conn, schema.endpoints.c.enabled.is_(True)),
    )


def register(conn: sa.Connection, public_url: str, offers: Sequence[Offer]) -> None:
    """Enter the services of one-machine mode, or move them to another base URL; those not offered any more go.

    Their ids are derived from their names, so that a restart finds its own entries whatever else was added.
    """
    if regions.find(conn, REGION) is None:
        regions.insert(conn, Region(id=REGION))
    for offer in VOLUMES:
        if offer not in offers:
            _withdraw(conn, offer)
    for offer in offers:
        service_id = str(uuid.uuid5(_OWN_IDS, offer.type))
        if services.find(conn, service_id) is None:
            services.insert(conn, Service(id=service_id, type=offer.type, name=offer.name))
        for interface in INTERFACES:
            endpoint_id = str(uuid.uuid5(_OWN_IDS, f"{offer.type}/{interface}"))
            url = public_url + offer.path
            known = endpoints.find(conn, endpoint_id)
            if known is None:
                endpoints.insert(conn, Endpoint(
                    id=endpoint_id, service_id=service_id, region_id=REGION, interface=interface, url=url
                ))
            elif known.url != url:
                endpoints.update(conn, endpoint_id, {"url": url})


def _withdraw(conn: sa.Connection, offer: Offer) -> None:
    for interface in INTERFACES:
        endpoint_id = str(uuid.uuid5(_OWN_IDS, f"{offer.type}/{interface}"))
        if endpoints.find(conn, endpoint_id) is not None:
            endpoints.delete(conn, endpoint_id)
    service_id = str(uuid.uuid5(_OWN_IDS, offer.type))
    if services.find(conn, service_id) is not None:
        services.delete(conn, service_id)


def _fill(url: str, values: Mapping[str, str]) -> str | None:
    names = _TEMPLATE.findall(url)
    if not all(name in values for name in names):
        return None
    return _TEMPLATE.sub(lambda match: values[match[1]], url)
