"""Notifications as HTTP requests to an address that the operator names."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.domain.notification import Notification
from kilonova.notifications.sinks import Refused, envelope

LIMIT = 4.0
"""Seconds that the receiver may be silent: less than a delivery may take, so that none goes on behind its back."""
AT_ONCE = 16
"""Requests under way."""
TRIED_AGAIN = (408, 425, 429)
"""Answers below 500 that say nothing against the message."""
SIGNATURE = "X-Kilonova-Signature"


class WebhookSink:
    """Posts each notification as JSON; an answer of 2xx takes it.

    Args:
        url: where to. key: signs the bodies (HMAC-SHA256), b"" for no signature.

    Raises:
        InvalidInput: that is no address.
    """

    def __init__(self, url: str, key: bytes) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"notifications.webhook_url: {url!r} is no address of HTTP.")
        self._parts = parts
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._key = key
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._threads = ThreadPoolExecutor(AT_ONCE, "webhook")
        self._kept = threading.local()

    async def send(self, message: Notification) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._post, message)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _post(self, message: Notification) -> None:
        body = msgspec.json.encode(envelope(message))
        headers = {"Content-Type": "application/json", "X-Kilonova-Message-Id": message.message_id}
        if self._key:
            headers[SIGNATURE] = f"sha256={hmac.new(self._key, body, hashlib.sha256).hexdigest()}"
        connection = self._connection()
        try:
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            said = answer.read(1000).decode(errors="replace")
            if answer.will_close or not answer.isclosed():
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise KilonovaError(f"{self._parts.netloc} does not answer: {error or type(error).__name__}") from error
        if 200 <= answer.status < 300:
            return
        failed = Refused if 400 <= answer.status < 500 and answer.status not in TRIED_AGAIN else KilonovaError
        raise failed(f"{self._parts.netloc} answers {answer.status}: {said[:200]}")

    def _connection(self) -> http.client.HTTPConnection:
        """That of this thread, kept from one request to the next."""
        kept: http.client.HTTPConnection | None = getattr(self._kept, "connection", None)
        if kept is None:
            host, port = self._parts.hostname or "", self._parts.port
            if self._tls is not None:
                kept = http.client.HTTPSConnection(host, port, timeout=LIMIT, context=self._tls)
            else:
                kept = http.client.HTTPConnection(host, port, timeout=LIMIT)
            self._kept.connection = kept
        return kept


def read_key(file: str) -> bytes:
    """The key that signs, from a file; b"" if none is named.

    Raises:
        InvalidInput: the file cannot be read, or is empty.
    """
    if not file:
        return b""
    try:
        key = Path(file).read_bytes().strip()
    except OSError as error:
        raise InvalidInput(f"notifications.webhook_key_file cannot be read: {error.strerror}.") from error
    if not key:
        raise InvalidInput("notifications.webhook_key_file is empty.")
    return key
