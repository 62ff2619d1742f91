"""``RelayConnection``: one QUIC connection of the relay, with its session.

Theory of operation
-------------------
The endpoint gives it packets (``receive``) and time (``timed_out``), and asks it once per batch for what is to be sent
(``flush``). In between it turns QUIC's events into calls of its ``Session``; what the session and others do to it is ``Outlet``.
``flush`` also ends things: a close waits until what the session said before (RELEASED, NOTICE TERMINATED) was acknowledged, at
most ``MAX_LINGER``. aioquic sends nothing but the close once ``close`` was called, and some clients forget what they had not read
when it arrives.

While a connection is closing, its last packet is kept and repeated for the 1st, 2nd, 4th, 8th ... packet that arrives
(RFC 9000 §10.2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol, cast

from aioquic.quic import events
from aioquic.quic.logger import QuicLoggerTrace

from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.counters import Handshake
from zrc_relay.core.relay import Relay
from zrc_relay.core.wire import WireError
from zrc_relay.quic.connection import CONTROL_STREAM
from zrc_relay.quic.door import Opening
from zrc_relay.quic.fastpath import FastPath
from zrc_relay.quic.ids import ConnectionIds
from zrc_relay.quic.onertt import GRANULARITY
from zrc_relay.quic.outlet import Outlet
from zrc_relay.quic.settings import Credentials, EndpointSettings
from zrc_relay.quic.udp import Path

IDLE_MARGIN: Final = 0.1
"""Seconds, beside one PTO, before QUIC's idle timeout at which a connection is closed with a word (R5.5)."""


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

    def expect(self, connection: RelayConnection, deadline: float) -> None:
        """Call ``connection.timed_out`` at ``deadline`` (monotonic seconds; infinity: never) and not when it was to be called."""
        ...

    def put_off(self, connection: RelayConnection, deadline: float) -> None:
        """As ``expect``, when it was to be called soon and is not any more."""
        ...

    def expect_owing(self, connection: RelayConnection, at: float) -> None:
        """Flush ``connection``, which owes an acknowledgement, at ``at``, whatever else is expected of it."""
        ...


class RelayConnection(Outlet):
    """See the module's docstring. It keeps the ``credentials`` and ``settings`` that it began with."""

    def __init__(
        self,
        host: Host,
        credentials: Credentials,
        settings: EndpointSettings,
        *,
        ids: ConnectionIds,
        nonce: bytes,
        opening: Opening,
        path: Path,
        now: float,
    ) -> None:
        self._host = host
        super().__init__(
            host.relay, credentials, settings, ids=ids, nonce=nonce, opening=opening, path=path, now=now, on_issued=self._issued,
        )
        self.first_destination_id = self._original_id if opening.retry_id is None else opening.retry_id
        """The connection id that the client uses until it knows one of ours: its own choice, or our Retry's."""
        self.is_admitted = opening.is_validated  # with a Retry token, and so counted against its source's rate
        self.is_draining = False
        """The client has closed it: nothing may be sent any more, not even a stateless reset for its late packets
        (RFC 9000 §10.2.2). That takes no more than its ids, so the rest does not wait for the draining period to end."""
        self._handshake_deadline: float | None = now + settings.handshake_timeout
        self._closing_packets: list[tuple[bytes, Path]] = []
        self._heard_closing = 0
        self._control_received = 0
        self._control_credited = 0
        self._may_be_fast = settings.fast_path
        self._fast: FastPath | None = None
        self._idle_margin = self.quic.configuration.idle_timeout / 4
        self._known_path = path
        self._key_updates = 0

    def _issued(self, connection_id: bytes) -> None:
        self._host.issued(connection_id, self)

    def touch(self) -> None:
        """See ``Outlet``."""
        self._host.touch(self)

    # -- what the endpoint calls

    def receive(self, data: bytes, path: Path, now: float, wall: float) -> None:
        """One UDP datagram for this connection."""
        if self.finished:
            return  # it came to an id that was retired lately
        quic = self.quic
        if self._closing_packets:
            self._repeat_close()
            return
        self._now = now
        deadline = quic.idle_deadline
        quic.receive_datagram(data, path, now)
        self._handle_events(now, wall)
        if quic.idle_deadline != deadline:
            self.session.heard(now)  # an authentic packet, and nothing else, moves the idle timer
        self.touch()

    def receive_batch(self, packets: list[bytes], path: Path, now: float, wall: float) -> None:
        """Short-header packets for this connection, all from one path, in order."""
        if self.finished:
            return
        fast = self._fast
        if fast is None and self._may_be_fast and FastPath.usable(self.quic):
            fast = self._fast = FastPath(self.quic)
        if fast is None or self._close is not None:
            for packet in packets:
                self.receive(packet, path, now, wall)
            return
        self._now = now
        while packets:
            payloads, packets = fast.receive(packets, path, now)
            if payloads:
                self.session.datagrams_received(payloads, now)
            if fast.heard:
                self.session.heard(now)
            if packets:
                self.receive(packets[0], path, now, wall)
                packets = packets[1:]
        if fast.is_sooner and fast.recovery_deadline(self._idle_margin) < self.wakes_at - GRANULARITY:
            self._host.expect(self, self._fast_deadline(fast, now))
        elif fast.is_at_rest and self.is_early:
            self._host.put_off(self, self._fast_deadline(fast, now))
        at = fast.ack_at
        if self._state.attention or self._egress.payloads or at <= now:
            self.touch()
        elif at < inf:  # all else moves away when something is heard, or sets ``attention`` or ``is_sooner``
            self._host.expect_owing(self, at)

    @property
    def owes(self) -> bool:
        """Whether an acknowledgement is owed that nobody but ``Host.expect_owing`` looks after."""
        return self._fast is not None and self._fast.ack_at < inf

    def timed_out(self, now: float, wall: float) -> None:
        """The deadline has come."""
        self._now = now
        fast = self._fast
        if fast is not None and not self._state.attention:
            if self._state.pacing_at <= now or fast.ack_at <= now:
                self.touch()
                return
            at = self._fast_deadline(fast, now)
            if now < at:  # it moved away when something was heard
                self._host.expect(self, at)
                if fast.ack_at < inf:
                    self._host.expect_owing(self, fast.ack_at)
                return
        if self._handshake_deadline is not None and now >= self._handshake_deadline:
            self._host.relay.counters.handshakes[Handshake.TIMED_OUT] += 1
            self._finish(now, wall)
            return
        self.session.timed_out(now, wall)
        idle = self._idle_deadline
        if idle is not None and now >= idle:
            self._host.relay.unbind(self.session, now, wall)
            self.session.shut(ErrorCode.IDLE, "nothing was heard for quic_idle_timeout")
        timer = self.quic.get_timer()
        if timer is not None and now >= timer:
            self.quic.handle_timer(now)
            self._handle_events(now, wall)
        self.touch()

    def flush(self, now: float, wall: float) -> None:
        """Send what is to be sent, and see that ``timed_out`` is called in time; that may be too early, but not twice."""
        if self.finished:
            return
        if self._error is not None:
            raise self._error
        self._now = now
        fast = self._fast
        state = self._state
        if fast is not None and not state.attention and now < state.probe_at:
            packets = fast.seal(now)
            if packets:
                to, origin = fast.address
                origin.send_many(packets, to)
            wakes_at = self.wakes_at
            if wakes_at == inf or fast.has_sooner_deadline(wakes_at, now):
                self._host.expect(self, self._fast_deadline(fast, now))
            if fast.ack_at < inf:
                self._host.expect_owing(self, fast.ack_at)  # it did not fit beside what has left
            return
        self._notice_changes()
        again = self.streams.pump(now) if self._close is None else None
        self._oversize.pump(now)
        self._send(now)
        if self._notice_changes():
            self._oversize.pump(now)
            self._send(now)  # what was queued no longer fitted
        if self._close is not None and not self.quic.is_ending:
            if not self.control_backlog or now >= self._linger_until:
                code, reason = self._close
                self.quic.close(error_code=code, reason_phrase=reason)
                self._send(now)
        elif self.session.control_pending and self.quic.is_established:
            self.session.resume_control(now, wall)
            self._credit_control()
        self._handle_events(now, wall)
        if not self.finished:
            if self._close is not None or not self.streams.is_quiet or self._oversize.waits:
                self._state.attention = True  # there is more to look after than datagrams
            self._host.expect(self, self._deadline(again))

    def _fast_deadline(self, fast: FastPath, now: float) -> float:
        """As ``_deadline``, for a connection on the short way; it may be early for an idle connection, but not twice."""
        at = min(fast.deadline(self._idle_margin), self.session.deadline or inf)
        return at if at > now else min(fast.deadline(0), self._deadline(None))

    def _deadline(self, again: float | None) -> float:
        linger = self._linger_until if self._close is not None and not self.quic.is_ending else None
        at = self.quic.first_probe_at
        for deadline in (
            self.quic.get_timer(), self.session.deadline, self._handshake_deadline, self._idle_deadline, linger, again,
        ):
            if deadline is not None and deadline < at:
                at = deadline
        return at

    def record(self, trace: QuicLoggerTrace | None) -> None:
        """Record what happens from here on into ``trace``; None: no longer. The short way, which records nothing, waits."""
        self._fast = None
        self._state.attention = True
        self.touch()  # so that what the short way has owed is expected of the general one
        self.quic.record(trace)

    @property
    def is_abandoned(self) -> bool:
        """Whether the client was answered and has never shown that it receives what is sent to its address."""
        if self.established or self.is_admitted:  # a Retry token came back from there
            return False
        return self.quic.is_started and self.quic.validated_address is None

    def hurry(self) -> None:
        """Let a close wait no longer: there will be no later flush."""
        self._linger_until = 0.0

    def abort(self, now: float, wall: float) -> None:
        """Something went wrong in our own code: drop the session, tell the client if that still works."""
        try:
            self.session.lost(now, wall)
        finally:
            try:
                self.quic.close(error_code=ErrorCode.INTERNAL, reason_phrase="internal error")
                self._send(now)
            finally:
                self._finish(now, wall)

    @property
    def _idle_deadline(self) -> float | None:
        """When to close an idle connection in peace: before QUIC would end it without a word, here or at the client.

        The client began to wait when it got the packet whose acknowledgement was the last thing heard here, a PTO ago at most.
        """
        quic = self.quic
        deadline = quic.idle_deadline
        if deadline is None or not quic.is_established or self._close is not None:
            return None
        return deadline - min(IDLE_MARGIN + quic.probe_timeout, quic.configuration.idle_timeout / 4)

    def _notice_changes(self) -> bool:
        """What the QUIC connection found out about its path and its keys; returns whether queued payloads were moved by that."""
        if not self.established:
            return False
        quic = self.quic
        counters = self._host.relay.counters
        path = self._path
        if path is not self._known_path and path != self._known_path:
            self._known_path = path
            counters.path_changes += 1
            self.session.moved()
        if quic.key_updates != self._key_updates:
            counters.key_updates += quic.key_updates - self._key_updates
            self._key_updates = quic.key_updates
        payload = quic.max_payload
        if payload == self._max_payload:
            return False
        self._max_payload = payload
        self.session.max_payload_changed()
        larger = quic.egress.remove_larger(payload)
        for each in larger:
            self._send_oversize(each, self._now)
        return bool(larger)

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
        self._fast = None
        self._handshake_deadline = None
        self.touch()
        try:
            self.streams.lost()
        finally:
            self.session.lost(now, wall)

    # -- events

    def _handle_events(self, now: float, wall: float) -> None:
        next_event = self.quic.next_event
        while (event := next_event()) is not None:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event, now, wall)
        if self.quic.is_ending:
            self.session.lost(now, wall)
            self.streams.lost()
            if self.quic.peer_close is not None and not self.finished:
                self.is_draining = True
                self._ended(now, wall)

    def _datagram(self, event: events.DatagramFrameReceived, now: float, wall: float) -> None:
        del wall
        self.session.datagrams_received([event.data], now)

    def _negotiated(self, event: events.ProtocolNegotiated, now: float, wall: float) -> None:
        del event, now, wall
        self.session.greet()  # 1-RTT keys exist from here on: HELLO rides along with the server's first flight

    def _handshake_completed(self, event: events.HandshakeCompleted, now: float, wall: float) -> None:
        del event, wall
        self._handshake_deadline = None
        self.established = True
        self._max_payload = self.quic.max_payload
        self._host.relay.counters.handshakes[Handshake.COMPLETED] += 1
        self.session.handshake_completed(now)
        self._host.established(self)

    def _id_retired(self, event: events.ConnectionIdRetired, now: float, wall: float) -> None:
        del now, wall
        self._host.retired(event.connection_id, self)

    def _terminated(self, event: events.ConnectionTerminated, now: float, wall: float) -> None:
        del event
        self._ended(now, wall)

    def _ended(self, now: float, wall: float) -> None:
        if not self.established:
            self._host.relay.counters.handshakes[Handshake.FAILED] += 1
        self._finish(now, wall)

    def _stream_reset(self, event: events.StreamReset, now: float, wall: float) -> None:
        if event.stream_id == CONTROL_STREAM:
            self.session.control_ended(now, wall)
        else:
            self.streams.reset(event.stream_id, event.error_code)

    def _stop_sending(self, event: events.StopSendingReceived, now: float, wall: float) -> None:
        if event.stream_id == CONTROL_STREAM:
            self.session.control_ended(now, wall)
        else:
            self.streams.stop_sending(event.stream_id, event.error_code)

    def _stream_data(self, event: events.StreamDataReceived, now: float, wall: float) -> None:
        if event.stream_id == CONTROL_STREAM:
            self._control_received += len(event.data)
            self.session.control_received(event.data, now, wall)
            self._credit_control()
            if event.end_stream:
                self.session.control_ended(now, wall)
            return
        if self._close is not None:
            self.quic.consume(event.stream_id, len(event.data))
            return
        try:
            self.streams.data(event.stream_id, event.data, ended=event.end_stream, now=now)
        except WireError as error:
            self.session.broken(error, now, wall)

    def _credit_control(self) -> None:
        # Only what was decoded is given back, so a client whose answers pile up is stopped by its own flow control.
        decoded = self._control_received - self.session.control_pending
        if decoded > self._control_credited:
            self.quic.consume(CONTROL_STREAM, decoded - self._control_credited)
            self._control_credited = decoded


_HANDLERS: Final[dict[type[events.QuicEvent], Callable[[RelayConnection, Any, float, float], None]]] = {
    events.DatagramFrameReceived: RelayConnection._datagram,  # noqa: SLF001 - this table is part of the class
    events.StreamDataReceived: RelayConnection._stream_data,  # noqa: SLF001
    events.StreamReset: RelayConnection._stream_reset,  # noqa: SLF001
    events.StopSendingReceived: RelayConnection._stop_sending,  # noqa: SLF001
    events.ProtocolNegotiated: RelayConnection._negotiated,  # noqa: SLF001
    events.HandshakeCompleted: RelayConnection._handshake_completed,  # noqa: SLF001
    events.ConnectionIdRetired: RelayConnection._id_retired,  # noqa: SLF001
    events.ConnectionTerminated: RelayConnection._terminated,  # noqa: SLF001
}
