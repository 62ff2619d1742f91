"""What is remembered of allocations that ended, and how it outlives the process that forwarded them (R2.8, PROTOCOL §5).

Theory of operation
-------------------
What ended leaves a ``Tombstone`` until its token's expiry: its byte count goes on if it comes back, and if it ended for good
(quota, administrator) it keeps the code (PROTOCOL §5, "after the end"). Tombstones are bounded per device, the oldest first out:
a device that floods its own memory only forgets its own allocations. Devices that nobody has pinned can be made up at will, so
theirs are also bounded all together.

A process can end without a word, and take its allocations along. ``Remembered`` is what another one has to know to go on where it
stopped, whether the allocation had ended or was alive. A ``Witness`` hears of which keys that has changed, and fetches it when it
likes. Payload does not pass here: whoever keeps byte counts looks at them now and then.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from zrc_relay.core.allocation import Allocation, AllocationKey
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.deadlines import Deadlines
from zrc_relay.core.limiter import TokenBucket

TOMBSTONES_PER_DEVICE: Final = 256
"""Ended allocations remembered per device: some 40 kB, and more than twice the built-in ``paid`` tier holds at once (R2.8)."""
UNPINNED_TOMBSTONES: Final = 16_384
"""Ended allocations remembered of all devices together that are not pinned: some 8 MB (R6.9)."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is remembered of an ended allocation until ``until`` (Unix seconds).

    ``code`` is the close code for whoever tries it again, or None when it may be created again and goes on counting. ``bucket``
    is what was left of its bandwidth, so that ending and creating it again buys no further burst (R4.1).
    """

    bytes_transferred: int
    until: int
    code: ErrorCode | None
    bucket: TokenBucket | None = field(default=None, compare=False)
    proven: frozenset[Role] = frozenset()
    """The sides that had bound with a proof: never again without (PROTOCOL §4)."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What must be known of an allocation, live or ended, where its process is no more; until ``until``, Unix seconds.

    ``code`` is that of ``Tombstone``. Its bandwidth is not among it: a new process begins with a new burst.
    """

    device_id: bytes
    allocation_id: bytes
    bytes_transferred: int
    until: int
    code: ErrorCode | None
    proven: frozenset[Role]
    pinned: bool
    """Whether an operator has pinned the key of its device."""

    @property
    def key(self) -> AllocationKey:
        """Which allocation it is of."""
        return self.device_id, self.allocation_id

    @classmethod
    def of_live(cls, allocation: Allocation) -> Remembered:
        """Of one that lives: it may be created again."""
        until = max(allocation.token.expires_at, allocation.remembered_until)
        return cls(
            *allocation.key, allocation.bytes_transferred, until, None, proven_sides(allocation), allocation.is_pinned
        )

    @classmethod
    def of_ended(cls, key: AllocationKey, tombstone: Tombstone, *, pinned: bool) -> Remembered:
        """Of one that ended."""
        return cls(*key, tombstone.bytes_transferred, tombstone.until, tombstone.code, tombstone.proven, pinned)

    def tombstone(self, known: Tombstone | None) -> Tombstone:
        """What to remember here, where ``known`` is remembered already: counts and verdicts never go back."""
        told = Tombstone(self.bytes_transferred, self.until, self.code, None, self.proven)
        if known is None:
            return told
        return replace(
            told,
            bytes_transferred=max(told.bytes_transferred, known.bytes_transferred), until=max(told.until, known.until),
            code=told.code or known.code, bucket=known.bucket, proven=told.proven | known.proven,
        )


def proven_sides(allocation: Allocation) -> frozenset[Role]:
    """The sides of ``allocation`` that have bound with a proof."""
    return frozenset(side.role for side in allocation.sides if side.proven)


class Witness(Protocol):
    """Who hears that what is ``Remembered`` of an allocation is another now, or nothing any more."""

    def changed(self, key: AllocationKey, /) -> None:
        """There is something to fetch, soon."""
        ...

    def ended_for_good(self, key: AllocationKey, /) -> None:
        """It must stay ended, whatever happens to this process: fetch it now."""
        ...


class Graves:
    """The tombstones of all devices; see the module's docstring. ``witness``, if there is one, hears what is forgotten."""

    def __init__(self) -> None:
        self.witness: Witness | None = None
        self._of_devices: dict[bytes, OrderedDict[bytes, Tombstone]] = {}
        self._unpinned: OrderedDict[AllocationKey, None] = OrderedDict()
        self._deadlines: Deadlines[AllocationKey] = Deadlines()

    def __len__(self) -> int:
        return len(self._deadlines)

    def get(self, key: AllocationKey, wall: float) -> Tombstone | None:
        """What is remembered of an ended allocation, unless its time is over."""
        graves = self._of_devices.get(key[0])
        found = graves.get(key[1]) if graves is not None else None
        return found if found is not None and found.until > wall else None

    def is_pinned(self, key: AllocationKey) -> bool:
        """Whether the device of a remembered allocation is pinned."""
        return key not in self._unpinned

    def put(self, key: AllocationKey, tombstone: Tombstone, *, pinned: bool) -> None:
        """Remember ``tombstone`` as the newest, and forget the oldest where there are too many."""
        device_id, allocation_id = key
        graves = self._of_devices.setdefault(device_id, OrderedDict())
        graves[allocation_id] = tombstone
        graves.move_to_end(allocation_id)
        self._deadlines.set(key, tombstone.until)
        if len(graves) > TOMBSTONES_PER_DEVICE:
            self.forget((device_id, next(iter(graves))))
        if pinned:
            self._unpinned.pop(key, None)
            return
        self._unpinned[key] = None
        self._unpinned.move_to_end(key)
        if len(self._unpinned) > UNPINNED_TOMBSTONES:
            self.forget(next(iter(self._unpinned)))

    def sweep(self, wall: float) -> None:
        """Forget those whose time is over."""
        for key in self._deadlines.due(wall):
            self.forget(key)

    def forget(self, key: AllocationKey) -> None:
        """Remember nothing of an allocation, if anything was."""
        self._deadlines.set(key, None)
        self._unpinned.pop(key, None)
        graves = self._of_devices.get(key[0])
        if graves is None or graves.pop(key[1], None) is None:
            return
        if not graves:
            del self._of_devices[key[0]]
        if self.witness is not None:
            self.witness.changed(key)
