"""What the handlers of the Compute API work with: the records, the operations and the other services."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kilonova.cells.registry import Cells
from kilonova.domain.clock import Clock
from kilonova.operations.compute import Compute
from kilonova.services.accelerators import AcceleratorService
from kilonova.services.identity import IdentityService
from kilonova.services.image import ImageCatalogue
from kilonova.services.network import NetworkService
from kilonova.services.shares import ShareService
from kilonova.services.volumes import VolumeService
from kilonova.shapes.pci_requests import PciAlias

if TYPE_CHECKING:
    from kilonova.api.compute.hosts import Hosts
    from kilonova.api.compute.quota_check import Quotas
    from kilonova.operations.action_log import ActionLog
    from kilonova.operations.consoles import Consoles


class ApiOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the Compute API; each has the name of the OpenStack option that means the same.

    Args:
        max_limit: entries on a page of a list at most.
        max_request_body_size: bytes.
        enable_instance_password: answer adminPass to create, rebuild and rescue.
        compute_link_prefix, glance_link_prefix: start of links in answers; "" for where the request came in.
        multi_instance_display_name_template: how several servers of one request are named; `%(name)s`,
            `%(count)d` (from 1) and `%(uuid)s` are filled in.
        instance_name_template: name of the guest on the hypervisor; `%(uuid)s` is filled in.
        default_schedule_zone: zone of a server that asks for none; "" for any.
        list_records_by_skipping_down_cells: leave out a cell that does not answer instead of failing.
        instance_usage_audit_period: see `kilonova.notifications.periods`.
        pci_aliases: names by which flavors ask for PCI devices.
    """

    max_limit: int = 1000
    max_request_body_size: int = 114688
    enable_instance_password: bool = True
    compute_link_prefix: str = ""
    glance_link_prefix: str = ""
    multi_instance_display_name_template: str = "%(name)s-%(count)d"
    instance_name_template: str = "instance-%(uuid)s"
    default_schedule_zone: str = ""
    list_records_by_skipping_down_cells: bool = True
    instance_usage_audit_period: str = "month"
    pci_aliases: tuple[PciAlias, ...] = ()


@dataclass(frozen=True, slots=True)
class Cloud:
    """One cloud as its Compute API sees it."""

    cells: Cells
    compute: Compute
    identity: IdentityService
    images: ImageCatalogue
    networks: NetworkService
    shares: ShareService
    accelerators: AcceleratorService
    volumes: VolumeService
    actions: ActionLog
    consoles: Consoles
    quotas: Quotas
    hosts: Hosts
    clock: Clock
    options: ApiOptions
