"""How images look in answers. Spec: API-474."""

from __future__ import annotations

from kilonova.api.answers import INTEGER, LINKS, SECONDS, STRING, STRINGS, UUID, Fields, page, shown
from kilonova.api.schema import Enum, optional

_BRIEF: Fields = {"id": STRING, "name": STRING, "links": LINKS}
_IMAGE = shown({
    **_BRIEF,
    "status": Enum("ACTIVE", "SAVING", "DELETED", "ERROR", "UNKNOWN"), "progress": INTEGER, "minRam": INTEGER,
    "minDisk": INTEGER, "metadata": STRINGS, "created": SECONDS, "updated": SECONDS,
    "OS-EXT-IMG-SIZE:size": INTEGER, "server": optional(shown({"id": UUID, "links": LINKS})),
    "OS-DCF:diskConfig": optional(Enum("AUTO", "MANUAL")),
})
IMAGES = page("images", shown(_BRIEF), "images_links")
IMAGES_DETAIL = page("images", _IMAGE, "images_links")
IMAGE = shown({"image": _IMAGE})
METADATA = shown({"metadata": STRINGS})
META = shown({"meta": STRINGS})
