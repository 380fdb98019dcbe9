"""How volumes, their snapshots and attachments look in answers. Spec: API-292, API-297, API-458."""

from __future__ import annotations

from kilonova.api.answers import (
    BOOLEAN,
    INTEGER,
    MICROSECONDS,
    STRING,
    STRING_OR_NULL,
    STRINGS,
    UUID,
    Fields,
    Shown,
    page,
    shown,
)
from kilonova.api.schema import ListOf, optional, required

_VOLUME = shown({
    "id": UUID, "status": STRING, "size": INTEGER, "availabilityZone": STRING, "createdAt": MICROSECONDS,
    "attachments": ListOf(Shown(type="object")), "displayName": STRING_OR_NULL, "displayDescription": STRING_OR_NULL,
    "volumeType": STRING_OR_NULL, "snapshotId": STRING_OR_NULL, "metadata": STRINGS,
})
_SNAPSHOT = shown({
    "id": UUID, "volumeId": UUID, "status": STRING, "size": INTEGER, "createdAt": MICROSECONDS,
    "displayName": STRING_OR_NULL, "displayDescription": STRING_OR_NULL,
})
VOLUMES, VOLUME = page("volumes", _VOLUME), shown({"volume": _VOLUME})
SNAPSHOTS, SNAPSHOT = page("snapshots", _SNAPSHOT), shown({"snapshot": _SNAPSHOT})
_ATTACHMENT: Fields = {
    "volumeId": UUID, "serverId": UUID, "device": optional(STRING), "tag": required(STRING_OR_NULL, since=70),
    "delete_on_termination": required(BOOLEAN, since=79),
}
_KNOWN = shown({
    "id": required(UUID, until=88), **_ATTACHMENT, "attachment_id": required(UUID, since=89),
    "bdm_uuid": required(UUID, since=89),
})
ATTACHMENTS = page("volumeAttachments", _KNOWN)
ATTACHMENT = shown({"volumeAttachment": _KNOWN})
MADE_ATTACHMENT = shown({"volumeAttachment": shown({"id": UUID, **_ATTACHMENT})})
