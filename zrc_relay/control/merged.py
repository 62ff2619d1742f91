"""``Traffic`` of several processes as if they were one.

Theory of operation
-------------------
Where an allocation can be follows from its id (``core.routing``), so what is asked of one goes to that worker alone; when it is
gone or does not answer, that is said, with its index. Everything else is asked of all at once, and who does not answer in time is
left out: a list without the rows of a worker that is being replaced is worth more than none. It says whose rows are missing.

To put lists together each worker gives as many rows as the page ends behind (``rank_...``); names of rows get the index of their
worker in front, by which ``describe_...`` knows whom to ask.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as TooLate
from twisted.logger import Logger

from zrc_relay.control.answers import AllocationDetail, AllocationInfo, ConnectionInfo, QlogOrder, Termination
from zrc_relay.control.fleet import Fleet
from zrc_relay.control.operations import AllocationFilter, AllocationName, OperationError, SortKey, Unavailable
from zrc_relay.control.traffic import Numbers, Ranking, Traffic, in_order
from zrc_relay.core.cidr import Network
from zrc_relay.core.routing import Share
from zrc_relay.core.token import routing_byte
from zrc_relay.metrics.snapshot import Snapshot

PATIENCE: Final = 2.0
"""Seconds that a worker has to answer what an administrator asks: far more than a list of all takes."""
SCRAPE_PATIENCE: Final = 1.0
"""The same for metrics: scrapers wait ten seconds, and the last known numbers are at most a second old."""

T = TypeVar("T")


class MergedTraffic:
    """See the module's docstring. ``workers`` gives those that can be asked now, by index; ``clock`` calls back."""

    _log = Logger()

    def __init__(self, workers: Callable[[], Mapping[int, Traffic]], fleet: Fleet, clock: Any) -> None:
        self._workers = workers
        self._fleet = fleet
        self._clock = clock
        self._share = Share(0, fleet.count)

    # -- lists

    async def rank_allocations(self, which: AllocationFilter, sort: SortKey, limit: int, *, descending: bool) -> Ranking:
        """See ``Traffic``, as for all of these."""
        found = await self._ask_all(
            lambda _, worker: worker.rank_allocations(which, sort, limit, descending=descending), PATIENCE
        )
        return self._ranked(found, limit, descending=descending)

    async def describe_allocations(self, names: tuple[str, ...]) -> tuple[AllocationInfo | None, ...]:
        """What is on a page."""
        return await self._describe(names, lambda worker, theirs: worker.describe_allocations(theirs))

    async def rank_connections(self, source: Network | None, limit: int) -> Ranking:
        """The connections."""
        found = await self._ask_all(lambda _, worker: worker.rank_connections(source, limit), PATIENCE)
        return self._ranked(found, limit)

    async def describe_connections(self, names: tuple[str, ...]) -> tuple[ConnectionInfo | None, ...]:
        """What is on a page."""
        return await self._describe(names, lambda worker, theirs: worker.describe_connections(theirs))

    def _ranked(self, found: Mapping[int, Ranking], limit: int, *, descending: bool = False) -> Ranking:
        """The lists of several workers as one; names get their worker's index in front."""
        owners = {name: index for index, ranking in found.items() for _, name in ranking.rows}
        rows = in_order((row for ranking in found.values() for row in ranking.rows), descending=descending)[:limit]
        return Ranking(
            tuple((value, f"{owners[name]} {name}") for value, name in rows),
            sum(ranking.total for ranking in found.values()),
            tuple(index for index in range(self._fleet.count) if index not in found),
        )

    async def _describe(
        self, names: tuple[str, ...], ask: Callable[[Traffic, tuple[str, ...]], Coroutine[Any, Any, tuple[T | None, ...]]]
    ) -> tuple[T | None, ...]:
        places: dict[int, list[int]] = {}
        wanted: dict[int, list[str]] = {}
        for place, name in enumerate(names):
            index, _, theirs = name.partition(" ")
            places.setdefault(int(index), []).append(place)
            wanted.setdefault(int(index), []).append(theirs)
        found = await self._ask_all(lambda index, worker: ask(worker, tuple(wanted[index])), PATIENCE, only=wanted)
        items: list[T | None] = [None] * len(names)
        for worker, described in found.items():
            for place, item in zip(places[worker], described, strict=True):
                items[place] = item
        return tuple(items)

    # -- one allocation

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        """All of it."""
        return await self._ask_owner(name, lambda worker: worker.allocation(name))

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        """End it for good."""
        return await self._ask_owner(name, lambda worker: worker.terminate(name, reason))

    async def trace(self, name: AllocationName) -> QlogOrder:
        """Record its next connection."""
        return await self._ask_owner(name, lambda worker: worker.trace(name))

    # -- numbers

    async def stats(self) -> Numbers:
        """What statistics say; of a worker that does not answer, what was last known."""

        async def ask(index: int, worker: Traffic) -> None:
            self._fleet.saw(index, await worker.stats())

        await self._ask_all(ask, PATIENCE)
        return self._fleet.numbers()

    async def snapshot(self) -> Snapshot:
        """The same for metrics."""

        async def ask(index: int, worker: Traffic) -> None:
            self._fleet.totals.seen(index, await worker.snapshot())

        await self._ask_all(ask, SCRAPE_PATIENCE)
        return self._fleet.totals.together()

    # -- asking

    async def _ask_all(
        self,
        ask: Callable[[int, Traffic], Coroutine[Any, Any, T]],
        patience: float,
        *,
        only: Mapping[int, object] | None = None,
    ) -> dict[int, T]:
        """What those that answer within ``patience`` seconds say, by index."""
        asked = {
            index: Deferred.fromCoroutine(ask(index, worker)).addTimeout(patience, self._clock)
            for index, worker in self._workers().items() if only is None or index in only
        }
        results: Any = await DeferredList(list(asked.values()), consumeErrors=True)
        found: dict[int, T] = {}
        for index, (is_answer, result) in zip(asked, results, strict=True):
            if is_answer:
                found[index] = result
            elif not result.check(OperationError, TooLate, CancelledError):  # the last one: whoever asked has gone
                self._log.failure(
                    "the admin endpoint could not answer {action}", result, event="admin.failed", action=f"worker {index}'s part"
                )
        return found

    async def _ask_owner(self, name: AllocationName, ask: Callable[[Traffic], Coroutine[Any, Any, T]]) -> T:
        index = self._share.owner_of(routing_byte(name.allocation_id))
        worker = self._workers().get(index)
        if worker is None:
            msg = f"worker {index}, which would have this allocation, is being replaced; try again in a moment"
            raise Unavailable(msg)
        answer: Awaitable[T] = Deferred.fromCoroutine(ask(worker)).addTimeout(PATIENCE, self._clock)
        try:
            return await answer
        except (Unavailable, TooLate) as error:
            msg = f"worker {index}, which would have this allocation, does not answer; try again in a moment"
            raise Unavailable(msg) from error
