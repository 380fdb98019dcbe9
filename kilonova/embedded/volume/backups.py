"""The records of backups: units of work. Their data are files outside all pools."""

from __future__ import annotations

from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import BackupNotFound, InvalidBackup
from kilonova.embedded.volume.owned import GuardedRecords
from kilonova.embedded.volume.records import Backup
from kilonova.embedded.volume.states import BackupStatus

_records: GuardedRecords[Backup, BackupStatus] = GuardedRecords(schema.backups, Backup, BackupNotFound, InvalidBackup)

insert = _records.insert
get = _records.get
visible = _records.visible
change = _records.change
move = _records.move
begin = _records.begin
delete = _records.delete
