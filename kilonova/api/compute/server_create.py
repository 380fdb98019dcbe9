"""Creating servers: everything is checked here, so that what is accepted can be built. Spec: API-108 to API-110."""

from __future__ import annotations

import secrets
import string
import uuid
from typing import Any

import msgspec

from kilonova.api.call import Answer, Call
from kilonova.api.compute import (
    quota_check,
    server_groups,
    server_image,
    server_networks,
    server_placement,
    server_volumes,
)
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.hostnames import hostname_from
from kilonova.api.compute.personality import check_files, injected_files
from kilonova.api.compute.server_schema import CREATE
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.db import keypairs
from kilonova.db.keypairs import Keypair
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import BOOT_ROLES, BuildRequest, Instance, RequestSpec
from kilonova.shapes.accelerators import profile_of, with_groups
from kilonova.shapes.disk_names import with_volume_names
from kilonova.shapes.resources import is_volume_backed

CREATE_SERVER = Rule("servers:create", Audience.MEMBER)
TRUSTED_CERTS = Rule("servers:create:trusted_certs", Audience.MEMBER)

_ALPHABET = string.ascii_letters + string.digits
PASSWORD_LENGTH = 12


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all servers of one request have in common, checked. asked: the flavor as hosts are chosen by it."""

    body: dict[str, Any]
    hints: dict[str, list[str]]
    group: str | None
    place: server_placement.Wanted
    flavor: Flavor
    asked: Flavor
    image: Image
    devices: tuple[BlockDevice, ...]
    networks: server_networks.Requested
    security_groups: tuple[str, ...]
    keypair: Keypair | None
    count: int
    password: str
    reservation_id: str


def generate_password() -> str:
    """A password for a guest: letters and digits, with one of each kind."""
    while True:
        found = "".join(secrets.choice(_ALPHABET) for _ in range(PASSWORD_LENGTH))
        kinds = (str.islower, str.isupper, str.isdigit)
        if all(any(kind(c) for c in found) for kind in kinds):
            return found


async def create(call: Call) -> Answer:
    plan = await _plan(call)
    now = call.cloud.clock.now()
    requests = [_build_request(call, plan, index, now) for index in range(plan.count)]
    await call.cloud.compute.create(call.context, requests)
    if plan.body.get("return_reservation_id"):
        return Answer({"reservation_id": plan.reservation_id})
    first = requests[0].instance
    path = f"/servers/{first.uuid}"
    shown: dict[str, Any] = {
        "id": first.uuid,
        "links": call.links.pair(path),
        "OS-DCF:diskConfig": "AUTO" if first.auto_disk_config else "MANUAL",
        "security_groups": [{"name": name} for name in plan.security_groups],
    }
    if call.cloud.options.enable_instance_password:
        shown["adminPass"] = plan.password
    return Answer({"server": shown}, headers=(("Location", call.links.own(path)),))


async def _plan(call: Call) -> Plan:
    """Check a request. Raises the caller's errors."""
    body: dict[str, Any] = call.body["server"]
    fewest, most = _counts(body)
    if "hostname" in body and most > 1:
        raise InvalidInput("hostname cannot be given for several servers.")
    place = await server_placement.wanted_place(call, body)
    hints = server_placement.scheduler_hints(call.body)
    devices = server_image.block_devices(call, body)
    if body.get("trusted_image_certificates"):
        call.require(TRUSTED_CERTS)
    flavor = await server_image.find_flavor(call, body["flavorRef"])
    flavor = server_image.with_devices(call, flavor)
    asked = await _with_accelerators(call, flavor)
    image, devices = await server_image.find_root(call, body, devices, flavor, most)
    devices = with_volume_names(devices, flavor=flavor, image=image)
    check_disk_config(body, image)
    keypair = await find_keypair(call, body.get("key_name"))
    networks = await server_networks.requested_networks(call, body.get("networks"), most)
    groups = await _security_groups(call, body)
    limits = await call.cloud.quotas.limits(_project(call), call.context.user_id)
    quota_check.check_metadata(limits, len(body.get("metadata", {})))
    check_files(limits, body.get("personality") or [])
    count = await quota_check.allowed_count(
        call.cloud.quotas, _project(call), call.context.user_id, flavor, fewest, most,
        volume_backed=is_volume_backed(devices))
    group = await server_groups.joined_group(call, hints, limits.server_group_members, count)
    return Plan(
        body=body, hints=hints, group=group,
        place=place, flavor=flavor, asked=asked, image=image, devices=devices, networks=networks,
        security_groups=groups, keypair=keypair, count=count, password=body.get("adminPass") or generate_password(),
        reservation_id="r-" + "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8)),
    )


async def _with_accelerators(call: Call, flavor: Flavor) -> Flavor:
    """The device profile is looked up now: what it asks for is kept with the request. Spec: EMP-09.

    Raises:
        InvalidInput: there is no accelerator service, no such profile, or nothing that it asks for.
    """
    profile = profile_of(flavor)
    return flavor if profile is None else with_groups(flavor, await call.cloud.accelerators.groups(profile))


def _project(call: Call) -> str:
    assert call.context.project_id is not None, "policy requires a project"
    return call.context.project_id


def _counts(body: dict[str, Any]) -> tuple[int, int]:
    fewest = int(body.get("min_count", 1))
    most = int(body.get("max_count", fewest))
    if fewest > most:
        raise InvalidInput("min_count must be <= max_count")
    return fewest, most


def check_disk_config(body: dict[str, Any], image: Image) -> None:
    """Raises InvalidInput: the image forbids that its disk is resized."""
    forbidden = image.properties.get("auto_disk_config", "").lower() == "disabled"
    if forbidden and body.get("OS-DCF:diskConfig") == "AUTO":
        raise InvalidInput(f"Requested image {image.id} has automatic disk resize disabled.")


async def find_keypair(call: Call, name: str | None) -> Keypair | None:
    """The caller's keypair of that name, None without a name. Raises InvalidInput."""
    if name is None:
        return None
    user_id = call.context.user_id
    try:
        return await call.cloud.cells.api.read(lambda conn: keypairs.get(conn, user_id, name))
    except NotFound as error:
        raise InvalidInput("Invalid key_name provided.") from error


async def _security_groups(call: Call, body: dict[str, Any]) -> tuple[str, ...]:
    """Names as asked, without repetitions; unknown ones are refused."""
    asked = tuple(dict.fromkeys(entry["name"] for entry in body.get("security_groups", ()) if entry.get("name")))
    unusual = tuple(name for name in asked if name != "default")
    if unusual:
        await call.cloud.networks.check_security_groups(call.context, unusual)
    return asked or ("default",)


def _build_request(call: Call, plan: Plan, index: int, now: float) -> BuildRequest:
    body, uuid_ = plan.body, str(uuid.uuid4())
    devices = server_volumes.for_one_server(plan.devices)
    name = body["name"]
    if plan.count > 1:
        template = call.cloud.options.multi_instance_display_name_template
        name = template % {"name": name, "count": index + 1, "uuid": uuid_}
    instance = Instance(
        uuid=uuid_,
        project_id=_project(call),
        user_id=call.context.user_id,
        reservation_id=plan.reservation_id,
        display_name=name,
        display_description=body.get("description") if call.version >= 19 else name,
        hostname=body.get("hostname") or hostname_from(name, uuid_),
        availability_zone=plan.place.zone,
        image_ref=plan.image.id,
        image=plan.image,
        kernel_id=plan.image.properties.get("kernel_id", ""),
        ramdisk_id=plan.image.properties.get("ramdisk_id", ""),
        flavor=plan.flavor,
        metadata=body.get("metadata", {}),
        system_metadata={**image_metadata(plan.image), BOOT_ROLES: ",".join(call.context.roles)},
        tags=tuple(dict.fromkeys(body.get("tags", ()))),
        key_name=plan.keypair.name if plan.keypair else None,
        key_data=plan.keypair.public_key if plan.keypair else None,
        user_data=body.get("user_data"),
        config_drive="True" if body.get("config_drive") else "",
        access_ip_v4=body.get("accessIPv4"),
        access_ip_v6=body.get("accessIPv6"),
        launch_index=index,
        auto_disk_config=body.get("OS-DCF:diskConfig", "AUTO") == "AUTO",
        trusted_certs=_certificates(body),
        security_groups=plan.security_groups,
        block_devices=devices,
        created_at=now,
    )
    return BuildRequest(
        instance=instance,
        spec=_spec(call, plan, uuid_, devices),
        injected_files=injected_files(body.get("personality") or []),
        admin_password=plan.password,
    )


def _spec(call: Call, plan: Plan, uuid_: str, devices: tuple[BlockDevice, ...]) -> RequestSpec:
    return RequestSpec(
        instance_uuid=uuid_,
        project_id=_project(call),
        user_id=call.context.user_id,
        flavor=plan.asked,
        image=plan.image,
        availability_zone=plan.place.zone,
        force_host=plan.place.force_host,
        force_node=plan.place.force_node,
        requested_host=plan.place.host or plan.place.node,
        scheduler_hints=plan.hints,
        server_group=plan.group,
        requested_networks=plan.networks,
        security_groups=plan.security_groups,
        block_devices=devices,
        trusted_certs=_certificates(plan.body) or (),
    )


def _certificates(body: dict[str, Any]) -> tuple[str, ...] | None:
    asked = body.get("trusted_image_certificates")
    return tuple(asked) if asked else None


def image_metadata(image: Image) -> dict[str, str]:
    """Properties of the image that outlive it. Spec: API-411."""
    base = {"min_ram": image.min_ram, "min_disk": image.min_disk, "disk_format": image.disk_format,
            "container_format": image.container_format}
    stored = {f"image_{name}": str(value) for name, value in base.items()}
    return stored | {f"image_{name}": value for name, value in image.properties.items()}


ROUTES = [
    Route(method="POST", path="/servers", handler=create, rule=CREATE_SERVER, body=CREATE, status=202, rules=(
        server_placement.FORCED_HOST, server_placement.REQUESTED_DESTINATION, server_image.ATTACH_VOLUME,
        server_image.ZERO_DISK, server_networks.ATTACH_NETWORK, server_networks.ATTACH_EXTERNAL, TRUSTED_CERTS,
    ), answer=answers.CREATE),
]
