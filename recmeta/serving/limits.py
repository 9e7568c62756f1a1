"""How much a client may send: bytes of a body, and requests a second. It must never know an operation."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recmeta.errors import InputError, RecmetaError

MOST_CLIENTS = 10_000
"""Buckets that are kept; the client that was idle longest is forgotten first."""
_TELL_OF_BODY = (b"content-length", b"transfer-encoding")


class TooLargeError(InputError):
    """A body of more bytes than are accepted."""


class TooManyRequestsError(RecmetaError):
    """A client that asks more often than it may."""

    def __init__(self, allowed: float, seconds: float) -> None:
        """Say how many requests a second are ``allowed``, and after how many seconds to come back."""
        super().__init__(f"expected at most {allowed:g} requests a second; try again in {seconds:.1f} s")
        self.retry_after = max(1, math.ceil(seconds))


class LimitBody:
    """ASGI middleware: reading a body over the limit raises, however long the client means to go on.

    Nothing is read here: a request that is refused for its key costs no memory, and a large upload can be
    written away as it comes. A connection whose body was not read to its end is closed after the answer.
    """

    def __init__(self, app: ASGIApp, limit: int, larger: Mapping[str, int] | None = None) -> None:
        """Wrap ``app``; the paths in ``larger`` have limits of their own."""
        self.app = app
        self.limit = limit
        self.larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with a ``receive`` that counts.

        Raises:
            TooLargeError: from that ``receive``.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.larger.get(scope["path"], self.limit)
        read, ended = 0, not any(name in _TELL_OF_BODY for name, _ in scope["headers"])

        async def counted() -> Message:
            nonlocal read, ended
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise TooLargeError(f"body: expected at most {limit} bytes, found more")
            ended = not message.get("more_body", False)
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and not ended:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self.app(scope, counted, closing)


class RateLimit:
    """A token bucket for each client: a second's worth may come at once, and then the rate holds."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow ``per_second`` requests a second to each client."""
        self._rate = per_second
        self._most = max(1.0, per_second)
        self._clock = clock
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def take(self, client: object) -> None:
        """Count one request of ``client``.

        Raises:
            TooManyRequestsError: it has none left.
        """
        now = self._clock()
        left, since = self._buckets.get(client, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise TooManyRequestsError(self._rate, (1 - left) / self._rate)
