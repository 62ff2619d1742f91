"""Congestion control that knows of path MTU discovery, and the pacing of a relay (RFC 9002 §7, RFC 9000 §14.4, RFC 8899 §4.3).

Theory of operation
-------------------
``Congestion`` is aioquic's NewReno, with two additions:

* **Probes.** A packet larger than the datagram size in use is a probe of the path's MTU; its loss says nothing about congestion.
* **Black holes.** A packet above the base size that is lost is evidence that the path no longer carries its size, unless a packet
  at least as large that was sent later has arrived: then it was congestion. ``large_losses`` counts that evidence. Losses that
  are found by a probe timeout count as well: where little is sent there are no others.

``Pacer`` sends somewhat faster than one window per round trip, so that a window that is large enough is never what slows a flow
(RFC 9002 §7.7 suggests 1.25), and lets bursts of ``BURST_TIME`` pass: what was read in one go may leave in one go, in one system
call. aioquic's own allows sixteen packets, then asks for a timer for each one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer

CONGESTION_CONTROL: Final = "zrc-reno"
"""Name under which ``Congestion`` is registered, for ``QuicConfiguration.congestion_control_algorithm``."""
BLACK_HOLE_LOSSES: Final = 6
"""Packets above the base size lost in a row, none as large arriving between them, that make a black hole (RFC 8899 §4.3)."""
PACING_GAIN: Final = 1.25
"""How much faster than one congestion window per smoothed RTT packets may leave (RFC 9002 §7.7)."""
BURST_TIME: Final = 0.002
"""Seconds of that rate which may leave at once."""
MIN_BURST_PACKETS: Final = 10
"""Packets that may leave at once whatever the rate: the initial window (RFC 9002 §7.2)."""
MAX_BURST_PACKETS: Final = 64
"""Packets that may leave at once at most: what one system call takes."""
_MIN_RTT: Final = 1e-6
_MIN_PACKET_TIME: Final = 1e-6
_MAX_PACKET_TIME: Final = 1.0


class Pacer(QuicPacketPacer):
    """See the module's docstring. ``packet_time`` is the seconds that a full packet costs, None before an RTT is known."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Pace for a window in bytes and an RTT in seconds."""
        size = self._max_datagram_size
        wanted = size * max(smoothed_rtt, _MIN_RTT) / (PACING_GAIN * congestion_window)
        packet_time = self.packet_time = min(max(wanted, _MIN_PACKET_TIME), _MAX_PACKET_TIME)
        burst = self.bucket_max = min(max(BURST_TIME, MIN_BURST_PACKETS * packet_time), MAX_BURST_PACKETS * packet_time)
        self.bucket_time = min(self.bucket_time, burst)


class Congestion(RenoCongestionControl):
    """See the module's docstring. ``max_datagram_size`` is the base: what every path is taken to carry, in bytes."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._base = max_datagram_size
        self._arrived: dict[int, int] = {}
        """For each size above the base, the last packet of it that arrived: no more entries than there are such sizes."""
        self._smallest_lost = 0
        self.large_losses = 0

    def set_datagram_size(self, size: int) -> None:
        """Another size is in use."""
        self._max_datagram_size = size
        self.large_losses = 0

    @property
    def is_black_hole(self) -> bool:
        """Whether packets of the size in use seem to arrive no longer."""
        return self.large_losses >= BLACK_HOLE_LOSSES

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """See aioquic."""
        del now
        self.on_packets_acked((packet,))

    def on_packets_acked(self, packets: Iterable[QuicSentPacket]) -> None:
        """Packets that were in flight are acknowledged, oldest first (RFC 9002 §B.5)."""
        window, threshold, base = self.congestion_window, self.ssthresh, self._base
        recovery = self._congestion_recovery_start_time
        acked = 0
        for packet in packets:
            size = packet.sent_bytes
            acked += size
            if size > base:
                self._arrived[size] = packet.packet_number
                if size >= self._smallest_lost:
                    self.large_losses = 0
            if (packet.sent_time or 0.0) <= recovery:
                continue  # the window does not grow while it recovers
            if threshold is None or window < threshold:
                window += size
            else:
                self._congestion_stash += size
                if self._congestion_stash >= window:
                    count = self._congestion_stash // window
                    self._congestion_stash -= count * window
                    window += count * self._max_datagram_size
        self.congestion_window = window
        self.bytes_in_flight -= acked

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """See aioquic."""
        expired = list(packets)
        self._weigh(expired)
        super().on_packets_expired(packets=expired)

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """See aioquic."""
        data = []
        for packet in packets:
            if packet.sent_bytes > self._max_datagram_size:
                self.bytes_in_flight -= packet.sent_bytes
            else:
                data.append(packet)
        if data:
            self._weigh(data)
            super().on_packets_lost(now=now, packets=data)

    def _weigh(self, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            size = packet.sent_bytes
            if not self._base < size <= self._max_datagram_size:
                continue
            if any(number > packet.packet_number for arrived, number in self._arrived.items() if arrived >= size):
                continue
            self._smallest_lost = min(size, self._smallest_lost) if self.large_losses else size
            self.large_losses += 1


register_congestion_control(CONGESTION_CONTROL, Congestion)
