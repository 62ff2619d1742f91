"""Token buckets: how fast bytes (or requests) may pass, exact over any interval and without timers (R4.1, R4.3).

A bucket holds at most ``burst`` tokens and gains ``rate`` of them a second, computed when somebody looks. Over any interval of t
seconds at most ``rate * t + burst`` tokens are therefore taken, however calls are spaced. Time comes in as an argument and may
stand still; if it runs backwards nothing is gained.
"""

from __future__ import annotations

MIN_BURST = 65_535
"""The largest single payload (PROTOCOL §6): a smaller burst could never let it pass (R4.1)."""


class TokenBucket:
    """``rate`` tokens a second, at most ``burst`` at once; full at the start."""

    __slots__ = ("burst", "last", "rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens: float = burst
        self.last = now

    def available(self, now: float, _wanted: float = 0.0, /) -> float:
        """Tokens that could be taken at ``now``, however many are wanted."""
        if now > self.last:
            self.tokens = min(self.burst, self.tokens + (now - self.last) * self.rate)
            self.last = now
        return self.tokens

    def take(self, amount: float, now: float) -> bool:
        """Take ``amount`` tokens if they are there, all or none."""
        if self.available(now) < amount:
            return False
        self.tokens -= amount
        return True

    def trim(self, _now: float, /) -> None:
        """Nothing: what was not taken has never left (see ``limits.Bucket``)."""

    def wait(self, amount: float, now: float) -> float:
        """Seconds from ``now`` until ``amount`` tokens (at most ``burst``) could be taken; 0 when they can be now."""
        missing = amount - self.available(now)
        return missing / self.rate if missing > 0 else 0.0

    def set_rate(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate; what was gained so far stays, up to the new burst."""
        self.available(now)
        self.rate = rate
        self.burst = burst
        self.tokens = min(self.tokens, burst)


def bandwidth_bucket(limit: int, burst_seconds: float, now: float) -> TokenBucket:
    """The bucket of a bandwidth limit in bytes per second: burst = max(burst_seconds * limit, 65,535) (R4.1)."""
    return TokenBucket(limit, bandwidth_burst(limit, burst_seconds), now)


def bandwidth_burst(limit: int, burst_seconds: float) -> float:
    """The burst in bytes that goes with a limit in bytes per second."""
    return max(limit * burst_seconds, MIN_BURST)
