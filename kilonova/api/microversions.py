"""Every microversion of the Compute API, and which one a request asks for.

A microversion is kept as its minor number: 2.79 is the integer 79. Routes, body fields, query parameters and
answer fields carry the range in which they exist; nothing else in the package knows a version number.

Spec: API-010 to API-016, API-501 to API-604.
"""

from __future__ import annotations

import re

from kilonova.api.faults import NotAcceptable
from kilonova.domain.errors import InvalidInput

MICROVERSIONS: tuple[str, ...] = (
    "2.1: first version, the old v2.0 behaviour with strict checks of input",
    "2.2: key pairs have a type; creating answers 201, deleting 204",
    "2.3: more attributes of a server for administrators; delete_on_termination of its volumes",
    "2.4: fixed addresses told whether they were reserved (route retired)",
    "2.5: anyone may filter servers by ip6",
    "2.6: one route for remote consoles replaces four actions",
    "2.7: giving access to a public flavor is a conflict",
    "2.8: remote consoles know protocol mks",
    "2.9: servers show whether they are locked",
    "2.10: key pairs of another user, for administrators",
    "2.11: services can be forced down",
    "2.12: virtual interfaces told their network (route retired)",
    "2.13: server groups show project and user",
    "2.14: evacuate no longer takes onSharedStorage nor answers a password",
    "2.15: server groups with soft policies",
    "2.16: servers show the state of their host",
    "2.17: action trigger_crash_dump",
    "2.18: the project id in URLs is optional",
    "2.19: servers have a description",
    "2.20: volumes attach to and detach from shelved servers",
    "2.21: actions of deleted servers can be read",
    "2.22: a live migration can be forced to complete",
    "2.23: live migrations of a server are listed; type and links of migrations",
    "2.24: a running live migration can be aborted",
    "2.25: os-migrateLive finds out by itself whether to copy blocks",
    "2.26: servers have tags",
    "2.27: header OpenStack-API-Version",
    "2.28: cpu_info of a hypervisor is an object",
    "2.29: evacuate asks the scheduler about a named host, unless forced",
    "2.30: os-migrateLive asks the scheduler about a named host, unless forced",
    "2.31: console tokens are told for every kind of console",
    "2.32: device tags for networks and block devices of a new server",
    "2.33: hypervisors are listed in pages",
    "2.34: os-migrateLive checks in the background",
    "2.35: key pairs are listed in pages",
    "2.36: routes that only pass requests on to other services end",
    "2.37: a new server must say which networks it wants, or auto or none",
    "2.38: an unknown status in a server list is an error",
    "2.39: image metadata is no longer passed on",
    "2.40: usage is listed in pages",
    "2.41: aggregates show their uuid",
    "2.42: device tags of 2.32 again",
    "2.43: os-hosts ends",
    "2.44: actions for fixed and floating addresses end",
    "2.45: createImage and createBackup answer the image id in the body",
    "2.46: header X-OpenStack-Request-Id",
    "2.47: servers embed their flavor",
    "2.48: diagnostics in one form for all drivers",
    "2.49: device tags when attaching volumes and interfaces",
    "2.50: quota classes show server groups and no networks",
    "2.51: event volume-extended; events of actions are visible to everybody",
    "2.52: tags for a new server",
    "2.53: services and hypervisors are known by uuid",
    "2.54: rebuild may change the key pair",
    "2.55: flavors have a description that can change",
    "2.56: a cold migration may name its host",
    "2.57: file injection ends; rebuild may change user data",
    "2.58: actions of a server are listed in pages",
    "2.59: migrations are listed in pages and have uuids",
    "2.60: volumes attached to several servers",
    "2.61: flavors show their extra specs",
    "2.62: events of actions show the host",
    "2.63: certificates that an image must be signed with",
    "2.64: server groups have one policy with rules",
    "2.65: waiting live migrations can be aborted",
    "2.66: lists know changes-before",
    "2.67: volume type of a new boot volume",
    "2.68: evacuate and os-migrateLive can no longer be forced",
    "2.69: lists tell of servers in cells that cannot be reached",
    "2.70: attachments show their device tag",
    "2.71: servers show their server group",
    "2.72: new servers with ports that ask for resources",
    "2.73: a lock has a reason",
    "2.74: a new server may name its host or hypervisor",
    "2.75: unknown query parameters are errors; update and rebuild answer every field",
    "2.76: event power-update",
    "2.77: unshelve may name a zone",
    "2.78: NUMA topology of a server",
    "2.79: delete_on_termination of an attached volume",
    "2.80: migrations show and filter by user and project",
    "2.81: images can be cached on the hosts of an aggregate",
    "2.82: event accelerator-request-bound",
    "2.83: more server filters for everybody",
    "2.84: events of actions have details",
    "2.85: delete_on_termination of an attachment can change",
    "2.86: extra specs of flavors are validated",
    "2.87: rescue of servers that boot from volumes",
    "2.88: hypervisors show uptime instead of resource figures",
    "2.89: volume attachments show the ids of attachment and block device",
    "2.90: the host name of a server can be chosen",
    "2.91: unshelve may name a host or take back the zone",
    "2.92: key pairs are no longer generated",
    "2.93: rebuild of servers that boot from volumes with another image",
    "2.94: the host name may be a full domain name",
    "2.95: an evacuated server stays stopped",
    "2.96: servers show the zone they are pinned to",
    "2.97: shares can be attached",
    "2.98: servers show properties of their image",
    "2.99: console type spice-direct",
    "2.100: servers show their scheduler hints",
    "2.101: attaching a volume answers at once",
    "2.102: flavors lose two fields and can be filtered by name; all queries are strict",
    "2.103: os-volumes_boot ends",
    "2.104: the pinned zone of a server can change",
)

FIRST = 1
LATEST = len(MICROVERSIONS)

_FORM = re.compile(r"[1-9][0-9]*\.([1-9][0-9]*|0)", re.ASCII)


def text(version: int) -> str:
    """As in headers and messages: 79 is `2.79`."""
    return f"2.{version}"


def asked(openstack: str | None, legacy: str | None) -> str:
    """The version a request names, as it names it (may be `latest`).

    Args:
        openstack: value of `OpenStack-API-Version`, a comma list of `service version`.
        legacy: value of `X-OpenStack-Nova-API-Version`.

    Spec: API-010.
    """
    for entry in (openstack or "").split(","):
        words = entry.split()
        if len(words) == 2 and words[0].lower() == "compute":
            return words[1]
    return (legacy or "").strip() or text(FIRST)


def negotiate(openstack: str | None, legacy: str | None) -> int:
    """The microversion in which to serve a request.

    Raises:
        InvalidInput: the value is no version. NotAcceptable: it is out of range.

    Spec: API-010 to API-013, API-015.
    """
    value = asked(openstack, legacy)
    if value == "latest":
        return LATEST
    if not _FORM.fullmatch(value) or len(value) > 16:
        raise InvalidInput(f"The API version {value} is malformed: it must look like {text(LATEST)}.")
    major, minor = value.split(".")
    if major != "2" or not FIRST <= int(minor) <= LATEST:
        raise NotAcceptable(value, text(FIRST), text(LATEST))
    return int(minor)
