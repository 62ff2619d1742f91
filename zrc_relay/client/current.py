"""``CurrentConnection``: what users see of connections that follow one another, of which there is one now, or none.

It has the attributes and methods of ``ClientConnection``. Payloads that arrive go through one ``Inbox``, so who waits for them
does not notice when the connection changes, and counters go on. What needs a connection raises ``NotConnected`` while there is
none; ``send`` drops then, as a network does, and counts. A channel that was opened is opened again on each connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from zrc_relay.client.channel import Channel
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.dial import Handlers
from zrc_relay.client.ending import Ending
from zrc_relay.client.errors import ChannelRefused, ConnectionLost, NotConnected, PayloadTooLarge
from zrc_relay.client.identity import Identity
from zrc_relay.client.payloads import Inbox
from zrc_relay.client.stats import RelayStats, Tally
from zrc_relay.client.streams import RelayStream
from zrc_relay.core.records import MAX_RECORD
from zrc_relay.core.token import RelayToken
from zrc_relay.core.wire import Address, Allocated, Refreshed, RelayEntry


class CurrentConnection:
    """See the module's docstring. Who inherits sets ``connection``, and adds up ``_past`` when one has ended."""

    def __init__(self, identity: Identity, handlers: Handlers) -> None:
        self.on_notice = handlers.on_notice
        self.connection: ClientConnection | None = None
        """The connection that there is now."""
        self._identity = identity
        self._on_stream = handlers.on_stream
        self._tally = Tally()
        self._past = RelayStats()
        self._inbox = Inbox(self._tally, handlers.on_datagram)
        self._ending = Ending()
        self._channel: Channel | None = None

    @property
    def on_datagram(self) -> Callable[[bytes], None] | None:
        """Who gets each payload; None while they wait for ``datagrams()``."""
        return self._inbox.on_datagram

    @on_datagram.setter
    def on_datagram(self, function: Callable[[bytes], None] | None) -> None:
        self._inbox.on_datagram = function

    @property
    def on_stream(self) -> Callable[[RelayStream], None] | None:
        """Who gets each stream of the other end; None while they are refused."""
        return self._on_stream

    @on_stream.setter
    def on_stream(self, function: Callable[[RelayStream], None] | None) -> None:
        self._on_stream = function
        if self.connection is not None:
            self.connection.on_stream = function

    @property
    def identity(self) -> Identity:
        """Who we are, with the token that was put in force last."""
        current = self.connection.identity if self.connection is not None else None
        return current or self._identity

    @property
    def allocated(self) -> Allocated | None:
        """What the relay granted; None while there is no connection."""
        return self.connection.allocated if self.connection is not None else None

    @property
    def limits(self) -> Refreshed | None:
        """What is in force; None while there is no connection."""
        return self.connection.limits if self.connection is not None else None

    @property
    def allocation_id(self) -> bytes:
        """The allocation's id, 16 bytes."""
        return self._identity.token.allocation_id

    @property
    def observed_addr(self) -> Address:
        """Our address as the relay sees it; ``NotConnected`` while there is no connection."""
        return self._current.observed_addr

    @property
    def peer_present(self) -> bool:
        """Whether the other end is there, as far as we can know."""
        return self.connection is not None and self.connection.peer_present

    @property
    def peer_max_payload(self) -> int:
        """See ``ClientConnection``; 0 while there is no connection."""
        return self.connection.peer_max_payload if self.connection is not None else 0

    @property
    def max_payload(self) -> int:
        """See ``ClientConnection``; 0 while there is no connection."""
        return self.connection.max_payload if self.connection is not None else 0

    @property
    def dropped(self) -> int:
        """Payloads dropped on our own side; see ``RelayStats``."""
        return self.stats.datagrams_dropped

    @property
    def stats(self) -> RelayStats:
        """What was carried by all connections until now."""
        current = self.connection.stats if self.connection is not None else RelayStats()
        total = self._past + current
        return replace(total, datagrams_dropped=total.datagrams_dropped + self._tally.datagrams_dropped)

    def send(self, payload: bytes) -> None:
        """See ``ClientConnection``; dropped and counted while there is no connection."""
        self._check_open()
        if self.connection is not None:
            self.connection.send(payload)
        elif len(payload) > MAX_RECORD:
            msg = f"a payload is at most {MAX_RECORD} bytes, not {len(payload)}"
            raise PayloadTooLarge(msg)
        else:
            self._tally.dropped(len(payload))

    def datagrams(self) -> AsyncIterator[bytes]:
        """See ``ClientConnection``; goes on over reconnections."""
        return self._inbox.datagrams()

    def receive(self) -> Deferred[bytes | None]:
        """See ``ClientConnection``; waits over reconnections."""
        return self._inbox.receive()

    def open_stream(self, *, unidirectional: bool = False) -> RelayStream:
        """See ``ClientConnection``; ``NotConnected`` while there is no connection."""
        return self._current.open_stream(unidirectional=unidirectional)

    def open_channel(self, on_data: Callable[[bytes], None] | None = None) -> Deferred[Channel]:
        """See ``ClientConnection``; ``NotConnected`` while there is no connection.

        The channel goes on over reconnections: while there is no connection it drops what is sent, and counts.
        """
        self._check_open()
        channel = self._channel
        if channel is not None and not channel.is_closed:
            channel.on_data = on_data or channel.on_data
            return succeed(channel)
        return self._current.join_channel(Channel(self._tally, on_data, outlasts=True)).addCallback(self._keep_channel)

    def refresh(self, token: RelayToken) -> Deferred[Refreshed]:
        """See ``ClientConnection``; ``NotConnected`` while there is no connection."""
        return self._current.refresh(token)

    def list_relays(self) -> Deferred[tuple[RelayEntry, ...]]:
        """See ``ClientConnection``; ``NotConnected`` while there is no connection."""
        return self._current.list_relays()

    def ping(self) -> Deferred[float]:
        """See ``ClientConnection``; ``NotConnected`` while there is no connection."""
        return self._current.ping()

    def when_closed(self) -> Deferred[None]:
        """A Deferred of one's own that fires as ``closed`` does."""
        return self._ending.when_closed()

    @property
    def closed(self) -> Deferred[None]:
        """Fires at the end, once; see the class."""
        return self._ending.closed

    @property
    def error(self) -> Exception | None:
        """Why it ended, if not in peace."""
        return self._ending.error

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at the moment."""
        return self.connection is not None

    @property
    def is_closed(self) -> bool:
        """Whether it is over for good."""
        return self._ending.has_come

    @property
    def _current(self) -> ClientConnection:
        self._check_open()
        if self.connection is None:
            msg = "there is no connection to the relay at the moment"
            raise NotConnected(msg)
        return self.connection

    def _keep_channel(self, channel: Channel) -> Channel:
        self._channel = channel
        return channel

    def _take_channel_along(self, connection: ClientConnection) -> None:
        """``connection`` is new: open the channel on it, if there is one that is wanted."""
        channel = self._channel
        if channel is not None and not channel.is_closed and not connection.is_closed:
            connection.join_channel(channel).addErrback(_not_again, channel)

    def _end_channel(self, error: Exception | None) -> None:
        """There will be no connection any more."""
        if self._channel is not None:
            self._channel.end(error or ConnectionLost("the connection is closed"))

    def _check_open(self) -> None:
        if self.is_closed:
            raise self.error or ConnectionLost("the connection is closed")


def _not_again(failure: Failure, channel: Channel) -> None:
    error = failure.value
    if isinstance(error, ChannelRefused):
        channel.end(error)
    # else the connection was lost again before the relay had answered: the next one will ask
