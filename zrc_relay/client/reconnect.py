"""``ResilientConnection``: an end of an allocation that outlives its connections (PROTOCOL §9).

Theory of operation
-------------------
It holds one ``ClientConnection`` at a time and looks like one. When that is lost (nothing is heard any more, a stateless reset, a
relay that stopped or failed) it makes another, to the address in use, with a new HELLO and a new proof::

    opening --established--> connected --lost--> waiting --delay over--> connecting --established--> connected
                                 waiting, connecting --final error, close--> closed

* The delay grows (``Backoff``), and starts again from the first once a connection has lasted ``STABLE``.
* It gives up when trying again would get the same answer (``is_final``): what the relay says about the token, the proof or the
  allocation itself, an end of the allocation included. A token that has expired is not final while a supplier can give another.
* Being superseded by another connection of the same side is an event and no reason to connect again. So two clients with one
  identity do not drive each other out: both stay connected, and the newer one carries what comes from the other end.
* While there is no connection ``send`` drops, as a network does, and counts; streams have ended with the connection they began
  on, and ``open_stream`` raises ``NotConnected``. A channel is opened again on the next connection.

How a connection is made is the ``dial`` that it is given: where to, and for a relay that drains where else, is decided there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum, unique
from typing import Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zrc_relay.client.backoff import Backoff, is_final
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.current import CurrentConnection
from zrc_relay.client.dial import Dial, Handlers
from zrc_relay.client.errors import (
    AllocationExpired,
    ConnectFailed,
    TokenExpired,
)
from zrc_relay.client.identity import Identity
from zrc_relay.client.notices import AllocationTerminated, NoticeEvent, Reconnected, Reconnecting, tell
from zrc_relay.client.refresh import TokenRefresher, TokenSupplier, supplied
from zrc_relay.core.codes import TerminationReason
from zrc_relay.quic.clock import Clock, DelayedCall

STABLE: Final = 10.0
"""Seconds after which a connection counts as one that works."""
TOKEN_MARGIN: Final = 1.0
"""Seconds of life that a token must have left to connect with it."""


@unique
class ResilientState(Enum):
    """Where a ``ResilientConnection`` is."""

    OPENING = "opening"
    CONNECTED = "connected"
    WAITING = "waiting"
    CONNECTING = "connecting"
    CLOSED = "closed"


class ResilientConnection(CurrentConnection):
    """See the module's docstring; its attributes and methods are those of ``ClientConnection``.

    ``closed`` fires when it is over for good: with None after ``close`` or when the allocation was released, else with an error.
    """

    def __init__(
        self,
        dial: Dial,
        identity: Identity,
        *,
        clock: Clock,
        now: Callable[[], float],
        wall: Callable[[], float],
        random: Callable[[], float],
        handlers: Handlers | None = None,
        token_supplier: TokenSupplier | None = None,
    ) -> None:
        super().__init__(identity, handlers or Handlers())
        self.state = ResilientState.OPENING
        self.reconnections = 0
        """How often another connection was made."""
        self._dial = dial
        self._clock = clock
        self._now = now
        self._wall = wall
        self._supplier = token_supplier
        self._backoff = Backoff(random)
        self._timer: DelayedCall | None = None
        self._attempt: Deferred[None] | None = None
        self._connected_at = 0.0
        self._terminated: TerminationReason | None = None
        self._is_releasing = False
        self._needs_token = False

    # -- for users

    async def open(self) -> None:
        """Make the first connection, once; raises what ``dial`` raises."""
        try:
            self._connected(await self._make())
        except BaseException as error:
            self._finish(error if isinstance(error, Exception) else None)
            raise

    def release(self) -> Deferred[None]:
        """End the allocation for both sides; while there is no connection, as soon as there is one."""
        if not self.is_closed:
            self._is_releasing = True
            if self.connection is not None:
                self._release(self.connection)
        return self.when_closed()

    def close(self) -> None:
        """Leave without ending the allocation, and do not come back."""
        self._finish(None)

    # -- connections that come

    def _make(self) -> Awaitable[ClientConnection]:
        return self._dial(self._identity, Handlers(self._inbox.deliver, self._noticed, self._on_stream))

    def _connected(self, connection: ClientConnection) -> None:
        if self.is_closed:  # closed from within a callback
            connection.close()
            return
        self.connection = connection
        self.state = ResilientState.CONNECTED
        self._connected_at = self._now()
        self._terminated = None
        self._needs_token = False
        connection.on_stream = self._on_stream
        connection.closed.addBoth(self._lost, connection)
        if self._supplier is not None and not connection.is_closed:
            TokenRefresher(connection, self._supplier, clock=self._clock, wall=self._wall).start()
        self._take_channel_along(connection)
        if self._is_releasing and not connection.is_closed:
            self._release(connection)

    def _release(self, connection: ClientConnection) -> None:
        connection.release().addErrback(lambda _: None)  # a connection that is lost before the answer is made again

    def _noticed(self, event: NoticeEvent) -> None:
        if isinstance(event, AllocationTerminated):
            self._terminated = event.reason
        self._report(event)

    def _report(self, event: NoticeEvent) -> None:
        tell(self.on_notice, event)

    # -- connections that go

    def _lost(self, result: object, connection: ClientConnection) -> object:
        if self.connection is not connection:
            return result
        self._identity = self.identity
        self.connection = None
        self._past += connection.stats
        if self._now() - self._connected_at >= STABLE:
            self._backoff.reset()
        error = connection.error
        if error is None or self._gives_up(error):
            self._finish(error)
        else:
            self._again(error)
        return None if isinstance(result, Failure) else result

    def _gives_up(self, error: Exception) -> bool:
        if self._supplier is not None and isinstance(error, (TokenExpired, AllocationExpired)):
            self._needs_token = True
            return False
        return is_final(error) or self._terminated not in (None, TerminationReason.ERROR)

    def _again(self, error: Exception) -> None:
        delay = self._backoff.next(error)
        self.state = ResilientState.WAITING
        self._timer = self._clock.callLater(delay, self._try)
        self._report(Reconnecting(error, self._backoff.attempts, delay))

    def _try(self) -> None:
        self._timer = None
        self.state = ResilientState.CONNECTING
        self._attempt = Deferred.fromCoroutine(self._reconnect())
        self._attempt.addErrback(self._failed)

    async def _reconnect(self) -> None:
        await self._renew()
        connection = await self._make()
        self._attempt = None
        self._connected(connection)
        if connection.allocated is not None and self.connection is connection:
            self.reconnections += 1
            self._report(Reconnected(connection.allocated))

    async def _renew(self) -> None:
        """See that there is a token to connect with."""
        expires_at = self._identity.token.expires_at
        if not self._needs_token and expires_at - self._wall() > TOKEN_MARGIN:
            return
        if self._supplier is None:
            msg = "it expired while there was no connection"
            raise TokenExpired(msg)
        try:
            token = await supplied(self._supplier)
            identity = Identity.of(token, self._identity.key, self._identity.role)
        except Exception as error:
            msg = f"no new token: {error}"
            raise ConnectFailed(msg) from error
        if token.expires_at <= expires_at:
            msg = "no new token: the one that was supplied does not live longer"
            raise ConnectFailed(msg)
        self._identity = identity
        self._needs_token = False

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        error = failure.value
        if self.is_closed or not isinstance(error, Exception):
            return
        if self._gives_up(error):
            self._finish(error)
        else:
            self._again(error)

    # -- the end

    def _finish(self, error: Exception | None) -> None:
        if self.is_closed:
            return
        self.state = ResilientState.CLOSED
        self._ending.begin(error)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
            self._past += connection.stats
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._attempt is not None:
            self._attempt.cancel()
        self._end_channel(error)
        self._inbox.close()
        self._ending.come()
