"""The working parts of the image service, as its HTTP calls and the compute service both use them."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.db.upgrade import ensure
from kilonova.domain.clock import Clock
from kilonova.domain.errors import Forbidden
from kilonova.embedded.image import import_tasks, queries, schema
from kilonova.embedded.image.files import ImageFiles
from kilonova.embedded.image.import_rules import ImportRules
from kilonova.embedded.image.imports import Imports
from kilonova.embedded.image.quotas import Quotas
from kilonova.embedded.image.records import WITH_DATA, Limits, Status, Task
from kilonova.embedded.image.transfers import Transfers
from kilonova.embedded.image.uploads import Uploads


class Core:
    """Records, files and transfers of one image service."""

    def __init__(self, database: Database, directory: Path, clock: Clock, limits: Limits, rules: ImportRules,
                 quotas: Quotas) -> None:
        self.database = database
        self.clock = clock
        self.limits = limits
        self.quotas = quotas
        self.files = ImageFiles(directory, limits.keep_free)
        self.transfers = Transfers(database, self.files, clock, limits, quotas)
        self.uploads = Uploads(self.transfers)
        self.imports = Imports(self.transfers, rules)

    async def delete(self, image_id: str) -> bool:
        """Delete an image with its data, in whatever state it is. False if there is none.

        The record goes first: from then on the data belongs to nothing, and a crash leaves it to the sweep.

        Raises:
            Forbidden: it is protected. Spec: EMG-09, EMG-10.
        """

        def unit(conn: sa.Connection) -> bool:
            for record in queries.load(conn, [image_id]):
                if record.protected:
                    raise Forbidden(f"Image {image_id} is protected and cannot be deleted.")
            return queries.delete(conn, image_id)

        deleted = await self.database.write(unit)
        if deleted:
            self.transfers.stop(image_id)
            await self.files.run(self.files.forget, image_id)
        return deleted

    async def recover(self) -> None:
        """Make the tables and directories; undo the uploads that the last process left and go on with its
        imports; remove data that belongs to no image. Spec: EMG-03.

        Raises:
            SchemaUnfit: the tables are of another release.
        """
        await ensure(self.database, schema.IMAGE)
        await self.files.run(self.files.prepare)
        waiting = await self.files.run(self.files.all_staged)
        interrupted, with_data, staged = await self.database.write(lambda conn: self._settle(conn, waiting))
        await self.files.run(self.files.sweep, with_data=with_data, staged=staged)
        for task in interrupted:
            self.imports.start(task)

    def _settle(self, conn: sa.Connection, waiting: set[str]) -> tuple[list[Task], set[str], set[str]]:
        """Interrupted imports, images with data, images with staged data."""
        image, now = schema.images.c, self.clock.now()
        tasks = import_tasks.running(conn)
        importing = {task.image_id for task in tasks}
        with_data, staged = set(), set()
        for id_, status, size in conn.execute(sa.select(image.id, image.status, image.staged_size)):
            complete = id_ in waiting and size is not None
            if status in WITH_DATA:
                with_data.add(id_)
            elif (status is Status.IMPORTING and id_ in importing) or (status is Status.UPLOADING and complete):
                staged.add(id_)
            elif status is not Status.QUEUED:
                queries.move(conn, id_, [status], Status.QUEUED, now)
        return tasks, with_data, staged

    async def close(self) -> None:
        await self.imports.close()
        await self.transfers.close()
        self.files.close()
