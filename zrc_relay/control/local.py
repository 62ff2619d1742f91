"""``Traffic`` of the relay of this process.

What looks at every allocation or connection does so in slices (``slices``), on a copy of the list: things may come and go in
between, and what is gone by then is left out. What changes something does it in one go.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

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
)
from zrc_relay.control.listing import Describer, chosen_by, comes_from, full_name, key_of, row_of, sort_value
from zrc_relay.control.management import Clocks
from zrc_relay.control.operations import AllocationFilter, AllocationName, Ambiguous, Conflict, NotFound, SortKey
from zrc_relay.control.sampler import Sampler
from zrc_relay.control.slices import ADDRESSES, LOOKS, NAMES, ROWS, in_slices
from zrc_relay.control.traffic import Numbers, Ranking, Row
from zrc_relay.core.allocation import Allocation, AllocationKey, State
from zrc_relay.core.cidr import Network
from zrc_relay.core.codes import TerminationReason
from zrc_relay.core.relay import Relay
from zrc_relay.metrics.snapshot import Snapshot
from zrc_relay.qlogs import QlogRefused
from zrc_relay.quic.link import RelayConnection

_LIVE = (State.WAITING, State.ACTIVE)


class Recorder(Protocol):
    """What records connections."""

    @property
    def directory(self) -> Path | None:
        """Where recordings are written."""
        ...

    def request(self, key: AllocationKey) -> None:
        """Record the next connection of an allocation; ``QlogRefused`` if not."""
        ...


class Connections(Protocol):
    """The QUIC connections there are."""

    @property
    def connections(self) -> int:
        """How many."""
        ...

    def all_connections(self) -> list[RelayConnection]:
        """All of them, half-open and closing ones included."""
        ...


class LocalTraffic:
    """See ``Traffic``. ``metrics`` gives all numbers of the process; without it ``snapshot`` has none."""

    def __init__(
        self,
        relay: Relay,
        endpoint: Connections,
        recorder: Recorder,
        sampler: Sampler,
        clocks: Clocks,
        *,
        metrics: Callable[[], Snapshot] = Snapshot,
    ) -> None:
        self._relay = relay
        self._endpoint = endpoint
        self._recorder = recorder
        self._sampler = sampler
        self._clocks = clocks
        self._metrics = metrics

    # -- lists

    async def rank_allocations(self, which: AllocationFilter, sort: SortKey, limit: int, *, descending: bool) -> Ranking:
        """See ``Traffic``, as for all of these."""
        is_chosen, value = chosen_by(which), sort_value(sort, self._sampler.rates)
        chosen: list[tuple[Any, AllocationKey]] = []

        def look(allocation: Allocation) -> None:
            if is_chosen(allocation):
                chosen.append((value(allocation), allocation.key))

        size = LOOKS if which.source is None else ADDRESSES
        await in_slices(list(self._relay.table), look, self._clocks.reactor, size)
        # Twice, because ties go by name in both directions; a sort of what is sorted already costs next to nothing.
        chosen.sort(key=itemgetter(1))
        chosen.sort(key=itemgetter(0), reverse=descending)
        rows: list[Row] = []
        await in_slices(chosen[:limit], lambda row: rows.append(row_of(*row)), self._clocks.reactor, NAMES)
        return Ranking(tuple(rows), len(chosen))

    async def describe_allocations(self, names: tuple[str, ...]) -> tuple[AllocationInfo | None, ...]:
        """What is on a page."""
        describer, table, items = self._describer(), self._relay.table, list[AllocationInfo | None]()

        def describe(name: str) -> None:
            allocation = table.get(key_of(name))
            if allocation is None or allocation.state not in _LIVE:
                items.append(None)
            else:
                items.append(describer.allocation(allocation))

        await in_slices(names, describe, self._clocks.reactor, ROWS)
        return tuple(items)

    async def rank_connections(self, source: Network | None, limit: int) -> Ranking:
        """The connections, in the order of the ids that their clients chose."""
        rows: list[Row] = []

        def look(connection: RelayConnection) -> None:
            if connection.finished:
                return  # since these were listed
            if source is None or comes_from(connection.session, source):
                rows.append((connection.first_destination_id.hex(), _name(connection)))

        await in_slices(self._endpoint.all_connections(), look, self._clocks.reactor, ADDRESSES)
        rows.sort()
        return Ranking(tuple(rows[:limit]), len(rows))

    async def describe_connections(self, names: tuple[str, ...]) -> tuple[ConnectionInfo | None, ...]:
        """What is on a page."""
        wanted, found = {name.partition(":")[0] for name in names}, dict[str, RelayConnection]()

        def look(connection: RelayConnection) -> None:
            if connection.name in wanted and not connection.finished:
                found[_name(connection)] = connection

        await in_slices(self._endpoint.all_connections(), look, self._clocks.reactor)
        describer, items = self._describer(), list[ConnectionInfo | None]()

        def describe(name: str) -> None:
            connection = found.get(name)
            items.append(None if connection is None or connection.finished else describer.connection(connection))

        await in_slices(names, describe, self._clocks.reactor, ROWS)
        return tuple(items)

    # -- one allocation

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        """All of it."""
        return self._describer().detail(self._find(name))

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        """End it for good."""
        allocation = self._find(name)
        connections = sum(1 for _ in allocation.members)
        self._relay.end(allocation, TerminationReason.ADMINISTRATOR, self._clocks.now(), self._clocks.wall())
        return Termination(full_name(allocation.key), reason, allocation.bytes_transferred, connections)

    async def trace(self, name: AllocationName) -> QlogOrder:
        """Record its next connection."""
        allocation = self._find(name)
        try:
            self._recorder.request(allocation.key)
        except QlogRefused as error:
            raise Conflict(str(error)) from error
        return QlogOrder(full_name(allocation.key), str(self._recorder.directory))

    def _find(self, name: AllocationName) -> Allocation:
        if name.device_id is not None:
            found = self._relay.table.get((name.device_id, name.allocation_id))
            matches = [found] if found is not None else []
        else:
            matches = [allocation for allocation in self._relay.table if allocation.key[1] == name.allocation_id]
        if not matches:
            msg = f"there is no live allocation {name.allocation_id.hex()}"
            raise NotFound(msg)
        if len(matches) > 1:
            msg = f"{len(matches)} devices have an allocation {name.allocation_id.hex()}; name one of them in full"
            raise Ambiguous(msg, tuple(sorted(full_name(allocation.key) for allocation in matches)))
        return matches[0]

    # -- numbers

    async def stats(self) -> Numbers:
        """See ``numbers``."""
        return self.numbers()

    async def snapshot(self) -> Snapshot:
        """All metrics, now."""
        return self._metrics()

    def numbers(self) -> Numbers:
        """What statistics say, now."""
        sampler, relay, counters = self._sampler, self._relay, self._relay.counters
        uptime = max(0.0, self._clocks.now() - sampler.started)
        sampler.note_peaks()
        return Numbers(
            uptime_seconds=uptime,
            allocations=AllocationStats(
                current=len(relay.table), active=counters.allocations_active, waiting=counters.allocations_waiting,
                peak=sampler.peak_allocations, maximum=relay.policy.max_allocations, created=counters.allocations_created,
                ended=dict(counters.allocations_ended),
            ),
            connections=ConnectionStats(
                current=self._endpoint.connections, peak=sampler.peak_connections,
                handshakes={how.value: count for how, count in counters.handshakes.items()},
            ),
            traffic=TrafficStats(
                bytes=counters.bytes_forwarded, packets=counters.packets_forwarded,
                bytes_per_second=round(sampler.bytes_per_second, 1), packets_per_second=round(sampler.packets_per_second, 1),
                peak_bytes_per_second=round(sampler.peak_bytes_per_second, 1),
                average_bytes_per_second=round(counters.bytes_forwarded / uptime, 1) if uptime else 0.0,
            ),
            dropped=DropStats(
                packets={cause.name.lower(): count for cause, count in counters.dropped_packets.items()},
                bytes={cause.name.lower(): count for cause, count in counters.dropped_bytes.items()},
            ),
            refused={code.name: count for code, count in counters.refused.items() if count},
            limited={limit.value: count for limit, count in counters.limited.items() if count},
            top_talkers=tuple(
                Talker(full_name(key), round(rate, 1), allocation.bytes_transferred)
                for rate, key in sampler.talkers if (allocation := relay.table.get(key)) is not None
            ),
        )

    def _describer(self) -> Describer:
        return Describer(self._clocks.now(), self._clocks.wall(), self._sampler.rates)


def _name(connection: RelayConnection) -> str:
    """What no other connection is called: clients choose the id in logs, and several may choose the same."""
    return f"{connection.name}:{b''.join(connection.quic.own_ids[:1]).hex()}"
