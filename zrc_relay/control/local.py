"""``Operations`` on the relay of this process.

What looks at every allocation, connection or entry does so in slices (``slices``), on a copy of the list: things may come and go
in between, and what is gone by then is left out. What changes something does it in one go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from zrc_relay import __version__
from zrc_relay.control.answers import (
    AllocationDetail,
    AllocationInfo,
    AllocationPage,
    AllocationStats,
    ConnectionInfo,
    ConnectionPage,
    ConnectionStats,
    DrainState,
    DropStats,
    EntryInfo,
    EntryPage,
    KeyChange,
    KeyInfo,
    KeyPage,
    QlogOrder,
    ReloadResult,
    Stats,
    Talker,
    Termination,
    TrafficStats,
    moment,
)
from zrc_relay.control.listing import Describer, chosen_by, comes_from, full_name, sort_value
from zrc_relay.control.operations import (
    AllocationFilter,
    AllocationName,
    Ambiguous,
    Conflict,
    NewEntry,
    NewKey,
    NotFound,
    Page,
    SortKey,
)
from zrc_relay.control.sampler import Sampler
from zrc_relay.control.slices import ADDRESSES, LOOKS, ROWS, in_slices
from zrc_relay.core.allocation import Allocation, AllocationKey, State
from zrc_relay.core.cidr import MAX_RUNTIME_ENTRIES, Access, Entry, Network
from zrc_relay.core.codes import TerminationReason
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.relay import Relay
from zrc_relay.core.token import key_id
from zrc_relay.pins import MAX_CHANGES, PinnedKeys, TooManyPins
from zrc_relay.qlogs import QlogRefused
from zrc_relay.quic.link import RelayConnection

_LIVE = (State.WAITING, State.ACTIVE)


class Reloaded(Protocol):
    """What came of a reload; with problems nothing was changed."""

    @property
    def changed(self) -> Iterable[str]:
        """What is in force now."""
        ...

    @property
    def not_reloadable(self) -> Iterable[str]:
        """What needs a restart."""
        ...

    @property
    def problems(self) -> Iterable[str]:
        """Why nothing was changed."""
        ...

    @property
    def ended(self) -> int:
        """Allocations that ended because their device is gone."""
        ...


class Recorder(Protocol):
    """What records connections."""

    @property
    def directory(self) -> Path | None:
        """Where recordings are written."""
        ...

    def request(self, key: AllocationKey) -> None:
        """Record the next connection of an allocation; ``QlogRefused`` if not."""
        ...


class Host(Protocol):
    """What the service around a relay can do, and no other part of it."""

    relay: Relay
    pins: PinnedKeys
    device_keys: DeviceKeys
    ready: bool
    drain_deadline: float | None
    """Until when clients were told to leave, Unix seconds; None while nobody was."""

    @property
    def qlogs(self) -> Recorder:
        """What records connections."""
        ...

    def use_device_keys(self, configured: DeviceKeys | None = None) -> int:
        """Put the file's keys in force with what run time says over them; how many allocations ended."""
        ...

    def drain(self) -> Deferred[None]:
        """Take nobody new."""
        ...

    def reload(self) -> Awaitable[Reloaded]:
        """Read the configuration again."""
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


@dataclass(frozen=True, slots=True)
class Clocks:
    """Monotonic and Unix seconds, and the reactor that calls back."""

    now: Callable[[], float]
    wall: Callable[[], float]
    reactor: Any


class LocalOperations:
    """See the module's docstring and ``Operations``."""

    def __init__(self, host: Host, endpoint: Connections, sampler: Sampler, clocks: Clocks) -> None:
        self._host = host
        self._relay = host.relay
        self._endpoint = endpoint
        self._sampler = sampler
        self._clocks = clocks

    # -- allocations

    async def allocations(self, which: AllocationFilter, sort: SortKey, page: Page, *, descending: bool) -> AllocationPage:
        """See ``Operations``."""
        is_chosen, value = chosen_by(which), sort_value(sort, self._sampler.rates)
        chosen: list[tuple[Any, Any, Allocation]] = []

        def look(allocation: Allocation) -> None:
            if is_chosen(allocation):
                chosen.append((value(allocation), allocation.key, allocation))

        size = LOOKS if which.source is None else ADDRESSES
        await in_slices(list(self._relay.table), look, self._clocks.reactor, size)
        # Twice, because ties go by name in both directions; a sort of what is sorted already costs next to nothing.
        chosen.sort(key=itemgetter(1))
        chosen.sort(key=itemgetter(0), reverse=descending)
        describer, items = self._describer(), list[AllocationInfo]()

        def describe(row: tuple[Any, Any, Allocation]) -> None:
            if row[2].state in _LIVE:
                items.append(describer.allocation(row[2]))

        await in_slices(chosen[page.offset : page.offset + page.limit], describe, self._clocks.reactor, ROWS)
        return AllocationPage(tuple(items), len(chosen), page.offset)

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        """See ``Operations``."""
        return self._describer().detail(self._find(name))

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        """See ``Operations``."""
        allocation = self._find(name)
        connections = sum(1 for _ in allocation.members)
        self._relay.end(allocation, TerminationReason.ADMINISTRATOR, self._clocks.now(), self._clocks.wall())
        return Termination(full_name(allocation.key), reason, allocation.bytes_transferred, connections)

    async def trace(self, name: AllocationName) -> QlogOrder:
        """See ``Operations``."""
        allocation = self._find(name)
        recorder = self._host.qlogs
        try:
            recorder.request(allocation.key)
        except QlogRefused as error:
            raise Conflict(str(error)) from error
        return QlogOrder(full_name(allocation.key), str(recorder.directory))

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

    # -- the relay at a glance

    async def stats(self) -> Stats:
        """See ``Operations``."""
        sampler, relay, counters = self._sampler, self._relay, self._relay.counters
        now, wall = self._clocks.now(), self._clocks.wall()
        uptime = max(0.0, now - sampler.started)
        current, connections = len(relay.table), self._endpoint.connections
        sampler.note_peaks()
        return Stats(
            time=moment(wall) or "",
            started_at=moment(wall - uptime) or "",
            uptime_seconds=round(uptime, 3),
            version=__version__,
            relay_id=relay.policy.relay_id.hex(),
            instance_id=relay.policy.instance_id.hex(),
            state="draining" if relay.draining else "ready" if self._host.ready else "starting",
            allocations=AllocationStats(
                current=current, active=counters.allocations_active, waiting=counters.allocations_waiting,
                peak=sampler.peak_allocations, maximum=relay.policy.max_allocations, created=counters.allocations_created,
                ended=dict(counters.allocations_ended),
            ),
            connections=ConnectionStats(
                current=connections, peak=sampler.peak_connections,
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

    async def connections(self, source: Network | None, page: Page) -> ConnectionPage:
        """See ``Operations``."""
        chosen: list[RelayConnection] = []

        def look(connection: RelayConnection) -> None:
            if source is None or comes_from(connection.session, source):
                chosen.append(connection)

        await in_slices(self._endpoint.all_connections(), look, self._clocks.reactor, LOOKS if source is None else ADDRESSES)
        chosen.sort(key=lambda connection: connection.first_destination_id)
        describer, items = self._describer(), list[ConnectionInfo]()

        def describe(connection: RelayConnection) -> None:
            items.append(describer.connection(connection))

        await in_slices(chosen[page.offset : page.offset + page.limit], describe, self._clocks.reactor, ROWS)
        return ConnectionPage(tuple(items), len(chosen), page.offset)

    # -- lists of networks

    async def entries(self, access: Access | None, page: Page) -> EntryPage:
        """See ``Operations``."""
        wall = self._clocks.wall()
        chosen: list[Entry] = []

        def look(entry: Entry) -> None:
            if entry.until > wall and (access is None or entry.access is access):
                chosen.append(entry)

        await in_slices(list(self._relay.admission.lists), look, self._clocks.reactor)
        return EntryPage(tuple(_entry(each) for each in chosen[page.offset : page.offset + page.limit]), len(chosen), page.offset)

    async def add_entry(self, entry: NewEntry) -> EntryInfo:
        """See ``Operations``."""
        lists, wall = self._relay.admission.lists, self._clocks.wall()
        known = lists.get(entry.network)
        if known is not None and known.configured:
            msg = f"the configuration says {known.access.value} of {entry.network}; change it there"
            raise Conflict(msg)
        until = inf if entry.ttl is None else wall + entry.ttl
        note = f"admin {entry.by}" + (f": {entry.note}" if entry.note else "")
        if not lists.add(Entry(entry.network, entry.access, until, note), wall):
            msg = f"there are {MAX_RUNTIME_ENTRIES} entries already"
            raise Conflict(msg)
        return self._entry_of(entry.network)

    async def remove_entry(self, network: Network) -> EntryInfo:
        """See ``Operations``."""
        lists = self._relay.admission.lists
        known = lists.get(network)
        if known is None or known.until <= self._clocks.wall():
            msg = f"nothing is said of {network}"
            raise NotFound(msg)
        if not lists.remove(network):
            msg = f"the configuration says {known.access.value} of {network}; change it there"
            raise Conflict(msg)
        return _entry(known)

    def _entry_of(self, network: Network) -> EntryInfo:
        known = self._relay.admission.lists.get(network)
        if known is None:
            msg = f"nothing is said of {network}"
            raise NotFound(msg)
        return _entry(known)

    # -- device keys

    async def keys(self, page: Page) -> KeyPage:
        """See ``Operations``."""
        host = self._host
        known = sorted({*host.device_keys, *host.pins})
        return KeyPage(tuple(self._key(each) for each in known[page.offset : page.offset + page.limit]), len(known), page.offset)

    async def pin(self, key: NewKey) -> KeyChange:
        """See ``Operations``."""
        host = self._host
        if key.tier and key.tier not in self._relay.policy.tiers:
            msg = f"there is no tier {key.tier}; there are {', '.join(sorted(self._relay.policy.tiers))}"
            raise Conflict(msg)
        try:
            host.pins.pin(Device(key.public_key, key.tier, key.note), host.device_keys)
        except TooManyPins as error:
            raise _too_many() from error
        return await self._changed(key_id(key.public_key))

    async def unpin(self, device_id: bytes) -> KeyChange:
        """See ``Operations``."""
        host = self._host
        if host.pins.over(host.device_keys).get(device_id) is None:
            msg = f"no key of the device {device_id.hex()} is pinned"
            raise NotFound(msg)
        before = self._key(device_id)
        try:
            host.pins.unpin(device_id, host.device_keys)
        except TooManyPins as error:
            raise _too_many() from error
        change = await self._changed(device_id)
        return KeyChange(
            KeyInfo(device_id.hex(), before.public_key, before.tier, before.note, pinned=False, source="runtime"),
            change.kept, change.ended,
        )

    async def _changed(self, device_id: bytes) -> KeyChange:
        ended = self._host.use_device_keys()
        key = self._key(device_id)
        return KeyChange(key, await self._host.pins.save(), ended)

    def _key(self, device_id: bytes) -> KeyInfo:
        host = self._host
        in_file = host.device_keys.get(device_id)
        said = device_id in host.pins
        device = host.pins.get(device_id) if said else in_file
        shown = device or in_file
        return KeyInfo(
            device_id.hex(),
            shown.public_key.hex() if shown is not None else None,
            shown.tier if shown is not None else "",
            shown.note if shown is not None else "",
            pinned=device is not None,
            source="runtime" if said else "file",
        )

    # -- the process

    async def drain(self) -> DrainState:
        """See ``Operations``."""
        self._host.drain()
        deadline = self._host.drain_deadline
        return DrainState(
            "draining", moment(deadline) if deadline is not None else None, len(self._relay.table), self._endpoint.connections
        )

    async def reload(self) -> ReloadResult:
        """See ``Operations``."""
        report = await self._host.reload()
        problems = tuple(report.problems)
        if problems:
            msg = "the configuration cannot be used; nothing was changed"
            raise Conflict(msg, problems)
        return ReloadResult(tuple(report.changed), tuple(report.not_reloadable), report.ended)

    def _describer(self) -> Describer:
        return Describer(self._clocks.now(), self._clocks.wall(), self._sampler.rates)


def _entry(entry: Entry) -> EntryInfo:
    return EntryInfo(str(entry.network), entry.access.value, moment(entry.until), entry.note, entry.configured)


def _too_many() -> Conflict:
    return Conflict(f"run time has said something of {MAX_CHANGES} devices already; put them into the file of device keys")
