"""A service of shared file systems over directories that an operator names and mounts on the hosts."""

from __future__ import annotations

import re

import msgspec

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import NotFound
from kilonova.services.shares import Share

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SharedDirectory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share: `path` on every host that has it, and the ids of the projects that may use it; none for all."""

    path: str
    projects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ValueError(f"the path {self.path!r} of a share is not absolute")


class ShareOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shared file systems for servers."""

    directories: dict[str, SharedDirectory] = {}
    """Directories that servers may get, by the id of the share (a UUID): each has a `path`, the same on all hosts, and
    may name the `projects` that can use it."""

    def __post_init__(self) -> None:
        for name in self.directories:
            if not UUID.fullmatch(name):
                raise ValueError(f"the id {name!r} of a share is not a UUID in small letters")


class DirectoryShares:
    """The shares are the directories of the configuration."""

    def __init__(self, options: ShareOptions) -> None:
        self._directories = options.directories

    async def show(self, context: RequestContext, share_id: str) -> Share:
        found = self._directories.get(share_id)
        if found is None or (found.projects and context.project_id not in found.projects):
            raise NotFound(f"Share {share_id} could not be found.")
        return Share(id=share_id, export_location=found.path)
