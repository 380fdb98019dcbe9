"""The HTTP interface of the volume service. Spec: section 5.1, EMI-01 to EMI-06."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.embedded.http import EmbeddedService
from kilonova.embedded.volume.api import (
    attachments,
    backups,
    default_types,
    messages,
    metadata,
    offers,
    operators,
    quotas,
    snapshots,
    transfers,
    type_access,
    types,
    volume_actions,
    volumes,
)
from kilonova.embedded.volume.api.call import error_body, routes
from kilonova.embedded.volume.service import EmbeddedVolumes
from kilonova.services.identity import IdentityService

GROUPS = (volumes, volume_actions, metadata, attachments, snapshots, types, type_access, default_types, quotas,
          backups, transfers, messages, operators, offers)


def application(service: EmbeddedVolumes, identity: IdentityService, identity_url: str) -> ASGIApp:
    """The application, to be mounted under any prefix.

    Args:
        identity: validates the tokens of requests. identity_url: shown to those who have none.
    """
    methods = [method for group in GROUPS for method in group.methods()]
    served = EmbeddedService(
        "block-storage", [*offers.version_routes(), *routes(methods, service)], identity=identity,
        error_body=error_body, public=offers.PUBLIC, identity_url=identity_url,
    )

    async def exact(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == scope.get("root_path", ""):
            # clients ask for the prefix itself, without a slash
            scope = {**scope, "path": scope["path"] + "/"}
        await served(scope, receive, send)

    return exact
