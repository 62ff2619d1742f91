"""Congestion control that knows of path MTU discovery (RFC 9002 §7, RFC 9000 §14.4, RFC 8899 §4.3).

Theory of operation
-------------------
aioquic's NewReno, with two additions:

* **Probes.** A packet larger than the datagram size in use is a probe of the path's MTU; its loss says nothing about congestion.
* **Black holes.** A packet above the base size that is lost is evidence that the path no longer carries its size, unless a packet
  at least as large that was sent later has arrived: then it was congestion. ``large_losses`` counts that evidence. Losses that
  are found by a probe timeout count as well: where little is sent there are no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

CONGESTION_CONTROL: Final = "zrc-reno"
"""Name under which ``Congestion`` is registered, for ``QuicConfiguration.congestion_control_algorithm``."""
BLACK_HOLE_LOSSES: Final = 6
"""Packets above the base size lost in a row, none as large arriving between them, that make a black hole (RFC 8899 §4.3)."""


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
        size = packet.sent_bytes
        if size > self._base:
            self._arrived[size] = packet.packet_number
            if size >= self._smallest_lost:
                self.large_losses = 0
        super().on_packet_acked(now=now, packet=packet)

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
