"""Buckets of tokens that several processes take from (R4.1); ``shared`` is about the memory.

Theory of operation
-------------------
A bucket in memory is a token bucket as in ``limiter``, and with ``holders=0`` a ``LeasedBucket`` takes each token from there.

Bytes that are forwarded are too many to go there for each packet. So each of the ``holders`` may have tokens in advance, its
*lease*, and takes from that with a comparison and a subtraction; when it is short it fetches what it wants and a new lease.
What has been fetched and not taken is at most ``lease`` for each holder: who fetched more takes it at once or brings it back
(``trim``), and who did not take any since it was last asked brings back all of it (``rest``).

Why the limit holds over any interval: a byte that is forwarded in it was on lease when it began, or left the bucket during it.
The first are at most ``holders * lease``. The others, less what was brought back, are at most what the bucket held and gained:
``reserve + rate * t``. ``reserve`` is the burst less ``holders * lease``, so together it is ``burst + rate * t``, the same as
with one bucket (R4.1).

Why one can have all of it: the bucket gains at the whole rate whatever is on lease, and whoever comes gets what there is. What it
can have at once is ``reserve`` at least; that is more than half of the burst and no less than the longest payload, and small
bursts are not leased at all. Tokens on lease that a killed process had are simply lost: less passes, not more.
"""

from __future__ import annotations

from typing import Final

from zrc_relay.core.limiter import MIN_BURST
from zrc_relay.core.sharing import LINE, View

BUCKET_SIZE: Final = LINE
MIN_LEASE: Final = 65_536
"""Bytes that are leased at once, if the burst is large enough for it ..."""
LEASE_SECONDS: Final = 0.002
"""... or what the whole limit is in this time, if that is more: so a worker comes at most some 500 times a second for a lease."""
_RATE: Final = 0
_RESERVE: Final = 1
_LAST: Final = 2
_TOKENS: Final = 3
_IS_MADE: Final = 4


def lease_of(rate: float, burst: float, holders: int) -> float:
    """How many bytes each of ``holders`` may have in advance: all of them half of what the burst is above the least one."""
    spare = max(0.0, burst - MIN_BURST) / (2 * holders) if holders else 0.0
    return min(max(MIN_LEASE, rate * LEASE_SECONDS), spare)


class LeasedBucket:
    """The bucket at ``offset`` as one process sees it, see ``limits.Bucket``.

    Whoever makes one says the rate in force from then on, which changes nothing when it is in force already. ``tokens`` are those
    that this process has fetched, ``burst`` is what it can have at once whatever others have on lease.
    """

    __slots__ = ("_cells", "_guard", "_holders", "_idle", "_lease", "_offset", "burst", "tokens")

    def __init__(self, view: View, offset: int, rate: float, burst: float, now: float, *, holders: int) -> None:
        self._cells = view.memory[offset : offset + BUCKET_SIZE].cast("d")
        self._offset = offset
        self._guard = view.guard
        self._holders = holders
        self._lease = 0.0
        self._idle = 0.0
        self.tokens = 0.0
        self.burst = burst
        self.set_rate(rate, burst, now)

    def available(self, now: float, wanted: float, /) -> float:
        """Tokens that could be taken at ``now``, fetched if they are fewer than ``wanted``."""
        if self.tokens < wanted:
            with self._guard(self._offset, BUCKET_SIZE):
                held = self._held(now)
                fetched = min(held, wanted + self._lease - self.tokens)
                if fetched > 0:
                    self._store(now, held - fetched)
                    self.tokens += fetched
        return self.tokens

    def take(self, amount: float, now: float) -> bool:
        """Take ``amount`` tokens if they are there, all or none."""
        is_there = self.available(now, amount) >= amount
        if is_there:
            self.tokens -= amount
        self.trim(now)
        return is_there

    def trim(self, now: float, /) -> None:
        """Bring back what is more than a lease."""
        if self.tokens > self._lease:
            self._keep(self._lease, now)

    def rest(self, now: float) -> None:
        """Bring back the lease if nothing was taken since the last call."""
        if self.tokens and self.tokens == self._idle:
            self._keep(0.0, now)
        self._idle = self.tokens

    def wait(self, amount: float, now: float) -> float:
        """Seconds from ``now`` until ``amount`` tokens (at most ``burst``) could be taken; 0 when they can be now."""
        missing = amount - self.tokens
        if missing <= 0:
            return 0.0
        with self._guard(self._offset, BUCKET_SIZE):
            missing -= self._held(now)
            rate = self._cells[_RATE]
        return missing / rate if missing > 0 else 0.0

    def set_rate(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate; what was gained so far stays, up to the new burst. Once more with the same changes nothing."""
        self._lease = lease_of(rate, burst, self._holders)
        reserve = burst - self._holders * self._lease
        self.burst = reserve
        cells = self._cells
        with self._guard(self._offset, BUCKET_SIZE):
            if not cells[_IS_MADE]:
                self._store(now, reserve)
            elif cells[_RATE] != rate or cells[_RESERVE] != reserve:
                self._store(now, min(self._held(now), reserve))
            cells[_RESERVE] = reserve
            cells[_RATE] = rate
            cells[_IS_MADE] = 1.0
        self.trim(now)

    def _held(self, now: float) -> float:
        """Tokens that the bucket holds; the caller has the guard."""
        cells = self._cells
        return min(cells[_RESERVE], cells[_TOKENS] + max(0.0, now - cells[_LAST]) * cells[_RATE])

    def _store(self, now: float, tokens: float) -> None:
        """Write what the bucket holds at ``now``: time first, see ``shared``."""
        cells = self._cells
        cells[_LAST] = max(now, cells[_LAST])
        cells[_TOKENS] = tokens

    def _keep(self, tokens: float, now: float) -> None:
        """Bring back all but so many ``tokens``."""
        amount = self.tokens - tokens
        self.tokens = tokens
        with self._guard(self._offset, BUCKET_SIZE):
            self._store(now, min(self._cells[_RESERVE], self._held(now) + amount))
