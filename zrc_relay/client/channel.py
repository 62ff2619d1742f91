"""Channels, as a client has them: packets beside QUIC that the relay passes on as they are (PROTOCOL §7).

Theory of operation
-------------------
A channel is for traffic that is encrypted end to end already. Its packets leave by the UDP socket of the connection, at once and
in order, without QUIC's encryption, queue and congestion control; nothing acknowledges them. Two classes:

* ``Channel`` is what the user holds. It is *open* while it has an end to send by. When its connection ends it is closed with it,
  unless it was made to *outlast* connections: then it waits for an end on the next one, and drops and counts what is sent until
  there is one. Once closed it stays closed.
* ``ChannelEnd`` is one connection's part: it asks the relay for the channel's id, puts the header before what is sent, and looks
  at what arrives. There is at most one channel on a connection, so whoever asks again gets the same object.

Anyone can send packets that look like a channel's. Those that do not come from the relay's address, or do not have the id, are
strays: dropped and counted. Those that are let through are as trustworthy as any UDP packet, so they are no sign of life of
the connection; they only put off the PING that is due when a channel is silent (``Vigil``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from zrc_relay.client.control import Control
from zrc_relay.client.driver import Driver
from zrc_relay.client.errors import ChannelClosed, PayloadTooLarge
from zrc_relay.client.stats import Tally
from zrc_relay.core import wire
from zrc_relay.core.channel import CHANNEL_FIRST_BYTE, CHANNEL_HEADER
from zrc_relay.quic.udp import Path

FIRST_BYTE: Final = bytes((CHANNEL_FIRST_BYTE,))
DATAGRAM_COST: Final = 19
"""Bytes that a DATAGRAM takes of a UDP payload beside its own, at least: first byte, packet number, tag, frame type (RFC 9000
§17.3, RFC 9221 §4). So a path that carries a payload as DATAGRAM carries a UDP payload that is longer by these."""


class Channel:
    """A way to the other end beside QUIC; see the module's docstring. Made by ``open_channel``.

    ``on_data`` is called with each payload that arrives; while it is None, they are dropped and counted. Nothing passes before
    the other end has opened its channel, too, and nobody tells when it does.
    """

    _log = Logger()

    def __init__(self, tally: Tally, on_data: Callable[[bytes], None] | None = None, *, outlasts: bool = False) -> None:
        self.on_data = on_data
        self.error: Exception | None = None
        """Why it is closed; None before."""
        self._tally = tally
        self._outlasts = outlasts
        self._end: ChannelEnd | None = None

    @property
    def is_open(self) -> bool:
        """Whether what is sent leaves now."""
        return self._end is not None

    @property
    def is_closed(self) -> bool:
        """Whether it is over for good."""
        return self.error is not None

    @property
    def max_payload(self) -> int:
        """The longest payload in bytes that is known to fit both paths; it changes with them. 0 while it is not open."""
        return self._end.max_payload if self._end is not None else 0

    def send(self, payload: bytes) -> None:
        """Send ``payload`` now: it may be lost, be overtaken, or come twice, as on any network.

        ``PayloadTooLarge`` when it is longer than ``max_payload``; when the channel is closed, what it was closed with.
        """
        self.send_many((payload,))

    def send_many(self, payloads: Sequence[bytes]) -> None:
        """Send ``payloads`` now, in this order, as ``send`` does; none of them when one is too long.

        Equal lengths make it cheap here, at the relay and at the other end: as a train (UDP GSO) they take one call at each.
        """
        if self._end is not None:
            self._end.send(payloads)
        elif self.error is not None:
            raise self.error
        else:
            for payload in payloads:
                self._tally.dropped(len(payload))

    def close(self) -> None:
        """Close our end; the connection stays as it is, and ``open_channel`` opens another."""
        end = self._end
        self.end(ChannelClosed("the channel is closed"))
        if end is not None:
            end.close()

    # -- for the library

    def attach(self, end: ChannelEnd) -> None:
        """There is a way now."""
        self._end = end

    def detach(self, error: Exception) -> None:
        """The connection ended with ``error``."""
        self._end = None
        if not self._outlasts:
            self.end(error)

    def end(self, error: Exception) -> None:
        """It is over because of ``error``."""
        self._end = None
        self.error = self.error or error

    def deliver(self, payloads: list[bytes]) -> None:
        """These have arrived."""
        for payload in payloads:
            if self.on_data is None or self.is_closed:
                self._tally.dropped(len(payload))
                continue
            try:
                self.on_data(payload)
            except Exception:
                self._log.failure("a callback of the user failed; the channel goes on")


class ChannelEnd:
    """One connection's end of the channel; see the module's docstring.

    ``way`` is how packets go to the relay, and ``room`` says how many bytes of UDP payload are known to fit to the other end.
    """

    def __init__(self, control: Control, driver: Driver, way: Path, *, room: Callable[[], int], tally: Tally) -> None:
        self._control = control
        self._driver = driver
        self._to, self._sender = way
        self._room = room
        self._tally = tally
        self._header = b""  # empty while it is not open
        self._channel: Channel | None = None
        self._waiting: list[Deferred[Channel]] = []

    def open(self, channel: Channel) -> Deferred[Channel]:
        """Open ``channel``; fires with it, or with the one that there is. Fails as ``open_channel`` does."""
        waiter: Deferred[Channel] = Deferred()
        current = self._channel
        if current is None or current.is_closed:
            current = self._channel = channel
        elif channel.on_data is not None:
            current.on_data = channel.on_data
        if current.is_open:
            waiter.callback(current)
            return waiter
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            self._control.open_channel().addCallbacks(self._opened, self._refused)
        return waiter

    def close(self) -> None:
        """Tell the relay that nothing more is wanted."""
        self._header = b""
        self._channel = None
        self._control.send(wire.CloseChannel())

    def lost(self, error: Exception) -> None:
        """The connection ended."""
        self._header = b""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.detach(error)

    @property
    def max_payload(self) -> int:
        """See ``Channel``."""
        return self._room() - CHANNEL_HEADER

    def send(self, payloads: Sequence[bytes]) -> None:
        """See ``Channel.send_many``."""
        limit = self.max_payload
        for payload in payloads:
            if len(payload) > limit:
                msg = f"the channel carries at most {limit} bytes in a packet, not {len(payload)}"
                raise PayloadTooLarge(msg)
        for payload in payloads:
            self._tally.sent(len(payload))
        header = self._header
        if len(payloads) == 1:
            self._sender.send(header + payloads[0], self._to)
        else:
            self._sender.send_many([header + payload for payload in payloads], self._to)
        self._driver.sent_beside()

    def received(self, packets: list[bytes], path: Path) -> None:
        """Packets that came by ``path``, the first with a channel's first byte, and the others with the same header."""
        header, channel = self._header, self._channel
        if channel is None or not header or not packets[0].startswith(header) or path[0][:2] != self._to[:2]:
            self._tally.strays += len(packets)
            return
        self._driver.heard_beside()
        payloads = [packet[CHANNEL_HEADER:] for packet in packets]
        for payload in payloads:
            self._tally.received(len(payload))
        channel.deliver(payloads)

    def _opened(self, channel_id: bytes) -> None:
        waiting, self._waiting = self._waiting, []
        channel = self._channel
        if channel is None or channel.is_closed:  # while the relay was asked
            self.close()
            for waiter in waiting:
                waiter.errback(ChannelClosed("the channel was closed before it was open"))
            return
        self._header = FIRST_BYTE + channel_id
        channel.attach(self)
        for waiter in waiting:
            waiter.callback(channel)

    def _refused(self, failure: Failure) -> None:
        waiting, self._waiting = self._waiting, []
        self._channel = None
        error: Any = failure.value
        for waiter in waiting:
            waiter.errback(error)
