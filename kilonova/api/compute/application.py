"""The Compute API put together: every resource's routes behind one edge."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kilonova.api.application import Application
from kilonova.api.cloud import ApiOptions, Cloud
from kilonova.api.compute import (
    addresses,
    aggregate_images,
    aggregates,
    assisted_snapshots,
    availability_zones,
    baremetal_nodes,
    console_output,
    extensions,
    external_events,
    flavor_access,
    flavor_extra_specs,
    flavors,
    hypervisors,
    images,
    instance_actions,
    keypairs,
    limits,
    migrations,
    network_proxies,
    os_hosts,
    quota_class_sets,
    quota_sets,
    remote_consoles,
    retired,
    security_groups,
    server_actions,
    server_backups,
    server_create,
    server_deferred_delete,
    server_diagnostics,
    server_fixed_ips,
    server_groups,
    server_injections,
    server_interfaces,
    server_list,
    server_metadata,
    server_migrations,
    server_moves,
    server_password,
    server_pause,
    server_rebuild,
    server_rescue,
    server_resize,
    server_security_groups,
    server_shares,
    server_shelve,
    server_tags,
    servers,
    services,
    tenant_usage,
    topology,
    usage_audit_log,
    versions,
    volume_attachments,
    volumes,
    volumes_boot,
)
from kilonova.api.compute.hosts import Hosts, UnknownHosts
from kilonova.api.compute.quota_check import Quotas, RecordQuotas
from kilonova.api.policy import Policy, Rule
from kilonova.api.routes import Route
from kilonova.cells.registry import Cells
from kilonova.domain.clock import Clock
from kilonova.operations.action_log import ActionLog
from kilonova.operations.compute import Compute
from kilonova.operations.consoles import Consoles
from kilonova.services.accelerators import AcceleratorService
from kilonova.services.identity import IdentityService
from kilonova.services.image import ImageCatalogue
from kilonova.services.network import NetworkService
from kilonova.services.shares import ShareService
from kilonova.services.volumes import VolumeService

RESOURCES = (
    versions, retired, tenant_usage, usage_audit_log, external_events, topology, volumes, volume_attachments,
    assisted_snapshots, baremetal_nodes, images,
    server_list, server_create, servers, server_actions, console_output, remote_consoles,
    server_metadata, server_tags, addresses, instance_actions, volumes_boot, extensions, limits, flavors, flavor_access,
    flavor_extra_specs, keypairs, aggregates, aggregate_images, availability_zones, hypervisors, services, os_hosts,
    quota_sets, quota_class_sets, server_password, server_pause, server_diagnostics, server_injections,
    server_interfaces, server_security_groups, server_fixed_ips, network_proxies, security_groups,
    server_deferred_delete, server_rebuild, server_rescue,
    server_groups,
    server_backups, server_shelve, server_shares,
    server_resize, migrations, server_moves, server_migrations,
)
"""Modules with a list ROUTES. A new resource is one more name here."""


def all_routes() -> list[Route]:
    """Every route of the API."""
    return [route for module in RESOURCES for route in module.ROUTES]


def all_rules(routes: Iterable[Route]) -> list[Rule]:
    """Every policy rule that some route refers to."""
    found = dict.fromkeys(rule for route in routes for rule in (route.rule, *route.rules) if rule)
    return list(found)


class ComputeApi(Application):
    """The Compute API as an ASGI application, to be mounted under `/compute` or alone.

    Args:
        cells, compute, identity, images, networks, volumes, actions, consoles: what it works with.
        policy_file: overrides of policy rules; read again when it changes. None for the defaults.
        identity_url: told to callers without a token.
        quotas: limits and usage; by default the same limits for every project.
        hosts: what is known of hosts and zones; by default nothing.

    Raises:
        PolicyFileInvalid: the policy file cannot be parsed.
    """

    def __init__(
        self,
        *,
        cells: Cells,
        compute: Compute,
        identity: IdentityService,
        images: ImageCatalogue,
        networks: NetworkService,
        shares: ShareService,
        accelerators: AcceleratorService,
        volumes: VolumeService,
        actions: ActionLog,
        consoles: Consoles,
        clock: Clock,
        identity_url: str,
        policy_file: Path | None = None,
        quotas: Quotas | None = None,
        hosts: Hosts | None = None,
        options: ApiOptions | None = None,
    ) -> None:
        routes = all_routes()
        cloud = Cloud(
            cells=cells, compute=compute, identity=identity, images=images, networks=networks, shares=shares,
            accelerators=accelerators, volumes=volumes,
            actions=actions, consoles=consoles, quotas=quotas or RecordQuotas(cells), hosts=hosts or UnknownHosts(),
            clock=clock, options=options or ApiOptions(),
        )
        super().__init__(
            routes, cloud=cloud, policy=Policy(all_rules(routes), policy_file, clock),
            documents=versions.VersionDocuments(), identity_url=identity_url,
        )
