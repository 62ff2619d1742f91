"""``RelayStream``: a stream to the other end that Twisted's protocols can use like a TCP connection (PROTOCOL §6).

Theory of operation
-------------------
A stream is an ``ITransport``, an ``IConsumer`` for its sending direction and an ``IPushProducer`` for its receiving one. What
arrives goes to the protocol that ``attach`` was given; before that, and while ``pauseProducing`` holds, it waits here, and the
sender at the far end is stopped by flow control when one window is full.

How a stream ends, in TCP's words: ``loseWriteConnection`` is FIN, ``loseConnection`` is FIN and "I do not read any more",
``abortConnection`` is RST. The protocol hears ``connectionLost`` once both directions are over, with

* ``ConnectionDone``: what we sent was acknowledged by the relay and FIN has come (or we did not want to read on);
* ``StreamReset`` or ``StreamStopped``: the other end, or the relay, gave up one direction with a code; the other is given up,
  too, because what arrived so far would look whole otherwise. Only a stop with code 0 is no failure: the other end has read what
  it wanted, and may still be sending;
* ``ConnectionAborted`` after ``abortConnection`` or ``reset``; ``ConnectionLost`` (of this library) when the connection to the
  relay ended.

``readConnectionLost`` and ``writeConnectionLost`` are called if the protocol has them (``IHalfCloseableProtocol``); for others a
FIN from the far end means that the stream ends when what was written has left. No method but ``attach`` calls the protocol before
it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from zrc_relay.client.errors import StreamReset, StreamStopped
from zrc_relay.client.stream_halves import HIGH_WATER, LOW_WATER, Incoming, Outgoing, ReceiveState, StreamCode
from zrc_relay.core.codes import Role
from zrc_relay.quic.connection import Connection


@implementer(IAddress)
@dataclass(frozen=True, slots=True)
class RelayAddress:
    """One end of an allocation, as a Twisted address."""

    allocation_id: bytes
    role: Role


@implementer(ITransport, IConsumer, IPushProducer)
class RelayStream:
    """See the module's docstring. Made by ``open_stream``, or handed to ``on_stream``.

    ``stream_id`` is None while the stream waits for the relay's limit. ``buffered`` is how many bytes wait to be acknowledged by
    the relay; ``disconnecting`` is true after ``loseConnection``.
    """

    _log = Logger()

    def __init__(
        self, quic: Connection, wake: Callable[[], None], local: RelayAddress, *, opener: bool, unidirectional: bool
    ) -> None:
        self.stream_id: int | None = None
        self.is_opener = opener
        self.is_unidirectional = unidirectional
        self.disconnecting = False
        self.is_closed = False
        self.protocol: Any = None
        self._local = local
        self._wake = wake
        self._out = Outgoing(quic, wake, exists=opener or not unidirectional)
        self._in = Incoming(quic, wake, exists=not (opener and unidirectional))
        self._paused = False
        self._told_end = False
        self._verdict: Exception | None = None
        self._waiters: list[Deferred[None]] = []

    # -- for users

    def attach(self, protocol: Any) -> None:
        """Hand what arrives to ``protocol``, an ``IProtocol``: ``makeConnection`` now, then data. A stream takes one protocol."""
        if self.protocol is not None:
            msg = "the stream has a protocol already"
            raise RuntimeError(msg)
        self.protocol = protocol
        protocol.makeConnection(self)
        if self.is_closed:
            self._call(protocol.connectionLost, Failure(self._reason))
        else:
            self._wake()

    def when_closed(self) -> Deferred[None]:
        """Fires when both directions are over; fails with the reason unless that is ``ConnectionDone``."""
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        if self.is_closed:
            self._tell_waiters()
        return waiter

    @property
    def buffered(self) -> int:
        """Bytes written and not acknowledged by the relay; more than 256 KiB pause a registered producer, 64 KiB let it go on."""
        return self._out.buffered

    @property
    def is_writable(self) -> bool:
        """Whether what is written now will be sent."""
        return self._out.is_writable

    def reset(self, code: int = StreamCode.ABORTED) -> None:
        """Give up sending with ``code`` (an application's own, below 2^62): what was not acknowledged may not arrive."""
        if self._out.is_writable or not self._out.is_over:
            self._out.reset(code)
            self._verdict = self._verdict or ConnectionAborted()
            self._wake()

    def stop(self, code: int = StreamCode.DONE) -> None:
        """Read no more, and tell the sender so with ``code``; what has arrived and was not delivered is dropped."""
        self._in.stop(code)
        self._wake()

    # -- ITransport

    def write(self, data: bytes) -> None:
        """See ``ITransport``. ``RuntimeError`` on a stream that only the other end sends on; ignored once sending has ended."""
        if self.is_unidirectional and not self.is_opener:
            msg = "only the other end sends on this stream"
            raise RuntimeError(msg)
        self._out.write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:  # noqa: N802 - Twisted's name
        """See ``ITransport``."""
        self.write(b"".join(iovec))

    def loseWriteConnection(self) -> None:  # noqa: N802 - Twisted's name
        """FIN after what was written and what a registered producer still has; receiving goes on."""
        self._out.end()
        self._wake()

    def loseConnection(self) -> None:  # noqa: N802 - Twisted's name
        """FIN as ``loseWriteConnection``, and read no more."""
        self.disconnecting = True
        self._out.end()
        self.stop(StreamCode.DONE)

    def abortConnection(self) -> None:  # noqa: N802 - Twisted's name
        """Give up both directions at once."""
        self.disconnecting = True
        self._fail(ConnectionAborted())

    def getPeer(self) -> RelayAddress:  # noqa: N802 - Twisted's name
        """The other end of the allocation."""
        return RelayAddress(self._local.allocation_id, self._local.role.other)

    def getHost(self) -> RelayAddress:  # noqa: N802 - Twisted's name
        """Our end of the allocation."""
        return self._local

    # -- IConsumer: the sending direction

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802, FBT001 - Twisted's signature
        """See ``IConsumer``; push producers are paused and resumed, pull producers are asked while there is room."""
        self._out.register(producer, streaming=streaming)

    def unregisterProducer(self) -> None:  # noqa: N802 - Twisted's name
        """See ``IConsumer``; an end that was asked for while the producer was there happens now."""
        self._out.unregister()
        self._wake()

    # -- IPushProducer: the receiving direction

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Deliver nothing until ``resumeProducing``; the sender may fill one window, then it is stopped."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Deliver again, what waits first."""
        self._paused = False
        self._wake()

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """See ``IPushProducer``: nobody wants it any more."""
        self.loseConnection()

    # -- what the connection calls

    def opened(self, stream_id: int, head: bytes = b"") -> None:
        """The stream exists in QUIC now; ``head`` is its type, if it is ours to say."""
        self.stream_id = stream_id
        self._in.opened(stream_id)
        self._out.opened(stream_id, head)

    def data_received(self, data: bytes, *, ended: bool) -> None:
        """Bytes have arrived in order."""
        self._in.received(data, ended=ended)
        self._deliver()
        self._settle()

    def reset_received(self, code: int) -> None:
        """The other end reset its direction."""
        if self._in.reset(code) or (isinstance(self._verdict, StreamStopped) and not self.is_closed):
            # Who aborts stops and resets at once, in whatever order the two arrive: that data is missing is the graver of them.
            self._verdict = StreamReset(code)
            self._fail(self._verdict)

    def stop_received(self, code: int) -> None:
        """The other end does not want ours."""
        if not self._out.stopped(code):
            return
        if code != StreamCode.DONE:
            self._fail(StreamStopped(code))
        elif self._half_closeable is not None:
            self._call(self._half_closeable.writeConnectionLost)

    def pump(self) -> None:
        """Deliver what may be delivered, and let the producer go on."""
        self._deliver()
        self._out.pump()
        self._settle()

    def lost(self, error: Exception) -> None:
        """The connection to the relay has ended."""
        self._verdict = self._verdict or error
        self._out.lost()
        self._in.lost()
        self._close()

    # -- inside

    @property
    def _half_closeable(self) -> Any:
        return IHalfCloseableProtocol(self.protocol, None) if self.protocol is not None else None

    @property
    def _reason(self) -> Exception:
        return self._verdict or ConnectionDone()

    def _deliver(self) -> None:
        incoming = self._in
        while self.protocol is not None and not self._paused and incoming.has_data and not self.is_closed:
            self._call(self.protocol.dataReceived, incoming.take())
        ended = incoming.state is ReceiveState.ENDED and not incoming.has_data
        if not ended or self.protocol is None or self._told_end or self.is_closed:
            return
        self._told_end = True
        if self._half_closeable is not None:
            self._call(self._half_closeable.readConnectionLost)
        else:
            self._out.end()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._log.failure("the protocol of a stream failed; the stream is aborted")
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._verdict = self._verdict or error
        self._out.reset(StreamCode.ABORTED)
        self._in.stop(StreamCode.ABORTED)
        self._wake()

    def _settle(self) -> None:
        waits_to_tell = self._in.state is ReceiveState.ENDED and self.protocol is not None and not self._told_end
        if self._out.is_over and self._in.is_over and not waits_to_tell:
            self._close()

    def _close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self.protocol is not None:
            self._call(self.protocol.connectionLost, Failure(self._reason))
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if self._verdict is None:
                waiter.callback(None)
            else:
                waiter.errback(self._verdict)


__all__ = ["HIGH_WATER", "LOW_WATER", "RelayAddress", "RelayStream", "StreamCode"]
