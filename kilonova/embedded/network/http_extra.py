"""The smaller calls of the network API: extensions, quotas, zones, tags, bindings, use of addresses."""

from __future__ import annotations

import ipaddress
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.errors import Forbidden, InvalidInput, NotFound
from kilonova.embedded.http import caller, empty_response, json_object, json_response, require_admin
from kilonova.embedded.network import access, bindings, extensions, listing, quotas, schema
from kilonova.embedded.network.bodies import BindingBody, parse
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.errors import ExtensionNotFound, TagNotFound
from kilonova.embedded.network.http_api import Handler, Records, answering, quota_view
from kilonova.embedded.network.port_records import existing_port
from kilonova.embedded.network.resources import Resource
from kilonova.embedded.network.wiring import Wiring

MAX_TAGS, MAX_TAG_LENGTH = 100, 255


def _route(path: str, handler: Handler, method: str) -> BaseRoute:
    return Route(path, answering(handler), methods=[method])


class SmallCalls:
    """Routes that belong to no resource of their own."""

    def __init__(self, records: Records, wiring: Wiring, resources: list[Resource]) -> None:
        self._records = records
        self._wiring = wiring
        self._taggable = {
            resource.plural.replace("_", "-"): resource for resource in resources if "tags" in resource.table.c
            and resource.plural != "security_group_rules"
        }

    def routes(self) -> list[BaseRoute]:
        return [
            *(_route(path + suffix, handler, "GET") for suffix in ("", ".json") for path, handler in (
                ("/v2.0/extensions", self._extensions), ("/v2.0/extensions/{alias}", self._extension),
                ("/v2.0/quotas", self._all_quotas), ("/v2.0/availability_zones", self._zones),
                ("/v2.0/quotas/{project}/default", self._default_quota),
                ("/v2.0/quotas/{project}/details", self._quota_details), ("/v2.0/quotas/{project}", self._quota),
                ("/v2.0/network-ip-availabilities", self._use_of_networks),
                ("/v2.0/network-ip-availabilities/{id}", self._use_of_network),
            )),
            *(_route("/v2.0/quotas/{project}" + suffix, handler, method) for suffix in ("", ".json")
              for handler, method in ((self._set_quota, "PUT"), (self._reset_quota, "DELETE"))),
            *self._binding_routes(), *self._tag_routes(),
        ]

    def _binding_routes(self) -> list[BaseRoute]:
        path = "/v2.0/ports/{id}/bindings"
        return [
            _route(path, self._bindings, "GET"), _route(path, self._bind, "POST"),
            _route(f"{path}/{{host}}", self._binding, "GET"), _route(f"{path}/{{host}}", self._rebind, "PUT"),
            _route(f"{path}/{{host}}", self._unbind, "DELETE"),
            _route(f"{path}/{{host}}/activate", self._activate, "PUT"),
        ]

    def _tag_routes(self) -> list[BaseRoute]:
        path = "/v2.0/{plural}/{id}/tags"
        return [
            _route(path, self._tags, "GET"), _route(path, self._set_tags, "PUT"),
            _route(path, self._clear_tags, "DELETE"), _route(f"{path}/{{tag}}", self._has_tag, "GET"),
            _route(f"{path}/{{tag}}", self._add_tag, "PUT"), _route(f"{path}/{{tag}}", self._remove_tag, "DELETE"),
        ]

    async def _extensions(self, request: Request) -> Response:
        return json_response({"extensions": [extensions.view(alias) for alias in extensions.EXTENSIONS]})

    async def _extension(self, request: Request) -> Response:
        alias = request.path_params["alias"]
        if alias not in extensions.EXTENSIONS:
            raise ExtensionNotFound(alias)
        return json_response({"extension": extensions.view(alias)})

    async def _zones(self, request: Request) -> Response:
        return json_response({"availability_zones": [{"name": "nova", "resource": "network", "state": "available"}]})

    def _quota_project(self, request: Request, *, change: bool = False) -> str:
        who, project = caller(request), str(request.path_params["project"]).removesuffix(".json")
        if not access.privileged(who) and (change or project != who.project_id):
            raise Forbidden("Only an administrator may see the quota of another project, or change one.")
        return project

    async def _quota(self, request: Request) -> Response:
        """Spec: EMN-19."""
        project = self._quota_project(request)
        limits = await self._records.database.read(lambda conn: quotas.limits(conn, project))
        return json_response(quota_view(limits))

    async def _default_quota(self, request: Request) -> Response:
        self._quota_project(request)
        return json_response(quota_view(quotas.DEFAULTS))

    async def _quota_details(self, request: Request) -> Response:
        project = self._quota_project(request)

        def read(conn: sa.Connection) -> dict[str, Any]:
            return {
                key: {"limit": limit, "used": quotas.used(conn, project, key), "reserved": 0}
                for key, limit in quotas.limits(conn, project).items()
            }

        return json_response({"quota": await self._records.database.read(read)})

    async def _all_quotas(self, request: Request) -> Response:
        require_admin(request)

        def read(conn: sa.Connection) -> list[dict[str, Any]]:
            projects = conn.execute(sa.select(schema.quotas.c.project_id).distinct()).scalars().all()
            return [quotas.limits(conn, id_) | {"project_id": id_, "tenant_id": id_} for id_ in projects]

        return json_response({"quotas": await self._records.database.read(read)})

    async def _set_quota(self, request: Request) -> Response:
        project = self._quota_project(request, change=True)
        values = (await json_object(request)).get("quota")
        if not isinstance(values, dict):
            raise InvalidInput("Body must contain 'quota'.")
        values = {key: value for key, value in values.items() if key not in ("project_id", "tenant_id")}
        checked = values.pop("check_limit", False) is True
        for key, value in values.items():
            if key not in quotas.DEFAULTS:
                raise InvalidInput(f"Unrecognized attribute(s) '{key}'")
            if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= 2**31 - 1:
                raise InvalidInput(f"Invalid input for {key}: '{value}' is not -1 or more.")

        def write(conn: sa.Connection) -> dict[str, int]:
            if checked:
                quotas.check_unused(conn, project, values)
            quotas.set_limits(conn, project, values)
            return quotas.limits(conn, project)

        return json_response(quota_view(await self._records.database.write(write)))

    async def _reset_quota(self, request: Request) -> Response:
        project = self._quota_project(request, change=True)
        await self._records.database.write(lambda conn: quotas.reset(conn, project))
        return empty_response()

    async def _use_of_networks(self, request: Request) -> Response:
        require_admin(request)
        found = await self._records.database.read(_address_use)
        return json_response(listing.page(request, "network_ip_availabilities", found))

    async def _use_of_network(self, request: Request) -> Response:
        require_admin(request)
        for view in await self._records.database.read(_address_use):
            if view["network_id"] == request.path_params["id"]:
                return json_response({"network_ip_availability": view})
        raise NotFound(f"Network {request.path_params['id']} could not be found.")

    async def _bindings(self, request: Request) -> Response:
        port_id = self._binding_port(request)
        found = await self._records.database.read(lambda conn: bindings.find(conn, port_id))
        return json_response({"bindings": found})

    async def _binding(self, request: Request) -> Response:
        port_id, host = self._binding_port(request), request.path_params["host"]
        return json_response({"binding": await self._records.database.read(
            lambda conn: bindings.show(conn, port_id, host)
        )})

    async def _bind(self, request: Request) -> Response:
        port_id, now = self._binding_port(request), self._records.clock.now()
        body = parse(BindingBody, (await json_object(request)).get("binding"))

        def unit(conn: sa.Connection, effects: Effects) -> dict[str, Any]:
            view = bindings.create(conn, port_id, body, now, self._wiring.serves)
            effects.ports.append((None, existing_port(conn, port_id)))
            return view

        return json_response({"binding": await self._records.change(unit)}, 201)

    async def _rebind(self, request: Request) -> Response:
        port_id, host, now = self._binding_port(request), request.path_params["host"], self._records.clock.now()
        body = parse(BindingBody, (await json_object(request)).get("binding"))
        view = await self._records.database.write(lambda conn: bindings.update(conn, port_id, host, body, now))
        return json_response({"binding": view})

    async def _activate(self, request: Request) -> Response:
        port_id, host, now = self._binding_port(request), request.path_params["host"], self._records.clock.now()

        def unit(conn: sa.Connection, effects: Effects) -> dict[str, Any]:
            before = existing_port(conn, port_id)
            view = bindings.activate(conn, port_id, host, now)
            effects.ports.append((before, existing_port(conn, port_id)))
            return view

        return json_response({"binding": await self._records.change(unit)})

    async def _unbind(self, request: Request) -> Response:
        port_id, host, now = self._binding_port(request), request.path_params["host"], self._records.clock.now()

        def unit(conn: sa.Connection, effects: Effects) -> None:
            before = existing_port(conn, port_id)
            bindings.delete(conn, port_id, host, now)
            effects.ports.append((before, existing_port(conn, port_id)))

        await self._records.change(unit)
        return empty_response()

    def _binding_port(self, request: Request) -> str:
        """Spec: EMN-36."""
        if not access.privileged(caller(request)):
            raise Forbidden("Port bindings are for administrators and services.")
        return str(request.path_params["id"])

    async def _tags(self, request: Request) -> Response:
        return json_response({"tags": await self._change_tags(request, lambda tags: tags)})

    async def _set_tags(self, request: Request) -> Response:
        wanted = (await json_object(request)).get("tags")
        if not isinstance(wanted, list) or not all(isinstance(tag, str) for tag in wanted):
            raise InvalidInput("Invalid input for tags: a list of strings is expected.")
        return json_response({"tags": await self._change_tags(request, lambda tags: wanted)})

    async def _clear_tags(self, request: Request) -> Response:
        await self._change_tags(request, lambda tags: [])
        return empty_response()

    async def _has_tag(self, request: Request) -> Response:
        if request.path_params["tag"] not in await self._change_tags(request, lambda tags: tags):
            raise TagNotFound(request.path_params["tag"])
        return empty_response()

    async def _add_tag(self, request: Request) -> Response:
        await self._change_tags(request, lambda tags: [*tags, request.path_params["tag"]])
        return empty_response(201)

    async def _remove_tag(self, request: Request) -> Response:
        await self._has_tag(request)
        await self._change_tags(request, lambda tags: [tag for tag in tags if tag != request.path_params["tag"]])
        return empty_response()

    async def _change_tags(self, request: Request, change: Any) -> list[str]:
        """The tags after `change`, which gets those there are; written only if they differ."""
        resource = self._taggable.get(request.path_params["plural"])
        if resource is None:
            raise NotFound("The resource could not be found.")
        who, id_, now = caller(request), request.path_params["id"], self._records.clock.now()

        def unit(conn: sa.Connection) -> list[str]:
            view = resource.show(conn, who, id_)
            after = list(dict.fromkeys(change(view["tags"])))
            if len(after) > MAX_TAGS or any(not 0 < len(tag) <= MAX_TAG_LENGTH for tag in after):
                raise InvalidInput(f"Invalid input for tags: at most {MAX_TAGS} of 1 to {MAX_TAG_LENGTH} characters.")
            if after != view["tags"]:
                if not access.privileged(who) and view["project_id"] != who.project_id:
                    raise Forbidden(f"{resource.singular} {id_} belongs to another project.")
                schema.touch(conn, resource.table, id_, now, tags=tuple(after))
            return after

        return await self._records.database.write(unit)


def _address_use(conn: sa.Connection) -> list[dict[str, Any]]:
    """How many addresses each network has and has given out."""
    table = schema.addresses
    counted = {row.subnet_id: row.used for row in conn.execute(
        sa.select(table.c.subnet_id, sa.func.count().label("used")).group_by(table.c.subnet_id)
    )}
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in conn.execute(sa.select(schema.subnets)):
        subnet = schema.record(schema.Subnet, row)
        total = sum(
            int(ipaddress.IPv4Address(pool.end)) - int(ipaddress.IPv4Address(pool.start)) + 1 for pool in subnet.pools
        )
        parts.setdefault(subnet.network_id, []).append({
            "subnet_id": subnet.id, "subnet_name": subnet.name, "cidr": subnet.cidr, "ip_version": 4,
            "total_ips": total, "used_ips": counted.get(subnet.id, 0),
        })
    views = []
    for row in conn.execute(sa.select(schema.networks)):
        held = parts.get(row.id, [])
        views.append({
            "id": row.id, "network_id": row.id, "network_name": row.name, "project_id": row.project_id,
            "tenant_id": row.project_id, "total_ips": sum(part["total_ips"] for part in held),
            "used_ips": sum(part["used_ips"] for part in held), "subnet_ip_availability": held,
        })
    return views
