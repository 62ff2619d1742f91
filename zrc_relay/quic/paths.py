"""``PathConnection``: what a QUIC connection knows of its path, its keys and its time, where aioquic leaves something out.

Theory of operation
-------------------
* **Another path** begins with fresh congestion and RTT estimates (RFC 9000 §9.4), and acknowledgements of packets that took the
  old one tell nothing of the new one. The address that counts is the last one that was validated.
* **Path MTU** is searched for (``pmtu.py``) with padded PINGs whose loss says nothing about congestion (``congestion.py``). The
  relay waits a moment with that after the handshake: who only comes to ask, or goes on to another relay, costs no probe.
* **Keys** are updated after so many packets, and those of the phase before kept for what is still on its way (``keyphase.py``).
* **Idle** is who is not *heard*: sending does not restart the timer, so that a dead client is noticed in time although the relay
  keeps sending to it.
"""

from __future__ import annotations

import hmac
from math import inf
from typing import Any, Final, cast

from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CRYPTO_BUFFER_SIZE,
    END_STATES,
    QuicConnection,
    QuicConnectionError,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.logger import QuicLoggerTrace
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Context, Epoch, ExtensionType

from zrc_relay.quic.ids import RESET_TOKEN_SIZE
from zrc_relay.quic.keyphase import InitialKeys, KeyPair
from zrc_relay.quic.onertt import OneRtt, PacketSpace, PathState
from zrc_relay.quic.pmtu import PathMtu
from zrc_relay.quic.qlog import Trace
from zrc_relay.quic.recovery import Recovery, kept_in, kept_time

KEY_UPDATE_PACKETS: Final = 1 << 22
"""Packets sealed with one key: half of the AES-GCM confidentiality limit of 2^23 (RFC 9001 §6.6)."""
MAX_ACK_FRAMES: Final = 16
"""ACK frames in one UDP datagram: nobody needs more than one for each packet in it, and each costs a look at what was sent."""
MIN_STATELESS_RESET: Final = 21
"""Smallest packet that can be one (RFC 9000 §10.3)."""
_LASTING: Final = frozenset((
    "_close_pending", "_handshake_complete", "_network_paths", "_state", "_validated_address", "one_rtt",
))
"""What says that a connection has ended, and who it was with."""
_MIN_PATIENCE: Final = 1.0
_PADDING_PIECE: Final = 64
_RTT_ESTIMATES: Final = (
    "rtt_first_sample_at", "rtt_initialized", "rtt_latest", "rtt_min", "rtt_smoothed", "rtt_variance",
)


class PathConnection(QuicConnection):
    """The part of ``Connection`` below ids, datagrams and streams; see the module's docstring.

    What each packet changes is in ``one_rtt``, under aioquic's names as well.
    """

    attention = kept_in("one_rtt", "attention")
    _close_at = kept_time("one_rtt", "close_at")
    _pacing_at = kept_time("one_rtt", "pacing_at")
    _packet_number = kept_in("one_rtt", "packet_number")
    _spin_bit = kept_in("one_rtt", "spin_bit")
    _spin_highest_pn = kept_in("one_rtt", "spin_highest")

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        max_udp_payload: int,
        probe_delay: float,
        key_update_packets: int,
        original_destination_connection_id: bytes | None,
        retry_source_connection_id: bytes | None,
    ) -> None:
        self.one_rtt = OneRtt()
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        if not configuration.is_client:
            self._logger = _UNHEARD  # type: ignore[assignment]
        self._recovery = Recovery(
            initial_rtt=configuration.initial_rtt, max_datagram_size=configuration.max_datagram_size,
            is_client=configuration.is_client, send_probe=self._send_probe,
        )
        self._loss = self._recovery
        self._came_by_retry = retry_source_connection_id is not None
        self._mtu = PathMtu(configuration.max_datagram_size, max_udp_payload)
        self._probe_delay = probe_delay if self._mtu.next_probe_at < inf else 0.0
        self._key_update_packets = key_update_packets
        self._keys_since = 0
        self._forget_keys_at: float | None = None
        self._path_since = 0
        self._heard_path: QuicNetworkPath | None = None
        self._validated_address: Any = None
        self._known_updates = 0
        self._ack_frames = 0
        """In the UDP datagram that is being received."""

    @property
    def key_update_packets(self) -> int:
        """Packets sealed with one key before this side changes it; may be changed at any time."""
        return self._key_update_packets

    @key_update_packets.setter
    def key_update_packets(self, packets: int) -> None:
        self._key_update_packets = packets
        self.attention = True

    def record(self, trace: QuicLoggerTrace | None) -> None:
        """Log QUIC events into ``trace`` from now on; None: no longer. A ``Trace`` hears of the end of the connection."""
        self._quic_logger = trace
        self._loss._quic_logger = trace  # noqa: SLF001 - it has a copy of its own

    def _close_end(self) -> None:
        self._end_trace()  # which ``QuicConnection`` would want to give back to the configuration
        super()._close_end()

    def _end_trace(self) -> None:
        trace = self._quic_logger
        if isinstance(trace, Trace):
            self.record(None)
            trace.end()

    @property
    def is_ending(self) -> bool:
        """Whether the connection is closed, draining or about to send its close."""
        return self._close_pending or self._state in END_STATES

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        if not self._is_client:
            self._crypto_buffers = {}  # 48 kB, and a server has nothing more to say in them

    def let_go(self) -> None:
        """After its end: keep only what others may still ask (``_LASTING``).

        A QuicConnection is full of reference cycles, because each of its parts has a callback. Left to the garbage collector,
        connections that are over would pile up, and then keep every packet waiting while it looks at all that there is.
        """
        self._end_trace()
        attributes = vars(self)
        lasting = {name: attributes[name] for name in _LASTING if name in attributes}
        attributes.clear()
        attributes.update(lasting)
        self._streams = {}

    # -- the path

    @property
    def validated_address(self) -> Any:
        """The last address of the peer that was validated (RFC 9000 §8); None before the first."""
        path = self._network_paths[0] if self._network_paths else None
        if path is not None and path.is_validated:
            self._validated_address = path.addr
        return self._validated_address

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """See ``QuicConnection``. A peer that comes from another address begins with fresh estimates of its path."""
        self.attention = True
        self._ack_frames = 0
        super().receive_datagram(data, addr, now)
        self._follow_path()

    def handle_timer(self, now: float) -> None:
        """See ``QuicConnection``. A new path that the peer did not confirm in time is left for the old one again.

        When only an acknowledgement or a paced packet is due there is nothing to do but to send.
        """
        validation = self._path_validation_deadline()
        if now < min(self._close_at or inf, self._loss_at or inf, validation or inf):
            return
        self.attention = True
        super().handle_timer(now)
        self._follow_path()

    def _follow_path(self) -> None:
        path = self._network_paths[0] if self._network_paths else None
        if path is not self._heard_path:
            if self._heard_path is not None and path is not None and path.addr != self._heard_path.addr:
                self._on_path_change()
            self._heard_path = path

    def _on_path_change(self) -> None:
        self._path_since = self._packet_number
        for space in self._loss.spaces:
            for packet in space.sent_packets.values():
                packet.in_flight = False  # on its way along the old path: not in this one's window
        self._mtu.restart()
        self._set_datagram_size(self._mtu.size)
        self._recovery.path.forget(self._max_datagram_size)

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._ack_frames += 1
        if self._ack_frames > MAX_ACK_FRAMES:
            reason = "too many ACK frames in one datagram"
            raise QuicConnectionError(error_code=QuicErrorCode.INTERNAL_ERROR, frame_type=frame_type, reason_phrase=reason)
        start = buf.tell()
        is_old = context.epoch is Epoch.ONE_RTT and buf.pull_uint_var() < self._path_since
        buf.seek(start)
        known = self._recovery.path
        estimates = [getattr(known, name) for name in _RTT_ESTIMATES] if is_old else []
        super()._handle_ack_frame(context, frame_type, buf)
        for name, value in zip(_RTT_ESTIMATES, estimates, strict=False):
            setattr(known, name, value)  # packets that took the old path tell nothing of this one (RFC 9000 §9.4)

    @property
    def udp_payload(self) -> int:
        """How many bytes of UDP payload the path to the peer is known to carry."""
        return self._max_datagram_size

    @property
    def next_probe_at(self) -> float:
        """When a probe of the path's MTU may leave, if anything is sent at all."""
        search_at = self.one_rtt.search_at
        return search_at if search_at < inf else self._mtu.next_probe_at

    @property
    def first_probe_at(self) -> float:
        """When the search for the path's MTU begins, whether anything else is sent or not; infinity once it has begun."""
        return inf if self.is_ending else self.one_rtt.search_at

    def _probe_path(self, now: float) -> list[tuple[bytes, Any]]:
        """A packet of the size that the search wants to know about, if it wants to know now (RFC 9000 §14.4)."""
        state = self.one_rtt
        if self._probe_delay:
            state.search_at, self._probe_delay = now + self._probe_delay, 0.0
        if now < state.search_at < inf:
            return []
        state.search_at = inf
        path = self._network_paths[0]
        congestion = self._recovery.path.congestion
        if congestion.is_black_hole:
            self._mtu.black_hole()
            self._set_datagram_size(self._mtu.size)
        size = self._mtu.next_probe(now) if path.is_validated else None
        if size is None or size > congestion.congestion_window - congestion.bytes_in_flight:
            return []
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=self._version or 0,
            quic_logger=self._quic_logger,
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[Epoch.ONE_RTT])
        builder.start_frame(QuicFrameType.PING, handler=self._on_probe_delivery, handler_args=(size, path))
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            builder.quic_logger_frames.append(self._quic_logger.encode_ping_frame())
        builder._datagram_needs_padding = True  # noqa: SLF001 - how aioquic pads its own path challenges
        self._mtu.sent()
        return self._flush_builder(builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now)

    def _on_probe_delivery(self, delivery: QuicDeliveryState, size: int, path: QuicNetworkPath) -> None:
        if path is not self._network_paths[0]:
            return
        now = self._recovery.path.last_eliciting_at  # near enough for a timer of minutes
        if delivery is not QuicDeliveryState.ACKED:
            self._mtu.lost(size, now)
        elif self._mtu.acked(size, now):
            self._set_datagram_size(size)

    def _set_datagram_size(self, size: int) -> None:
        self._max_datagram_size = size
        known = self._recovery.path
        known.pacer.max_datagram_size = size
        known.congestion.set_datagram_size(size)

    def _initialize(self, peer_cid: bytes) -> None:
        if self._is_client:
            super()._initialize(peer_cid)
        else:
            self._initialize_server(peer_cid)
        if self._came_by_retry:
            self._network_paths[0].is_validated = True  # RFC 9000 §8.1.2; aioquic itself would wait for a Handshake packet
        self._keys = self._cryptos[Epoch.ONE_RTT] = KeyPair()
        self._spaces[Epoch.ONE_RTT] = PacketSpace()  # type: ignore[assignment]  # of the same interface
        self._loss.spaces = list(self._spaces.values())

    def _initialize_server(self, peer_cid: bytes) -> None:
        """What a server needs of upstream's ``_initialize``: no keys for a version of QUIC before a client speaks it."""
        configuration = self._configuration
        context = self.tls = Context(
            is_client=False, alpn_protocols=configuration.alpn_protocols, cipher_suites=configuration.cipher_suites,
            logger=self._logger,
        )
        context.certificate = configuration.certificate
        context.certificate_chain = configuration.certificate_chain
        context.certificate_private_key = configuration.private_key
        context.handshake_extensions = [(ExtensionType.QUIC_TRANSPORT_PARAMETERS, self._serialize_transport_parameters())]
        context.alpn_cb = self._alpn_handler
        context.update_traffic_key_cb = self._update_traffic_key
        self._cryptos_initial = InitialKeys(peer_cid)
        self._cryptos = {
            Epoch.INITIAL: self._cryptos_initial[self._version or 0], Epoch.ZERO_RTT: CryptoPair(), Epoch.HANDSHAKE: CryptoPair(),
        }
        epochs = (Epoch.INITIAL, Epoch.HANDSHAKE, Epoch.ONE_RTT)
        self._crypto_buffers = {epoch: Buffer(capacity=CRYPTO_BUFFER_SIZE) for epoch in epochs}
        self._crypto_streams = {epoch: QuicStream() for epoch in epochs}
        self._spaces = {Epoch.INITIAL: QuicPacketSpace(), Epoch.HANDSHAKE: QuicPacketSpace()}

    def _discard_epoch(self, epoch: Epoch) -> None:
        super()._discard_epoch(epoch)
        if epoch is Epoch.INITIAL and isinstance(self._cryptos_initial, InitialKeys):
            self._cryptos_initial.discard()

    def _handle_padding_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        del frame_type
        position, size = buf.tell(), _PADDING_PIECE
        while piece := buf.data_slice(position, min(position + size, buf.capacity)):
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            position += zeros
            if zeros < len(piece):
                break
            size *= 8  # not all at once: a packet may be full of frames that are one zero long
        buf.seek(position)
        if self._quic_logger is not None and context.quic_logger_frames is not None:
            context.quic_logger_frames.append(self._quic_logger.encode_padding_frame())

    def _update_keys(self, now: float) -> None:
        keys = self._keys
        if keys.updates != self._known_updates:  # by the peer or by us
            self._known_updates = keys.updates
            self._keys_since = self._packet_number
            self._forget_keys_at = None
        if keys.holds_previous and keys.is_settled:
            if self._forget_keys_at is None:
                self._forget_keys_at = now + 3 * self.probe_timeout  # RFC 9001 §6.5
            elif now >= self._forget_keys_at:
                keys.forget_previous()
        sealed = self._packet_number - self._keys_since
        if sealed >= self.key_update_packets and self._spaces[Epoch.ONE_RTT].largest_acked_packet > self._keys_since:
            # The peer has the current keys (RFC 9001 §6.1): one of their packets was acknowledged.
            self.request_key_update()

    @property
    def key_updates(self) -> int:
        """How often the keys were changed, by either side."""
        return self._keys.updates if self._handshake_confirmed else 0

    def is_stateless_reset(self, data: bytes) -> bool:
        """Whether a packet that belongs to no connection is the peer's stateless reset of this one (RFC 9000 §10.3.1)."""
        token = data[-RESET_TOKEN_SIZE:]
        known = (self._peer_cid, *self._peer_cid_available)
        # Every comparison takes the same time, whatever the token is (RFC 9000 §10.3.1).
        matches = [hmac.compare_digest(cid.stateless_reset_token or b"", token) for cid in known]
        return len(data) >= MIN_STATELESS_RESET and any(matches)

    # -- timing

    @property
    def patience(self) -> float:
        """max(3 PTO, 1 s): silence longer than this makes a connection a poor choice for egress (PROTOCOL §6)."""
        return max(3 * self._loss.get_probe_timeout(), _MIN_PATIENCE)

    @property
    def congestion_window(self) -> int:
        """How many bytes may be under way to the peer."""
        return self._loss.congestion_window

    @property
    def probe_timeout(self) -> float:
        """The PTO in seconds, without backoff."""
        return self._loss.get_probe_timeout()

    @property
    def round_trip_time(self) -> float | None:
        """The smoothed RTT in seconds (RFC 9002 §5.3); None before the first sample."""
        path: PathState = self._recovery.path
        return path.rtt_smoothed if path.rtt_initialized else None

    @property
    def awaits_answer(self) -> bool:
        """Whether something that asks for an acknowledgement is on its way."""
        return any(space.ack_eliciting_in_flight for space in self._loss.spaces)

    @property
    def idle_deadline(self) -> float | None:
        """When the connection ends unless something is heard."""
        return cast("float | None", self._close_at)

    @property
    def _ack_eliciting_sent_since_receipt(self) -> bool:
        """Always true: sending does not restart the idle timer, so that a dead peer is noticed in time (R2.6)."""
        return True

    @_ack_eliciting_sent_since_receipt.setter
    def _ack_eliciting_sent_since_receipt(self, value: bool) -> None:
        """Ignored."""


class _Unheard:
    """Takes what aioquic tells ``logging`` of each packet: in a relay what matters is counted, and nobody reads the rest."""

    def debug(self, *args: object, **named: object) -> None:
        """Nothing."""

    info = warning = error = exception = debug


_UNHEARD = _Unheard()
