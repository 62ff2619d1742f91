"""Many deadlines, one timer: a heap that is corrected lazily.

Most deadlines only ever move later (a connection that hears something, an allocation that is refreshed). So an item is in the
heap at most a few times, and it is looked at when its *entry* is due: if its real deadline has moved later, it goes back in with
that. Only a deadline that moves earlier costs a push at once. Work per change is amortised O(log n), none for the common case.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Deadlines(Generic[Item]):
    """Items with one deadline each, on whatever clock the caller uses."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._deadlines: dict[Item, float] = {}
        self._entries: dict[Item, float] = {}
        self._sequence = count()

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, item: Item, deadline: float | None) -> None:
        """Give ``item`` a deadline, or take it away with None."""
        if deadline is None:
            self._deadlines.pop(item, None)
            self._entries.pop(item, None)
            return
        self._deadlines[item] = deadline
        entry = self._entries.get(item)
        if entry is None or deadline < entry:
            self._push(item, deadline)

    def due(self, now: float) -> list[Item]:
        """Remove and return the items whose deadline is at or before ``now``, earliest first."""
        ready: list[Item] = []
        while self._heap and self._heap[0][0] <= now:  # not an alias: ``_push`` may build another heap
            entry, _, item = heapq.heappop(self._heap)
            if self._entries.get(item) != entry:
                continue  # superseded by an earlier entry, or the item is gone
            deadline = self._deadlines[item]
            if deadline > entry:
                self._push(item, deadline)  # moved later: its turn comes, in this call or another
                continue
            del self._deadlines[item], self._entries[item]
            ready.append(item)
        return ready

    def next(self) -> float | None:
        """When to look again: at or before the earliest deadline; None when there is none."""
        heap = self._heap
        while heap and self._entries.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _push(self, item: Item, deadline: float) -> None:
        self._entries[item] = deadline
        heapq.heappush(self._heap, (deadline, next(self._sequence), item))
        if len(self._heap) > 4 * len(self._entries) + 64:
            # Entries that were superseded pile up when deadlines keep moving earlier: build the heap anew, amortised.
            self._heap = [(entry, next(self._sequence), kept) for kept, entry in self._entries.items()]
            heapq.heapify(self._heap)
