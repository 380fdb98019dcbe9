"""How shared file systems of servers look in answers."""

from __future__ import annotations

from kilonova.api.answers import STRING, shown
from kilonova.api.schema import ListOf, required

SHARES = shown({"shares": required(ListOf(shown({"share_id": STRING, "status": STRING, "tag": STRING})))})
