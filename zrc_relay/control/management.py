"""``Operations`` on the front of a relay: what manages it is done here, and whatever forwards is asked for the rest.

What looks at every entry does so in slices (``slices``), on a copy of the list: things may come and go in between. What changes
something does it in one go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from zrc_relay import __version__
from zrc_relay.access import AccessStore
from zrc_relay.control.answers import (
    AllocationDetail,
    AllocationPage,
    ConnectionPage,
    DrainState,
    EntryInfo,
    EntryPage,
    KeyChange,
    KeyInfo,
    KeyPage,
    QlogOrder,
    ReloadResult,
    Stats,
    Termination,
    moment,
)
from zrc_relay.control.operations import (
    AllocationFilter,
    AllocationName,
    Conflict,
    NewEntry,
    NewKey,
    NotFound,
    Page,
    SortKey,
)
from zrc_relay.control.slices import in_slices
from zrc_relay.control.traffic import Ranking, Traffic
from zrc_relay.core.cidr import MAX_RUNTIME_ENTRIES, Access, AccessLists, Entry, Network
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.token import key_id
from zrc_relay.pins import MAX_CHANGES, PinnedKeys, TooManyPins


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


class Managed(Protocol):
    """What a relay's front can do, and no other part of it."""

    @property
    def relay_id(self) -> bytes:
        """Who the relay is to tokens."""
        ...

    @property
    def instance_id(self) -> bytes:
        """Which run of it this is."""
        ...

    @property
    def state(self) -> str:
        """``starting``, ``ready`` or ``draining``."""
        ...

    @property
    def lists(self) -> AccessLists:
        """The lists of networks."""
        ...

    @property
    def access(self) -> AccessStore:
        """Where what run time said of networks is kept."""
        ...

    @property
    def tiers(self) -> Collection[str]:
        """Names of the tiers that there are."""
        ...

    @property
    def pins(self) -> PinnedKeys:
        """What run time said of device keys."""
        ...

    @property
    def device_keys(self) -> DeviceKeys:
        """Those of the file."""
        ...

    @property
    def drain_deadline(self) -> float | None:
        """Until when clients were told to leave, Unix seconds; None while nobody was."""
        ...

    def lists_in_force(self) -> Deferred[None]:
        """Fires when what was said of networks until now holds wherever packets come in."""
        ...

    def use_device_keys(self) -> int | Deferred[int]:
        """Put the file's keys in force with what run time says over them; how many allocations ended."""
        ...

    def drain(self) -> Deferred[None]:
        """Take nobody new."""
        ...

    def reload(self) -> Awaitable[Reloaded]:
        """Read the configuration again."""
        ...


@dataclass(frozen=True, slots=True)
class Clocks:
    """Monotonic and Unix seconds, and the reactor that calls back."""

    now: Callable[[], float]
    wall: Callable[[], float]
    reactor: Any


class FrontOperations:
    """See the module's docstring and ``Operations``."""

    def __init__(self, front: Managed, traffic: Traffic, clocks: Clocks) -> None:
        self._front = front
        self._traffic = traffic
        self._clocks = clocks

    # -- what forwards is asked

    async def allocations(self, which: AllocationFilter, sort: SortKey, page: Page, *, descending: bool) -> AllocationPage:
        """See ``Operations``, as for all of these."""
        ranking = await self._traffic.rank_allocations(which, sort, page.offset + page.limit, descending=descending)
        items = await self._traffic.describe_allocations(_names(ranking, page))
        shown = tuple(item for item in items if item is not None)
        return AllocationPage(shown, ranking.total, page.offset, ranking.missing)

    async def connections(self, source: Network | None, page: Page) -> ConnectionPage:
        """QUIC connections."""
        ranking = await self._traffic.rank_connections(source, page.offset + page.limit)
        items = await self._traffic.describe_connections(_names(ranking, page))
        shown = tuple(item for item in items if item is not None)
        return ConnectionPage(shown, ranking.total, page.offset, ranking.missing)

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        """One allocation."""
        return await self._traffic.allocation(name)

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        """End one."""
        return await self._traffic.terminate(name, reason)

    async def trace(self, name: AllocationName) -> QlogOrder:
        """Record one."""
        return await self._traffic.trace(name)

    async def stats(self) -> Stats:
        """The relay at a glance."""
        numbers = await self._traffic.stats()
        front, wall = self._front, self._clocks.wall()
        return Stats(
            time=moment(wall) or "",
            started_at=moment(wall - numbers.uptime_seconds) or "",
            uptime_seconds=round(numbers.uptime_seconds, 3),
            version=__version__,
            relay_id=front.relay_id.hex(),
            instance_id=front.instance_id.hex(),
            state=front.state,
            allocations=numbers.allocations,
            connections=numbers.connections,
            traffic=numbers.traffic,
            dropped=numbers.dropped,
            refused=numbers.refused,
            limited=numbers.limited,
            top_talkers=numbers.top_talkers,
            workers=numbers.workers,
        )

    # -- lists of networks

    async def entries(self, access: Access | None, page: Page) -> EntryPage:
        """See ``Operations``."""
        wall = self._clocks.wall()
        chosen: list[Entry] = []

        def look(entry: Entry) -> None:
            if entry.until > wall and (access is None or entry.access is access):
                chosen.append(entry)

        await in_slices(list(self._front.lists), look, self._clocks.reactor)
        kept = self._front.access.is_kept
        shown = tuple(_entry(each, kept=kept) for each in chosen[page.offset : page.offset + page.limit])
        return EntryPage(shown, len(chosen), page.offset)

    async def add_entry(self, entry: NewEntry) -> EntryInfo:
        """See ``Operations``."""
        lists, wall = self._front.lists, self._clocks.wall()
        known = lists.get(entry.network)
        if known is not None and known.configured:
            msg = f"the configuration says {known.access.value} of {entry.network}; change it there"
            raise Conflict(msg)
        until = inf if entry.ttl is None else wall + entry.ttl
        note = f"admin {entry.by}" + (f": {entry.note}" if entry.note else "")
        if not lists.add(Entry(entry.network, entry.access, until, note), wall):
            msg = f"there are {MAX_RUNTIME_ENTRIES} entries already"
            raise Conflict(msg)
        known = lists.get(entry.network)
        if known is None:
            msg = f"nothing is said of {entry.network}"
            raise NotFound(msg)
        await self._front.lists_in_force()
        return _entry(known, kept=await self._front.access.keep())

    async def remove_entry(self, network: Network) -> EntryInfo:
        """See ``Operations``."""
        lists = self._front.lists
        known = lists.get(network)
        if known is None or known.until <= self._clocks.wall():
            msg = f"nothing is said of {network}"
            raise NotFound(msg)
        if not lists.remove(network):
            msg = f"the configuration says {known.access.value} of {network}; change it there"
            raise Conflict(msg)
        await self._front.lists_in_force()
        await self._front.access.keep()
        return _entry(known, kept=self._front.access.problem is None)  # where nothing is kept, nothing comes back

    # -- device keys

    async def keys(self, page: Page) -> KeyPage:
        """See ``Operations``."""
        front = self._front
        known = sorted({*front.device_keys, *front.pins})
        return KeyPage(tuple(self._key(each) for each in known[page.offset : page.offset + page.limit]), len(known), page.offset)

    async def pin(self, key: NewKey) -> KeyChange:
        """See ``Operations``."""
        front = self._front
        if key.tier and key.tier not in front.tiers:
            msg = f"there is no tier {key.tier}; there are {', '.join(sorted(front.tiers))}"
            raise Conflict(msg)
        try:
            front.pins.pin(Device(key.public_key, key.tier, key.note), front.device_keys)
        except TooManyPins as error:
            raise _too_many() from error
        return await self._changed(key_id(key.public_key))

    async def unpin(self, device_id: bytes) -> KeyChange:
        """See ``Operations``."""
        front = self._front
        if front.pins.over(front.device_keys).get(device_id) is None:
            msg = f"no key of the device {device_id.hex()} is pinned"
            raise NotFound(msg)
        before = self._key(device_id)
        try:
            front.pins.unpin(device_id, front.device_keys)
        except TooManyPins as error:
            raise _too_many() from error
        change = await self._changed(device_id)
        return KeyChange(
            KeyInfo(device_id.hex(), before.public_key, before.tier, before.note, pinned=False, source="runtime"),
            change.kept, change.ended,
        )

    async def _changed(self, device_id: bytes) -> KeyChange:
        used = self._front.use_device_keys()
        ended = used if isinstance(used, int) else await used
        key = self._key(device_id)
        return KeyChange(key, await self._front.pins.save(), ended)

    def _key(self, device_id: bytes) -> KeyInfo:
        front = self._front
        in_file = front.device_keys.get(device_id)
        said = device_id in front.pins
        device = front.pins.get(device_id) if said else in_file
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
        self._front.drain()
        deadline = self._front.drain_deadline
        numbers = await self._traffic.stats()
        return DrainState(
            "draining", moment(deadline) if deadline is not None else None,
            numbers.allocations.current, numbers.connections.current,
        )

    async def reload(self) -> ReloadResult:
        """See ``Operations``."""
        report = await self._front.reload()
        problems = tuple(report.problems)
        if problems:
            msg = "the configuration cannot be used; nothing was changed"
            raise Conflict(msg, problems)
        return ReloadResult(tuple(report.changed), tuple(report.not_reloadable), report.ended)


def _names(ranking: Ranking, page: Page) -> tuple[str, ...]:
    """Whatever is on the page."""
    return tuple(name for _, name in ranking.rows[page.offset : page.offset + page.limit])


def _entry(entry: Entry, *, kept: bool) -> EntryInfo:
    return EntryInfo(
        str(entry.network), entry.access.value, moment(entry.until), entry.note, entry.configured, entry.configured or kept
    )


def _too_many() -> Conflict:
    return Conflict(f"run time has said something of {MAX_CHANGES} devices already; put them into the file of device keys")
