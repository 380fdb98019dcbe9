"""Opening the places that notifications go to, from a configuration."""

from __future__ import annotations

from collections.abc import Callable

from kilonova.config import Config
from kilonova.notifications.sinks import LogSink, Sink


def open_all(config: Config) -> dict[str, Sink]:
    """By name. None of them is connected yet.

    Raises:
        InvalidInput: an option that one of them needs is missing or makes no sense.
    """
    makers: dict[str, Callable[[Config], Sink]] = {
        "log": lambda _config: LogSink(), "webhook": _webhook, "nats": _nats, "messaging": _messaging,
    }
    return {name: makers[name](config) for name in dict.fromkeys(config.notifications.sinks)}


def _webhook(config: Config) -> Sink:
    from kilonova.notifications.webhook import WebhookSink, read_key

    options = config.notifications
    return WebhookSink(options.webhook_url, read_key(options.webhook_key_file))


def _nats(config: Config) -> Sink:
    from kilonova.notifications.nats import NatsSink

    options, bus = config.notifications, config.bus
    if options.nats_servers:
        servers, login, authority = options.nats_servers, options.nats_credentials, options.nats_authority
    else:
        servers, login, authority = bus.servers, bus.credentials, bus.authority
    return NatsSink(servers, login, authority, prefix=options.nats_subject, stream=options.nats_stream)


def _messaging(config: Config) -> Sink:
    from kilonova.notifications.messaging import MessagingSink

    options = config.notifications
    return MessagingSink(
        options.transport_url, options.messaging_config, versioned_topics=options.versioned_notifications_topics,
        topics=options.topics,
    )
