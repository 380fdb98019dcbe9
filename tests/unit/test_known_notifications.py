"""The reference page accounts for every notification that the ecosystem knows."""

from kilonova.notifications.known import NOT_TOLD, OTHERS
from kilonova.operations.catalogue import CELL_OPERATIONS
from kilonova.operations.notices import InstanceAction

PHASES = ("start", "end", "error", "progress")
ECOSYSTEM = """
aggregate.add_host aggregate.cache_images aggregate.create aggregate.delete aggregate.remove_host
aggregate.update_metadata aggregate.update_prop compute.exception compute_task.build_instances
compute_task.migrate_server compute_task.rebuild_server flavor.create flavor.delete flavor.update instance.create
instance.delete instance.evacuate instance.exists instance.interface_attach instance.interface_detach
instance.live_migration_abort instance.live_migration_force_complete instance.live_migration_post
instance.live_migration_post_dest instance.live_migration_pre instance.live_migration_rollback
instance.live_migration_rollback_dest instance.lock instance.pause instance.power_off instance.power_on
instance.reboot instance.rebuild instance.rebuild_scheduled instance.rescue instance.resize instance.resize_confirm
instance.resize_finish instance.resize_prep instance.resize_revert instance.restore instance.resume
instance.share_attach instance.share_detach instance.shelve instance.shelve_offload instance.shutdown
instance.snapshot instance.soft_delete instance.suspend instance.trigger_crash_dump instance.unlock
instance.unpause instance.unrescue instance.unshelve instance.update instance.volume_attach instance.volume_detach
instance.volume_swap keypair.create keypair.delete keypair.import libvirt.connect metrics.update
scheduler.select_destinations server_group.add_member server_group.create server_group.delete service.create
service.delete service.update volume.usage
"""


def without_phase(event: str) -> str:
    base, _, last = event.rpartition(".")
    return base if last in PHASES else event


def test_every_notification_is_told_or_there_is_a_reason() -> None:
    operations = {
        f"instance.{notice.action}" for operation in CELL_OPERATIONS for notice in operation.notices
        if isinstance(notice, InstanceAction) and notice.action
    }
    others = {without_phase(event) for other in OTHERS for event in other.events}
    not_told = {event for one in NOT_TOLD for event in one.events}
    assert not_told & (operations | others) == set()
    assert operations | others | not_told == {*ECOSYSTEM.split(), "instance.force_delete"}
