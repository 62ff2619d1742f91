"""What an administrator can see and do (R10): the seam between HTTP and the relay.

Theory of operation
-------------------
``Operations`` is all that the HTTP layer knows of a relay. Its methods take and return frozen dataclasses of plain values (what
is asked for is here, what is answered in ``answers``), so that an implementation may just as well ask other processes and put
their answers together. ``local`` has the one for the relay of this process. What cannot be done is an ``OperationError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Final, Protocol

from zrc_relay.control.answers import (
    AllocationDetail,
    AllocationPage,
    ConnectionPage,
    DrainState,
    EntryInfo,
    EntryPage,
    KeyChange,
    KeyPage,
    QlogOrder,
    ReloadResult,
    Stats,
    Termination,
)
from zrc_relay.core.cidr import Access, Network

MAX_PAGE: Final = 1000
"""Items of the longest page."""
DEFAULT_PAGE: Final = 100
MAX_REASON: Final = 200
"""Longest reason for the end of an allocation, in characters."""
MAX_NOTE: Final = 60
"""Longest note beside an entry of a list, in characters."""


class OperationError(Exception):
    """It cannot be done; the message says why, in one sentence for people."""


class NotFound(OperationError):
    """There is no such thing."""


class Ambiguous(OperationError):
    """There are several of them; ``candidates`` are their full names."""

    def __init__(self, detail: str, candidates: tuple[str, ...]) -> None:
        super().__init__(detail)
        self.candidates = candidates


class Conflict(OperationError):
    """It does not go together with how things are; ``problems`` are the reasons when there are several."""

    def __init__(self, detail: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.problems = problems


class Unavailable(OperationError):
    """Whoever could do it does not answer just now; the same may work in a moment."""


@unique
class AllocationState(Enum):
    """Where a live allocation is."""

    WAITING = "waiting"
    ACTIVE = "active"


@unique
class SortKey(Enum):
    """What allocations may be sorted by."""

    ID = "id"
    DEVICE_ID = "device_id"
    STATE = "state"
    TIER = "tier"
    CREATED_AT = "created_at"
    LAST_ACTIVITY_AT = "last_activity_at"
    EXPIRES_AT = "expires_at"
    BYTES_TRANSFERRED = "bytes_transferred"
    BYTES_PER_SECOND = "bytes_per_second"


# -- what is asked


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: ``limit`` items, at most ``MAX_PAGE``, after the first ``offset``."""

    offset: int = 0
    limit: int = DEFAULT_PAGE


@dataclass(frozen=True, slots=True)
class AllocationFilter:
    """Which allocations, all that is not None must hold: ids are bytes, ``source`` holds an address of either side."""

    state: AllocationState | None = None
    device_id: bytes | None = None
    peer_id: bytes | None = None
    tier: str | None = None
    pinned: bool | None = None
    source: Network | None = None


@dataclass(frozen=True, slots=True)
class AllocationName:
    """An allocation by its id, and by its device where several devices have used the same id."""

    allocation_id: bytes
    device_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry for the lists of networks; ``ttl`` is in seconds, None for no end; ``by`` is who adds it."""

    network: Network
    access: Access
    ttl: float | None
    note: str
    by: str


@dataclass(frozen=True, slots=True)
class NewKey:
    """A device to pin: its public key (32 bytes), its tier (empty: the defaults), a note."""

    public_key: bytes
    tier: str
    note: str


class Operations(Protocol):
    """What can be asked of a relay; see the module's docstring. Everything may raise ``OperationError``."""

    async def allocations(self, which: AllocationFilter, sort: SortKey, page: Page, *, descending: bool) -> AllocationPage:
        """Live allocations."""
        ...

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        """One of them; ``NotFound``, ``Ambiguous``."""
        ...

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        """End it for good; ``NotFound``, ``Ambiguous``."""
        ...

    async def trace(self, name: AllocationName) -> QlogOrder:
        """Write a qlog of its next connection; ``NotFound``, ``Ambiguous``, ``Conflict`` when there is nowhere to write it."""
        ...

    async def stats(self) -> Stats:
        """The relay at a glance."""
        ...

    async def connections(self, source: Network | None, page: Page) -> ConnectionPage:
        """QUIC connections; only those from ``source`` if there is one."""
        ...

    async def entries(self, access: Access | None, page: Page) -> EntryPage:
        """The lists of networks."""
        ...

    async def add_entry(self, entry: NewEntry) -> EntryInfo:
        """Allow or block a network; ``Conflict`` when the configuration speaks of it or there are too many."""
        ...

    async def remove_entry(self, network: Network) -> EntryInfo:
        """Take back what run time said of a network; ``NotFound``, or ``Conflict`` when the configuration says it."""
        ...

    async def keys(self, page: Page) -> KeyPage:
        """Device keys."""
        ...

    async def pin(self, key: NewKey) -> KeyChange:
        """Let a device sign tokens; ``Conflict`` when there is no such tier or there are too many."""
        ...

    async def unpin(self, device_id: bytes) -> KeyChange:
        """Let a device sign no more tokens; ``NotFound``."""
        ...

    async def drain(self) -> DrainState:
        """Take nobody new, and tell those who are there to leave."""
        ...

    async def reload(self) -> ReloadResult:
        """Read the configuration again; ``Conflict`` with the problems, and nothing changed, when it cannot be used."""
        ...
