"""The rate of each source, counted by several processes in one table (R6.1, R6.9); ``shared`` is about the memory.

Theory of operation
-------------------
It does what ``sources.SourceLimiter`` does, with the same arithmetic: one moment for each source. The table is an array of *sets*
of ``WAYS`` slots. A source has a name of 64 bits, keyed so that nobody can choose it; the name says in which set the source is if
it is known, in any of its slots. A set lies in a few cache lines, and its bytes are what is guarded, so two processes wait for
each other only when they look at the same set.

A source that comes takes the slot with the earliest moment. That is one rule for three cases: a slot never used has 0; one whose
moment is past is that of a source that has everything again, which is as good as unknown; and if all are busy it is the source
that has the least left to wait for, so forgetting it gives away the least. Whoever goes on, or is refused, has a late moment and
stays, however many others come once: what "forget the least recently seen" gives, too, and nobody has to note who was seen when.

The rate in force is in the table itself, as one word, and each process goes by that. So a new rate holds for all from one moment
on, what is known is converted once, and who says the same rate again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from zrc_relay.core.sharing import WORD, View, name_of, padded
from zrc_relay.core.sources import ROUNDING, Rate

WAYS: Final = 16
"""Slots of a set: so many that sets fill evenly, so few that one is read at once."""
_NAMES: Final = Struct(f"={WAYS}Q")
_TIMES: Final = Struct(f"={WAYS}d")
_SET: Final = _NAMES.size + _TIMES.size
SKEW: Final = 1.0
"""Seconds by which two processes may differ in what they take for now: each looks at the clock once for a batch of packets."""
_SOURCE_BYTES: Final = 9
"""A source is a number of 65 bits (``sources.source_of``)."""
_HALF: Final = 32
_MAX_HALF: Final = (1 << _HALF) - 1


def sources_size(workers: int, slots: int) -> int:
    """Bytes of a table: the rate, for each worker how many slots it filled, and the sets."""
    return _header(workers) + slots // WAYS * _SET


def _header(workers: int) -> int:
    return padded((1 + workers) * WORD)


def _packed(rate: Rate | None) -> int:
    """A rate as one word, 0 for None; so many events that they do not fit are as many as nobody has."""
    return min(rate.events, _MAX_HALF) << _HALF | min(rate.seconds, _MAX_HALF) if rate is not None else 0


class SharedSources:
    """The table of ``slots`` slots at ``offset``, as one worker sees it; see ``limits.Sources``."""

    def __init__(self, view: View, offset: int, slots: int) -> None:
        workers = view.share.count
        part = view.memory[offset : offset + sources_size(workers, slots)]
        self._memory = part
        self._words = part.cast("Q")
        self._times = part.cast("d")
        self._sets = slots // WAYS
        self._offset = offset
        self._header = _header(workers)
        self._guard = view.guard
        self._workers = workers
        self._count = 1 + view.share.index
        self._key = view.key
        self._word = 0
        self._interval = 0.0
        self._period = 0

    def __len__(self) -> int:
        return sum(self._words[1 : 1 + self._workers])

    def take(self, source: int, now: float) -> bool:
        """See ``Sources``."""
        words = self._words
        if not words[0]:
            return True
        name = name_of(source.to_bytes(_SOURCE_BYTES, "little"), self._key)
        place = self._header + name % self._sets * _SET
        with self._guard(self._offset + place, _SET):
            self._read_rate()
            interval = self._interval
            if not interval:
                return True
            names = _NAMES.unpack_from(self._memory, place)
            if name in names:
                slot = place // WORD + WAYS + names.index(name)
                arrival = max(self._arrival(slot, now), now) + interval
                if arrival - now > self._period + ROUNDING:
                    return False
                self._times[slot] = arrival
                return True
            times = _TIMES.unpack_from(self._memory, place + _NAMES.size)
            way = times.index(min(times))
            slot = place // WORD + WAYS + way
            self._times[slot] = 0.0
            words[slot - WAYS] = name
            self._times[slot] = now + interval
            if not names[way]:
                words[self._count] += 1
            return True

    def wait(self, source: int, now: float) -> float:
        """See ``Sources``. A source that is not known is answered without a guard: it is known or not, there is no between."""
        if not self._words[0]:
            return 0.0
        name = name_of(source.to_bytes(_SOURCE_BYTES, "little"), self._key)
        place = self._header + name % self._sets * _SET
        if name not in _NAMES.unpack_from(self._memory, place):
            return 0.0
        with self._guard(self._offset + place, _SET):
            self._read_rate()
            names: Sequence[int] = _NAMES.unpack_from(self._memory, place)
            if name not in names:
                return 0.0
            arrival = self._arrival(place // WORD + WAYS + names.index(name), now)
        missing = arrival + self._interval - now - self._period
        return missing if missing > ROUNDING else 0.0

    def set_rate(self, rate: Rate | None, now: float) -> None:
        """See ``Sources``. Costs some 50 ms when the table is full, during which others wait who want something of it."""
        word = _packed(rate)
        with self._guard(self._offset, len(self._memory)):
            self._read_rate()
            if word == self._word:
                return
            before = self._interval
            self._words[0] = word
            self._read_rate()
            if len(self):
                self._convert(self._interval / before if before else 0.0, now)

    def _arrival(self, slot: int, now: float) -> float:
        """The moment of a source that is known; the caller holds a guard.

        Nobody is ahead by more than a period and what clocks differ. Who seems to be was left over by a process that was killed
        while it changed the rate, and is ahead by a period from now on.
        """
        arrival = self._times[slot]
        if arrival - now > self._period + SKEW:
            arrival = self._times[slot] = now + self._period
        return arrival

    def _read_rate(self) -> None:
        """Go by the rate that is in force; the caller holds a guard."""
        word = self._words[0]
        if word != self._word:
            self._word = word
            self._period = word & _MAX_HALF
            self._interval = self._period / (word >> _HALF) if word else 0.0

    def _convert(self, scale: float, now: float) -> None:
        """Let each source be ahead by as many events as before, but one period at most; forget who is not ahead."""
        words, times, left = self._words, self._times, 0
        for place in range(self._header, len(self._memory), _SET):
            names = _NAMES.unpack_from(self._memory, place)
            if not any(names):
                continue
            for slot, name in enumerate(names, place // WORD + WAYS):
                arrival = times[slot]
                if scale and arrival > now:
                    times[slot] = now + min((arrival - now) * scale, self._period)
                    left += 1
                elif name:
                    times[slot] = 0.0
                    words[slot - WAYS] = 0
        for count in range(1, 1 + self._workers):
            words[count] = 0
        words[self._count] = left
