"""``TokenRefresher``: puts a new token in force before the old one expires (R1.7, PROTOCOL §5).

Theory of operation
-------------------
A *supplier* is asked for a token when ``REFRESH_AT`` of what is left of the allocation's life have passed, and at least
``MARGIN`` seconds before the end where that is possible. What the supplier or the relay cannot do is tried again, after one
second, then two, four and so on, until the end has come; each failure is an event, ``RefreshFailed``. The other side of the
allocation may refresh as well, so the time of expiry is looked up again whenever something is due.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred

from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.notices import RefreshFailed
from zrc_relay.core.token import RelayToken
from zrc_relay.quic.clock import Clock, DelayedCall

TokenSupplier = Callable[[], RelayToken | str | Awaitable[RelayToken | str]]
"""Gives a token for the same device, allocation and peer that expires later; may be ``async``, or return a Deferred."""

REFRESH_AT: Final = 0.8
"""Share of the remaining life after which a new token is asked for."""
MARGIN: Final = 10.0
"""Seconds before the end by which it should be asked for."""
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 60.0
"""Seconds between two attempts, at first and at most."""


class NotLater(ValueError):
    """The supplier's token does not live longer than the one in force."""


def supplied(supplier: TokenSupplier) -> Deferred[RelayToken]:
    """Ask ``supplier``; fails with whatever it raises, or ``ValueError`` for text that is no token."""
    asked: Deferred[Any] = maybeDeferred(supplier)
    return asked.addCallback(lambda given: RelayToken.from_text(given) if isinstance(given, str) else given)


def refresh_delay(left: float) -> float:
    """Seconds to wait with ``left`` seconds of life left; short lives are refreshed once a second at most."""
    return max(0.0, min(FIRST_RETRY, left / 2), min(left * REFRESH_AT, left - MARGIN))


class TokenRefresher:
    """Refreshes one connection until it ends. ``wall`` gives Unix seconds."""

    def __init__(
        self, connection: ClientConnection, supplier: TokenSupplier, *, clock: Clock, wall: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._supplier = supplier
        self._clock = clock
        self._wall = wall
        self._timer: DelayedCall | None = None
        self._running: Deferred[None] | None = None
        self._retry = FIRST_RETRY
        self._planned_for = 0

    def start(self) -> None:
        """Begin; the connection is established."""
        self._connection.when_closed().addErrback(lambda _: None).addCallback(self._stop)
        self._plan()

    @property
    def _expires_at(self) -> int:
        limits = self._connection.limits
        return limits.expires_at if limits is not None else 0

    @property
    def _left(self) -> float:
        return self._expires_at - self._wall()

    def _plan(self) -> None:
        self._planned_for = self._expires_at
        self._retry = FIRST_RETRY
        self._in(refresh_delay(self._left))

    def _in(self, delay: float) -> None:
        self._timer = self._clock.callLater(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._expires_at > self._planned_for:  # the other side was faster
            self._plan()
            return
        self._running = Deferred.fromCoroutine(self._refresh())
        self._running.addCallbacks(lambda _: self._plan(), self._failed)

    async def _refresh(self) -> None:
        before = self._expires_at
        token = await supplied(self._supplier)
        if self._expires_at > before:
            return
        identity = self._connection.identity
        if identity is not None and token.expires_at <= identity.token.expires_at:
            msg = "the new token does not live longer than the one in force"
            raise NotLater(msg)
        await self._connection.refresh(token)

    def _failed(self, failure: Any) -> None:
        self._running = None
        if self._connection.is_closed or failure.check(CancelledError):
            return
        delay = min(self._retry, self._left)
        self._retry = min(2 * self._retry, LAST_RETRY)
        retry_in = delay if delay > 0 else None
        self._connection.report(RefreshFailed(failure.value, retry_in))
        if retry_in is not None and not self._connection.is_closed:
            self._in(retry_in)

    def _stop(self, _: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running is not None:
            self._running.cancel()
