"""``Control``: the capsules of one connection (PROTOCOL §2, §4, §5), and those who wait for an answer.

Answers carry no name of the question, so those of one kind belong to the questions in order. An ERROR answers the oldest of those
that can be refused while the session lives, REFRESH and OPEN_CHANNEL. Everything else that the relay says goes to ``tell``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from twisted.internet.defer import Deferred

from zrc_relay.client.driver import KEEPALIVE_PING
from zrc_relay.client.errors import ChannelRefused, RelayError, UnknownCode, error_for
from zrc_relay.client.identity import Identity
from zrc_relay.core import wire
from zrc_relay.core.token import RelayToken
from zrc_relay.core.wire import Allocated, Refreshed, RelayEntry
from zrc_relay.quic.connection import CONTROL_STREAM, HELLO_STREAM, Connection

CONTROL_STREAMS: Final = (HELLO_STREAM, CONTROL_STREAM)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that may be refused: REFRESH with a token, or OPEN_CHANNEL."""

    token: RelayToken | None
    waiter: Deferred[Any]


class Control:
    """See the module's docstring. ``identity`` is None for a connection that only asks."""

    def __init__(
        self,
        quic: Connection,
        identity: Identity | None,
        *,
        tell: Callable[[wire.Capsule], None],
        wake: Callable[[], None],
    ) -> None:
        self.identity = identity
        self.allocated: Allocated | None = None
        """What the relay granted."""
        self.limits: Refreshed | None = None
        """What is in force: as granted, then as refreshed by either side."""
        self._quic = quic
        self._tell = tell
        self._wake = wake
        self._decoders = {stream_id: wire.CapsuleDecoder(wire.RELAY_CAPSULES) for stream_id in CONTROL_STREAMS}
        self._asked: deque[_Asked] = deque()
        self._listings: deque[Deferred[tuple[RelayEntry, ...]]] = deque()
        self._pings: dict[int, tuple[float, Deferred[float]]] = {}
        self._last_ping = KEEPALIVE_PING
        self._releasing = False
        self._is_over = False

    # -- to the relay

    def send(self, capsule: wire.ClientCapsule) -> None:
        """Send a capsule."""
        self._quic.send_stream_data(CONTROL_STREAM, capsule.encode())
        self._wake()

    def refresh(self, token: RelayToken) -> Deferred[Refreshed]:
        """REFRESH."""
        self.send(wire.Refresh(token.encode()))
        waiter: Deferred[Refreshed] = Deferred()
        self._asked.append(_Asked(token, waiter))
        return waiter

    def open_channel(self) -> Deferred[bytes]:
        """OPEN_CHANNEL; fires with the channel's id."""
        self.send(wire.OpenChannel())
        waiter: Deferred[bytes] = Deferred()
        self._asked.append(_Asked(None, waiter))
        return waiter

    def list_relays(self) -> Deferred[tuple[RelayEntry, ...]]:
        """LIST_RELAYS."""
        self.send(wire.ListRelays())
        waiter: Deferred[tuple[RelayEntry, ...]] = Deferred()
        self._listings.append(waiter)
        return waiter

    def release(self) -> None:
        """RELEASE, once."""
        if not self._releasing:
            self._releasing = True
            self.send(wire.Release())

    def ping(self, now: float) -> Deferred[float]:
        """A QUIC PING; fires with the seconds that the answer took."""
        self._last_ping += 1
        waiter: Deferred[float] = Deferred()
        self._pings[self._last_ping] = (now, waiter)
        self._quic.send_ping(self._last_ping)
        self._wake()
        return waiter

    # -- from the relay

    def received(self, stream_id: int, data: bytes) -> None:
        """Bytes of control or HELLO; ``WireError`` when they are malformed."""
        self._quic.consume(stream_id, len(data))
        decoder = self._decoders[stream_id]
        decoder.feed(data)
        for capsule in decoder:
            if self._is_over:  # a REDIRECT, for one, is the last word
                return
            match capsule:
                case Allocated() if self.allocated is None:
                    self.allocated = capsule
                    self.limits = Refreshed(
                        capsule.expires_at, capsule.bandwidth_limit, capsule.quota_bytes, capsule.bytes_transferred
                    )
                    self._tell(capsule)
                case Allocated():
                    pass
                case Refreshed():
                    self._refreshed(capsule)
                case wire.Error(code=code, message=message):
                    self._refused(error_for(code, message))
                case wire.Channel(channel_id=channel_id):
                    opening = next((asked for asked in self._asked if asked.token is None), None)
                    if opening is not None:
                        self._asked.remove(opening)
                        opening.waiter.callback(channel_id)
                case wire.Relays(entries=entries):
                    if self._listings:
                        self._listings.popleft().callback(entries)
                case wire.Unknown():
                    pass
                case _:
                    self._tell(capsule)

    def pong(self, uid: int, now: float) -> None:
        """PING ``uid`` was acknowledged."""
        sent_at, waiter = self._pings.pop(uid, (now, None))
        if waiter is not None:
            waiter.callback(now - sent_at)

    def _refreshed(self, limits: Refreshed) -> None:
        self.limits = limits
        refresh = next((asked for asked in self._asked if asked.token is not None), None)
        if refresh is None:  # the other side has asked
            return
        self._asked.remove(refresh)
        if self.identity is not None and refresh.token is not None:
            self.identity = replace(self.identity, token=refresh.token)
        refresh.waiter.callback(limits)

    def _refused(self, error: RelayError | UnknownCode) -> None:
        if self._asked:
            asked = self._asked.popleft()
            is_channel = asked.token is None
            asked.waiter.errback(ChannelRefused(f"the relay opens no channel: {error}", error) if is_channel else error)

    # -- the end

    def lost(self, error: Exception) -> None:
        """The connection ended: nobody will be answered any more."""
        self._is_over = True
        waiting: list[Deferred[Any]] = [asked.waiter for asked in self._asked]
        waiting += self._listings
        waiting += [waiter for _, waiter in self._pings.values()]
        self._asked.clear()
        self._listings.clear()
        self._pings.clear()
        for waiter in waiting:
            waiter.errback(error)
