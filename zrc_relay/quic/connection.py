"""``Connection``: aioquic's QuicConnection with what a relay needs; the only general code that touches its private attributes.

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

It is used for both ends: by the relay (``server.py``) and by the client library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from aioquic._buffer import Buffer
from aioquic.buffer import size_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    END_STATES,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography.hazmat.primitives.serialization import Encoding

from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.ids import ConnectionIds

ALPN: Final = "zrc-relay"
MAX_DATAGRAM_FRAME: Final = 65535
"""What both sides advertise as max_datagram_frame_size (PROTOCOL §1)."""
MAX_PENDING_CRYPTO: Final = 16 * 1024
"""Out-of-order CRYPTO bytes kept: several times the largest handshake message anyone sends us."""
MAX_CRYPTO_RANGES: Final = 64
"""Gaps in CRYPTO data: clients that shuffle their ClientHello make about ten."""
MAX_STREAM_RANGES: Final = 256
"""Gaps in one stream: more than every second packet of a window lost."""
CONTROL_STREAM: Final = 0
HELLO_STREAM: Final = 3
_SHORT_HEADER: Final = 3  # first byte and a 2-byte packet number
_AEAD_TAG: Final = 16
_MIN_PATIENCE: Final = 1.0


class Connection(QuicConnection):
    """One QUIC connection, of either side.

    ``max_streams`` is how many streams of each kind the peer may have open, ``stream_window`` and ``max_data`` are the fixed
    windows in bytes, ``on_issued`` hears each of our own connection ids.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        ids: ConnectionIds,
        egress: EgressQueue,
        max_streams: int,
        on_issued: Callable[[bytes], None],
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._ids = ids
        self._on_issued = on_issued
        self.egress = egress
        # The queue has the part of a deque's interface that QuicConnection uses.
        self._datagrams_pending = egress  # type: ignore[assignment]
        first = self._make_id(0, was_sent=True)
        if configuration.is_client:
            first.stateless_reset_token = None  # type: ignore[assignment]  # a client's first id has none (RFC 9000 §18.2)
        self._host_cids = [first]
        self.host_cid = first.cid
        self._local_initial_source_connection_id = first.cid
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            limit.value = limit.sent = max_streams
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
    def is_ending(self) -> bool:
        """Whether the connection is closed, draining or about to send its close."""
        return self._close_pending or self._state in END_STATES

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
        while len(self._host_cids) < min(8, self._remote_active_connection_id_limit):
            self._host_cids.append(self._make_id(self._host_cid_seq, was_sent=False))
            self._host_cid_seq += 1

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        receiver = self._crypto_streams[context.epoch].receiver
        too_far = end - receiver.starting_offset() > MAX_PENDING_CRYPTO
        if too_far or len(receiver._ranges) >= MAX_CRYPTO_RANGES:  # noqa: SLF001 - no public way
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
        if not self.egress or not self._control_waits():
            return super().datagrams_to_send(now)
        self._datagrams_pending = _NOTHING  # type: ignore[assignment]
        try:
            first = super().datagrams_to_send(now)
        finally:
            self._datagrams_pending = self.egress  # type: ignore[assignment]
        return first + super().datagrams_to_send(now)

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

    def unsent(self, stream_id: int) -> int:
        """Bytes written to a stream that the peer has not acknowledged."""
        stream = self._streams.get(stream_id)
        return len(stream.sender._buffer) if stream is not None else 0  # noqa: SLF001 - no public way

    def consume(self, stream_id: int, size: int) -> None:
        """``size`` bytes received on a stream were dealt with: let the peer send as many more."""
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

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        del space
        data = self._local_max_data
        if data.value != data.sent and data.value - data.sent >= self._data_window // 4:
            self._write_limit(builder, data)
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            # As upstream: wait until the peer has fewer streams left to open than the update would grant.
            if limit.value != limit.sent and limit.sent - limit.used < limit.value - limit.sent:
                self._write_limit(builder, limit)

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

    # -- timing

    @property
    def patience(self) -> float:
        """max(3 PTO, 1 s): silence longer than this makes a connection a poor choice for egress (PROTOCOL §6)."""
        return max(3 * self._loss.get_probe_timeout(), _MIN_PATIENCE)

    @property
    def peer_address(self) -> Any:
        """Where packets go now, as it was given to ``receive_datagram``."""
        return self._network_paths[0].addr


class _Nothing:
    """Stands in for the datagram queue while control data goes first."""

    def __bool__(self) -> bool:
        return False


_NOTHING = _Nothing()
