"""The accelerator service of OpenStack, Cyborg, over its API v2."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import msgspec

from kilonova.domain.errors import InvalidInput, KilonovaError, NotFound
from kilonova.services.accelerators import AcceleratorRequest, AcceleratorService, NoAccelerators, RequestState
from kilonova.services.openstack import AccountOptions, OpenStackCalls, account, check_address

VERSION = {"OpenStack-API-Version": "accelerator 2.0"}
"""The oldest version: it has all that is needed here."""
STATES = {state.value: state for state in RequestState}
REQUESTS, PROFILES = "/v2/accelerator_requests", "/v2/device_profiles"


class AcceleratorOptions(AccountOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accelerator service."""

    endpoint: str = ""
    """URL of Cyborg without its version, for example `http://192.0.2.1:6666`; empty for a cloud without
    accelerators."""
    username: str = ""
    """User as whom the service is asked, who must have the role `admin`; empty if it asks nobody for a token."""


class Calls(Protocol):
    """What makes requests: `OpenStackCalls`."""

    async def __call__(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any: ...


class _Profile(msgspec.Struct):
    name: str
    groups: list[dict[str, Any]] = []


class _Profiles(msgspec.Struct):
    device_profiles: list[_Profile] = []


class _Arq(msgspec.Struct):
    """uuid and state are always there; what is not known yet is null or left out."""

    uuid: str
    state: str | None = None
    device_profile_group_id: int | None = None
    instance_uuid: str | None = None
    attach_handle_type: str | None = None
    attach_handle_info: dict[str, Any] | None = None


class _Arqs(msgspec.Struct):
    arqs: list[_Arq] = []


class Cyborg:
    """An `AcceleratorService`. calls: make requests below its endpoint."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def groups(self, profile: str) -> tuple[dict[str, str], ...]:
        answer = _read(await self._calls("GET", PROFILES, query={"name": profile}), _Profiles)
        found = [one for one in answer.device_profiles if one.name == profile]
        if not found:
            raise InvalidInput(f"Device profile {profile} could not be found.")
        return tuple({key: str(value) for key, value in group.items()} for group in found[0].groups)

    async def make(self, profile: str) -> tuple[AcceleratorRequest, ...]:
        answer = _read(await self._calls("POST", REQUESTS, body={"device_profile_name": profile}), _Arqs)
        return tuple(map(_request, answer.arqs))

    async def bind(self, server: str, host: str, providers: Mapping[str, str]) -> None:
        await self._calls("PATCH", REQUESTS, body={
            id_: [
                {"op": "add", "path": "/hostname", "value": host},
                {"op": "add", "path": "/device_rp_uuid", "value": provider},
                {"op": "add", "path": "/instance_uuid", "value": server},
            ]
            for id_, provider in providers.items()
        })

    async def of_server(self, server: str) -> tuple[AcceleratorRequest, ...]:
        answer = _read(await self._calls("GET", REQUESTS, query={"instance": server}), _Arqs)
        return tuple(_request(arq) for arq in answer.arqs if arq.instance_uuid == server)

    async def discard(self, ids: Collection[str]) -> None:
        """The service refuses to delete several of which one is gone, so each is looked for and deleted by itself."""
        for id_ in ids:
            try:
                await self._calls("GET", f"{REQUESTS}/{id_}")
                await self._calls("DELETE", REQUESTS, query={"arqs": id_})
            except NotFound:
                continue

    async def requests(self) -> tuple[AcceleratorRequest, ...]:
        return tuple(map(_request, _read(await self._calls("GET", REQUESTS), _Arqs).arqs))


def _read(answer: Any, type_: type[Any]) -> Any:
    try:
        return msgspec.convert(answer, type_)
    except msgspec.ValidationError as error:
        raise KilonovaError(f"The accelerator service answers something unexpected: {error}.") from error


def _request(arq: _Arq) -> AcceleratorRequest:
    info = arq.attach_handle_info or {}
    return AcceleratorRequest(
        id=arq.uuid, group=arq.device_profile_group_id or 0, state=STATES.get(arq.state or "", RequestState.OTHER),
        server=arq.instance_uuid or "", handle_type=arq.attach_handle_type or "",
        handle={key: str(value) for key, value in info.items()},
    )


def accelerators(options: AcceleratorOptions) -> AcceleratorService:
    """The service that is configured, which is not asked before it is needed. Spec: PER-56.

    Raises:
        InvalidInput: the options contradict themselves, or the password cannot be read.
    """
    if not options.endpoint:
        return NoAccelerators()
    check_address("accelerator.endpoint", options.endpoint)
    return Cyborg(OpenStackCalls(
        "accelerator", options.endpoint, account("accelerator", options), VERSION, authority=options.authority,
    ))
