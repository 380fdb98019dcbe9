"""What an operator chooses about notifications."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kilonova.domain.notification import Listeners
from kilonova.notifications.periods import PERIOD

SinkName = Literal["log", "webhook", "nats", "messaging"]


class NotificationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Telling other services what happens."""

    sinks: tuple[SinkName, ...] = ()
    """Where notifications go: any of `log`, `webhook`, `nats`, `messaging`. None switches them off."""
    notification_format: Literal["both", "versioned", "unversioned"] = "both"
    """Which forms are sent: with versioned objects, the older one of plain names, or both."""
    notify_on_state_change: Literal["", "vm_state", "vm_and_task_state"] = ""
    """Whether new states of servers are told, as `instance.update`: those of servers, also those of tasks, or none."""
    instance_usage_audit: bool = False
    """Tell the usage of every server when a period has ended, as `exists` notifications. Spec: PER-58."""
    instance_usage_audit_period: Annotated[str, msgspec.Meta(pattern=PERIOD)] = "month"
    """Period whose usage `exists` notifications tell: `hour`, `day`, `month` or `year`. It begins later than the
    calendar's with the minute, hour, day or month of that: `month@15`."""
    instance_usage_audit_retention: float = 31536000.0
    """Seconds after the end of a period for which `os-instance_usage_audit_log` can tell of its audits; those of the
    last period are kept in any case."""
    retention: float = 259200.0
    """Seconds after which a notification that its sink does not take is given up."""
    webhook_url: str = ""
    """Address to which the sink `webhook` posts."""
    webhook_key_file: str = ""
    """File with the key that signs what is posted; without it nothing is signed."""
    nats_servers: tuple[str, ...] = ()
    """NATS servers of the sink `nats`; empty for those of `bus.servers`, with the credentials and authority there."""
    nats_credentials: str = ""
    """File with the credentials for `notifications.nats_servers`."""
    nats_authority: str = ""
    """PEM file of the certificate that signed those of `notifications.nats_servers`."""
    nats_subject: str = "kilonova.notifications"
    """Beginning of the subjects; the event type follows."""
    nats_stream: str = ""
    """JetStream stream that keeps the messages; without it only who is connected hears them."""
    transport_url: str = ""
    """Where the sink `messaging` sends, for example `rabbit://user:password@192.0.2.1:5672/`."""
    messaging_config: str = ""
    """File with further options of oslo.messaging, in its own form."""
    versioned_notifications_topics: tuple[str, ...] = ("versioned_notifications",)
    """Topics of messages with versioned objects, for the sink `messaging`."""
    topics: tuple[str, ...] = ("notifications",)
    """Topics of messages in the older form, for the sink `messaging`."""

    @property
    def audit_period(self) -> str:
        """The period that is audited, "" for none."""
        return self.instance_usage_audit_period if self.instance_usage_audit else ""

    def listeners(self, host: str) -> Listeners | None:
        """Who is told; None if nobody is. host: name of this machine."""
        if not self.sinks:
            return None
        return Listeners(
            sinks=tuple(self.sinks), versioned=self.notification_format != "unversioned",
            unversioned=self.notification_format != "versioned", host=host,
            usage_period=self.instance_usage_audit_period, state_changes=self.notify_on_state_change,
        )
