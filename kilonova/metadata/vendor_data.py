"""Vendor data: what the operator of a cloud tells all its guests, and what services of the operator tell each of them.

The services are asked anew each time that a guest reads the document or a config drive is made, all of them at once,
and never wait longer than the operator allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
import structlog

from kilonova.domain.errors import InvalidInput, KilonovaError, ServiceUnavailable
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.openstack import VendorDocuments
from kilonova.services.openstack import AccountOptions, OpenStackCalls, account, check_address

log = structlog.get_logger(__name__)

STATIC = "static"
"""Where the data of all guests are in the document with those of each."""
LONGEST = 8.0
"""Seconds that services may be given: the metadata service has answered by then, or gives a guest up."""


class VendorDataOptions(AccountOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator of the cloud tells guests."""

    vendordata_jsonfile_path: str = ""
    """File with a JSON object that every guest finds in `vendor_data.json`; empty for none."""
    vendordata_dynamic_targets: tuple[str, ...] = ()
    """Services that are asked for each guest, as `<name>@<url>`; what they answer is in `vendor_data2.json` under their
    name."""
    vendordata_dynamic_timeout: float = 5.0
    """Seconds that these services have to answer, at most 8. They are asked at the same time."""
    vendordata_dynamic_failure_fatal: bool = False
    """Give guests no `vendor_data2.json`, and make no config drive, when one of them fails; otherwise its part is
    empty."""


class Ask(Protocol):
    """Posts a document to a service and gives its answer."""

    async def __call__(self, body: dict[str, Any]) -> Any: ...


class VendorData:
    """What guests are told.

    Args:
        static: the same for all of them. targets: those that are asked for each, by name. limit: seconds that they
        have. fatal: whether a failure of one fails the whole.
    """

    def __init__(
        self, static: Mapping[str, Any] | None = None, targets: Mapping[str, Ask] | None = None, *,
        limit: float = VendorDataOptions().vendordata_dynamic_timeout, fatal: bool = False,
    ) -> None:
        beside: dict[str, Any] = {STATIC: dict(static)} if static else {}
        self.fixed = VendorDocuments(dict(static or {}), beside)
        """What is told without asking anybody."""
        self._targets = dict(targets or {})
        self._limit = limit
        self._fatal = fatal

    async def of(self, metadata: GuestMetadata) -> VendorDocuments:
        """What one guest is told. Spec: BLD-83.

        Raises:
            ServiceUnavailable: a service fails, and the operator wants that to be fatal.
        """
        body = _asked(metadata)
        answers = await asyncio.gather(*(self._answer(name, ask, body) for name, ask in self._targets.items()))
        dynamic = self.fixed.dynamic | dict(zip(self._targets, answers, strict=True))
        return VendorDocuments(self.fixed.static, dynamic)

    async def _answer(self, name: str, ask: Ask, body: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(self._limit):
                answer = await ask(body)
        except (KilonovaError, TimeoutError) as error:
            reason = str(error) or f"it has not answered within {self._limit:g} s"
            log.warning("vendor data are missing", service=name, instance=body["instance-id"], error=reason)
            if self._fatal:
                raise ServiceUnavailable(f"The vendor data of {name} are missing: {reason}") from error
            answer = None
        return {} if answer is None else answer


def _asked(metadata: GuestMetadata) -> dict[str, Any]:
    """What a service learns of a guest."""
    return {
        "project-id": metadata.project_id,
        "instance-id": metadata.instance_uuid,
        "image-id": metadata.image_ref or None,
        "user-data": metadata.user_data,
        "hostname": metadata.hostname,
        "metadata": metadata.metadata,
        "boot-roles": metadata.boot_roles,
    }


def vendor_data(options: VendorDataOptions) -> VendorData:
    """As configured. No service is asked before it is needed.

    Raises:
        InvalidInput: the options are wrong, or a file that they name cannot be read.
    """
    limit = options.vendordata_dynamic_timeout
    if not 0 < limit <= LONGEST:
        raise InvalidInput(f"vendor_data.vendordata_dynamic_timeout: {limit:g} is not between 0 and {LONGEST:g}.")
    targets: dict[str, Ask] = {}
    for target in options.vendordata_dynamic_targets:
        name, at, url = target.partition("@")
        if not name or not at or name == STATIC or name in targets:
            raise InvalidInput(
                f"vendor_data.vendordata_dynamic_targets: {target!r} does not name a service.",
                hint=f"write <name>@<url>, each name once and none of them {STATIC!r}",
            )
        check_address("vendor_data.vendordata_dynamic_targets", url)
        targets[name] = _service(name, url, options)
    return VendorData(_static(options.vendordata_jsonfile_path), targets, limit=limit,
                      fatal=options.vendordata_dynamic_failure_fatal)


def _service(name: str, url: str, options: VendorDataOptions) -> Ask:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    calls = OpenStackCalls(
        f"vendor data ({name})", f"{parts.scheme}://{parts.netloc}", account("vendor_data", options), {},
        authority=options.authority, limit=options.vendordata_dynamic_timeout,
    )

    async def ask(body: dict[str, Any]) -> Any:
        return await calls("POST", path, body=body)

    return ask


def _static(file: str) -> dict[str, Any]:
    if not file:
        return {}
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise InvalidInput(f"vendor_data.vendordata_jsonfile_path cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"vendor_data.vendordata_jsonfile_path is not a JSON object: {error}.") from error
