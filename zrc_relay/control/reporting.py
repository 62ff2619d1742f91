"""What a worker reports of itself once a second (R7, R10.4); see ``control.fleet`` for what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Callable

from zrc_relay.control.health import Report
from zrc_relay.control.traffic import Numbers, WorkerReport
from zrc_relay.metrics.process import cpu_seconds
from zrc_relay.metrics.snapshot import Snapshot


class Reporter:
    """Makes the reports. ``lag`` gives how late the event loop was lately, ``now`` monotonic, ``cpu`` processor seconds."""

    def __init__(
        self,
        *,
        numbers: Callable[[], Numbers],
        metrics: Callable[[], Snapshot],
        health: Callable[[], Report],
        state: Callable[[], str],
        lag: Callable[[], float],
        now: Callable[[], float],
        cpu: Callable[[], float] = cpu_seconds,
    ) -> None:
        self._numbers = numbers
        self._metrics = metrics
        self._health = health
        self._state = state
        self._lag = lag
        self._now = now
        self._cpu = cpu
        self._started = now()
        self._last = (self._started, cpu())

    def report(self) -> WorkerReport:
        """How the process is; what it says of processor time is since the last report."""
        now, cpu = self._now(), self._cpu()
        before, used = self._last
        self._last = (now, cpu)
        health = self._health()
        return WorkerReport(
            pid=os.getpid(),
            state=self._state(),
            uptime_seconds=max(0.0, now - self._started),
            cpu_share=max(0.0, cpu - used) / (now - before) if now > before else 0.0,
            loop_lag_seconds=self._lag(),
            failures=health.failures,
            warnings=health.warnings,
            numbers=self._numbers(),
            snapshot=self._metrics(),
        )
