"""Every operation of the volume service."""

from __future__ import annotations

from kilonova.embedded.volume.operations.attach import CONNECT, DELETE_ATTACHMENT
from kilonova.embedded.volume.operations.backup import CREATE_BACKUP, DELETE_BACKUP, RESTORE_BACKUP
from kilonova.embedded.volume.operations.create import CREATE
from kilonova.embedded.volume.operations.delete import DELETE
from kilonova.embedded.volume.operations.extend import EXTEND
from kilonova.embedded.volume.operations.image import REIMAGE, UPLOAD
from kilonova.embedded.volume.operations.migrate import MIGRATE
from kilonova.embedded.volume.operations.migrate_in_use import MIGRATE_IN_USE
from kilonova.embedded.volume.operations.retype import RETYPE
from kilonova.embedded.volume.operations.snapshot import CREATE_SNAPSHOT, DELETE_SNAPSHOT, REVERT
from kilonova.engine.operation import Definitions

VOLUME_OPERATIONS = Definitions(
    CREATE, DELETE, EXTEND, CREATE_SNAPSHOT, DELETE_SNAPSHOT, REVERT, CONNECT, DELETE_ATTACHMENT, UPLOAD, REIMAGE,
    CREATE_BACKUP, DELETE_BACKUP, RESTORE_BACKUP, RETYPE, MIGRATE, MIGRATE_IN_USE,
)
