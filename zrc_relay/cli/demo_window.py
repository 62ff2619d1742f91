"""``Window``: what the demo's bulk transfer may send, and what it must send again; RFC 9002 in miniature.

Theory of operation
-------------------
The window grows by one datagram with each that is acknowledged, later by one with each whole window, and is halved when
something is lost, once for all that was lost together. A chunk is lost when one that was sent three transmissions later has
arrived, or when nothing was heard for a timeout of some round trips; exactly what is lost is sent again. Time comes in as an
argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

SACK_BITS: Final = 256
"""Chunks beyond the first missing one that an acknowledgement tells about, and so the span that the sender may be ahead."""
MAX_WINDOW: Final = 64
"""Datagrams under way: a socket buffer of the kernel's default size holds these."""
MIN_WINDOW: Final = 8
_REORDERING: Final = 3
_MIN_TIMEOUT: Final = 0.1
_MAX_TIMEOUT: Final = 2.0


@dataclass(slots=True)
class Window:
    """Which of ``total`` chunks are under way, and how many may be."""

    total: int
    size: float = 16.0
    threshold: float = MAX_WINDOW
    under_way: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Chunk to (transmission, time), in the order of transmission."""
    missing: deque[int] = field(default_factory=deque)
    first_unknown: int = 0
    fresh: int = 0
    transmission: int = 0
    recovery_until: int = 0
    latest: int = 0
    """Latest transmission that was acknowledged."""
    round_trip: float = 0.0
    timeout: float = 0.5

    def choose(self, now: float) -> int | None:
        """The chunk to send next; None while nothing may be sent."""
        if len(self.under_way) >= int(self.size):
            return None
        if self.missing:
            chunk = self.missing.popleft()
        elif self.fresh < self.total and self.fresh < self.first_unknown + SACK_BITS:
            chunk, self.fresh = self.fresh, self.fresh + 1
        else:
            return None
        self.transmission += 1
        self.under_way[chunk] = (self.transmission, now)
        return chunk

    def acknowledged(self, first_unknown: int, beyond: int, now: float) -> bool:
        """What an acknowledgement says; whether it says anything new."""
        self.first_unknown = max(self.first_unknown, first_unknown)
        arrived = [chunk for chunk in self.under_way if chunk < first_unknown or beyond >> (chunk - first_unknown) & 1]
        for chunk in arrived:
            number, sent_at = self.under_way.pop(chunk)
            if number > self.latest:
                self.latest = number
                sample = now - sent_at
                self.round_trip = sample if not self.round_trip else 0.875 * self.round_trip + 0.125 * sample
            self.size += 1.0 if self.size < self.threshold else 1.0 / self.size
        self.size = min(self.size, MAX_WINDOW)
        self.missing = deque(chunk for chunk in self.missing if chunk >= first_unknown)
        lost = [chunk for chunk, (number, _) in self.under_way.items() if number + _REORDERING <= self.latest]
        self._lose(lost)
        if arrived:
            self.timeout = min(max(4 * self.round_trip, _MIN_TIMEOUT), _MAX_TIMEOUT)
        return bool(arrived)

    def expire(self, now: float) -> None:
        """Nothing was heard for a timeout: take everything under way for lost."""
        oldest = next(iter(self.under_way.values()), None)
        if oldest is not None and now - oldest[1] >= self.timeout:
            self._lose(list(self.under_way))
            self.timeout = min(2 * self.timeout, _MAX_TIMEOUT)

    def _lose(self, chunks: list[int]) -> None:
        for chunk in chunks:
            number, _ = self.under_way.pop(chunk)
            if number > self.recovery_until:  # one reduction for all that was lost in one window
                self.recovery_until = self.transmission
                self.threshold = self.size = max(self.size / 2, float(MIN_WINDOW))
        self.missing.extend(chunks)
