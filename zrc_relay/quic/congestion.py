"""Congestion control that knows of path MTU discovery, and the pacing of a relay (RFC 9002 §7, RFC 9000 §14.4, RFC 8899 §4.3).

Theory of operation
-------------------
``Congestion`` is NewReno (RFC 9002 §7), which leaves slow start early when the RTT grows (HyStart), with two additions:

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
from math import inf
from typing import Any, Final

BLACK_HOLE_LOSSES: Final = 6
"""Packets above the base size lost in a row, none as large arriving between them, that make a black hole (RFC 8899 §4.3)."""
INITIAL_WINDOW: Final = 10
"""Datagrams (RFC 9002 §7.2)."""
MINIMUM_WINDOW: Final = 2
"""Datagrams, likewise."""
PACING_GAIN: Final = 1.25
"""How much faster than one congestion window per smoothed RTT packets may leave (RFC 9002 §7.7)."""
BURST_TIME: Final = 0.002
"""Seconds of that rate which may leave at once."""
MIN_BURST_PACKETS: Final = 10
"""Packets that may leave at once whatever the rate: the initial window (RFC 9002 §7.2)."""
MAX_BURST_PACKETS: Final = 64
"""Packets that may leave at once at most: what one system call takes."""
RTT_SAMPLES: Final = 5
"""Samples that the RTT is judged by, and times that it must seem to have grown, before slow start is left."""
RTT_SAMPLE_INTERVAL: Final = 0.001
"""Seconds between two of them."""
_MIN_RTT: Final = 1e-6
_MIN_PACKET_TIME: Final = 1e-6
_MAX_PACKET_TIME: Final = 1.0


class Pacer:
    """See the module's docstring. ``packet_time`` is the seconds that a full packet costs, 0 before an RTT is known.

    ``bucket_time`` is what may leave at once, in seconds, as of ``evaluation_time``; ``bucket_max`` bounds it.
    """

    __slots__ = ("bucket_max", "bucket_time", "evaluation_time", "max_datagram_size", "packet_time")

    def __init__(self, *, max_datagram_size: int) -> None:
        self.max_datagram_size = max_datagram_size
        self.bucket_max = 0.0
        self.bucket_time = 0.0
        self.evaluation_time = 0.0
        self.packet_time = 0.0

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Pace for a window in bytes and an RTT in seconds."""
        rtt = smoothed_rtt if smoothed_rtt > _MIN_RTT else _MIN_RTT
        packet_time = self.max_datagram_size * rtt / (PACING_GAIN * congestion_window)
        if packet_time < _MIN_PACKET_TIME:
            packet_time = _MIN_PACKET_TIME
        elif packet_time > _MAX_PACKET_TIME:
            packet_time = _MAX_PACKET_TIME
        self.packet_time = packet_time
        burst = MIN_BURST_PACKETS * packet_time
        if burst < BURST_TIME:
            burst = BURST_TIME
        most = MAX_BURST_PACKETS * packet_time
        if burst > most:
            burst = most
        self.bucket_max = burst
        if self.bucket_time > burst:
            self.bucket_time = burst

    def update_bucket(self, now: float) -> None:
        """Put into the bucket what has come since it was looked at last."""
        if now > self.evaluation_time:
            time = self.bucket_time + (now - self.evaluation_time)
            self.bucket_time = time if time < self.bucket_max else self.bucket_max
            self.evaluation_time = now

    def next_send_time(self, now: float) -> float | None:
        """When the next packet may leave; None for now."""
        if not self.packet_time:
            return None
        self.update_bucket(now)
        return None if self.bucket_time > 0 else now + self.packet_time

    def update_after_send(self, now: float) -> None:
        """A packet has left."""
        if self.packet_time:
            self.update_bucket(now)
            left = self.bucket_time - self.packet_time
            self.bucket_time = left if left > 0 else 0.0


class RttMonitor:
    """Tells when the RTT grows, which is when slow start should end before it fills a buffer (HyStart)."""

    __slots__ = ("_base", "_growing", "_sampled_at", "_samples", "_taken")

    def __init__(self) -> None:
        self._samples = (0.0, 0.0, 0.0, 0.0, 0.0)
        """The last ones, oldest first."""
        self._taken = 0
        self._sampled_at = 0.0
        self._base = inf
        self._growing = 0

    def is_growing(self, rtt: float, now: float) -> bool:
        """Take a sample in seconds; whether all of the last ones were a quarter above what they have been, several times."""
        if now <= self._sampled_at + RTT_SAMPLE_INTERVAL:
            return False
        self._sampled_at = now
        _, first, second, third, fourth = self._samples
        self._samples = (first, second, third, fourth, rtt)
        if self._taken < RTT_SAMPLES - 1:
            self._taken += 1
            return False
        # Two at a time: plain numbers for the compiler, where five would be objects.
        one, other = max(first, second), max(third, fourth)
        largest = max(one, other)
        largest = max(largest, rtt)
        base = self._base
        if base > largest:
            base = self._base = largest
        one, other = min(first, second), min(third, fourth)
        least = min(one, other)
        above = min(least, rtt) - base
        if above * 4 >= base:
            self._growing += 1
        elif above > 0:
            self._growing = 0
        return self._growing >= RTT_SAMPLES


class Congestion:
    """See the module's docstring. ``max_datagram_size`` is the base: what every path is taken to carry, in bytes."""

    __slots__ = (
        "_arrived", "_base", "_max_datagram_size", "_recovery_since", "_rtt", "_smallest_lost", "_stash", "bytes_in_flight",
        "congestion_window", "large_losses", "ssthresh",
    )

    def __init__(self, *, max_datagram_size: int) -> None:
        self._max_datagram_size = max_datagram_size
        self._base = max_datagram_size
        self.congestion_window = INITIAL_WINDOW * max_datagram_size
        self.bytes_in_flight = 0
        self.ssthresh: int | None = None
        self._recovery_since = 0.0
        self._stash = 0
        self._rtt = RttMonitor()
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

    def on_packet_sent(self, *, packet: Any) -> None:
        """``packet`` is in flight (RFC 9002 §B.4)."""
        self.bytes_in_flight += packet.sent_bytes

    def on_packet_acked(self, *, now: float, packet: Any) -> None:
        """``packet``, which was in flight, is acknowledged (RFC 9002 §B.5)."""
        del now
        self.acked(packet.packet_number, packet.sent_bytes, packet.sent_time or 0.0)

    def acked(self, number: int, size: int, sent_at: float) -> None:
        """The same for packet ``number`` of ``size`` bytes that left at ``sent_at``."""
        self.bytes_in_flight -= size
        if size > self._base:
            self._arrived[size] = number
            if size >= self._smallest_lost:
                self.large_losses = 0
        if sent_at <= self._recovery_since:
            return  # the window does not grow while it recovers
        window = self.congestion_window
        threshold = self.ssthresh
        if threshold is None or window < threshold:
            self.congestion_window = window + size
            return
        stash = self._stash + size
        if stash >= window:
            count = stash // window
            stash -= count * window
            self.congestion_window = window + count * self._max_datagram_size
        self._stash = stash

    def on_packets_expired(self, *, packets: Iterable[Any]) -> None:
        """Packets that were in flight are forgotten, which says nothing about congestion."""
        expired = list(packets)
        self._weigh(expired)
        for packet in expired:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[Any]) -> None:
        """Packets are lost (RFC 9002 §B.6, §B.8); that a probe is says nothing."""
        lost = []
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            if packet.sent_bytes <= self._max_datagram_size:
                lost.append(packet)
        if not lost:
            return
        self._weigh(lost)
        if (lost[-1].sent_time or 0.0) > self._recovery_since:
            self._recovery_since = now
            self.congestion_window = max(self.congestion_window // 2, MINIMUM_WINDOW * self._max_datagram_size)
            self.ssthresh = self.congestion_window

    def on_persistent_congestion(self) -> None:
        """Everything was lost for a long time (RFC 9002 §7.6.2)."""
        self.congestion_window = MINIMUM_WINDOW * self._max_datagram_size
        self._recovery_since = 0.0

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """A sample in seconds: leave slow start when the RTT grows."""
        if self.ssthresh is None and self._rtt.is_growing(rtt, now):
            self.ssthresh = self.congestion_window

    def get_log_data(self) -> dict[str, Any]:
        """What a qlog says of it."""
        data: dict[str, Any] = {"cwnd": self.congestion_window, "bytes_in_flight": self.bytes_in_flight}
        if self.ssthresh is not None:
            data["ssthresh"] = self.ssthresh
        return data

    def _weigh(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            size = packet.sent_bytes
            if not self._base < size <= self._max_datagram_size:
                continue
            if any(number > packet.packet_number for arrived, number in self._arrived.items() if arrived >= size):
                continue
            self._smallest_lost = min(size, self._smallest_lost) if self.large_losses else size
            self.large_losses += 1
