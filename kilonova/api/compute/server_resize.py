"""Resizing servers: another flavor, its confirmation and its reversal. Spec: API-127 to API-129, API-618."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute.action_checks import require_movable
from kilonova.api.compute.feature_blocks import refuse_other_encryption
from kilonova.api.compute.quota_check import check_growth
from kilonova.api.compute.server_actions import server_action
from kilonova.api.compute.server_image import check_size, find_flavor, with_devices
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Enum, Integer, Object, OneOf, Text, optional, required
from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState
from kilonova.operations.confirm_resize import CONFIRM_RESIZE, ConfirmResize
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize
from kilonova.shapes.accelerators import DEVICE_PROFILE
from kilonova.shapes.blank_disks import check_ephemerals

RESIZE_RULE = Rule("servers:resize", Audience.MEMBER)
CROSS_CELL = Rule("compute:servers:resize:cross_cell", Audience.NOBODY)
CONFIRM = Rule("servers:confirm_resize", Audience.MEMBER)
REVERT = Rule("servers:revert_resize", Audience.MEMBER)

RESIZABLE = (VmState.ACTIVE, VmState.STOPPED)

BODY = Object({
    "flavorRef": required(OneOf(Text(1), Integer(0))),
    "OS-DCF:diskConfig": optional(Enum("AUTO", "MANUAL")),
})


async def resize(call: Call) -> None:
    """Features are refused first, then what the operation refuses, then what the flavor does not allow. Spec:
    API-068, API-069."""
    body, instance = call.body["resize"], call.server.instance
    flavor = await find_flavor(call, body["flavorRef"])
    if DEVICE_PROFILE in flavor.extra_specs or DEVICE_PROFILE in instance.flavor.extra_specs:
        raise InvalidInput("Servers with accelerators cannot be resized.")
    await require_movable(call, action="resize", vm=RESIZABLE)
    flavor = with_devices(call, flavor)
    _check_flavor(instance, flavor)
    await check_growth(call.cloud.quotas, instance, flavor)
    disks = body.get("OS-DCF:diskConfig")
    request = ResizeServer(flavor=flavor, auto_disk_config=None if disks is None else disks == "AUTO")
    await call.cloud.compute.ask(call.context, call.server, RESIZE, request)


def _check_flavor(instance: Instance, flavor: Flavor) -> None:
    """Raises InvalidInput."""
    if flavor.flavor_id == instance.flavor.flavor_id:
        raise InvalidInput("The server has this flavor already; a resize needs another one.")
    check_ephemerals(instance.block_devices, flavor)
    if instance.image is None:
        return
    if flavor.root_gib == 0 and instance.flavor.root_gib != 0:
        raise InvalidInput("A server cannot be resized to a flavor without a root disk.")
    check_size(instance.image, flavor)
    refuse_other_encryption(instance, flavor, instance.image)


async def confirm(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, CONFIRM_RESIZE, ConfirmResize())


async def revert(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, REVERT_RESIZE, RevertResize())


ROUTES = [
    server_action("resize", resize, RESIZE_RULE, BODY, rules=(CROSS_CELL,)),
    server_action("confirmResize", confirm, CONFIRM, status=204),
    server_action("revertResize", revert, REVERT),
]
