"""All operations this release can run. An old version stays here as long as a journal may name it."""

from __future__ import annotations

from kilonova.engine.operation import Definitions
from kilonova.operations.attach_interface import ATTACH_INTERFACE
from kilonova.operations.attach_share import ATTACH_SHARE
from kilonova.operations.attach_volume import ATTACH_VOLUME
from kilonova.operations.backup import BACKUP
from kilonova.operations.bind_ports import BIND_PORTS
from kilonova.operations.build import BUILD
from kilonova.operations.clean_migration import CLEAN_MIGRATION
from kilonova.operations.confirm_resize import CONFIRM_RESIZE
from kilonova.operations.crash_dump import TRIGGER_CRASH_DUMP
from kilonova.operations.delete import DELETE
from kilonova.operations.delete_volume_snapshot import DELETE_VOLUME_SNAPSHOT
from kilonova.operations.deleted_guest import POWER_OFF_DELETED, REAP_DELETED
from kilonova.operations.detach_interface import DETACH_INTERFACE
from kilonova.operations.detach_share import DETACH_SHARE
from kilonova.operations.detach_volume import DETACH_VOLUME
from kilonova.operations.extend_volume import EXTEND_VOLUME
from kilonova.operations.fixed_ip import ADD_FIXED_IP, REMOVE_FIXED_IP
from kilonova.operations.inject_network_info import INJECT_NETWORK_INFO
from kilonova.operations.password import CHANGE_PASSWORD
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER
from kilonova.operations.place import BURY, PLACE
from kilonova.operations.precache_images import PRECACHE_IMAGES
from kilonova.operations.reboot import HARD_REBOOT_SERVER, SOFT_REBOOT_SERVER
from kilonova.operations.rebuild import REBUILD
from kilonova.operations.rebuild_root_volume import REBUILD_ROOT_VOLUME
from kilonova.operations.remove_leftover import REMOVE_LEFTOVER
from kilonova.operations.rescue import RESCUE
from kilonova.operations.resize import RESIZE
from kilonova.operations.restore import RESTORE
from kilonova.operations.revert_resize import REVERT_RESIZE
from kilonova.operations.shelve import SHELVE, UNSHELVE
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD
from kilonova.operations.shelve_volumes import SHELVE_VOLUMES
from kilonova.operations.snapshot import SNAPSHOT
from kilonova.operations.snapshot_volumes import SNAPSHOT_VOLUMES
from kilonova.operations.soft_delete import SOFT_DELETE
from kilonova.operations.start import START
from kilonova.operations.stop import STOP
from kilonova.operations.suspend import RESUME_SERVER, SUSPEND_SERVER
from kilonova.operations.swap_volume import SWAP_VOLUME
from kilonova.operations.take_volume_snapshot import TAKE_VOLUME_SNAPSHOT
from kilonova.operations.tidy import TIDY
from kilonova.operations.unrescue import UNRESCUE
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED

CELL_OPERATIONS = Definitions(
    BUILD, DELETE, START, STOP, SOFT_REBOOT_SERVER, HARD_REBOOT_SERVER, REMOVE_LEFTOVER, TIDY,
    PAUSE_SERVER, UNPAUSE_SERVER, SUSPEND_SERVER, RESUME_SERVER, CHANGE_PASSWORD,
    TRIGGER_CRASH_DUMP, INJECT_NETWORK_INFO,
    ATTACH_INTERFACE, DETACH_INTERFACE, ADD_FIXED_IP, REMOVE_FIXED_IP, BIND_PORTS,
    ATTACH_SHARE, DETACH_SHARE, ATTACH_VOLUME, DETACH_VOLUME, EXTEND_VOLUME, SWAP_VOLUME,
    TAKE_VOLUME_SNAPSHOT, DELETE_VOLUME_SNAPSHOT,
    SOFT_DELETE, RESTORE,
    REBUILD, REBUILD_ROOT_VOLUME, RESCUE, UNRESCUE,
    SNAPSHOT, SNAPSHOT_VOLUMES, BACKUP,
    RESIZE, CONFIRM_RESIZE, REVERT_RESIZE,
    PRECACHE_IMAGES, POWER_OFF_DELETED, REAP_DELETED, CLEAN_MIGRATION,
    SHELVE, SHELVE_VOLUMES, SHELVE_OFFLOAD, UNSHELVE, UNSHELVE_OFFLOADED,
)
API_OPERATIONS = Definitions(PLACE, BURY)
