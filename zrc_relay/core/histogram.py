"""How often values lay between which bounds, and the worst of late: what metrics need beside counters (R7.3-5).

Plain lists of ints, filled where things happen and read when somebody asks. Time comes in as an argument.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

LATELY: Final = 15.0
"""Seconds that the worst value is remembered at least, and half of the time at most: scrapers come every 15 to 30 seconds."""


class Histogram:
    """Counts of values: ``counts[i]`` of those up to ``bounds[i]`` and above the bound before it, the last above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts)


class Sizes:
    """The same for whole numbers from 1 on, with powers of two as bounds: no search, so cheap enough for each system call."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, largest: int) -> None:
        """``largest``, a power of two, is the last bound; values may be twice that."""
        self.bounds = tuple(float(1 << power) for power in range(largest.bit_length()))
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0

    def observe(self, size: int) -> None:
        """Count ``size``."""
        self.counts[(size - 1).bit_length()] += 1
        self.sum += size


class Worst:
    """The largest of the values noted lately: in the last ``LATELY`` seconds, and in twice that at most."""

    __slots__ = ("_before", "_current", "_until")

    def __init__(self, now: float) -> None:
        self._current = 0.0
        self._before = 0.0
        self._until = now + LATELY

    def note(self, value: float, now: float) -> None:
        """``value``, which is not negative, was measured at ``now``."""
        self._turn(now)
        self._current = max(self._current, value)

    def at(self, now: float) -> float:
        """The largest value lately; 0 when there was none."""
        self._turn(now)
        return max(self._current, self._before)

    def _turn(self, now: float) -> None:
        if now < self._until:
            return
        self._before = self._current if now < self._until + LATELY else 0.0
        self._current = 0.0
        self._until = now + LATELY


class Waits:
    """How long something waited, in seconds: the distribution, and the worst lately."""

    __slots__ = ("histogram", "worst")

    def __init__(self, bounds: tuple[float, ...], now: float) -> None:
        self.histogram = Histogram(bounds)
        self.worst = Worst(now)

    def note(self, seconds: float, now: float) -> None:
        """Something had waited for ``seconds`` at ``now``."""
        self.histogram.observe(seconds)
        self.worst.note(seconds, now)
