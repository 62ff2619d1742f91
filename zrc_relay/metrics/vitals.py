"""How the process itself is doing: is its loop late, does its collector stop it, how fast are bytes going, at what cost (R7.3-5).

Each is measured at a bounded rate and remembered as plain numbers; nothing here is on the way of a packet.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Final

from twisted.application.service import MultiService

from zrc_relay.core.counters import Counters
from zrc_relay.core.histogram import Waits
from zrc_relay.metrics.process import Cost
from zrc_relay.quic.clock import Clock
from zrc_relay.tasks import Ticker

LAG_INTERVAL: Final = 0.1
"""Seconds between two looks at the event loop: ten a second cost less than a thousandth of a core."""
LAG_BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
"""Bounds in seconds for how late the event loop is: the promise for added latency is p99 ≤ 2 ms."""
PAUSE_BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
FULL_COLLECTION: Final = 2
"""The oldest generation, whose collection looks at everything; those of younger ones take microseconds and are not timed."""
BANDWIDTH_INTERVAL: Final = 1.0
COST_INTERVAL: Final = 1.0


class LoopLag:
    """How much later than it should be the event loop calls: what every packet and timer waits before its own work begins.

    ``tick`` is to be called ``LAG_INTERVAL`` seconds after its last call had ended, and is later than that by the lag.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due: float | None = None
        self.waits = Waits(LAG_BOUNDS, now())
        self.last = 0.0
        """The lag when last measured, in seconds."""

    def tick(self) -> None:
        """The call has come."""
        now = self._now()
        if self._due is not None:
            self.last = max(0.0, now - self._due)
            self.waits.note(self.last, now)
        self._due = self._now() + LAG_INTERVAL

    def rest(self) -> None:
        """No call will come for a while."""
        self._due = None


class Collections:
    """How long full garbage collections stop everything, in seconds. Works between ``start`` and ``stop``."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began: float | None = None
        self.waits = Waits(PAUSE_BOUNDS, now())

    def start(self) -> None:
        """Look at the collections of this process from here on."""
        if self._seen not in gc.callbacks:
            gc.callbacks.append(self._seen)

    def stop(self) -> None:
        """Look no longer."""
        if self._seen in gc.callbacks:
            gc.callbacks.remove(self._seen)
        self._began = None

    def _seen(self, phase: str, info: dict[str, Any]) -> None:
        if info["generation"] != FULL_COLLECTION:
            return
        now = self._now()
        if phase == "start":
            self._began = now
        elif self._began is not None:
            self.waits.note(now - self._began, now)
            self._began = None


class Bandwidth:
    """Payload bytes a second that were forwarded lately: between the last two ticks, ``BANDWIDTH_INTERVAL`` apart."""

    def __init__(self, counters: Counters, now: Callable[[], float]) -> None:
        self._counters = counters
        self._now = now
        self._at = now()
        self._bytes = counters.bytes_forwarded
        self.usage = 0.0

    def tick(self) -> None:
        """A second has passed, or so."""
        now, total = self._now(), self._counters.bytes_forwarded
        if now > self._at:
            self.usage = (total - self._bytes) / (now - self._at)
            self._at, self._bytes = now, total


class Vitals(MultiService):
    """All of them, measured while the service runs. ``now`` gives monotonic seconds."""

    def __init__(self, clock: Clock, counters: Counters, now: Callable[[], float]) -> None:
        super().__init__()
        self.setName("vitals")
        self.loop = LoopLag(now)
        self.collections = Collections(now)
        self.bandwidth = Bandwidth(counters, now)
        self.cost = Cost()
        self.tickers = (
            Ticker(clock, LAG_INTERVAL, self.loop.tick, "event-loop-lag"),
            Ticker(clock, BANDWIDTH_INTERVAL, self.bandwidth.tick, "bandwidth"),
            Ticker(clock, COST_INTERVAL, self.cost.tick, "cost"),
        )
        for ticker in self.tickers:
            self.addService(ticker)

    def startService(self) -> None:
        """Measure."""
        super().startService()
        self.collections.start()

    def stopService(self) -> Any:
        """Measure no more."""
        self.collections.stop()
        self.loop.rest()
        return super().stopService()
