"""Answering what conductors and APIs ask a host."""

from __future__ import annotations

import structlog

from kilonova.agent.reports import (
    Answer,
    ConsoleAddressQuery,
    ConsoleQuery,
    DiagnosticsQuery,
    Found,
    OwnDiagnosticsQuery,
    PasswordQuery,
    Query,
    VolumeUsageQuery,
)
from kilonova.domain.errors import Conflict, GuestAgentAway, InstanceInvalidState, KilonovaError, NotSupported
from kilonova.domain.states import PowerState
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.volumes import VolumeUsage

log = structlog.get_logger(__name__)


async def answer(driver: Driver, query: Query) -> Answer:
    """What the driver says; an error of this product is answered by its message and status."""
    try:
        match query:
            case ConsoleQuery():
                return Answer(console=await driver.console_output(query.uuid, query.limit))
            case ConsoleAddressQuery():
                return Answer(address=await driver.console(query.uuid, query.kind))
            case DiagnosticsQuery():
                await _must_run(driver, query.uuid, "get_instance_diagnostics")
                return Answer(diagnostics=await driver.diagnostics(query.uuid))
            case OwnDiagnosticsQuery():
                await _must_run(driver, query.uuid, "get_diagnostics")
                return Answer(own_diagnostics=await driver.own_diagnostics(query.uuid))
            case PasswordQuery():
                return await _set_password(driver, query)
            case VolumeUsageQuery():
                return Answer(volume_usage=await _volume_usage(driver))
            case _:
                guests, disks = await driver.guests(), await driver.disks()
                beside, devices = await driver.beside_disks(), await driver.held_devices()
                return Answer(found=Found(
                    guests=tuple(guests), disks=tuple(disks), beside=tuple(beside), devices=devices,
                    volumes=await driver.held_volumes(),
                ))
    except KilonovaError as error:
        return Answer(error=error.message, status=error.status)


async def _volume_usage(driver: Driver) -> dict[str, dict[str, VolumeUsage]]:
    """A guest that cannot be asked holds up no other. Spec: PER-68, PER-71."""
    found = {}
    for uuid in await driver.held_volumes():
        try:
            found[uuid] = await driver.volume_usage(uuid)
        except KilonovaError as error:
            log.info("a guest did not say how its volumes are used", instance=uuid, error=error.message)
    return found


async def _must_run(driver: Driver, uuid: str, action: str) -> None:
    """The hypervisor is asked, and what it says is told. Spec: DIA-01, DIA-03 to DIA-05."""
    state = await driver.power_state(uuid)
    if state is not PowerState.RUNNING:
        raise InstanceInvalidState(uuid, action, "power state", state.name.lower())


async def _set_password(driver: Driver, query: PasswordQuery) -> Answer:
    """The guest must run at this moment. An error that is not expected goes no further than the log. Spec: PWD-01,
    PWD-03, PWD-08, PWD-10."""
    name = f"Failed to set admin password on {query.uuid} because"
    try:
        if await driver.power_state(query.uuid) is not PowerState.RUNNING:
            return Answer(error=f"{name} instance is not running", status=Conflict.status)
        await driver.set_password(query.uuid, query.user, query.password)
    except (Conflict, NotSupported) as error:
        return Answer(error=error.message, status=error.status, agent_away=isinstance(error, GuestAgentAway))
    except Exception as error:  # noqa: BLE001 - whatever it was, its text may hold the password
        text = str(error).replace(query.password, "***") if query.password else str(error)
        log.warning("password not set", instance=query.uuid, kind=type(error).__name__, error=text)
        return Answer(error=f"{name} error setting admin password", status=Conflict.status)
    return Answer()
