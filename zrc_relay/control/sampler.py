"""What the statistics know beside counters: rates, peaks, and who is busy (R10.4).

Once a second the counters are read, and every allocation is looked at in slices: how many bytes it has carried since the last
look. What that costs grows with the number of allocations, some 0.5 µs each, and never holds up a packet for more than a slice.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nlargest
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from zrc_relay.control.answers import TALKERS
from zrc_relay.control.slices import in_slices
from zrc_relay.core.allocation import Allocation, AllocationKey
from zrc_relay.core.relay import Relay
from zrc_relay.tasks import Ticker

INTERVAL: Final = 1.0
"""Seconds between two looks."""


class Connections(Protocol):
    """What knows how many QUIC connections there are."""

    @property
    def connections(self) -> int:
        """Half-open and closing ones included."""
        ...


class Sampler(Ticker):
    """Looks once a second while it runs; ``now`` gives monotonic seconds."""

    def __init__(self, relay: Relay, endpoint: Connections, clock: Any, now: Callable[[], float]) -> None:
        super().__init__(clock, INTERVAL, self.look, "sampler")
        self._relay = relay
        self._endpoint = endpoint
        self._reactor = clock
        self._time = now
        self.started = now()
        self.peak_allocations = 0
        self.peak_connections = 0
        self.bytes_per_second = 0.0
        self.packets_per_second = 0.0
        self.peak_bytes_per_second = 0.0
        self.rates: dict[AllocationKey, float] = {}
        """Bytes a second of the allocations that carried something between the last two looks."""
        self.talkers: list[tuple[float, AllocationKey]] = []
        """The busiest of them, the busiest first."""
        self.on_moved: Callable[[AllocationKey], object] = _ignore
        """Called for each allocation that is new or has carried something since the last look."""
        self.on_looked: Callable[[], object] = _ignore
        """Called when a look at all of them is over."""
        self._last = (self.started, 0, 0)
        self._seen: dict[AllocationKey, int] = {}
        self._seen_at = self.started
        self._is_counting = False

    def look(self) -> None:
        """Read the counters and begin to look at every allocation."""
        now, counters = self._time(), self._relay.counters
        before, bytes_before, packets_before = self._last
        elapsed = now - before
        if elapsed > 0:
            self.bytes_per_second = (counters.bytes_forwarded - bytes_before) / elapsed
            self.packets_per_second = (counters.packets_forwarded - packets_before) / elapsed
            self.peak_bytes_per_second = max(self.peak_bytes_per_second, self.bytes_per_second)
            self._last = (now, counters.bytes_forwarded, counters.packets_forwarded)
        self.note_peaks()
        if not self._is_counting:
            self._is_counting = True
            Deferred.fromCoroutine(self._count(now)).addErrback(self._failed)

    def note_peaks(self) -> None:
        """See whether there have never been as many."""
        self.peak_allocations = max(self.peak_allocations, len(self._relay.table))
        self.peak_connections = max(self.peak_connections, self._endpoint.connections)

    async def _count(self, now: float) -> None:
        try:
            seen: dict[AllocationKey, int] = {}
            rates: dict[AllocationKey, float] = {}
            known, elapsed = self._seen, now - self._seen_at

            def visit(allocation: Allocation) -> None:
                key, size = allocation.key, allocation.bytes_transferred
                seen[key] = size
                before = known.get(key)
                if size == before:
                    return
                self.on_moved(key)
                if before is not None and size > before and elapsed > 0:
                    rates[key] = (size - before) / elapsed

            await in_slices(list(self._relay.table), visit, self._reactor)
            self.talkers = nlargest(TALKERS, ((rate, key) for key, rate in rates.items()))
            self._seen, self._seen_at = seen, now
            self.rates = rates
        finally:
            self._is_counting = False
            self.on_looked()

    def _failed(self, failure: Any) -> None:
        self.failures += 1
        self._log.failure("the background task {task} failed; it goes on", failure, event="task.failed", task=self.name)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""
