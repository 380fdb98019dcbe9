"""libvirt's life-cycle events as the agent understands them."""

from __future__ import annotations

import libvirt
import pytest
import structlog

from kilonova.domain.states import PowerState
from kilonova.hypervisor.libvirt.events import power_state, translate

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"


@pytest.mark.spec("LCE-05")
@pytest.mark.parametrize(("event", "detail", "transition", "state"), [
    (libvirt.VIR_DOMAIN_EVENT_STARTED, 0, "started", PowerState.RUNNING),
    (libvirt.VIR_DOMAIN_EVENT_RESUMED, 0, "resumed", PowerState.RUNNING),
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, 0, "paused", PowerState.PAUSED),
    (libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED, 0, "suspended", PowerState.SUSPENDED),
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, "stopped", PowerState.SHUTDOWN),
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, "crashed", PowerState.CRASHED),
    (libvirt.VIR_DOMAIN_EVENT_CRASHED, 0, "crashed", PowerState.CRASHED),
])
def test_events_that_change_the_power_state(event: int, detail: int, transition: str, state: PowerState) -> None:
    told = translate(UUID, event, detail)
    assert told is not None
    assert (told.uuid, told.transition, told.power_state) == (UUID, transition, state)


@pytest.mark.parametrize("event", [
    libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN,
])
def test_events_that_do_not(event: int) -> None:
    with structlog.testing.capture_logs() as logs:
        assert translate(UUID, event, 0) is None
    assert logs == []


@pytest.mark.spec("LCE-06")
def test_an_event_that_is_not_known_is_worth_a_warning_and_nothing_else() -> None:
    with structlog.testing.capture_logs() as logs:
        assert translate(UUID, 99, 3) is None
    (line,) = logs
    assert (line["log_level"], line["uuid"], line["number"], line["detail"]) == ("warning", UUID, 99, 3)


def test_every_state_of_libvirt_has_a_power_state() -> None:
    assert power_state(libvirt.VIR_DOMAIN_BLOCKED, 0) is PowerState.RUNNING
    assert power_state(libvirt.VIR_DOMAIN_SHUTDOWN, 0) is PowerState.RUNNING
    assert power_state(libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED) is PowerState.SHUTDOWN
    assert power_state(libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED) is PowerState.CRASHED
    assert power_state(libvirt.VIR_DOMAIN_PMSUSPENDED, 0) is PowerState.SUSPENDED
