"""The public status of a server, from its vm_state and task_state, and back. Spec: API-480 to API-490."""

from __future__ import annotations

from collections.abc import Iterable

from kilonova.domain.states import HARD_REBOOT_TASKS, SOFT_REBOOT_TASKS, TaskState, VmState

_REBUILD = (TaskState.REBUILDING, TaskState.REBUILD_BLOCK_DEVICE_MAPPING, TaskState.REBUILD_SPAWNING)
_RESIZE = (TaskState.RESIZE_PREP, TaskState.RESIZE_MIGRATING, TaskState.RESIZE_MIGRATED, TaskState.RESIZE_FINISH)

_DEFAULT: dict[VmState, str] = {
    VmState.ACTIVE: "ACTIVE",
    VmState.BUILDING: "BUILD",
    VmState.STOPPED: "SHUTOFF",
    VmState.RESIZED: "VERIFY_RESIZE",
    VmState.PAUSED: "PAUSED",
    VmState.SUSPENDED: "SUSPENDED",
    VmState.RESCUED: "RESCUE",
    VmState.ERROR: "ERROR",
    VmState.DELETED: "DELETED",
    VmState.SOFT_DELETED: "SOFT_DELETED",
    VmState.SHELVED: "SHELVED",
    VmState.SHELVED_OFFLOADED: "SHELVED_OFFLOADED",
}

_DURING_TASKS: tuple[tuple[tuple[VmState, ...], Iterable[TaskState], str], ...] = (
    ((VmState.ACTIVE,), SOFT_REBOOT_TASKS, "REBOOT"),
    ((VmState.ACTIVE,), HARD_REBOOT_TASKS, "HARD_REBOOT"),
    ((VmState.ACTIVE,), (TaskState.UPDATING_PASSWORD,), "PASSWORD"),
    ((VmState.ACTIVE, VmState.STOPPED, VmState.ERROR), _REBUILD, "REBUILD"),
    ((VmState.ACTIVE, VmState.PAUSED), (TaskState.MIGRATING,), "MIGRATING"),
    ((VmState.ACTIVE, VmState.STOPPED), _RESIZE, "RESIZE"),
    ((VmState.RESIZED,), (TaskState.RESIZE_REVERTING,), "REVERT_RESIZE"),
)

_BY_STATES: dict[tuple[VmState, TaskState | None], str] = {
    (vm, task): status for vm, status in _DEFAULT.items() for task in (None, *TaskState)
} | {(vm, task): status for vms, tasks, status in _DURING_TASKS for vm in vms for task in tasks}

WITH_PROGRESS = frozenset({"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING"})
WITH_FAULT = frozenset({"ERROR", "DELETED"})


def status_of(vm_state: VmState, task_state: TaskState | None, deleted: bool) -> str:
    """What clients see as `status`."""
    return "DELETED" if deleted else _BY_STATES[vm_state, task_state]


def states_of(statuses: Iterable[str]) -> tuple[frozenset[VmState], frozenset[TaskState] | None]:
    """The states a list filtered by these statuses holds; unknown statuses add nothing.

    Returns:
        The vm_states, and the task_states or None for any. Spec: API-490.
    """
    wanted = {status.upper() for status in statuses}
    vms = {vm for vm, status in _DEFAULT.items() if status in wanted}
    default_asked = bool(vms)
    tasks: set[TaskState] = set()
    for during, states, status in _DURING_TASKS:
        if status in wanted:
            vms.update(during)
            tasks.update(states)
    return frozenset(vms), None if default_asked else frozenset(tasks)
