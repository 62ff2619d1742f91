"""How many lines of one kind may be written: a client that makes many events must not fill a disk (R5.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zrc_relay.core.limiter import TokenBucket

LINES_PER_SECOND: Final = 50
"""Lines of one kind per second, and as many at once."""
FAILURES_PER_SECOND: Final = 1.0
FAILURES_AT_ONCE: Final = 10
"""The same for lines with a traceback, which are long: some 3 kB each."""
MAX_KINDS: Final = 512
"""Kinds that have a budget of their own: the program knows fewer, and libraries' sentences beyond them share one."""


class Throttle:
    """Budgets by kind. ``now`` gives monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: dict[str, TokenBucket] = {}
        self._suppressed: dict[str, int] = {}
        self.suppressed = 0
        """Lines that were not written, in all."""

    def admit(self, kind: str, *, is_failure: bool = False) -> int | None:
        """Whether a line of ``kind`` may be written: how many before it were not, or None when this one may not either."""
        now = self._now()
        bucket = self._buckets.get(kind)
        if bucket is None:
            if len(self._buckets) >= MAX_KINDS:
                kind = ""
            rate, burst = (FAILURES_PER_SECOND, FAILURES_AT_ONCE) if is_failure else (LINES_PER_SECOND, LINES_PER_SECOND)
            bucket = self._buckets.setdefault(kind, TokenBucket(rate, burst, now))
        if not bucket.take(1, now):
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            self.suppressed += 1
            return None
        return self._suppressed.pop(kind, 0)
