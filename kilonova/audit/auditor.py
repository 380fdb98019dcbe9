"""The audit: two looks that must agree before something is called a difference, and healing.

One look leaves out what operations work on. What is changed by other hands (a port deleted by its user, a claim
written through the placement API) may still be seen half done; nothing of that kind is half done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from kilonova.audit.compare import compare
from kilonova.audit.differences import HEALS, Difference, Kind
from kilonova.audit.heal import Healed, Healer
from kilonova.audit.look import Look, Looker
from kilonova.audit.report import Compared, DifferenceView, HealedView, Healing, Report
from kilonova.audit.sources import AcceleratorLedger, DeviceLedger, ImageLedger, PortLedger
from kilonova.audit.volumes import VolumeLedger
from kilonova.bus.protocol import Bus
from kilonova.cells.registry import Cells
from kilonova.domain.clock import Clock
from kilonova.notifications.options import NotificationOptions

log = structlog.get_logger(__name__)

BETWEEN_LOOKS = 0.25
"""Seconds."""

HEAL_LIMIT = 60.0
"""Seconds for which healing waits for the operations it has begun."""


class Auditor:
    """Audits a cloud.

    Args:
        ports, devices, images, accelerators, volumes: None where somebody else keeps them.
        retention: seconds after which a notification that its sink does not take is given up.
        wake_api, wake_cell: tell runners that there is work.
        pause: seconds between the two looks.
    """

    def __init__(
        self, cells: Cells, bus: Bus, clock: Clock, *, wake_api: Callable[[], None], wake_cell: Callable[[str], None],
        ports: PortLedger | None = None, devices: DeviceLedger | None = None, images: ImageLedger | None = None,
        accelerators: AcceleratorLedger | None = None, volumes: VolumeLedger | None = None,
        retention: float = NotificationOptions().retention,
        pause: float = BETWEEN_LOOKS,
    ) -> None:
        self._clock = clock
        self._pause = pause
        self._looker = Looker(
            cells, bus, clock, ports=ports, devices=devices, images=images, accelerators=accelerators,
            volumes=volumes, retention=retention,
        )
        self._healer = Healer(
            cells, self._looker, clock, ports=ports, images=images, accelerators=accelerators, volumes=volumes,
            retention=retention, wake_api=wake_api, wake_cell=wake_cell,
        )

    async def audit(self) -> Report:
        """Compare everything."""
        began = self._clock.monotonic()
        differences, look = await self._twice()
        return self._report(differences, look, began)

    async def heal(self) -> Healing:
        """Audit, settle what can be settled with certainty, wait for it, and audit again."""
        differences, _ = await self._twice()
        healed = [await self._healer.heal(one) for one in sorted(differences, key=_order)]
        for one in healed:
            log.info("audit healed" if one.done else "audit left alone", kind=one.difference.kind.value,
                     object=one.difference.object, host=one.difference.host, why=one.why, operation=one.operation)
        await self._settled({one.operation for one in healed if one.operation is not None})
        return Healing(healed=tuple(_healed_view(one) for one in healed), after=await self.audit())

    async def _twice(self) -> tuple[list[Difference], Look]:
        look = await self._looker.look()
        first = {one.identity for one in compare(look)}
        if not first:
            return [], look
        await self._clock.sleep(self._pause)
        second = await self._looker.look()
        return [one for one in compare(second) if one.identity in first], second

    async def _settled(self, operations: set[str]) -> None:
        give_up = self._clock.monotonic() + HEAL_LIMIT
        while self._clock.monotonic() < give_up:
            if not operations & {operation.id for operation in await self._looker.active()}:
                return
            await self._clock.sleep(0.05)

    def _report(self, differences: Sequence[Difference], look: Look, began: float) -> Report:
        return Report(
            clean=not differences,
            differences=tuple(_view(one) for one in sorted(differences, key=_order)),
            compared=Compared(
                servers=len(look.servers) + len(look.requests), hosts=len(look.hosts), ports=len(look.ports or ()),
                images=len(look.images.required) if look.images else 0, allocations=len(look.holdings),
                busy=len(look.busy),
            ),
            seconds=round(self._clock.monotonic() - began, 3),
        )


def _order(difference: Difference) -> tuple[int, str, str]:
    """In the order of their kinds: guests go before what they use."""
    return (list(Kind).index(difference.kind), difference.host, difference.object)


def _view(one: Difference) -> DifferenceView:
    return DifferenceView(
        kind=one.kind, object=one.object, host=one.host, subject=one.subject, cell=one.cell, what=one.what,
        advice=one.advice, heals=one.heals,
    )


def _healed_view(one: Healed) -> HealedView:
    return HealedView(
        what=one.difference.what, done=HEALS[one.difference.kind] if one.done else "", why_not=one.why,
        operation=one.operation,
    )
