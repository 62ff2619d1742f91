"""What a worker knows of allocations, kept where its death does not reach it (R2.8, R3.7, PROTOCOL §5).

Theory of operation
-------------------
The ``Keeper`` of a worker is the ``Witness`` of its table. Who was made, joined, refreshed, ended or forgotten is noted by its
key, and so is who carried something, which the ``Sampler`` sees when it looks at all allocations once a second anyway. After each
of its looks what is remembered of those keys goes to the parent: a death costs what happened since then, and the work is for busy
allocations only. One batch is under way at a time; who changes meanwhile is in a later one, once.

What must stay ended does not wait: it goes before whatever is said of it afterwards, such as the answer to who ended it.

The parent's ``Kept`` is a copy of that, one for each worker's place. It needs no clock of its own: workers say what they forget,
and what ran out while nobody was there is thrown away when the next one begins. A worker holds no more than its limits allow, so
the copy's bound is met by none that is well; it is there so that the parent's memory hangs on nobody else's sums.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nsmallest
from itertools import islice
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.remembered import UNPINNED_TOMBSTONES, Remembered

MAX_TOGETHER: Final = 500
"""Allocations in one batch: some 1 ms of work at either end."""
ENDED: Final = 2 * UNPINNED_TOMBSTONES
"""Ended allocations that are kept of one worker: all that it remembers itself of devices that are not pinned, and as many of
pinned ones. Some 20 MB, if there ever are as many."""


class Table(Protocol):
    """What knows of allocations."""

    def remembered(self, key: AllocationKey, wall: float) -> Remembered | None:
        """What is to be remembered of one at ``wall``, Unix seconds; None when it is nothing."""
        ...


class Keeper:
    """The worker's part; see the module's docstring.

    ``send`` takes ``entries`` and ``forgotten`` (see ``Keep``) and fires when they have arrived.
    """

    def __init__(self, table: Table, send: Callable[..., Deferred[Any]], wall: Callable[[], float]) -> None:
        self._table = table
        self._send = send
        self._wall = wall
        self._changed: dict[AllocationKey, None] = {}
        self._is_busy = False

    def changed(self, key: AllocationKey, /) -> None:
        """See ``Witness``."""
        self._changed[key] = None

    def ended_for_good(self, key: AllocationKey, /) -> None:
        """See ``Witness``."""
        self._changed.pop(key, None)
        self._tell([key]).addErrback(_parent_is_gone)

    def flush(self) -> None:
        """Tell what has changed, unless that is being done."""
        if not self._is_busy:
            self._go_on()

    def _go_on(self, _: object = None) -> None:
        keys = list(islice(self._changed, MAX_TOGETHER))
        self._is_busy = bool(keys)
        if keys:
            for key in keys:
                del self._changed[key]
            self._tell(keys).addCallbacks(self._go_on, _parent_is_gone)

    def _tell(self, keys: list[AllocationKey]) -> Deferred[Any]:
        wall, entries, forgotten = self._wall(), [], []
        for key in keys:
            found = self._table.remembered(key, wall)
            if found is None:
                forgotten.append(key)
            else:
                entries.append(found)
        return self._send(entries=tuple(entries), forgotten=tuple(forgotten))


def _parent_is_gone(_: object) -> None:
    """And so is this process, in a moment."""


class Kept:
    """The parent's part; see the module's docstring. At most ``bound`` allocations.

    Past that a part of them goes at once: devices that are not pinned first, and of those what would have run out first.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._entries: dict[AllocationKey, Remembered] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, entries: tuple[Remembered, ...], forgotten: tuple[AllocationKey, ...]) -> None:
        """Know what a worker said."""
        for key in forgotten:
            self._entries.pop(key, None)
        for entry in entries:
            self._entries.pop(entry.key, None)
            self._entries[entry.key] = entry  # as the newest
        too_many = len(self._entries) - self._bound
        if too_many > 0:
            room = too_many + self._bound // 16  # sorting is not for each single one
            for entry in nsmallest(room, self._entries.values(), key=lambda entry: (entry.pinned, entry.until)):
                del self._entries[entry.key]

    def take_stock(self, wall: float) -> tuple[Remembered, ...]:
        """What still holds at ``wall``, Unix seconds, the longest known first; forgets the rest."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.until > wall}
        return tuple(self._entries.values())
