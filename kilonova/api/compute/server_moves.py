"""Moving servers to other hosts. Spec: API-130 to API-132, API-514, API-525, API-529, API-530, API-534, API-556,
API-568, API-595."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.action_checks import HostDown, host_is_up
from kilonova.api.compute.answers.servers import ADMIN_PASSWORD
from kilonova.api.compute.feature_blocks import refuse_with_devices, refuse_with_shares, refuse_with_tpm
from kilonova.api.compute.field_types import HOST
from kilonova.api.compute.server_actions import server_action
from kilonova.api.compute.server_create import generate_password
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Boolean, Enum, Object, OneOf, Text, nullable, optional, required
from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.operations.refused_moves import Move, check_move
from kilonova.shapes.accelerators import DEVICE_PROFILE

MIGRATE = Rule("os-migrate-server:migrate", Audience.MANAGER)
MIGRATE_TO_HOST = Rule("os-migrate-server:migrate:host", Audience.ADMIN)
LIVE = Rule("os-migrate-server:migrate_live", Audience.MANAGER)
LIVE_TO_HOST = Rule("os-migrate-server:migrate_live:host", Audience.ADMIN)
EVACUATE = Rule("os-evacuate", Audience.ADMIN)

PASSWORD_TOLD = 13
"""Last microversion in which an evacuation answers with the password of the guest."""
CHECKED_WITHIN = 33
"""Last microversion in which the checks of a live migration run inside the call."""


TPM_SECRET = "hw:tpm_secret_security"
"""Extra spec: who can read the state of a TPM."""


async def migrate(call: Call) -> None:
    """That no host can take the server shows in its migration and its fault only."""
    asked = (call.body["migrate"] if call.version >= 56 else None) or {}
    _refuse_accelerators(call)
    check_move(call.context, call.server, Move.COLD)
    here = call.server.instance.host
    if here is not None and not await host_is_up(call, here):
        raise HostDown
    await _check_target(call, asked.get("host"), MIGRATE_TO_HOST)
    await call.cloud.compute.refuse_move(call.context, call.server, Move.COLD)


async def migrate_live(call: Call) -> None:
    asked: dict[str, Any] = call.body["os-migrateLive"]
    _refuse_accelerators(call)
    if call.server.instance.flavor.extra_specs.get(TPM_SECRET) != "host":
        refuse_with_tpm(call.server.instance, "live-migration")
    refuse_with_shares(call.server.instance, "live-migration")
    refuse_with_devices(call.server.instance, "live-migration")
    check_move(call.context, call.server, Move.LIVE)
    await _check_target(call, asked["host"], LIVE_TO_HOST)
    _check_force(asked)
    reason = await call.cloud.compute.refuse_move(call.context, call.server, Move.LIVE)
    if call.version <= CHECKED_WITHIN:
        raise InvalidInput(reason.message)


async def evacuate(call: Call) -> Any:
    """The host that is left has to be down."""
    asked: dict[str, Any] = call.body["evacuate"]
    instance, host = call.server.instance, asked.get("host")
    refuse_with_tpm(instance, "evacuate")
    refuse_with_shares(instance, "evacuate")
    check_move(call.context, call.server, Move.EVACUATION)
    _check_force(asked)
    if host is not None and not await call.cloud.hosts.exists(host=host, node=None):
        raise NotFound(f"Compute host {host} could not be found.")
    if host is not None and host == instance.host:
        raise InvalidInput("The target host can't be the same one.")
    if instance.host is not None and await host_is_up(call, instance.host):
        raise InvalidInput(f"Compute service of {instance.host} is still in use.")
    await call.cloud.compute.refuse_move(call.context, call.server, Move.EVACUATION)
    if call.version > PASSWORD_TOLD:
        return None
    password = asked.get("adminPass") or generate_password()
    return {"adminPass": password} if call.cloud.options.enable_instance_password else {}


def _refuse_accelerators(call: Call) -> None:
    if DEVICE_PROFILE in call.server.instance.flavor.extra_specs:
        raise InvalidInput("Servers with accelerators cannot be moved.")


def _check_force(asked: dict[str, Any]) -> None:
    """Raises InvalidInput: nothing is named that could be forced."""
    if asked.get("force") and asked.get("host") is None:
        raise InvalidInput("Can't force to a non-provided destination")


async def _check_target(call: Call, host: str | None, rule: Rule) -> None:
    """Raises InvalidInput: no such host, or it is where the server is. PolicyNotAuthorized."""
    if host is None:
        return
    call.require(rule)
    if not await call.cloud.hosts.exists(host=host, node=None):
        raise InvalidInput(f"Compute host {host} could not be found.")
    if host == call.server.instance.host:
        raise InvalidInput(f"The server is on host {host} already; it needs another one.")


_TO = nullable(Object({"host": optional(HOST)}))
_LIVE = Object({
    "host": required(nullable(HOST)),
    "block_migration": (required(Boolean(), until=24), required(OneOf(Boolean(), Enum("auto")), since=25)),
    "disk_over_commit": required(Boolean(), until=24),
    "force": optional(Boolean(), since=30, until=67),
})
_EVACUATE = Object({
    "host": optional(HOST), "adminPass": optional(Text()), "onSharedStorage": required(Boolean(), until=13),
    "force": optional(Boolean(), since=29, until=67),
})

ROUTES = [
    server_action("migrate", migrate, MIGRATE, until=55, rules=(MIGRATE_TO_HOST,)),
    server_action("migrate", migrate, MIGRATE, _TO, since=56, rules=(MIGRATE_TO_HOST,)),
    server_action("os-migrateLive", migrate_live, LIVE, _LIVE, rules=(LIVE_TO_HOST,)),
    server_action("evacuate", evacuate, EVACUATE, _EVACUATE, until=PASSWORD_TOLD, status=200, answer=ADMIN_PASSWORD),
    server_action("evacuate", evacuate, EVACUATE, _EVACUATE, since=PASSWORD_TOLD + 1, status=200),
]
