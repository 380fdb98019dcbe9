"""What an operator chooses about notifications."""

from __future__ import annotations

from typing import Literal

import msgspec

from kilonova.domain.notification import Listeners

SinkName = Literal["log"]


class NotificationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Telling other services what happens."""

    sinks: tuple[SinkName, ...] = ()
    """Where notifications go: any of `log`. None switches them off."""
    notification_format: Literal["both", "versioned", "unversioned"] = "both"
    """Which forms are sent: with versioned objects, the older one of plain names, or both."""
    instance_usage_audit_period: Literal["hour", "day", "month", "year"] = "month"
    """Period whose usage so far `exists` notifications tell."""
    retention: float = 259200.0
    """Seconds after which a notification that its sink does not take is given up."""

    def listeners(self, host: str) -> Listeners | None:
        """Who is told; None if nobody is. host: name of this machine."""
        if not self.sinks:
            return None
        return Listeners(
            sinks=tuple(self.sinks), versioned=self.notification_format != "unversioned",
            unversioned=self.notification_format != "versioned", host=host,
            usage_period=self.instance_usage_audit_period,
        )
