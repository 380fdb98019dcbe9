"""Which notifications of the ecosystem are told beside those of operations on servers, and which are not, and why."""

from __future__ import annotations

from typing import NamedTuple


class Other(NamedTuple):
    """Notifications that no operation declares.

    Args:
        events: their types. payload: name and version of the object. older: the type in the older form, "" for none.
        when: what they tell of.
    """

    events: tuple[str, ...]
    payload: str
    older: str
    when: str


class NotTold(NamedTuple):
    """Notifications that the ecosystem knows and nobody is told here. events: their types, without phases."""

    events: tuple[str, ...]
    reason: str


def _pairs(subject: str, *actions: str) -> tuple[str, ...]:
    return tuple(f"{subject}.{action}.{phase}" for action in actions for phase in ("start", "end"))


ACTION = "InstanceActionPayload 1.8"
OTHERS = (
    Other(_pairs("instance", "delete", "force_delete"), ACTION, "delete, force_delete",
          "the API deletes a server that no cell has yet; `force_delete` also for one without a host"),
    Other(("instance.lock", "instance.unlock"), ACTION, "", "a server is locked, with its reason, or unlocked"),
    Other(("instance.update",), "InstanceUpdatePayload 1.9", "update",
          "tags of a server change; its states, with `notify_on_state_change`"),
    Other(("instance.exists",), "InstanceExistsPayload 1.3", "exists",
          "a period of usage has ended, with `instance_usage_audit`; before some operations, see above"),
    Other(("volume.usage",), "VolumeUsagePayload 1.0", "volume.usage",
          "what a server has done with a volume was counted, with `volume_usage_poll_interval`"),
    Other(("compute.exception",), "ExceptionPayload 1.1", "the operation's name", "an operation has failed"),
    Other(("compute_task.build_instances.error",), "ComputeTaskPayload 1.0", "compute_task.build_instances",
          "no host can take a new server"),
    Other(("service.create", "service.update", "service.delete"), "ServiceStatusPayload 1.1", "",
          "a process shows its first sign of life, is enabled, disabled or forced down, or is removed"),
    Other(("server_group.create", "server_group.delete", "server_group.add_member"), "ServerGroupPayload 1.1", "",
          "a server group is made or removed, or a new server joins it"),
    Other(("flavor.create", "flavor.update", "flavor.delete"), "FlavorPayload 1.4", "",
          "a flavor is made or removed; its description, extra specs or projects change"),
    Other(_pairs("keypair", "create", "import", "delete"), "KeypairPayload 1.0", "", "key pairs"),
    Other(_pairs("aggregate", "create", "delete", "add_host", "remove_host", "update_metadata", "update_prop"),
          "AggregatePayload 1.1", "", "host aggregates"),
)
NOT_TOLD = (
    NotTold(("aggregate.cache_images",),
            "the hosts of an aggregate fetch in operations of their own; the journal tells what became of each image"),
    NotTold(("compute_task.migrate_server", "compute_task.rebuild_server"),
            "no host is looked for; `instance.resize_prep.error` and `instance.rebuild.error` tell of failures"),
    NotTold(("instance.evacuate", "instance.rebuild_scheduled"), "servers are not evacuated"),
    NotTold(
        tuple(f"instance.live_migration_{part}" for part in (
            "abort", "force_complete", "post", "post_dest", "pre", "rollback", "rollback_dest",
        )),
        "servers are not migrated live",
    ),
    NotTold(("libvirt.connect",),
            "a host whose hypervisor is away does not report, and its service is shown as down"),
    NotTold(("metrics.update",), "hosts do not measure themselves for the scheduler; `/metrics` tells numbers"),
    NotTold(("scheduler.select_destinations",), "choosing a host is a step of an operation, which its journal tells"),
)
