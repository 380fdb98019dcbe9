"""How shared file systems of servers look in answers. Spec: API-472."""

from __future__ import annotations

from kilonova.api.answers import STRING, UUID, Fields, shown
from kilonova.api.schema import ListOf, optional

_ROW: Fields = {"share_id": STRING, "status": STRING, "tag": STRING}
SHARES = shown({"shares": ListOf(shown(_ROW))})
SHARE = shown({"share": shown({**_ROW, "uuid": optional(UUID), "export_location": optional(STRING)})})
