"""Places for allocations that several processes take (R4.4); ``shared`` is about the memory.

Theory of operation
-------------------
Each worker counts its own: how many places it holds, and how many for each device. Limits are judged by the sums. So when a
worker is dead, setting its counts to zero gives back all that it had, whatever it was in the middle of.

A device has a slot while any worker holds a place for it: a name of 64 bits, keyed, and a count for each worker. Slots are in
*bins* of ``BIN``, and the name says which bin it is. A device for which there is no slot in its bin gets no place, as if the
relay were full; rather that than a device without a limit. Bins being large and names random, that does not happen while a
quarter of all slots is in use (the chance is below 1e-12), and hardly before half of them are.

One guard is for all of it: allocations come and go some hundred times a second at most, and a limit on all of them has to be
looked at by everybody anyway.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from zrc_relay.core.limits import Lack
from zrc_relay.core.sharing import LINE, WORD, View, name_of, padded

BIN: Final = 64
"""Slots of a bin, all of which are looked at for each device."""
COUNT: Final = 4
"""Bytes of a count."""
STEP: Final = 8192
"""Slots that ``forget`` deals with before it lets others have their turn: some milliseconds."""
_NAMES: Final = Struct(f"={BIN}Q")


def places_size(workers: int, slots: int) -> int:
    """Bytes: for each worker how many places it holds, the names, and for each worker the counts."""
    return padded(workers * WORD) + slots * WORD + workers * slots * COUNT


class SharedPlaces:
    """The places at ``offset`` with ``slots`` slots for devices, as one worker sees them; see ``limits.Places``."""

    def __init__(self, view: View, offset: int, slots: int) -> None:
        memory, workers, index = view.memory, view.share.count, view.share.index
        names = offset + padded(workers * WORD)
        counts = names + slots * WORD
        self._held = memory[offset : offset + workers * WORD].cast("Q")
        self._names = memory[names:counts].cast("Q")
        self._bins = memory[names:counts]
        self._counts = [
            memory[counts + worker * slots * COUNT : counts + (worker + 1) * slots * COUNT].cast("I") for worker in range(workers)
        ]
        self._slots = slots
        self._offset = offset
        self._guard = view.guard
        self._index = index
        self._mine = self._counts[index]
        self._key = view.key

    def __len__(self) -> int:
        return sum(self._held)

    def lack(self, device_id: bytes, maximum: int, device_maximum: int | None) -> Lack | None:
        """See ``Places``."""
        with self._guard(self._offset, LINE):
            return self._find(name_of(device_id, self._key), maximum, device_maximum)[1]

    def take(self, device_id: bytes, maximum: int, device_maximum: int | None) -> Lack | None:
        """See ``Places``."""
        name = name_of(device_id, self._key)
        with self._guard(self._offset, LINE):
            slot, lack = self._find(name, maximum, device_maximum)
            if lack is None:
                self._names[slot] = name
                self._mine[slot] += 1
                self._held[self._index] += 1
            return lack

    def leave(self, device_id: bytes) -> None:
        """See ``Places``; ``KeyError`` for a device for which this worker has none."""
        name = name_of(device_id, self._key)
        with self._guard(self._offset, LINE):
            slot = self._slot(name)
            if slot is None or not self._mine[slot]:
                raise KeyError(device_id)
            self._mine[slot] -= 1
            self._clear(slot)
            self._held[self._index] -= 1

    def holds(self, device_id: bytes) -> bool:
        """See ``Places``. Needs no guard: only this worker writes its counts, and a slot keeps its name while there is one."""
        slot = self._slot(name_of(device_id, self._key))
        return slot is not None and self._mine[slot] > 0

    def forget(self, index: int) -> None:
        """Give back all places of the worker ``index``, which is dead and not yet replaced.

        Until this is done some of them are still counted, so limits hold while it is going on.
        """
        counts = self._counts[index]
        for first in range(0, self._slots, STEP):
            with self._guard(self._offset, LINE):
                for slot, name in enumerate(self._names[first : first + STEP].tolist(), first):
                    if name:
                        counts[slot] = 0
                        self._clear(slot)
        with self._guard(self._offset, LINE):
            self._held[index] = 0

    def _find(self, name: int, maximum: int, device_maximum: int | None) -> tuple[int, Lack | None]:
        """Where a place for a device would be counted, or why there is none; the caller has the guard."""
        held = sum(self._held)
        if held >= maximum:
            return 0, Lack(is_of_device=False, held=held)
        slot = self._slot(name)
        of_device = sum(counts[slot] for counts in self._counts) if slot is not None else 0
        if device_maximum is not None and of_device >= device_maximum:
            return 0, Lack(is_of_device=True, held=of_device)
        if slot is None:
            slot = self._slot(0, near=name)
        return (slot, None) if slot is not None else (0, Lack(is_of_device=False, held=held))

    def _slot(self, name: int, *, near: int | None = None) -> int | None:
        """The slot with ``name``, in its bin or in that of the name ``near``."""
        first = (name if near is None else near) % (self._slots // BIN) * BIN
        names = _NAMES.unpack_from(self._bins, first * WORD)
        return first + names.index(name) if name in names else None

    def _clear(self, slot: int) -> None:
        """Free a slot that nobody has a place in."""
        if not any(counts[slot] for counts in self._counts):
            self._names[slot] = 0
