"""Payloads on their way: ``Outbox`` chooses how each leaves, ``Inbox`` keeps what has arrived until somebody takes it.

A payload that fits leaves in a DATAGRAM frame, a longer one as a record on a stream of type 0x01 (PROTOCOL §6). What fits may
become less while payloads are queued, because the path has changed: those that do not fit any more change over to the stream,
where they would otherwise block the queue for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from zrc_relay.client.errors import PayloadTooLarge
from zrc_relay.client.stats import Tally
from zrc_relay.core.records import MAX_RECORD
from zrc_relay.quic.connection import Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.oversize import OversizeSender

MAX_RECEIVED: Final = 1024
"""Payloads kept for ``datagrams()`` when nobody takes them; the oldest goes first."""
EGRESS_BYTES: Final = 1024 * 1024
"""Bytes of payloads that may wait to leave, for each of the two ways."""
EGRESS_AGE: Final = 0.5
"""Seconds that one may wait."""


class Outbox:
    """The way out of payloads on one connection."""

    def __init__(self, quic: Connection, tally: Tally) -> None:
        self._quic = quic
        self._tally = tally
        self._oversize = OversizeSender(quic, EgressQueue(EGRESS_BYTES, EGRESS_AGE, tally.dropped))
        self._fitting = 0

    def send(self, payload: bytes, now: float) -> None:
        """Queue ``payload``; ``PayloadTooLarge`` for more than 65,535 bytes, or when the relay allows no stream for it."""
        size = len(payload)
        if size > MAX_RECORD:
            msg = f"a payload is at most {MAX_RECORD} bytes, not {size}"
            raise PayloadTooLarge(msg)
        if not self._quic.send_payload(payload, now) and not self._oversize.push(payload, now):
            msg = f"a datagram to this relay carries at most {self._quic.max_payload} bytes, not {size}, and it takes no stream"
            raise PayloadTooLarge(msg)
        self._tally.sent(size)

    def pump(self, now: float) -> None:
        """Move what can be moved; before packets are sent."""
        fitting = self._quic.max_payload
        if fitting < self._fitting:
            for payload in self._quic.egress.remove_larger(fitting):
                if not self._oversize.push(payload, now):
                    self._tally.dropped(len(payload))
        self._fitting = fitting
        self._oversize.pump(now)



class Inbox:
    """Payloads that have arrived. ``on_datagram`` gets them; while it is None, ``MAX_RECEIVED`` at most wait for ``receive``."""

    _log = Logger()

    def __init__(self, tally: Tally, on_datagram: Callable[[bytes], None] | None) -> None:
        self.on_datagram = on_datagram
        self._tally = tally
        self._waiting: deque[bytes] = deque()
        self._takers: deque[Deferred[bytes | None]] = deque()
        self._closed = False

    def deliver(self, payload: bytes) -> None:
        """A payload has arrived."""
        self._tally.received(len(payload))
        if self.on_datagram is not None:
            try:
                self.on_datagram(payload)
            except Exception:
                self._log.failure("a callback of the user failed; the connection goes on")
        elif self._takers:
            self._takers.popleft().callback(payload)
        else:
            if len(self._waiting) >= MAX_RECEIVED:
                self._tally.dropped(len(self._waiting.popleft()))
            self._waiting.append(payload)

    def receive(self) -> Deferred[bytes | None]:
        """The next payload; None when there will be none any more."""
        taker: Deferred[bytes | None] = Deferred(self._takers.remove)
        if self._waiting:
            taker.callback(self._waiting.popleft())
        elif self._closed:
            taker.callback(None)
        else:
            self._takers.append(taker)
        return taker

    async def datagrams(self) -> AsyncIterator[bytes]:
        """Payloads as they arrive, until there will be none any more."""
        while (payload := await self.receive()) is not None:
            yield payload

    def close(self) -> None:
        """Nothing will arrive any more; what waits can still be taken."""
        self._closed = True
        while self._takers:
            self._takers.popleft().callback(None)
