"""``TcpTunnel``: local TCP connections carried over streams of an allocation; what ``zrc-relay tunnel --tcp`` runs.

Theory of operation
-------------------
Each TCP connection has a stream of its own, and two ``End`` protocols that are each other's mirror, one on the socket and one on
the stream: what one receives the other writes. Everything that can happen to one is passed on in the other's terms:

* Each transport is the other's producer, through a ``_Valve``, so a reader that stops at one end of the tunnel stops the writer
  at the other, with bounded buffers everywhere.
* The end of one direction (FIN) ends that direction of the other, and the other direction goes on.
* A connection that ends properly ends its stream properly; one that breaks (RST) resets it, and a stream that is reset breaks the
  connection at the far end.

A listening tunnel opens a stream for each connection that it accepts, a targeting one makes a connection for each stream that
arrives. While that connection is being made the stream has no protocol, and its sender can send no more than one window.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure as TwistedFailure
from zope.interface import implementer  # type: ignore[import-untyped]

from zrc_relay.cli.console import size
from zrc_relay.cli.errors import Failure
from zrc_relay.cli.local_port import resolve
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.relay_end import RelayEnd, RelayLink, by_cause
from zrc_relay.client.connect import CONNECT_TIMEOUT
from zrc_relay.client.errors import StreamFailure, TooManyStreams
from zrc_relay.client.stream_halves import StreamCode
from zrc_relay.client.streams import RelayStream
from zrc_relay.core.wire import Address

TARGET_TIMEOUT: Final = 10.0
"""Seconds that the local program has to accept a connection."""


@implementer(IPushProducer)
class _Valve:
    """A transport as the producer of another. How it ends is for its ``End`` to say, not for who reads from it."""

    def __init__(self, transport: Any) -> None:
        self.pauseProducing = transport.pauseProducing
        self.resumeProducing = transport.resumeProducing

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Nothing: see the class."""


@implementer(IHalfCloseableProtocol)
class End(Protocol):
    """One of two protocols that are spliced together.

    ``count`` hears the size of what arrives here, ``made`` that the connection is there.
    """

    def __init__(self, count: Callable[[int], None], made: Callable[[End], None] | None = None) -> None:
        self.other: End | None = None
        self.channel: Any = None
        """Our transport, once we are spliced."""
        self._count = count
        self._made = made
        self._has_read_all = False
        self._has_written_all = False

    def splice(self, other: End) -> None:
        """Join two ends, both of which are connected."""
        for one, another in ((self, other), (other, self)):
            one.other = another
            one.channel = one.transport
            one.channel.registerProducer(_Valve(another.transport), True)  # noqa: FBT003 - Twisted's signature

    def connectionMade(self) -> None:
        """See ``IProtocol``."""
        if self._made is not None:
            self._made(self)

    def dataReceived(self, data: bytes) -> None:
        """See ``IProtocol``."""
        self._count(len(data))
        if self.other is not None:
            self.other.channel.write(data)

    def readConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        """Nothing more will arrive here."""
        if self.other is not None and not self._has_read_all:
            self._has_read_all = True
            self.other.finish()
            self._close_when_done()

    def writeConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        """See ``IHalfCloseableProtocol``: what is still written is dropped, and the other direction goes on."""

    def connectionLost(self, reason: TwistedFailure = TwistedFailure(ConnectionDone())) -> None:  # noqa: B008 - Twisted's
        """It is over; so it is for the other."""
        other, self.other = self.other, None
        if other is None:
            return
        other.other = None
        other.channel.unregisterProducer()
        if reason.check(ConnectionDone):
            other.channel.loseConnection()
        else:
            other.channel.abortConnection()

    def finish(self) -> None:
        """Everything that is to be written here was written."""
        self._has_written_all = True
        self.channel.unregisterProducer()
        self.channel.loseWriteConnection()
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._has_read_all and self._has_written_all:
            self.channel.loseConnection()  # a socket does not notice by itself that both directions have ended


@dataclass(frozen=True, slots=True)
class TcpStatistics:
    """What a tunnel carried: connections in all and now, bytes, and connections that came to nothing, by cause."""

    connections: int
    now_open: int
    sent: int
    received: int
    dropped: Counter[str]

    def __str__(self) -> str:
        return (
            f"{self.connections} connections ({self.now_open} open), sent {size(self.sent)}, received {size(self.received)}; "
            f"came to nothing: {by_cause(self.dropped)}"
        )


class TcpTunnel(RelayEnd):
    """See the module's docstring, and ``RelayEnd``. Made by ``listen`` or ``aim``, then opened."""

    def __init__(
        self, *, tell: Callable[[str], None], warn: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(tell=tell, warn=warn, now=now)
        self._reactor: Any = None
        self._port: Any = None
        self._target: HostPort | None = None
        self._sockets: set[Any] = set()
        self._connections = 0
        self._now_open = 0
        self._sent = 0
        self._received = 0

    def listen(self, reactor: Any, where: HostPort) -> Address:
        """Accept connections at ``where`` (port 0: any free one); returns where that is. ``Failure`` if it cannot be had."""
        host, port = resolve(where)[:2]
        try:
            factory = Factory.forProtocol(partial(End, self._count_sent, self._from_local))
            self._port = reactor.listenTCP(port, factory, interface=host)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            msg = f"cannot listen on TCP {where}: {reason}"
            raise Failure(msg) from error
        bound = self._port.getHost()
        return Address.of(bound.host, bound.port)

    def aim(self, target: HostPort) -> None:
        """Make a connection to ``target`` for each stream that arrives. ``Failure`` if there is no such host."""
        resolve(target)
        self._target = target

    async def open(self, reactor: Any, link: RelayLink, *, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect and allocate; raises what ``connect`` does. In any case the local end is let go when it is over."""
        self._reactor = reactor
        await self.connect(reactor, link, timeout=timeout, on_stream=self._from_relay if self._target is not None else None)

    def release_local(self) -> None:
        """See ``RelayEnd``."""
        if self._port is not None:
            self._port.stopListening()
        for transport in list(self._sockets):
            transport.abortConnection()

    @property
    def statistics(self) -> TcpStatistics:
        """What was carried until now."""
        return TcpStatistics(self._connections, self._now_open, self._sent, self._received, self.dropped)

    # -- connections that are accepted

    def _from_local(self, end: End) -> None:
        transport: Any = end.transport
        connection = self.open_connection
        if connection is None:
            self._count_drop("without a relay", "a connection was refused: there is no relay yet")
            transport.abortConnection()
            return
        try:
            stream = connection.open_stream()
        except TooManyStreams as error:
            self._count_drop("too many at once", f"a connection was refused: {error}")
            transport.abortConnection()
        else:
            self._join(end, stream)

    # -- streams that arrive

    def _from_relay(self, stream: RelayStream) -> None:
        target = self._target
        if target is None or stream.is_unidirectional:
            stream.stop(StreamCode.REFUSED)
            return
        endpoint = HostnameEndpoint(self._reactor, target.host, target.port, timeout=TARGET_TIMEOUT)
        factory: Any = Factory.forProtocol(partial(End, self._count_sent))
        connecting: Deferred[Any] = endpoint.connect(factory)
        stream.when_closed().addBoth(lambda _: connecting.cancel())
        connecting.addCallbacks(partial(self._connected, stream), partial(self._not_connected, stream))

    def _connected(self, stream: RelayStream, end: End) -> None:
        transport: Any = end.transport
        if stream.is_closed:
            transport.abortConnection()
        else:
            self._join(end, stream)

    def _not_connected(self, stream: RelayStream, failure: TwistedFailure) -> None:
        if not stream.is_closed:  # else the other end did not wait
            stream.abortConnection()
            self._count_drop("not taken by the target", f"cannot connect to {self._target}: {failure.getErrorMessage()}")

    # -- both

    def _join(self, end: End, stream: RelayStream) -> None:
        transport: Any = end.transport
        transport.setTcpNoDelay(True)
        self._connections += 1
        self._now_open += 1
        self._sockets.add(transport)
        stream.when_closed().addBoth(self._stream_closed, transport)
        far = End(self._count_received)
        stream.attach(far)
        end.splice(far)

    def _stream_closed(self, result: object, transport: Any) -> None:
        self._now_open -= 1
        self._sockets.discard(transport)
        if isinstance(result, TwistedFailure) and isinstance(result.value, StreamFailure):
            if result.value.code == StreamCode.REFUSED:
                self._count_drop("refused there", f"the {self._other_end} takes no connections: it needs --tcp and --target")
            elif result.value.relay_code is not None:
                self._count_drop("at the relay", f"a connection ended: {result.value}")

    def _count_sent(self, amount: int) -> None:
        self._sent += amount

    def _count_received(self, amount: int) -> None:
        self._received += amount

    def _count_drop(self, kind: str, text: str) -> None:
        self.dropped[kind] += 1
        self.warn_sometimes(kind, text)
