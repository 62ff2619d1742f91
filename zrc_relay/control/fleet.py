"""What a parent knows of its workers: their last reports, what those that died had counted, how they are (R7, R10.4).

Theory of operation
-------------------
Whoever starts and watches the processes tells a ``Fleet``: ``begun`` when one was started, ``reported`` once a second with what
it says, ``lost`` when it is gone. Everything else reads: statistics, metrics and health are made of the last that was heard, so
a worker that does not answer just now is not missing from sums. Counters of one that died stay in every sum (``sums``,
``metrics.totals``); peaks are those of the sums, not sums of peaks.

When a worker is gone with what it had, and when another one is there in its place, listeners to events hear of it (``tell``):
what they know of the relay's allocations is wrong then, and no event for each of them will come.

Whoever asks a worker for its numbers tells them here the moment they come (``saw``, ``totals.seen``), never later: by then it may
have died, and would be counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from zrc_relay.control.answers import WorkerStats
from zrc_relay.control.sums import NOTHING, counted, together
from zrc_relay.control.traffic import Numbers, WorkerReport
from zrc_relay.metrics.catalogue import COUNTERS, RULES
from zrc_relay.metrics.totals import Totals

LATE: Final = 3.0
"""Seconds without a report from which on that is worth a warning: they come once a second."""


@dataclass(slots=True)
class _Worker:
    """What is known of the one with this index. ``numbers`` and ``report`` are None until it has said something."""

    pid: int | None = None
    begun_at: float = 0.0
    starts: int = 0
    heard_at: float = 0.0
    numbers: Numbers | None = None
    report: WorkerReport | None = None


def _nobody_listens(name: str, **fields: object) -> None:
    """Where there are no listeners."""


class Fleet:
    """See the module's docstring: ``count`` workers, with indices from 0 on. ``now`` gives monotonic seconds.

    ``tell`` gets the name of an event and its fields.
    """

    def __init__(self, count: int, now: Callable[[], float], tell: Callable[..., None] = _nobody_listens) -> None:
        self.count = count
        self._now = now
        self._tell = tell
        self._started = now()
        self._workers = [_Worker() for _ in range(count)]
        self._retired = NOTHING
        self._has_run = False
        self.totals = Totals(RULES, COUNTERS)
        self.peak_allocations = 0
        self.peak_connections = 0
        self.peak_bytes_per_second = 0.0

    # -- what is told

    def begun(self, index: int, pid: int) -> None:
        """The process ``pid`` was started to be the worker ``index``."""
        worker = self._workers[index]
        worker.pid, worker.begun_at, worker.starts = pid, self._now(), worker.starts + 1

    def reported(self, index: int, report: WorkerReport) -> None:
        """It says how it is."""
        worker = self._workers[index]
        has_come = worker.report is None and worker.starts > 1
        worker.report, worker.heard_at = report, self._now()
        self._has_run = True
        self.totals.seen(index, report.snapshot)
        self.saw(index, report.numbers)
        self.note_peaks()
        if has_come:
            self._tell("worker.replaced", worker=index, pid=worker.pid)

    def saw(self, index: int, numbers: Numbers) -> None:
        """These are its numbers now."""
        self._workers[index].numbers = numbers

    def lost(self, index: int) -> None:
        """Its process is gone, and everything that it had."""
        worker = self._workers[index]
        if worker.numbers is not None:
            self._retired = together((self._retired, counted(worker.numbers)))
        self.totals.gone(index)
        self._workers[index] = _Worker(starts=worker.starts)
        if worker.pid is not None:
            had = worker.numbers or NOTHING
            self._tell(
                "worker.lost", worker=index, pid=worker.pid, allocations=had.allocations.current,
                connections=had.connections.current,
            )

    # -- what is known

    @property
    def running(self) -> int:
        """Workers that have said something and are not gone."""
        return sum(1 for worker in self._workers if worker.report is not None)

    @property
    def restarts(self) -> int:
        """How often a worker was replaced."""
        return sum(max(0, worker.starts - 1) for worker in self._workers)

    def numbers(self) -> Numbers:
        """What statistics say of all workers, and of those that are gone."""
        total = self._sum()
        self._note(total)
        uptime = max(0.0, self._now() - self._started)
        return replace(
            total,
            uptime_seconds=uptime,
            allocations=replace(total.allocations, peak=self.peak_allocations),
            connections=replace(total.connections, peak=self.peak_connections),
            traffic=replace(
                total.traffic, peak_bytes_per_second=self.peak_bytes_per_second,
                average_bytes_per_second=round(total.traffic.bytes / uptime, 1) if uptime else 0.0,
            ),
            workers=tuple(self._rows()),
        )

    def note_peaks(self) -> None:
        """See whether there have never been as many, all workers together."""
        self._note(self._sum())

    def failures(self) -> list[str]:
        """What keeps the relay from its work, a sentence each."""
        if self._has_run and not self.running:
            return ["no worker runs"]
        return [
            f"worker {index}: {problem}"
            for index, worker in enumerate(self._workers) if worker.report is not None for problem in worker.report.failures
        ]

    def warnings(self) -> list[str]:
        """What somebody should look at, a sentence each."""
        return [problem for index, worker in enumerate(self._workers) for problem in self._warnings(index, worker)]

    def _warnings(self, index: int, worker: _Worker) -> Iterator[str]:
        if worker.report is None:
            if self.running:
                yield f"worker {index} is {'being started' if worker.pid is not None else 'down'}"
            return
        if self._is_silent(worker):
            yield f"worker {index} has said nothing for {self._now() - worker.heard_at:.0f} s"
        for problem in worker.report.warnings:
            yield f"worker {index}: {problem}"

    def _is_silent(self, worker: _Worker) -> bool:
        return self._now() - worker.heard_at > LATE

    def _state(self, worker: _Worker) -> str:
        """See ``WorkerStats.state``."""
        if worker.report is None:
            return "down" if worker.pid is None else "starting"
        return "silent" if self._is_silent(worker) else worker.report.state

    def _sum(self) -> Numbers:
        return together((self._retired, *(worker.numbers for worker in self._workers if worker.numbers is not None)))

    def _note(self, total: Numbers) -> None:
        self.peak_allocations = max(self.peak_allocations, total.allocations.current)
        self.peak_connections = max(self.peak_connections, total.connections.current)
        self.peak_bytes_per_second = max(self.peak_bytes_per_second, total.traffic.bytes_per_second)

    def _rows(self) -> Iterator[WorkerStats]:
        now = self._now()
        for index, worker in enumerate(self._workers):
            numbers, report = worker.numbers or NOTHING, worker.report
            yield WorkerStats(
                index=index,
                pid=worker.pid,
                state=self._state(worker),
                uptime_seconds=round(max(0.0, now - worker.begun_at), 3) if worker.pid is not None else 0.0,
                allocations=numbers.allocations.current,
                connections=numbers.connections.current,
                bytes_per_second=numbers.traffic.bytes_per_second,
                packets_per_second=numbers.traffic.packets_per_second,
                cpu_share=round(report.cpu_share, 3) if report is not None else 0.0,
                loop_lag_seconds=round(report.loop_lag_seconds, 4) if report is not None else 0.0,
                restarts=max(0, worker.starts - 1),
            )
