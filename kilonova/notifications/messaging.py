"""Notifications over oslo.messaging: how metering, billing and monitoring of OpenStack listen.

This is the only place that uses oslo.messaging, and only if an operator asks for it: it comes with the extra
`messaging`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kilonova.domain.errors import InvalidInput
from kilonova.domain.notification import Notification
from kilonova.notifications.sinks import envelope

AT_ONCE = 4
"""Messages under way."""
ENVELOPE = 2.0
"""Version of oslo.messaging's envelope around a message."""


class MessagingSink:
    """Sends each notification to queues, one for each topic and priority (`versioned_notifications.info`).

    Args:
        url: `rabbit://user:password@host:5672/`. config: file with further options of oslo.messaging, "" for none.
        versioned_topics, topics: for either form.

    Raises:
        InvalidInput: oslo.messaging is not installed, or does not know such an address.
    """

    def __init__(
        self, url: str, config: str, *, versioned_topics: Sequence[str], topics: Sequence[str]
    ) -> None:
        try:
            import oslo_messaging  # type: ignore[import-untyped]
            from oslo_config import cfg
        except ImportError as error:
            raise InvalidInput(
                "The sink `messaging` needs oslo.messaging.", hint="install kilonova with the extra `messaging`"
            ) from error
        options = cfg.ConfigOpts()
        options(["--config-file", config] if config else [], project="kilonova", default_config_files=[])
        self._oslo: Any = oslo_messaging
        try:
            self._transport: Any = oslo_messaging.get_notification_transport(options, url=url)
        except oslo_messaging.DriverLoadFailure as error:
            raise InvalidInput(f"notifications.transport_url: {error}") from error
        self._topics = {True: tuple(versioned_topics), False: tuple(topics)}
        self._threads = ThreadPoolExecutor(AT_ONCE, "oslo-messaging")

    async def send(self, message: Notification) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._send, message)

    def _send(self, message: Notification) -> None:
        """The notifier of oslo.messaging logs what goes wrong and gives each message an ID of its own. Both is of no
        use here, so that the message goes to the transport as the notifier makes it; which waits for the broker to
        confirm it."""
        body = envelope(message)
        context = body.pop("context")
        for topic in self._topics[message.versioned]:
            target = self._oslo.Target(topic=f"{topic}.{message.priority.value.lower()}")
            self._transport._send_notification(target, context, body, version=ENVELOPE, retry=0)

    async def close(self) -> None:
        await asyncio.to_thread(self._transport.cleanup)
        self._threads.shutdown(wait=False, cancel_futures=True)
