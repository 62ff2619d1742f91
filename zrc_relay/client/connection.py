"""``ClientConnection``: one connection to a relay, bound to one end of an allocation.

Theory of operation
-------------------
The connection drives a ``Connection`` (QUIC) and speaks the client's side of PROTOCOL §4-6. It holds no socket: ``connect`` gives
it a ``Sender`` and hands it what arrives, which is also how tests join it to a relay without a network. Its life::

    handshake --HELLO read--> ALLOCATE sent --ALLOCATED--> established --release, close or loss--> closed

``established`` fires at ALLOCATED, or fails with what went wrong before. ``closed`` fires once at the end: with None after
``release``, ``close`` or the relay's NO_ERROR, else with the error. Everything that is queued here is bounded.

The work is done by parts that know little of each other: ``Driver`` sends, receives and keeps the time, ``Outbox`` and ``Inbox``
have the payloads, ``Streams`` the streams, ``ChannelEnd`` the packets beside QUIC, and ``Control`` what is said in capsules.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from aioquic.quic import events
from twisted.internet.defer import Deferred, fail

from zrc_relay.client.channel import DATAGRAM_COST, FIRST_BYTE, Channel, ChannelEnd
from zrc_relay.client.control import CONTROL_STREAMS, Control
from zrc_relay.client.driver import Driver
from zrc_relay.client.ending import Ending
from zrc_relay.client.errors import (
    ChannelRefused,
    ConnectFailed,
    ConnectionLost,
    Redirected,
    RelayError,
    UnknownCode,
    error_for,
    transport_error,
)
from zrc_relay.client.identity import Identity
from zrc_relay.client.notices import MaxPayloadChanged, NoticeEvent, PeerJoined, PeerLeft, notice_event, tell
from zrc_relay.client.payloads import EGRESS_AGE, EGRESS_BYTES, MAX_RECEIVED, Inbox, Outbox
from zrc_relay.client.stats import RelayStats, Tally
from zrc_relay.client.stream_table import Streams
from zrc_relay.client.streams import RelayAddress, RelayStream
from zrc_relay.client.trust import MAX_STREAMS, MAX_UDP_PAYLOAD, Trust
from zrc_relay.core import wire
from zrc_relay.core.channel import is_one_channel
from zrc_relay.core.codes import ErrorCode, HelloFeature
from zrc_relay.core.token import RelayToken, routing_byte
from zrc_relay.core.wire import Address, Allocated, Hello, Redirect, Refreshed, RelayEntry, Released
from zrc_relay.quic.clock import Clock
from zrc_relay.quic.connection import Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.ids import SECRET_SIZE, ConnectionIds
from zrc_relay.quic.udp import Path, Sender, SocketAddress


class ClientConnection:
    """One end of an allocation. Made by ``connect``; see the module's docstring.

    ``on_datagram`` is called with each payload; while it is None, payloads wait for ``datagrams()``. ``on_notice`` is called with
    each notice of the relay as a typed event. ``on_stream`` is called with each ``RelayStream`` that the other end opens; while
    it is None, they are refused.
    """

    def __init__(
        self,
        identity: Identity | None,
        trust: Trust,
        host: str,
        *,
        sender: Sender,
        remote: SocketAddress,
        clock: Clock,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        on_datagram: Callable[[bytes], None] | None = None,
        on_notice: Callable[[NoticeEvent], None] | None = None,
        on_stream: Callable[[RelayStream], None] | None = None,
    ) -> None:
        self.on_notice = on_notice
        self.established: Deferred[ClientConnection] = Deferred()
        self.hello: Hello | None = None
        self.peer_present = False
        self.peer_max_payload = 0
        self._ending = Ending()
        self._trust = trust
        self._local = sender
        self._tally = Tally()
        self.quic = Connection(
            configuration=trust.configuration(host),
            ids=ConnectionIds(random(SECRET_SIZE), random),
            egress=EgressQueue(EGRESS_BYTES, EGRESS_AGE, self._tally.dropped),
            max_streams=MAX_STREAMS,
            on_issued=lambda _: None,
            max_udp_payload=MAX_UDP_PAYLOAD,
        )
        first = bytes((routing_byte(identity.token.allocation_id),)) if identity is not None else random(1)
        self.quic.set_first_destination_id(first + random(8))
        self._driver = Driver(
            self.quic, Path(remote, sender), clock=clock, now=now, pump=self._pump, handle=self._handle, lost=self._lost
        )
        self._control = Control(self.quic, identity, tell=self._told, wake=self._driver.flush_soon)
        self._outbox = Outbox(self.quic, self._tally)
        self._inbox = Inbox(self._tally, on_datagram)
        self._streams = Streams(self.quic, deliver=self._inbox.deliver, wake=self._driver.flush_soon)
        self._streams.on_stream = on_stream
        self._channel_end = ChannelEnd(
            self._control, self._driver, Path(remote, sender), room=self._room_beside, tally=self._tally
        )

    # -- for users

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
        return self._streams.on_stream

    @on_stream.setter
    def on_stream(self, function: Callable[[RelayStream], None] | None) -> None:
        self._streams.on_stream = function

    @property
    def identity(self) -> Identity | None:
        """Who we are, with the token that was put in force last; None for a connection that allocates nothing."""
        return self._control.identity

    @property
    def allocated(self) -> Allocated | None:
        """What the relay granted; None before."""
        return self._control.allocated

    @property
    def limits(self) -> Refreshed | None:
        """What is in force: as granted, then as refreshed by either side (whose REFRESHED comes to both); None before."""
        return self._control.limits

    @property
    def allocation_id(self) -> bytes:
        """The allocation's id, 16 bytes."""
        return self._allocated.allocation_id

    @property
    def observed_addr(self) -> Address:
        """Our address as the relay sees it."""
        return self._allocated.observed_addr

    @property
    def max_payload(self) -> int:
        """The longest payload in bytes that fits a DATAGRAM to the relay; it changes with the path. Longer ones take a stream."""
        return self.quic.max_payload

    @property
    def dropped(self) -> int:
        """Payloads dropped on our own side: egress queue or receive queue full, or too old."""
        return self._tally.datagrams_dropped

    @property
    def stats(self) -> RelayStats:
        """What was carried until now."""
        return self._tally.stats(None if self.is_closed else self.quic.round_trip_time)

    def send(self, payload: bytes) -> None:
        """Send ``payload``, at most 65,535 bytes, to the other end, as a datagram: it may be lost, or be overtaken.

        ``PayloadTooLarge`` for more, or when it does not fit and the relay allows no stream for it.
        """
        self._check_open()
        self._outbox.send(payload, self._driver.now())
        self._driver.flush_soon()

    def datagrams(self) -> AsyncIterator[bytes]:
        """Payloads as they arrive, until the connection is closed. Only while ``on_datagram`` is None."""
        return self._inbox.datagrams()

    def receive(self) -> Deferred[bytes | None]:
        """The next payload; None when the connection is closed."""
        return self._inbox.receive()

    def open_stream(self, *, unidirectional: bool = False) -> RelayStream:
        """Open a stream to the other end, which finds it in its ``on_stream``.

        While as many are open as the relay allows (32 of each kind as a rule), the stream waits for its turn; it can be written
        to at once. ``TooManyStreams`` when 64 wait already.
        """
        self._check_open()
        return self._streams.open(unidirectional=unidirectional)

    def open_channel(self, on_data: Callable[[bytes], None] | None = None) -> Deferred[Channel]:
        """Open a channel to the other end, for packets that are encrypted end to end already: cheaper, and nothing is queued.

        Fires with the channel, which is the same one until it is closed; ``on_data`` is called with each payload that arrives on
        it. Fails with ``ChannelRefused`` when the relay offers none. Packets pass when the other end has opened it as well.
        """
        return self.join_channel(Channel(self._tally, on_data))

    def refresh(self, token: RelayToken) -> Deferred[Refreshed]:
        """Put ``token`` in force; fires with the new limits, or fails with the ``RelayError`` of the refusal."""
        self._check_open()
        return self._control.refresh(token)

    def release(self) -> Deferred[None]:
        """End the allocation for both sides; fires when the relay has confirmed and the connection is closed."""
        if not self.is_closed:
            self._control.release()
        return self.when_closed()

    def list_relays(self) -> Deferred[tuple[RelayEntry, ...]]:
        """The relays that this one knows of, itself at least."""
        self._check_open()
        return self._control.list_relays()

    def ping(self) -> Deferred[float]:
        """Round-trip time to the relay in seconds, by a QUIC PING."""
        self._check_open()
        return self._control.ping(self._driver.now())

    def close(self) -> None:
        """Leave without ending the allocation: the other side hears PEER_LEFT.

        What was not acknowledged by then is lost, and streams are reset. To be sure of a stream, wait for its end first.
        """
        self._finish(None, tell=True)

    def when_closed(self) -> Deferred[None]:
        """A Deferred of one's own that fires as ``closed`` does."""
        return self._ending.when_closed()

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._ending.has_come

    @property
    def closed(self) -> Deferred[None]:
        """Fires at the end, once; see the class."""
        return self._ending.closed

    @property
    def error(self) -> Exception | None:
        """Why it ended, if not in peace."""
        return self._ending.error

    # -- for ``connect``

    def start(self) -> None:
        """Send the first Initial."""
        self._driver.start()

    def datagram_received(self, data: bytes, path: Path) -> None:
        """One UDP datagram from the relay; see ``Receiver``."""
        if data[:1] == FIRST_BYTE:
            self._channel_end.received([data], path)
        else:
            self._driver.datagram_received(data, path)

    def train_received(self, train: bytes, size: int, path: Path) -> None:
        """Several UDP datagrams in one piece; see ``TrainReceiver``."""
        packets = [train[start : start + size] for start in range(0, len(train), size)]
        if train[:1] == FIRST_BYTE and is_one_channel(train, size):
            self._channel_end.received(packets, path)
        else:
            for packet in packets:
                self.datagram_received(packet, path)

    def batch_done(self) -> None:
        """Answer what the batch asked for; see ``Receiver``."""
        self._driver.batch_done()

    def give_up(self, error: Exception) -> None:
        """End it from outside with ``error``, telling the relay if it listens."""
        self._finish(error, tell=True)

    def join_channel(self, channel: Channel) -> Deferred[Channel]:
        """As ``open_channel``, with ``channel``, unless there is one already."""
        self._check_open()
        if self.hello is None or self.allocated is None:
            return fail(ChannelRefused("a channel belongs to an allocation, and there is none"))
        if not self.hello.features & HelloFeature.CHANNELS:
            return fail(ChannelRefused("the relay offers no channels"))
        return self._channel_end.open(channel)

    def report(self, event: NoticeEvent) -> None:
        """Tell the user of ``event``, which may be one of the library's own."""
        tell(self.on_notice, event)

    # -- events

    def _pump(self, now: float) -> None:
        self._streams.pump()
        self._outbox.pump(now)

    def _handle(self, event: events.QuicEvent, now: float) -> None:
        try:
            match event:
                case events.DatagramFrameReceived(data=payload):
                    self._inbox.deliver(payload)
                case events.StreamDataReceived(stream_id=stream_id, data=data, end_stream=ended):
                    if stream_id in CONTROL_STREAMS:
                        self._control.received(stream_id, data)
                    else:
                        self._streams.data(stream_id, data, ended=ended)
                case events.StreamReset(stream_id=stream_id, error_code=code):
                    self._streams.reset(stream_id, code)
                case events.StopSendingReceived(stream_id=stream_id, error_code=code):
                    self._streams.stop_sending(stream_id, code)
                case events.HandshakeCompleted():
                    self._check_certificate()
                case events.PingAcknowledged(uid=uid):
                    self._control.pong(uid, now)
                case events.ConnectionTerminated(error_code=code, frame_type=frame_type, reason_phrase=reason):
                    self._terminated(code, frame_type, reason)
                case _:
                    pass
        except wire.WireError as error:
            self.quic.close(error_code=error.code, reason_phrase=str(error))
            self._finish(ConnectionLost(f"the relay broke the protocol: {error}"), tell=True)

    def _check_certificate(self) -> None:
        if not self._trust.accepts(self.quic.peer_certificate_sha256):
            self._finish(ConnectFailed("the relay's certificate is not the pinned one"), tell=True)
        elif self.identity is None:
            self._succeed()

    def _told(self, capsule: wire.Capsule) -> None:
        match capsule:
            case Hello():
                self._greeted(capsule)
            case Allocated():
                self._granted(capsule)
            case Redirect():
                self._finish(Redirected(capsule), tell=True)
            case wire.Notice():
                self._noticed(notice_event(capsule))
            case Released():
                self._finish(None, tell=True)  # the close that follows says the same, and may be lost
            case _:
                pass

    def _greeted(self, hello: Hello) -> None:
        if self.hello is not None:
            return
        self.hello = hello
        if not self.is_closed:
            self._allocate(hello)

    def _allocate(self, hello: Hello) -> None:
        identity = self.identity
        if identity is None:
            return
        if identity.satisfies(hello):
            self._control.send(identity.request(hello, self.quic.peer_certificate_sha256, self._local.address))
        else:
            self._finish(ConnectFailed("the relay wants a proof of possession, and there is no key to give one"), tell=True)

    def _granted(self, allocated: Allocated) -> None:
        self.peer_present = allocated.peer_present
        self.peer_max_payload = allocated.peer_max_payload
        if self.identity is not None:
            self._streams.local = RelayAddress(allocated.allocation_id, self.identity.role)
        self._driver.keep_alive(allocated.keepalive_interval)
        self._succeed()

    def _noticed(self, event: NoticeEvent | None) -> None:
        if event is None:
            return
        if isinstance(event, PeerJoined):
            self.peer_present, self.peer_max_payload = True, event.max_payload
        elif isinstance(event, PeerLeft):
            self.peer_present, self.peer_max_payload = False, 0
        elif isinstance(event, MaxPayloadChanged):
            self.peer_max_payload = event.max_payload
        self.report(event)

    # -- the end

    def _lost(self, error: ConnectionLost) -> None:
        self._finish(error, tell=True)

    def _terminated(self, code: int, frame_type: int | None, reason: str) -> None:
        if frame_type is not None:  # closed by QUIC itself, on either side, not by the relay's protocol
            kind = ConnectionLost if self.established.called else ConnectFailed
            self._finish(kind(reason or transport_error(code)), tell=False)
        elif code == ErrorCode.NO_ERROR:
            self._finish(None, tell=False)
        else:
            self._finish(error_for(code, reason), tell=False)

    def _succeed(self) -> None:
        if not self.established.called:
            self.established.callback(self)

    def _finish(self, error: Exception | None, *, tell: bool) -> None:
        if self.is_closed:
            return
        self._ending.begin(error)
        self._driver.stop(tell=tell)
        reported = error or ConnectionLost("the connection is closed")
        self._streams.lost(reported)
        if not self.established.called:
            self.established.errback(reported)
        self._control.lost(reported)
        self._channel_end.lost(reported)
        self._inbox.close()
        self._ending.come()

    def _room_beside(self) -> int:
        """Bytes of UDP payload that fit the path to the relay and, as far as it is known, the one from there to the other end."""
        here = self.quic.udp_payload
        return min(here, self.peer_max_payload + DATAGRAM_COST) if self.peer_max_payload else here

    @property
    def _allocated(self) -> Allocated:
        if self.allocated is None:
            msg = "not allocated yet"
            raise ConnectionLost(msg)
        return self.allocated

    def _check_open(self) -> None:
        if self.is_closed:
            raise self.error or ConnectionLost("the connection is closed")


__all__ = ["MAX_RECEIVED", "ClientConnection", "Identity", "Redirected", "RelayError", "UnknownCode"]
