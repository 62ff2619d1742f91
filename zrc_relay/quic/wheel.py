"""The deadlines of all connections: a timing wheel (Varghese and Lauck, 1987) with a slot for each millisecond that has any.

Times are rounded up to whole slots, which is what timers are good for (RFC 9002 §6.1.2), so that many connections share a
wake-up. A slot is a dictionary: it keeps the order, and one can leave it. What is sorted are the numbers of the slots and not the
connections, so that nothing is looked at of a connection that is not due: with thousands of them each look is at memory that the
processor has long forgotten.

Nearly every deadline only ever moves later (a connection that hears something). So a connection stays in the slot that it is in,
and where it belongs is looked up when that is due. What is soon (a probe timeout) stands in front of what is far away (the idle
timeout), whose place is kept for afterwards: else each packet of a slow flow would leave a place behind that lasts for as long as
the idle timeout. A connection that turns out, while it is at hand anyway, to need the place in front no longer leaves it
(``put_off``), so that it is not looked at once more when that is due. Acknowledgements have places of their own and leave the
deadline alone.
"""

from __future__ import annotations

import heapq
from math import ceil, inf
from typing import Final, Generic, TypeVar

SLOTS_PER_SECOND: Final = 1000
_SPARE: Final = 64
"""Places that are never worth clearing away."""
_FAR: Final = SLOTS_PER_SECOND
"""Slots between a place in front and one that is worth keeping behind it."""
_NOWHERE: Final = 1 << 60


class Timed:
    """What can have a place in a ``Wheel``. ``wakes_at`` is its deadline in seconds, infinity for none; the wheel sets it."""

    __slots__ = ("far_slot", "owing_slot", "slot", "wakes_at")

    def __init__(self) -> None:
        self.wakes_at = inf
        self.slot = _NOWHERE
        """The earliest slot that it is in for its deadline, which may have moved later since."""
        self.far_slot = _NOWHERE
        """A later one, which counts when that has passed."""
        self.owing_slot = _NOWHERE
        """The slot that it is in for its acknowledgement."""

    @property
    def is_early(self) -> bool:
        """Whether it has a place in front of another."""
        return self.far_slot != _NOWHERE


Item = TypeVar("Item", bound=Timed)


class Wheel(Generic[Item]):
    """Items with a deadline each, and for some an acknowledgement beside it."""

    __slots__ = ("_entries", "_limit", "_numbers", "_slots", "_waiting")

    def __init__(self) -> None:
        self._slots: dict[int, dict[Item, None]] = {}
        self._numbers: list[int] = []
        self._entries = 0
        self._limit = _SPARE
        """Places above which it is worth a look whether they still count."""
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def set(self, item: Item, at: float) -> None:
        """Give ``item`` the deadline ``at``, or none with infinity."""
        self._waiting += (at < inf) - (item.wakes_at < inf)
        item.wakes_at = at
        if at < inf:
            self._place(ceil(at * SLOTS_PER_SECOND), item)

    def put_off(self, item: Item, at: float) -> None:
        """As ``set``, for an item that ``is_early`` and whose deadline moves far away: it leaves the place in front."""
        number = item.slot
        item.slot, item.far_slot = item.far_slot, _NOWHERE
        if number != item.owing_slot:
            items = self._slots.get(number)
            if items is not None and item in items:
                del items[item]
                self._entries -= 1
        self.set(item, at)

    def set_owing(self, item: Item, at: float) -> None:
        """``item`` owes an acknowledgement from now on, due at ``at``."""
        number = ceil(at * SLOTS_PER_SECOND)
        if number != item.owing_slot:
            item.owing_slot = number
            self._put(number, item)

    def due(self, now: float) -> tuple[list[Item], list[Item]]:
        """Remove and return the items whose deadline has come, which have none then, and those whose acknowledgement is due."""
        ready: list[Item] = []
        owing: list[Item] = []
        while self._numbers and self._numbers[0] / SLOTS_PER_SECOND <= now:  # not an alias: ``_put`` may make another list
            number = heapq.heappop(self._numbers)
            items = self._slots.pop(number)
            self._entries -= len(items)
            for item in items:
                if item.slot == number:
                    item.slot, item.far_slot = item.far_slot, _NOWHERE
                    at = item.wakes_at
                    if at <= now:
                        self.set(item, inf)
                        ready.append(item)
                    elif at < inf:
                        self._place(max(number + 1, ceil(at * SLOTS_PER_SECOND)), item)
                if item.owing_slot == number:
                    item.owing_slot = _NOWHERE
                    owing.append(item)
        return ready, owing

    def next(self) -> float:
        """When to look again: at or before the earliest deadline; infinity when there is none."""
        numbers, slots = self._numbers, self._slots
        while numbers and not slots[numbers[0]]:  # all have left it
            del slots[heapq.heappop(numbers)]
        return numbers[0] / SLOTS_PER_SECOND if numbers else inf

    def _place(self, number: int, item: Item) -> None:
        if number < item.slot:
            if item.far_slot == _NOWHERE or item.slot - number > _FAR:
                item.far_slot = item.slot
            item.slot = number
            self._put(number, item)

    def _put(self, number: int, item: Item) -> None:
        items = self._slots.get(number)
        if items is None:
            items = self._slots[number] = {}
            heapq.heappush(self._numbers, number)
        elif item in items:
            return
        items[item] = None
        self._entries += 1
        if self._entries > self._limit:
            self._clear_away()

    def _clear_away(self) -> None:
        """Drop places that count no longer. There must have been as many new ones as are left, so it pays for itself."""
        kept: dict[int, dict[Item, None]] = {}
        self._entries = 0
        for number, items in self._slots.items():
            still: dict[Item, None] = {}
            for item in items:
                if item.wakes_at == inf:
                    item.slot = item.far_slot = _NOWHERE
                if number in (item.slot, item.far_slot, item.owing_slot):
                    still[item] = None
            if still:
                kept[number] = still
                self._entries += len(still)
        self._limit = 2 * self._entries + _SPARE
        self._slots = kept
        self._numbers = sorted(kept)
