"""Restoring a server that was deleted softly, and deleting one for good. Spec: API-136, API-137."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute import quota_check
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.operations.restore import RESTORE, RestoreServer
from kilonova.shapes.resources import is_volume_backed


async def restore(call: Call) -> None:
    """What is restored counts against the quota again."""
    instance = call.server.instance
    await quota_check.allowed_count(
        call.cloud.quotas, instance.project_id, instance.user_id, instance.flavor, 1, 1,
        volume_backed=is_volume_backed(instance.block_devices),
    )
    await call.cloud.compute.ask(call.context, call.server, RESTORE, RestoreServer())


async def force_delete(call: Call) -> None:
    await call.cloud.compute.delete(call.context, call.server, force=True)


ROUTES = [
    server_action("restore", restore, Rule("os-deferred-delete:restore", Audience.MEMBER)),
    server_action("forceDelete", force_delete, Rule("os-deferred-delete:force", Audience.MEMBER)),
]
