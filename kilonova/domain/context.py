"""Who asks, and under which request."""

from __future__ import annotations

import msgspec


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """The authenticated caller of a request.

    Args:
        request_id: `req-<uuid4>` of this request; instance actions carry it.
        user_id, project_id: from the token; project_id is None for a system or unscoped token.
        roles: role names, implied ones included.
        system: True for a token with system scope.
    """

    request_id: str
    user_id: str
    project_id: str | None
    user_name: str = ""
    project_name: str = ""
    user_domain_id: str = "default"
    project_domain_id: str = "default"
    roles: tuple[str, ...] = ()
    system: bool = False
    is_admin: bool = False
    token: str = ""
    global_request_id: str | None = None
