"""The payloads of ``zrc-relay bench``, and what became of them.

A payload holds its number and the time it was sent, and is filled with bytes that follow from the number. Only what is right in
all of it, and comes for the first time, counts as arrived.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_HEAD: Final = struct.Struct("!QQ")
MIN_SIZE: Final = _HEAD.size
MAX_SIZE: Final = 1200
"""Payload bytes that fit a packet on every path."""
_PATTERN: Final = bytes(range(256)) * (MAX_SIZE // 256 + 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent: ``rate`` payloads a second, each way, of ``size`` bytes, for ``seconds``; the device sends, or both do."""

    rate: int = 200
    size: int = 1000
    seconds: float = 10.0
    both: bool = False

    @property
    def count(self) -> int:
        """Payloads, each way."""
        return max(1, round(self.rate * self.seconds))


DEFAULTS: Final = Plan()
"""1.6 Mbit/s: below the limit of every tier."""


@dataclass(slots=True)
class Tally:
    """What became of the payloads of one direction."""

    sent: int = 0
    wrong: int = 0
    """Payloads that arrived and are not what was sent, or came twice."""
    seconds: float = 0.0
    """Of sending, up to when the payload after the last would have been due."""
    delays: dict[int, float] = field(default_factory=dict)
    """For each payload that arrived, by its number, the seconds that it took."""

    @property
    def arrived(self) -> int:
        """Payloads that arrived and are right."""
        return len(self.delays)

    @property
    def lost(self) -> float:
        """The part of what was sent that did not arrive."""
        return 1 - self.arrived / self.sent if self.sent else 0.0

    @property
    def per_second(self) -> float:
        """Payloads that arrived in a second of sending."""
        return self.arrived / self.seconds if self.seconds else 0.0

    def latency(self, fraction: float) -> float:
        """Seconds within which that part of the payloads arrived; only when some did."""
        delays = sorted(self.delays.values())
        return delays[min(len(delays) - 1, int(fraction * len(delays)))]


class Direction:
    """Makes the payloads of one direction and judges what arrives; ``now`` gives nanoseconds."""

    def __init__(self, size: int, now: Callable[[], int]) -> None:
        self._size = size
        self._now = now
        self.tally = Tally()

    def make(self) -> bytes:
        """The next payload."""
        number = self.tally.sent
        self.tally.sent += 1
        return _HEAD.pack(number, self._now()) + self._filling(number)

    def take(self, payload: bytes) -> None:
        """A payload arrived."""
        tally = self.tally
        if len(payload) == self._size:
            number, sent_at = _HEAD.unpack_from(payload)
            if number < tally.sent and number not in tally.delays and payload[_HEAD.size :] == self._filling(number):
                tally.delays[number] = (self._now() - sent_at) / 1e9
                return
        tally.wrong += 1

    def _filling(self, number: int) -> bytes:
        start = number % 256
        return _PATTERN[start : start + self._size - _HEAD.size]
