"""What an operator chooses about notifications."""

from __future__ import annotations

from typing import Literal

import msgspec

from kilonova.domain.notification import Listeners

SinkName = Literal["log", "webhook", "nats", "messaging"]


class NotificationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Telling other services what happens."""

    sinks: tuple[SinkName, ...] = ()
    """Where notifications go: any of `log`, `webhook`, `nats`, `messaging`. None switches them off."""
    notification_format: Literal["both", "versioned", "unversioned"] = "both"
    """Which forms are sent: with versioned objects, the older one of plain names, or both."""
    instance_usage_audit_period: Literal["hour", "day", "month", "year"] = "month"
    """Period whose usage so far `exists` notifications tell."""
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

    def listeners(self, host: str) -> Listeners | None:
        """Who is told; None if nobody is. host: name of this machine."""
        if not self.sinks:
            return None
        return Listeners(
            sinks=tuple(self.sinks), versioned=self.notification_format != "unversioned",
            unversioned=self.notification_format != "versioned", host=host,
            usage_period=self.instance_usage_audit_period,
        )
