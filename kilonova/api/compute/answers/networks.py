"""How security groups look in answers. Spec: API-183, API-285, API-290."""

from __future__ import annotations

from kilonova.api.answers import INTEGER, STRING, STRING_OR_NULL, UUID, page, shown
from kilonova.api.schema import ListOf, nullable, optional

_RULE = shown({
    "id": UUID, "parent_group_id": UUID, "ip_protocol": STRING_OR_NULL, "from_port": nullable(INTEGER),
    "to_port": nullable(INTEGER), "group": shown({"name": optional(STRING), "tenant_id": optional(STRING)}),
    "ip_range": shown({"cidr": optional(STRING)}),
})
_GROUP = shown({"id": UUID, "name": STRING, "description": STRING, "tenant_id": STRING, "rules": ListOf(_RULE)})
SECURITY_GROUPS = page("security_groups", _GROUP)
SECURITY_GROUP = shown({"security_group": _GROUP})
SECURITY_GROUP_RULE = shown({"security_group_rule": _RULE})
