"""The list of extensions, which old clients look features up in. Spec: API-103, API-104, API-475."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.domain.errors import NotFound

EXTENSIONS = Rule("extensions", Audience.ANY)
UPDATED = "2014-12-03T00:00:00Z"
NAMESPACE = "http://docs.openstack.org/compute/ext/fake_xml"
ONLY_COMPATIBLE = "OS-EXT-VIF-NET"
"""Listed by the `/v2` endpoint alone. Spec: API-007."""

_ALIASES = """
NMN OS-DCF OS-EXT-AZ OS-EXT-IMG-SIZE OS-EXT-IPS OS-EXT-IPS-MAC OS-EXT-SRV-ATTR OS-EXT-STS OS-FLV-DISABLED
OS-FLV-EXT-DATA OS-SCH-HNT OS-SRV-USG
os-access-ips os-admin-actions os-admin-password os-agents os-aggregates os-assisted-volume-snapshots
os-attach-interfaces os-availability-zone os-baremetal-ext-status os-baremetal-nodes os-block-device-mapping
os-block-device-mapping-v2-boot os-cell-capacities os-cells os-certificates os-cloudpipe os-cloudpipe-update
os-config-drive os-console-auth-tokens os-console-output os-consoles os-create-backup os-create-server-ext
os-deferred-delete os-evacuate os-extended-evacuate-find-host os-extended-floating-ips os-extended-hypervisors
os-extended-networks os-extended-quotas os-extended-rescue-with-image os-extended-services
os-extended-services-delete os-extended-status os-extended-volumes os-fixed-ips os-flavor-access
os-flavor-extra-specs os-flavor-manage os-flavor-rxtx os-flavor-swap os-floating-ip-dns os-floating-ip-pools
os-floating-ips os-floating-ips-bulk os-fping os-hide-server-addresses os-hosts os-hypervisor-status
os-hypervisors os-instance-actions os-instance_usage_audit_log os-keypairs os-lock-server os-migrate-server
os-migrations os-multiple-create os-networks os-networks-associate os-pause-server os-personality
os-preserve-ephemeral-rebuild os-quota-class-sets os-quota-sets os-rescue os-security-group-default-rules
os-security-groups os-server-diagnostics os-server-external-events os-server-group-quotas os-server-groups
os-server-list-multi-status os-server-password os-server-sort-keys os-server-start-stop os-services os-shelve
os-simple-tenant-usage os-suspend-server os-tenant-networks os-used-limits os-used-limits-for-admin os-user-data
os-user-quotas os-virtual-interfaces os-volume-attachment-update os-volumes
"""
ALIASES = tuple(_ALIASES.split())


def _entry(alias: str) -> dict[str, Any]:
    words = alias.removeprefix("os-").replace("_", "-").split("-")
    name = alias if alias.isupper() else "".join(word.capitalize() for word in words)
    return {
        "alias": alias, "name": name, "description": f"{name}: a part of the Compute API.", "updated": UPDATED,
        "namespace": NAMESPACE, "links": [],
    }


def _aliases(call: Call) -> tuple[str, ...]:
    return (*ALIASES, ONLY_COMPATIBLE) if call.compatible else ALIASES


async def index(call: Call) -> Any:
    return {"extensions": [_entry(alias) for alias in _aliases(call)]}


async def show(call: Call) -> Any:
    alias = call.path["id"]
    if alias not in _aliases(call):
        raise NotFound("The resource could not be found.")
    return {"extension": _entry(alias)}


ROUTES = [
    Route(method="GET", path="/extensions", handler=index, rule=EXTENSIONS, answer=answers.EXTENSIONS),
    Route(method="GET", path="/extensions/{id}", handler=show, rule=EXTENSIONS, answer=answers.EXTENSION),
]
