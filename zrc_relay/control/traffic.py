"""What only what forwards can tell, of allocations and connections: the seam behind which there may be several processes.

Theory of operation
-------------------
``Traffic`` is the half of ``Operations`` that needs the relay itself; the other half, lists, keys, draining and reloading, is of
the front. ``local.LocalTraffic`` answers for this process, ``workers.remote.RemoteTraffic`` asks another one, and
``merged.MergedTraffic`` is several of them as if they were one.

A page of a long list takes two questions, so that it is right whoever has the rows. ``rank_...`` gives the first rows of the list
in its order, each as what it is sorted by and its name: enough to put the lists of several processes together. ``describe_...``
says everything of the few rows that are on the page; for what has gone in between it says None.

All values here are frozen dataclasses of plain values, so they travel between processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

from zrc_relay.control.answers import (
    AllocationDetail,
    AllocationInfo,
    AllocationStats,
    ConnectionInfo,
    ConnectionStats,
    DropStats,
    QlogOrder,
    Talker,
    Termination,
    TrafficStats,
    WorkerStats,
)
from zrc_relay.control.operations import AllocationFilter, AllocationName, SortKey
from zrc_relay.core.cidr import Network
from zrc_relay.metrics.snapshot import Snapshot

Row = tuple[str | int | float, str]
"""What a row is sorted by, and a name that no other row has: of an allocation its full name."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The first rows of a list in its order, and how many there are in all, but for those of ``missing`` workers, by index."""

    rows: tuple[Row, ...]
    total: int
    missing: tuple[int, ...] = ()


def in_order(rows: Iterable[Row], *, descending: bool = False) -> list[Row]:
    """Rows as a list shows them. Ties go by name in both directions."""
    # Twice, therefore; a sort of what is sorted already costs next to nothing.
    by_name = sorted(rows, key=itemgetter(1))
    by_name.sort(key=itemgetter(0), reverse=descending)
    return by_name


@dataclass(frozen=True, slots=True)
class Numbers:
    """What statistics say of the traffic; ``workers`` is empty where there is one process only."""

    uptime_seconds: float
    allocations: AllocationStats
    connections: ConnectionStats
    traffic: TrafficStats
    dropped: DropStats
    refused: Mapping[str, int]
    limited: Mapping[str, int]
    top_talkers: tuple[Talker, ...]
    workers: tuple[WorkerStats, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says of itself once a second.

    ``state`` is one of ``starting``, ``ready``, ``draining``. ``uptime_seconds`` counts from its start. ``cpu_share`` is the part
    of one core that it used since the report before, ``loop_lag_seconds`` how late its event loop was at most in the last 15 to
    30 seconds. ``failures`` and ``warnings`` are those of its health, a sentence each.
    """

    pid: int
    state: str
    uptime_seconds: float
    cpu_share: float
    loop_lag_seconds: float
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: Numbers
    snapshot: Snapshot


class Traffic(Protocol):
    """See the module's docstring. Everything may raise ``OperationError``."""

    async def rank_allocations(self, which: AllocationFilter, sort: SortKey, limit: int, *, descending: bool) -> Ranking:
        """The first ``limit`` live allocations of those asked for."""
        ...

    async def describe_allocations(self, names: tuple[str, ...]) -> tuple[AllocationInfo | None, ...]:
        """Each of these; None for one that is no longer there."""
        ...

    async def rank_connections(self, source: Network | None, limit: int) -> Ranking:
        """The first ``limit`` QUIC connections; only those from ``source`` if there is one."""
        ...

    async def describe_connections(self, names: tuple[str, ...]) -> tuple[ConnectionInfo | None, ...]:
        """Each of these; None for one that is no longer there."""
        ...

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        """See ``Operations``, as for the next two."""
        ...

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        """End it for good."""
        ...

    async def trace(self, name: AllocationName) -> QlogOrder:
        """Write a qlog of its next connection."""
        ...

    async def stats(self) -> Numbers:
        """What statistics say."""
        ...

    async def snapshot(self) -> Snapshot:
        """All metrics, now."""
        ...
