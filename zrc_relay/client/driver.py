"""``Driver``: keeps one QUIC connection of a client going: packets in and out, time, and whether the relay is still there.

Theory of operation
-------------------
``flush`` is the one place that sends. It runs once for each batch of packets that arrives, once for each turn of the reactor in
which something was written (``flush_soon``), and when the timer fires. There is one timer, for QUIC's deadlines and for the
``Vigil``'s; it is re-armed only when the earliest of them moves earlier.

Events go to ``handle``. ``pump`` is called before packets are made, so that everything that can move moves first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from aioquic.quic.events import QuicEvent

from zrc_relay.client.errors import ConnectionLost
from zrc_relay.client.vigil import Advice, Vigil
from zrc_relay.core.codes import ErrorCode
from zrc_relay.quic.clock import Clock, DelayedCall
from zrc_relay.quic.connection import Connection
from zrc_relay.quic.udp import Path

KEEPALIVE_PING: Final = 0
"""Number of the PINGs that the vigil asks for, and nobody waits for."""


class Driver:
    """See the module's docstring. ``lost`` is called with the reason when the relay is gone."""

    def __init__(
        self,
        quic: Connection,
        path: Path,
        *,
        clock: Clock,
        now: Callable[[], float],
        pump: Callable[[float], None],
        handle: Callable[[QuicEvent, float], None],
        lost: Callable[[ConnectionLost], None],
    ) -> None:
        self.is_stopped = False
        self.now = now
        self._quic = quic
        self._path = path
        self._clock = clock
        self._pump = pump
        self._handle = handle
        self._lost = lost
        self._vigil = Vigil(now())
        self._timer: DelayedCall | None = None
        self._timer_at = 0.0
        self._flush_call: DelayedCall | None = None
        self._in_batch = False

    def start(self) -> None:
        """Send the first Initial."""
        self._quic.connect(self._path, self.now())
        self.flush()

    def keep_alive(self, interval: float) -> None:
        """Let the relay hear something every ``interval`` seconds (0: no need)."""
        self._vigil.keep_alive(interval)

    def stop(self, *, tell: bool) -> None:
        """Send nothing more but, if ``tell``, the close; let all timers go."""
        if self.is_stopped:
            return
        self.is_stopped = True
        if tell:
            self._quic.close(error_code=ErrorCode.NO_ERROR)
            self._send()
        for call in (self._timer, self._flush_call):
            if call is not None:
                call.cancel()
        self._timer = self._flush_call = None

    # -- packets in

    def datagram_received(self, data: bytes, path: Path) -> None:
        """One UDP datagram; see ``Receiver``."""
        if self.is_stopped:
            return
        self._in_batch = True
        now = self.now()
        quic = self._quic
        deadline = quic.idle_deadline
        # The remote address is what makes a path; our own side of it may look different on a wildcard socket.
        quic.receive_datagram(data, (path[0], self._path[1]), now)
        if quic.idle_deadline != deadline:  # an authentic packet, and nothing else, moves the idle timer
            self._vigil.heard(now)
        elif quic.is_stateless_reset(data):
            self._lost(ConnectionLost("the relay does not know the connection any more"))
        self._handle_events(now)
        closed = quic.peer_close
        if closed is not None and not self.is_stopped:
            self._handle(closed, now)

    def batch_done(self) -> None:
        """Answer what the batch asked for, if anything in it was QUIC's; see ``Receiver``."""
        if self._in_batch:
            self._in_batch = False
            self.flush()

    # -- beside QUIC

    def sent_beside(self) -> None:
        """A packet that is not QUIC's left for the relay."""
        if self._vigil.sent_beside(self.now()):
            self._wake()

    def heard_beside(self) -> None:
        """A packet that is not QUIC's came from the relay, or so it seems."""
        self._vigil.heard_beside()

    def _handle_events(self, now: float) -> None:
        while not self.is_stopped and (event := self._quic.next_event()) is not None:
            self._handle(event, now)

    # -- packets out

    def flush_soon(self) -> None:
        """There is something to send: do it in the next turn of the reactor, or at the end of the batch."""
        if not self._in_batch and self._flush_call is None and not self.is_stopped:
            self._flush_call = self._clock.callLater(0, self._flush_now)

    def _flush_now(self) -> None:
        self._flush_call = None
        self.flush()

    def flush(self) -> None:
        """Move what can be moved, and send."""
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush_call = None
        now = self.now()
        fitting = self._quic.max_payload
        self._pump_and_send(now)
        if self._quic.max_payload < fitting:
            self._pump_and_send(now)  # what was queued may not fit any more
        if self.is_stopped:
            return
        if self._quic.is_established:  # how long to wait for the handshake is for ``connect`` to say
            self._vigil.sent(now, self._quic.probe_timeout, awaits_answer=self._quic.awaits_answer)
        self._handle_events(now)
        self._wake()

    def _pump_and_send(self, now: float) -> None:
        if not self.is_stopped:
            self._pump(now)  # protocols and producers run here, and may end the connection
        if not self.is_stopped:
            self._send()

    def _send(self) -> None:
        for data, (to, sender) in cast(list[tuple[bytes, Path]], self._quic.datagrams_to_send(self.now())):
            sender.send(data, to)

    # -- time

    def _wake(self) -> None:
        deadlines = (self._quic.get_timer(), self._vigil.deadline)
        deadline = min((deadline for deadline in deadlines if deadline is not None), default=None)
        if deadline is None or self.is_stopped:
            return
        if self._timer is not None:
            if deadline >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._clock.callLater(max(0.0, deadline - self.now()), self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        now = self.now()
        timer = self._quic.get_timer()
        if timer is not None and now >= timer:
            self._quic.handle_timer(now)
            self._handle_events(now)
        match self._vigil.advise(now, self._quic.probe_timeout):
            case Advice.GIVE_UP:
                self._lost(ConnectionLost("the relay does not answer any more"))
            case Advice.PING:
                self._quic.send_ping(KEEPALIVE_PING)
            case Advice.NOTHING:
                pass
        self.flush()
