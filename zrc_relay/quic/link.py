"""``RelayConnection``: one QUIC connection of the relay, with its session.

Theory of operation
-------------------
The endpoint gives it packets (``receive``) and time (``timed_out``), and asks it once per batch for what is to be sent
(``flush``). In between it turns QUIC's events into calls of its ``Session``, and is the session's ``Link``. ``flush`` also ends
things: a close waits until what the session said before (RELEASED, NOTICE TERMINATED) was acknowledged, at most ``MAX_LINGER``.
aioquic sends nothing but the close once ``close`` was called, and some clients forget what they had not read when it arrives.

While a connection is closing, its last packet is kept and repeated for the 1st, 2nd, 4th, 8th ... packet that arrives
(RFC 9000 §10.2.1).
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

from zrc_relay.core.codes import DropCause, ErrorCode
from zrc_relay.core.counters import Handshake
from zrc_relay.core.relay import Relay
from zrc_relay.core.session import Session
from zrc_relay.core.wire import Address
from zrc_relay.quic.connection import CONTROL_STREAM, HELLO_STREAM, Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.ids import ConnectionIds
from zrc_relay.quic.udp import Path

MAX_LINGER: Final = 1.0
"""Longest time in seconds that a close waits for the control stream to be acknowledged."""


class Host(Protocol):
    """What a connection needs of the endpoint that it belongs to."""

    relay: Relay

    def issued(self, connection_id: bytes, connection: RelayConnection) -> None:
        """Packets to ``connection_id`` are for ``connection`` from now on."""
        ...

    def retired(self, connection_id: bytes, connection: RelayConnection) -> None:
        """The client no longer uses ``connection_id``."""
        ...

    def established(self, connection: RelayConnection) -> None:
        """The handshake is complete."""
        ...

    def touch(self, connection: RelayConnection) -> None:
        """``connection`` has something to send: flush it at the end of the batch."""
        ...


class RelayConnection:
    """See the module's docstring. ``certificate_sha256`` is of the certificate that ``configuration`` holds."""

    def __init__(
        self,
        host: Host,
        *,
        configuration: QuicConfiguration,
        certificate_sha256: bytes,
        ids: ConnectionIds,
        nonce: bytes,
        first_destination_id: bytes,
        path: Path,
        now: float,
        handshake_timeout: float,
        egress_bytes: int,
        egress_age: float,
        max_streams: int,
    ) -> None:
        self._host = host
        self.certificate_sha256 = certificate_sha256
        self.first_destination_id = first_destination_id
        self.established = False
        self.finished = False
        self._first_path = path
        self._handshake_deadline: float | None = now + handshake_timeout
        self._close: tuple[ErrorCode, str] | None = None
        self._linger_until = 0.0
        self._closing_packets: list[tuple[bytes, Path]] = []
        self._heard_closing = 0
        self._control_received = 0
        self._control_credited = 0
        self._now = now
        egress = EgressQueue(egress_bytes, egress_age, self._dropped_late)
        self.quic = Connection(
            configuration=configuration,
            ids=ids,
            egress=egress,
            max_streams=max_streams,
            on_issued=self._issued,
            original_destination_connection_id=first_destination_id,
        )
        self.session = Session(host.relay, self, nonce, now)

    def _dropped_late(self, size: int) -> None:
        self.session.drop_egress(DropCause.EGRESS_QUEUE, size, self._now)

    def _issued(self, connection_id: bytes) -> None:
        self._host.issued(connection_id, self)

    # -- what the endpoint calls

    def receive(self, data: bytes, path: Path, now: float, wall: float) -> None:
        """One UDP datagram for this connection."""
        quic = self.quic
        if self._closing_packets:
            self._repeat_close()
            return
        self._now = now
        quic.receive_datagram(data, path, now)
        self._handle_events(now, wall)
        self._host.touch(self)

    def timed_out(self, now: float, wall: float) -> None:
        """The deadline has come."""
        self._now = now
        if self._handshake_deadline is not None and now >= self._handshake_deadline:
            self._host.relay.counters.handshakes[Handshake.TIMED_OUT] += 1
            self._finish(now, wall)
            return
        self.session.timed_out(now, wall)
        timer = self.quic.get_timer()
        if timer is not None and now >= timer:
            self.quic.handle_timer(now)
            self._handle_events(now, wall)
        self._host.touch(self)

    def flush(self, now: float, wall: float) -> float | None:
        """Send what is to be sent; returns when ``timed_out`` wants to be called (None: never)."""
        if self.finished:
            return None
        self._now = now
        self._send(now)
        if self._close is not None and not self.quic.is_ending:
            if not self.control_backlog or now >= self._linger_until:
                code, reason = self._close
                self.quic.close(error_code=code, reason_phrase=reason)
                self._send(now)
        elif self.session.control_pending and self.quic.is_established:
            self.session.resume_control(now, wall)
            self._credit_control()
        self._handle_events(now, wall)
        if self.finished:
            return None
        linger = self._linger_until if self._close is not None and not self.quic.is_ending else None
        deadlines = (self.quic.get_timer(), self.session.deadline, self._handshake_deadline, linger)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def abort(self, now: float, wall: float) -> None:
        """Something went wrong in our own code: drop the session, tell the client if that still works."""
        self.session.lost(now, wall)
        try:
            self.quic.close(error_code=ErrorCode.INTERNAL, reason_phrase="internal error")
            self._send(now)
        finally:
            self._finish(now, wall)

    def _send(self, now: float) -> None:
        ending = self.quic.is_ending
        packets = cast(list[tuple[bytes, Path]], self.quic.datagrams_to_send(now))
        for data, (to, origin) in packets:
            origin.send(data, to)
        if packets and ending:
            self._closing_packets = packets

    def _repeat_close(self) -> None:
        self._heard_closing += 1
        if self._heard_closing & (self._heard_closing - 1) == 0:
            for data, (to, origin) in self._closing_packets:
                origin.send(data, to)

    def _finish(self, now: float, wall: float) -> None:
        self.finished = True
        self._handshake_deadline = None
        self.session.lost(now, wall)
        self._host.touch(self)

    # -- events

    def _handle_events(self, now: float, wall: float) -> None:
        session = self.session
        next_event = self.quic.next_event
        heard = False
        while (event := next_event()) is not None:
            kind = type(event)
            if kind is events.DatagramFrameReceived:
                session.datagram_received(cast(events.DatagramFrameReceived, event).data, now)
                heard = True
            elif kind is events.StreamDataReceived:
                self._stream_data(cast(events.StreamDataReceived, event), now, wall)
                heard = True
            elif kind is events.StreamReset:
                if cast(events.StreamReset, event).stream_id == CONTROL_STREAM:
                    session.control_ended(now, wall)
            elif kind is events.ProtocolNegotiated:
                session.greet()  # 1-RTT keys exist from here on: HELLO rides along with the server's first flight
            elif kind is events.HandshakeCompleted:
                self._handshake_deadline = None
                self.established = True
                self._host.relay.counters.handshakes[Handshake.COMPLETED] += 1
                session.handshake_completed(now)
                self._host.established(self)
            elif kind is events.ConnectionIdRetired:
                self._host.retired(cast(events.ConnectionIdRetired, event).connection_id, self)
            elif kind is events.ConnectionTerminated:
                if not self.established:
                    self._host.relay.counters.handshakes[Handshake.FAILED] += 1
                self._finish(now, wall)
        if self.quic.is_ending:
            session.lost(now, wall)
        if heard:
            session.heard(now)

    def _stream_data(self, event: events.StreamDataReceived, now: float, wall: float) -> None:
        if event.stream_id == CONTROL_STREAM:
            self._control_received += len(event.data)
            self.session.control_received(event.data, now, wall)
            self._credit_control()
            if event.end_stream:
                self.session.control_ended(now, wall)
            return
        self.quic.consume(event.stream_id, len(event.data))

    def _credit_control(self) -> None:
        # Only what was decoded is given back, so a client whose answers pile up is stopped by its own flow control.
        decoded = self._control_received - self.session.control_pending
        if decoded > self._control_credited:
            self.quic.consume(CONTROL_STREAM, decoded - self._control_credited)
            self._control_credited = decoded

    # -- Link

    @property
    def name(self) -> str:
        """The first connection id that the client used, in hex; unique enough to find its lines in a log."""
        return self.first_destination_id.hex()

    @property
    def remote(self) -> Address:
        """See ``Link``."""
        (host, port, *_), _ = self._path
        return Address.of(host, port)

    @property
    def local(self) -> Address:
        """See ``Link``."""
        return self._path[1].address

    @property
    def _path(self) -> Path:
        return cast(Path, self.quic.peer_address) if self.established else self._first_path

    @property
    def max_payload(self) -> int:
        """See ``Link``."""
        return self.quic.max_payload

    @property
    def patience(self) -> float:
        """See ``Link``."""
        return self.quic.patience

    @property
    def control_backlog(self) -> int:
        """See ``Link``."""
        return self.quic.unsent(CONTROL_STREAM)

    def send_hello(self, data: bytes) -> None:
        """See ``Link``."""
        self.quic.send_stream_data(HELLO_STREAM, data, end_stream=True)

    def send_control(self, data: bytes) -> None:
        """See ``Link``."""
        self.quic.send_stream_data(CONTROL_STREAM, data)
        self._host.touch(self)

    def send_datagram(self, payload: bytes, now: float) -> None:
        """See ``Link``."""
        if self.quic.send_payload(payload, now):
            self._host.touch(self)
        else:
            self.session.drop_egress(DropCause.OVERSIZE, len(payload), now)

    def close(self, code: ErrorCode, reason: str) -> None:
        """See ``Link``."""
        self._close = (code, reason)
        self._linger_until = self._now + min(self.quic.patience, MAX_LINGER)
        self._host.touch(self)

