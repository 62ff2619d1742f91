"""The largest UDP payload a path carries: the search of RFC 8899 (DPLPMTUD), as a machine without packets or timers (R5.8).

Theory of operation
-------------------
``PathMtu`` says which size to probe next and hears what became of it. ``size`` is always one that is known to pass: the base at
first, then the largest probe that was acknowledged. The search tries the maximum at once, since most paths carry it, and halves
the interval between what passed and what did not until it is no more than ``STEP`` bytes. A size counts as too big after
``MAX_PROBES`` losses in a row. When full-size packets stop arriving (a *black hole*: the route has changed) it falls back to the
base and searches again, beginning with the size that failed: if congestion and not the route was to blame, one probe sets it
right. A finished search below the maximum is repeated every ``raise_interval`` seconds.
"""

from __future__ import annotations

from enum import Enum, unique
from math import inf
from typing import Final

MAX_PROBES: Final = 3
"""Losses after which a size is taken to be too big (RFC 8899 §5.1.2)."""
STEP: Final = 8
"""The search ends when it is this exact, in bytes."""
RAISE_INTERVAL: Final = 600.0
"""Seconds after which a finished search tries larger sizes again (RFC 8899 §5.1.1, PMTU_RAISE_TIMER)."""


@unique
class SearchState(Enum):
    """Where the search is (RFC 8899 §5.2)."""

    SEARCHING = "searching"
    COMPLETE = "complete"


class PathMtu:
    """The search on one path, between ``base`` and ``maximum`` bytes of UDP payload."""

    def __init__(self, base: int, maximum: int, raise_interval: float = RAISE_INTERVAL) -> None:
        self._base = base
        self._maximum = max(base, maximum)
        self._raise_interval = raise_interval
        self.size = base
        self.state = SearchState.SEARCHING
        self._too_big = 0
        self._candidate = 0
        self._losses = 0
        self._outstanding = False
        self._again_at = 0.0
        self.restart()

    def restart(self) -> None:
        """Another path: nothing is known but the base."""
        self.size = self._base
        self._search(self._maximum + 1, first=self._maximum)

    def limit(self, maximum: int) -> None:
        """The peer takes no more than ``maximum`` bytes (its max_udp_payload_size), which may be less than the base."""
        if maximum < self._maximum:
            self._maximum = maximum
            self._base = min(self._base, maximum)
            self.restart()

    def next_probe(self, now: float) -> int | None:
        """The size in bytes to probe now, or None; at most one probe is under way."""
        if self._outstanding:
            return None
        if self.state is SearchState.COMPLETE:
            if self.size >= self._maximum or now < self._again_at:
                return None
            self._search(self._maximum + 1, first=self._maximum)
        return self._candidate

    @property
    def next_probe_at(self) -> float:
        """When ``next_probe`` will have a size again, in the seconds that it is given: 0 for now, infinity for not by itself."""
        if self._outstanding:
            return inf
        if self.state is SearchState.SEARCHING:
            return 0.0
        return self._again_at if self.size < self._maximum else inf

    def sent(self) -> None:
        """The probe was sent."""
        self._outstanding = True

    def acked(self, size: int, now: float) -> bool:
        """A probe of ``size`` bytes arrived; returns whether ``size`` is larger than before."""
        self._outstanding = False
        if size != self._candidate or size <= self.size:
            return False
        self.size = size
        self._losses = 0
        self._next(now)
        return True

    def lost(self, size: int, now: float) -> None:
        """A probe of ``size`` bytes did not arrive."""
        self._outstanding = False
        if size != self._candidate:
            return
        self._losses += 1
        if self._losses >= MAX_PROBES:
            self._losses = 0
            self._too_big = size
            self._next(now)

    def black_hole(self) -> bool:
        """Full-size packets no longer arrive; returns whether ``size`` has changed by that."""
        if self.size == self._base:
            return False
        failed = self.size
        self.size = self._base
        self._search(failed + 1, first=failed)
        return True

    def _search(self, too_big: int, first: int) -> None:
        self.state = SearchState.SEARCHING
        self._too_big = too_big
        self._candidate = first
        self._losses = 0
        self._outstanding = False
        if first <= self.size:
            self.state = SearchState.COMPLETE
            self._again_at = inf

    def _next(self, now: float) -> None:
        if self._too_big - self.size <= STEP:
            self.state = SearchState.COMPLETE
            self._again_at = now + self._raise_interval
        else:
            self._candidate = (self.size + self._too_big) // 2
