"""``Connection``: aioquic's QuicConnection with what a relay needs.

With ``paths.py``, ``recovery.py`` and ``keyphase.py`` below it, and ``fastpath.py``, it is the only code that touches aioquic's
private attributes.

Theory of operation
-------------------
aioquic keeps the RFCs. This subclass changes *who decides* about six things, each because of a fact about the library:

* **Connection ids** and stateless reset tokens are ours (``ConnectionIds``), and the routing table hears of each id when it is
  made, not when it is first sent.
* **Datagrams** wait in a bounded ``EgressQueue``; one that could never fit is refused by ``send_payload`` before it is queued,
  since a frame too big for a packet would stay at the head for ever.
* **Control goes first**: DATAGRAM frames are written before STREAM frames, so while control data waits, datagrams stand aside.
* **Flow control windows are fixed**: credit is given when data is *consumed* (``consume``), where aioquic would double the
  windows as data arrives. That is what makes back-pressure possible.
* **CRYPTO and STREAM reassembly** is capped in bytes and in ranges: gaps are buffered with zeros and ranges searched linearly.
* **Streams** that a peer may open are ours to number (``max_streams``), where aioquic has a constant.

What has to do with the path, keys and time is in ``PathConnection`` (``paths.py``). It is used for both ends: by the relay
(``link.py``) and by the client library.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any, Final

from aioquic._buffer import Buffer
from aioquic.buffer import size_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch
from cryptography.hazmat.primitives.serialization import Encoding

from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.ids import ConnectionIds
from zrc_relay.quic.paths import KEY_UPDATE_PACKETS, PathConnection

ALPN: Final = "zrc-relay"
MAX_DATAGRAM_FRAME: Final = 65535
"""What both sides advertise as max_datagram_frame_size (PROTOCOL §1)."""
MAX_PENDING_CRYPTO: Final = 16 * 1024
"""Out-of-order CRYPTO bytes kept: several times the largest handshake message anyone sends us."""
MAX_CRYPTO_FRAMES: Final = 256
"""CRYPTO frames of a handshake, repeated ones and all: ten times what cutting and losing one to pieces makes. A packet holds some
300, and each costs a search through the ranges."""
MAX_CRYPTO_RANGES: Final = 64
"""Gaps in CRYPTO data: clients that shuffle their ClientHello make about ten."""
MAX_STREAM_RANGES: Final = 256
"""Gaps in one stream: more than every second packet of a window lost."""
CONTROL_RESERVE: Final = 16 * 1024
"""Connection credit in bytes that forwarded streams leave for control (R3.10), or a quarter of it if the peer gives less."""
ACTIVE_IDS: Final = 4
"""Connection ids that each side has of the other (RFC 9000 §5.1.1): one in use, and some for moves from address to address that
follow each other within a round trip. Each costs a frame in the handshake, and an entry in the routing table."""
ACKS_PER_PING: Final = 32
"""ACK frames after which one asks to be acknowledged itself (RFC 9000 §13.2.4): a peer that only sends would never acknowledge
ours, and what is kept about them would pile up."""
CONTROL_STREAM: Final = 0
HELLO_STREAM: Final = 3
_SHORT_HEADER: Final = 3  # first byte and a 2-byte packet number
_AEAD_TAG: Final = 16
_MAX_UDP_PAYLOAD_SIZE: Final = 0x03

# aioquic warns of each hostile packet through ``logging``, which writes warnings that nobody handles to stderr: strangers could
# fill a log at any rate. What matters is counted, and logged at a bounded rate, by the relay.
logging.getLogger("quic").addHandler(logging.NullHandler())


class Connection(PathConnection):
    """One QUIC connection, of either side.

    ``max_streams`` is how many streams of each kind the peer may have open, ``stream_window`` and ``max_data`` are the fixed
    windows in bytes, ``on_issued`` hears each of our own connection ids. The path is probed for UDP
    payloads up to ``max_udp_payload`` (0: not at all), ``probe_delay`` seconds after the handshake.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        ids: ConnectionIds,
        egress: EgressQueue,
        max_streams: int,
        on_issued: Callable[[bytes], None],
        max_udp_payload: int = 0,
        probe_delay: float = 0.0,
        key_update_packets: int = KEY_UPDATE_PACKETS,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            max_udp_payload=max_udp_payload,
            probe_delay=probe_delay,
            key_update_packets=key_update_packets,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._ids = ids
        self._on_issued = on_issued
        self._crypto_frames = 0
        self.egress = egress
        # The queue has the part of a deque's interface that QuicConnection uses.
        self._datagrams_pending = egress  # type: ignore[assignment]
        first = self._make_id(0, was_sent=True)
        if configuration.is_client:
            first.stateless_reset_token = None  # type: ignore[assignment]  # a client's first id has none (RFC 9000 §18.2)
        self._host_cids = [first]
        self._local_active_connection_id_limit = ACTIVE_IDS
        self.host_cid = first.cid
        self._local_initial_source_connection_id = first.cid
        self._local_max_streams_bidi = _HeldLimit(QuicFrameType.MAX_STREAMS_BIDI, "max_streams_bidi", max_streams)
        self._local_max_streams_uni = _HeldLimit(QuicFrameType.MAX_STREAMS_UNI, "max_streams_uni", max_streams)
        self._remote_initial_max_data = 0
        self._stream_window = configuration.max_stream_data
        self._data_window = configuration.max_data

    # -- before and during the handshake

    def set_first_destination_id(self, connection_id: bytes) -> None:
        """For clients, before ``connect``: the Destination Connection ID of the first Initial (8 to 20 bytes)."""
        self._peer_cid.cid = connection_id
        self._original_destination_connection_id = connection_id

    @property
    def own_ids(self) -> list[bytes]:
        """The connection ids by which the peer may call us now."""
        return [connection_id.cid for connection_id in self._host_cids]

    @property
    def is_started(self) -> bool:
        """Whether at least one packet of the peer was authentic."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def is_established(self) -> bool:
        """Whether the handshake is complete and the connection is not about to end."""
        return self._handshake_complete and not self.is_ending

    @property
    def peer_close(self) -> ConnectionTerminated | None:
        """What the peer has closed the connection with, at once; the event for it comes when the draining period is over."""
        return self._close_event if self._state is QuicConnectionState.DRAINING else None

    @property
    def peer_certificate_sha256(self) -> bytes:
        """For clients: SHA-256 of the server's certificate in DER. ``RuntimeError`` before it was received."""
        certificate = self.tls._peer_certificate  # noqa: SLF001 - no public way
        if certificate is None:
            msg = "the server has not shown its certificate yet"
            raise RuntimeError(msg)
        return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()

    def _make_id(self, sequence_number: int, *, was_sent: bool) -> QuicConnectionId:
        cid = self._ids.new()
        self._on_issued(cid)
        return QuicConnectionId(
            cid=cid,
            sequence_number=sequence_number,
            stateless_reset_token=self._ids.reset_token(cid),
            was_sent=was_sent,
        )

    def _replenish_connection_ids(self) -> None:
        while len(self._host_cids) < min(ACTIVE_IDS, self._remote_active_connection_id_limit):
            self._host_cids.append(self._make_id(self._host_cid_seq, was_sent=False))
            self._host_cid_seq += 1

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        receiver = self._crypto_streams[context.epoch].receiver
        too_far = end - receiver.starting_offset() > MAX_PENDING_CRYPTO
        too_many = len(receiver._ranges) >= MAX_CRYPTO_RANGES  # noqa: SLF001 - no public way
        if context.epoch is not Epoch.ONE_RTT:
            self._crypto_frames += 1
            too_many = too_many or self._crypto_frames > MAX_CRYPTO_FRAMES
        if too_far or too_many:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="too much crypto buffering",
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    # -- datagrams

    @property
    def max_payload(self) -> int:
        """The longest payload in bytes that fits a DATAGRAM frame on the way to the peer; 0 if it takes none."""
        frame_limit = self._remote_max_datagram_frame_size
        if frame_limit is None:
            return 0
        room = self._max_datagram_size - _SHORT_HEADER - len(self._peer_cid.cid) - _AEAD_TAG
        room = min(room, frame_limit)
        return max(0, room - 1 - size_uint_var(room))

    def send_payloads(self, payloads: list[bytes], now: float) -> list[bytes]:
        """Queue ``payloads`` as DATAGRAMs; returns those that are too big ever to leave as such."""
        limit = self.max_payload
        if max(map(len, payloads)) <= limit:
            self.egress.extend(payloads, now)
            return []
        self.egress.extend([payload for payload in payloads if len(payload) <= limit], now)
        return [payload for payload in payloads if len(payload) > limit]

    def send_payload(self, payload: bytes, now: float) -> bool:
        """Queue ``payload`` as a DATAGRAM; False, and nothing queued, if it is too big ever to leave."""
        if len(payload) > self.max_payload:
            return False
        self.egress.push(payload, now)
        return True

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """See ``QuicConnection``. Late payloads are dropped first, and control data leaves before payloads."""
        if not self._network_paths:
            return []
        self.egress.expire(now)
        packets: list[tuple[bytes, Any]] = []
        if self._handshake_confirmed and not self.is_ending:
            packets += self._probe_path(now)  # before what would fill the congestion window
            self._update_keys(now)
        if self._control_waits() and self.egress:
            self._datagrams_pending = _NOTHING  # type: ignore[assignment]
            try:
                packets += super().datagrams_to_send(now)
            finally:
                self._datagrams_pending = self.egress  # type: ignore[assignment]
        packets += super().datagrams_to_send(now)
        state = self.one_rtt
        state.attention = self._has_general_work()
        state.probe_at = self.next_probe_at
        state.revision += 1
        return packets

    def _has_general_work(self) -> bool:
        """Whether anything but datagrams and acknowledgements waits to be sent."""
        if not self._handshake_confirmed or self.is_ending or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty:
            return True
        path = self._network_paths[0]
        data = self._local_max_data
        return bool(
            self._handshake_done_pending
            or self._ping_pending
            or self._probe_pending
            or self._retire_connection_ids
            or self._keys._update_key_requested  # noqa: SLF001
            or self._keys.holds_previous
            or not path.is_validated
            or path.remote_challenges
            or data.value - data.sent >= self._data_window // 4
            or self._is_worth_telling(self._local_max_streams_bidi)
            or self._is_worth_telling(self._local_max_streams_uni)
            or any(not connection_id.was_sent for connection_id in self._host_cids)
            or any(
                stream.receiver.stop_pending or stream.sender.reset_pending or not stream.sender.buffer_is_empty
                for stream in self._streams_queue
            )
        )

    def _control_waits(self) -> bool:
        queue = self._streams_queue
        for stream_id in (HELLO_STREAM, CONTROL_STREAM):
            stream = self._streams.get(stream_id)
            if stream is not None and not stream.sender.buffer_is_empty:
                if queue and queue[0] is not stream and stream in queue:
                    queue.remove(stream)
                    queue.insert(0, stream)
                return True
        return False

    # -- streams

    def is_peer_stream(self, stream_id: int) -> bool:
        """Whether the peer opened the stream (RFC 9000 §2.1)."""
        return bool(stream_id & 1) == self._is_client

    def open_stream(self, *, unidirectional: bool) -> int | None:
        """Open the next stream of our own; None while the peer's limit does not allow it."""
        stream_id = self.get_next_available_stream_id(is_unidirectional=unidirectional)
        limit = self._remote_max_streams_uni if unidirectional else self._remote_max_streams_bidi
        if stream_id // 4 >= limit or not self.is_established:
            return None
        self._get_or_create_stream_for_send(stream_id)
        return stream_id

    def reset_code(self, stream_id: int) -> int | None:
        """The code with which our half of a stream was reset, by us or by a STOP_SENDING; None if it was not."""
        stream = self._streams.get(stream_id)
        return stream.sender._reset_error_code if stream is not None else None  # noqa: SLF001 - no public way

    def reset_sending(self, stream_id: int, code: int) -> None:
        """RESET_STREAM for our half of a stream, if it has one that is still open."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.sender.is_finished:
            self.reset_stream(stream_id, code)

    def stop_receiving(self, stream_id: int, code: int) -> None:
        """STOP_SENDING for the peer's half of a stream, if it has one that is still open."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self.stop_stream(stream_id, code)

    def is_stream_done(self, stream_id: int) -> bool:
        """Whether both halves of a stream have ended, ours acknowledged."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.is_finished

    def is_sending_done(self, stream_id: int) -> bool:
        """Whether everything that was written to a stream, its FIN or reset included, was acknowledged."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender.is_finished

    def allow_stream(self, stream_id: int) -> None:
        """Let the peer open one more stream of the kind of ``stream_id``."""
        limit = self._stream_limit(stream_id)
        if isinstance(limit, _HeldLimit):
            limit.grant()
            self.attention = True

    def forget_received(self, stream_id: int) -> None:
        """Credit everything that was received on a stream and not consumed: it was reset."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            credited = stream.max_stream_data_local - self._stream_window
            self.consume(stream_id, max(0, stream.receiver.highest_offset - credited))

    def unsent(self, stream_id: int) -> int:
        """Bytes written to a stream that the peer has not acknowledged."""
        stream = self._streams.get(stream_id)
        return len(stream.sender._buffer) if stream is not None else 0  # noqa: SLF001 - no public way

    def consume(self, stream_id: int, size: int) -> None:
        """``size`` bytes received on a stream were dealt with: let the peer send as many more."""
        self.attention = True
        self._local_max_data.value += size
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.max_stream_data_local += size

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        stream = self._streams.get(buf.pull_uint_var())
        buf.seek(start)
        if stream is not None and len(stream.receiver._ranges) >= MAX_STREAM_RANGES:  # noqa: SLF001 - no public way
            raise QuicConnectionError(
                error_code=QuicErrorCode.INTERNAL_ERROR, frame_type=frame_type, reason_phrase="too many gaps in a stream"
            )
        super()._handle_stream_frame(context, frame_type, buf)

    def _write_stream_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream, max_offset: int
    ) -> int:
        if stream.stream_id not in (CONTROL_STREAM, HELLO_STREAM):
            # The last of the peer's connection credit is for control: streams that stall must not keep it from being sent.
            credit = self._remote_max_data - self._remote_max_data_used - self._control_reserve
            max_offset = min(max_offset, stream.sender.highest_offset + max(0, credit))
        return super()._write_stream_frame(builder, space, stream, max_offset)

    @property
    def _control_reserve(self) -> int:
        return min(CONTROL_RESERVE, self._remote_initial_max_data // 4)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:  # noqa: FBT001, FBT002
        super()._parse_transport_parameters(data, from_session_ticket)
        takes = _max_udp_payload_size(data)
        if takes is not None:
            self._mtu.limit(takes)
            self._set_datagram_size(self._mtu.size)
        self._remote_initial_max_data = self._remote_max_data

    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        try:
            super()._write_ack_frame(builder, space, now)
            if space.is_application_data:
                sent = self.one_rtt.acks_sent = self.one_rtt.acks_sent + 1
                has_ping = len(space.ack_queue) > 1 and builder.packet_number % 8 == 0
                if sent % ACKS_PER_PING == 0 and not has_ping:
                    self._write_ping_frame(builder, comment="ACK-of-ACK trigger")
        except QuicPacketBuilderStop:
            if space.ack_at is not None:
                raise  # else it is the PING for which the congestion window has no room

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        del space
        data = self._local_max_data
        if data.value != data.sent and data.value - data.sent >= self._data_window // 4:
            self._write_limit(builder, data)
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            if self._is_worth_telling(limit):
                self._write_limit(builder, limit)

    @staticmethod
    def _is_worth_telling(limit: Limit) -> bool:
        """As upstream: when the peer has fewer streams left to open than the update would grant."""
        return limit.value != limit.sent and limit.sent - limit.used < limit.value - limit.sent

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        buf = builder.start_frame(
            limit.frame_type,
            capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buf.push_uint_var(limit.value)
        limit.sent = limit.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        del space
        if stream.stream_id is None:
            return  # a CRYPTO stream has no flow control
        ahead = stream.max_stream_data_local - stream.max_stream_data_local_sent
        if ahead < max(1, self._stream_window // 4) or stream.receiver.is_finished:
            return
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buf.push_uint_var(stream.stream_id)
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local

    # -- what makes the general machinery look again

    def request_key_update(self) -> None:
        """See ``QuicConnection``."""
        self.attention = True
        super().request_key_update()

    def send_ping(self, uid: int) -> None:
        """See ``QuicConnection``."""
        self.attention = True
        super().send_ping(uid)

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:  # noqa: FBT001, FBT002
        """See ``QuicConnection``."""
        self.attention = True
        super().send_stream_data(stream_id, data, end_stream)

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """See ``QuicConnection``."""
        self.attention = True
        super().reset_stream(stream_id, error_code)

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """See ``QuicConnection``."""
        self.attention = True
        super().stop_stream(stream_id, error_code)

    def close(self, error_code: int = 0, frame_type: int | None = None, reason_phrase: str = "") -> None:
        """See ``QuicConnection``."""
        self.attention = True
        super().close(error_code, frame_type, reason_phrase)


def _max_udp_payload_size(parameters: bytes) -> int | None:
    """What transport parameters that were found to be well-formed say about that (RFC 9000 §18.2)."""
    buf = Buffer(data=parameters)
    while not buf.eof():
        parameter, size = buf.pull_uint_var(), buf.pull_uint_var()
        if parameter == _MAX_UDP_PAYLOAD_SIZE:
            return buf.pull_uint_var()
        buf.seek(buf.tell() + size)
    return None


def is_unidirectional(stream_id: int) -> bool:
    """Whether a stream has only one direction (RFC 9000 §2.1)."""
    return bool(stream_id & 2)


class _HeldLimit(Limit):
    """A limit on the peer's streams that only ``grant`` raises.

    aioquic adds one as soon as its own half of a stream has ended, when the mirror of that stream may just begin.
    """

    def __init__(self, frame_type: int, name: str, value: int) -> None:
        self._granted = value
        super().__init__(frame_type, name, value)

    @property
    def value(self) -> int:
        """How many streams the peer may have opened in all."""
        return self._granted

    @value.setter
    def value(self, value: int) -> None:
        """Ignored: see the class."""

    def grant(self) -> None:
        """One more."""
        self._granted += 1


class _Nothing:
    """Stands in for the datagram queue while control data goes first."""

    def __bool__(self) -> bool:
        return False


_NOTHING = _Nothing()
