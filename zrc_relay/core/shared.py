"""Limits that several processes count in one piece of memory, exact over all of them together (R4.1, R4.4, R6.1, R6.9).

Theory of operation
-------------------
The workers of a relay map the same memory. Its ``Layout`` is fixed when it is made: a table for each of ``admission.TABLES``
(``sharedsources``), a bucket for each of ``admission.BUCKETS`` and for the global bandwidth limit (``sharedbuckets``), and the
places for allocations (``sharedplaces``). Monotonic time is the same in all processes of a machine, so moments can be shared.

Who changes something holds a *guard* of the bytes concerned, and never two at a time, so nobody can wait in a circle. Guards must
be let go of for a holder that dies, as the kernel does with POSIX record locks: then a process that was killed in the middle of a
change blocks nobody.

What such a process leaves behind must make sense all the same. Memory is written in aligned words of 8 bytes, or 4 for counts of
places, and a ``memoryview`` cast to that size writes one in a single store: a word is the old one or the new one, never half of
each. Each change is an order of stores of which every beginning is a state that is allowed:

* of a source, first its old time goes, then its name is replaced, then its new time comes: between them it is a source unknown;
* of a bucket, time goes on first and tokens come later: between them tokens are missing, never too many there;
* of places, each worker counts its own in words that nobody else writes; when it is dead they are set to zero (``forget``), and
  whatever they were counts no more.

Two things are less than exact, and only after a worker was killed: how many sources a table *says* that it remembers may be off
by one for each, and when it died while it was changing a rate, some sources are judged by a lead of one period at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zrc_relay.core.admission import BUCKETS, TABLES
from zrc_relay.core.limiter import bandwidth_burst
from zrc_relay.core.routing import Share
from zrc_relay.core.sharedbuckets import BUCKET_SIZE, LeasedBucket
from zrc_relay.core.sharedplaces import BIN, SharedPlaces, places_size
from zrc_relay.core.sharedsources import SharedSources, sources_size
from zrc_relay.core.sharing import LINE, Guard, View
from zrc_relay.core.sources import MAX_SOURCES, Rate

RESERVED: Final = LINE
"""Bytes at the beginning that belong to who makes the memory."""
SOURCE_SLOTS: Final = 2 * MAX_SOURCES
"""Slots of each table of sources. Twice as many as are to be remembered: a source can only be in one of a few slots, and of
``MAX_SOURCES`` sources less than one in a thousand then finds them taken."""
DEVICES: Final = 65_536
"""Devices that are sure to find a slot unless somebody asks for more."""
DEVICE_SLOTS: Final = 4 * DEVICES
"""Slots for devices that hold allocations: four times as many as are sure to find one, for the same reason (``sharedplaces``)."""
BANDWIDTH: Final = "bandwidth"
"""The name of the bucket of what all allocations may forward together."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in memory that ``workers`` share. The numbers of slots are multiples of 64."""

    workers: int
    source_slots: int = SOURCE_SLOTS
    device_slots: int = DEVICE_SLOTS

    def __post_init__(self) -> None:
        if self.source_slots % BIN or self.device_slots % BIN or not self.source_slots or not self.device_slots:
            msg = f"no memory is laid out for {self.source_slots} and {self.device_slots} slots"
            raise ValueError(msg)

    def bucket(self, name: str) -> int:
        """Where a bucket begins; ``ValueError`` for a name that there is not."""
        return RESERVED + (BANDWIDTH, *BUCKETS).index(name) * BUCKET_SIZE

    def sources(self, name: str) -> int:
        """Where a table of sources begins; ``ValueError`` for a name that there is not."""
        return self._tables + TABLES.index(name) * sources_size(self.workers, self.source_slots)

    @property
    def places(self) -> int:
        """Where the places begin."""
        return self._tables + len(TABLES) * sources_size(self.workers, self.source_slots)

    @property
    def size(self) -> int:
        """Bytes in all. Most of them are never written, and then a kernel needs no memory for them."""
        return self.places + places_size(self.workers, self.device_slots)

    @property
    def _tables(self) -> int:
        return RESERVED + (1 + len(BUCKETS)) * BUCKET_SIZE


class SharedLimits:
    """The ``Limits`` of one worker, the one of ``share``.

    ``memory`` is writable bytes with ``layout``, all zero at the beginning; ``key`` is 16 random bytes, the same for all who
    share them, without which nobody can tell which sources or devices compete for the same slots.
    """

    def __init__(self, memory: memoryview, guard: Guard, share: Share, *, key: bytes, layout: Layout) -> None:
        if share.count != layout.workers:
            msg = f"the memory is for {layout.workers} workers, not {share.count}"
            raise ValueError(msg)
        self._view = View(memory, guard, share, key)
        self._layout = layout
        self._bandwidth: LeasedBucket | None = None
        self.places = SharedPlaces(self._view, layout.places, layout.device_slots)

    def sources(self, name: str, rate: Rate | None, now: float) -> SharedSources:
        """See ``Limits``."""
        table = SharedSources(self._view, self._layout.sources(name), self._layout.source_slots)
        table.set_rate(rate, now)
        return table

    def bucket(self, name: str, rate: float, burst: float, now: float) -> LeasedBucket:
        """See ``Limits``. Nothing of it is leased: each token is taken from what all have."""
        return LeasedBucket(self._view, self._layout.bucket(name), rate, burst, now, holders=0)

    def bandwidth(self, limit: int, burst_seconds: float, now: float) -> LeasedBucket:
        """See ``Limits``."""
        self._bandwidth = LeasedBucket(
            self._view, self._layout.bucket(BANDWIDTH), limit, bandwidth_burst(limit, burst_seconds), now,
            holders=self._layout.workers,
        )
        return self._bandwidth

    def rest(self, now: float) -> None:
        """See ``Limits``."""
        if self._bandwidth is not None:
            self._bandwidth.rest(now)

    def forget(self, index: int) -> None:
        """Give back the places of the worker ``index``, which must be dead and not yet replaced."""
        self.places.forget(index)
