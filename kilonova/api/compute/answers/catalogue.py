"""How flavors, key pairs, quotas, limits and documents look in answers.

Spec: API-001 to API-003, API-453, API-463, API-465, API-466, API-475.
"""

from __future__ import annotations

from kilonova.api.answers import (
    BOOLEAN,
    INTEGER,
    LINKS,
    MICROSECONDS,
    NUMBER,
    STRING,
    STRING_OR_NULL,
    TIME_OR_NULL,
    UUID,
    Fields,
    Shown,
    mapping,
    page,
    shown,
)
from kilonova.api.schema import Enum, ListOf, OneOf, optional, required

_BRIEF_FLAVOR: Fields = {
    "id": STRING, "name": STRING, "links": LINKS, "description": required(STRING_OR_NULL, since=55),
}
_FLAVOR = shown({
    **_BRIEF_FLAVOR,
    "ram": INTEGER, "disk": INTEGER, "OS-FLV-EXT-DATA:ephemeral": INTEGER, "vcpus": INTEGER,
    "swap": (required(OneOf(INTEGER, Enum("")), until=74), required(INTEGER, since=75)),
    "OS-FLV-DISABLED:disabled": required(BOOLEAN, until=101),
    "os-flavor-access:is_public": BOOLEAN,
    "rxtx_factor": required(OneOf(NUMBER, Enum("")), until=101),
    "extra_specs": optional(mapping(STRING), since=61),
})
FLAVORS = page("flavors", shown(_BRIEF_FLAVOR), "flavors_links")
FLAVORS_DETAIL = page("flavors", _FLAVOR, "flavors_links")
FLAVOR = shown({"flavor": _FLAVOR})
FLAVOR_ACCESS = page("flavor_access", shown({"flavor_id": STRING, "tenant_id": STRING}))
EXTRA_SPECS = shown({"extra_specs": mapping(STRING)})
EXTRA_SPECS_AS_SENT = shown({"extra_specs": mapping(OneOf(STRING, NUMBER))})
EXTRA_SPEC = mapping(STRING)
EXTRA_SPEC_AS_SENT = mapping(OneOf(STRING, NUMBER))

_KEYPAIR: Fields = {
    "name": STRING, "public_key": STRING, "fingerprint": STRING, "type": required(Enum("ssh", "x509"), since=2),
}
KEYPAIRS = page("keypairs", shown({"keypair": shown(_KEYPAIR)}), "keypairs_links")
NEW_KEYPAIR = shown({"keypair": shown({
    **_KEYPAIR, "user_id": STRING, "private_key": optional(STRING, until=91),
})})
KEYPAIR = shown({"keypair": shown({
    **_KEYPAIR, "user_id": STRING, "id": INTEGER, "created_at": MICROSECONDS, "updated_at": TIME_OR_NULL,
    "deleted": BOOLEAN, "deleted_at": TIME_OR_NULL,
})})

_SERVER_GROUP = shown({
    "id": UUID, "name": STRING, "members": ListOf(UUID),
    "policies": required(ListOf(STRING), until=63), "metadata": required(mapping(STRING), until=63),
    "policy": required(STRING, since=64), "rules": required(mapping(INTEGER), since=64),
    "project_id": required(STRING, since=13), "user_id": required(STRING, since=13),
})
SERVER_GROUPS = shown({"server_groups": ListOf(_SERVER_GROUP)})
SERVER_GROUP = shown({"server_group": _SERVER_GROUP})

LIMITS = shown({"limits": shown({"rate": ListOf(Shown()), "absolute": mapping(INTEGER)})})
_FIGURES = mapping(OneOf(INTEGER, STRING))
QUOTA_SET = shown({"quota_set": _FIGURES})
QUOTA_DETAIL = shown({"quota_set": mapping(
    OneOf(shown({"limit": INTEGER, "in_use": INTEGER, "reserved": INTEGER}), STRING)
)})
QUOTA_CLASS = shown({"quota_class_set": _FIGURES})

_EXTENSION = shown({
    "alias": STRING, "name": STRING, "description": STRING, "updated": STRING, "namespace": STRING, "links": LINKS,
})
EXTENSIONS = page("extensions", _EXTENSION)
EXTENSION = shown({"extension": _EXTENSION})
VERSION = shown({"version": shown({
    "id": STRING, "status": STRING, "version": STRING, "min_version": STRING, "updated": STRING, "links": LINKS,
    "media-types": ListOf(shown({"base": STRING, "type": STRING})),
})})
