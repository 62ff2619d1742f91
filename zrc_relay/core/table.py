"""The table of allocations: who is there, who may still come, what is remembered of what ended (R2, R4.4).

Theory of operation
-------------------
Live allocations are in one dict by ``(device_id, allocation_id)``. What ended leaves a ``Tombstone`` until its token's expiry:
its byte count goes on if it comes back, and if it ended for good (quota, administrator) it keeps the code (PROTOCOL §5, "after
the end"). Tombstones are bounded per device, the oldest first out: a device that floods its own memory only forgets its own
allocations. Devices that nobody has pinned can be made up at will, so theirs are also bounded all together.

Room is counted by ``limits.Places``, together with other processes if there are any: a place is taken in one step, and given back
when nothing comes of it.

Expiry and absence are two ``Deadlines`` (wall and monotonic clock) looked at by one sweep, so ten thousand allocations need no
timer each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from zrc_relay.core.allocation import Allocation, AllocationKey, Events, reason_is_final
from zrc_relay.core.authorisation import Refused
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.counters import Counters
from zrc_relay.core.deadlines import Deadlines
from zrc_relay.core.limiter import TokenBucket
from zrc_relay.core.limits import Bucket, Lack, LocalPlaces, Places
from zrc_relay.core.tiers import Tier
from zrc_relay.core.token import RelayToken

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


class AllocationTable:
    """All allocations of a relay, live and remembered."""

    def __init__(
        self,
        *,
        max_allocations: int,
        allocation_timeout: float,
        wait_timeout: float,
        idle_timeout: float,
        bandwidth_burst: float,
        global_bucket: Bucket | None,
        counters: Counters,
        events: Events,
        places: Places | None = None,
    ) -> None:
        self._places: Places = places if places is not None else LocalPlaces()
        self._max_allocations = max_allocations
        self._allocation_timeout = allocation_timeout
        self._wait_timeout = wait_timeout
        self._idle_timeout = idle_timeout
        self._bandwidth_burst = bandwidth_burst
        self._global_bucket = global_bucket
        self._counters = counters
        self._events = events
        self._live: dict[AllocationKey, Allocation] = {}
        self._tombstones: dict[bytes, OrderedDict[bytes, Tombstone]] = {}
        self._unpinned: OrderedDict[AllocationKey, None] = OrderedDict()
        self._expiry: Deadlines[Allocation] = Deadlines()
        self._absence: Deadlines[Allocation] = Deadlines()
        self._burial: Deadlines[AllocationKey] = Deadlines()

    def reconfigure(
        self,
        *,
        max_allocations: int,
        allocation_timeout: float,
        wait_timeout: float,
        idle_timeout: float,
        bandwidth_burst: float,
        global_bucket: Bucket | None,
    ) -> None:
        """Use other settings. The buckets of live allocations follow at once; ``absence_changed`` is for the caller to call.

        Nothing ends because there are more allocations than ``max_allocations`` now.
        """
        self._max_allocations = max_allocations
        self._allocation_timeout = allocation_timeout
        self._wait_timeout = wait_timeout
        self._idle_timeout = idle_timeout
        self._bandwidth_burst = bandwidth_burst
        self._global_bucket = global_bucket
        for allocation in self._live.values():
            allocation.share(global_bucket, bandwidth_burst)

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._live.values())

    def get(self, key: AllocationKey) -> Allocation | None:
        """The live allocation with that key."""
        return self._live.get(key)

    def has_proven(self, key: AllocationKey, role: Role, wall: float) -> bool:
        """Whether that side has bound with a proof, in this life of the allocation or in one that is remembered."""
        allocation = self._live.get(key)
        if allocation is not None:
            return allocation.sides[role].proven
        tombstone = self.tombstone(key, wall)
        return tombstone is not None and role in tombstone.proven

    @property
    def load(self) -> int:
        """How full the relay is, 0 to 100."""
        return min(100, 100 * len(self._places) // self._max_allocations)

    def check_room(self, token: RelayToken, tier: Tier, wall: float) -> None:
        """``Refused`` when the allocation of ``token`` cannot be made.

        TERMINATED or QUOTA_EXCEEDED when it ended for good before, CAPACITY when relay or device hold too many.
        """
        self._check_ended(token, wall)
        self._check_lack(self._places.lack(token.device_id, self._max_allocations, tier.max_allocations))

    def _check_ended(self, token: RelayToken, wall: float) -> None:
        tombstone = self.tombstone((token.device_id, token.allocation_id), wall)
        if tombstone is not None and tombstone.code is not None:
            raise Refused(tombstone.code, "this allocation has ended and stays ended until its token expires")

    @staticmethod
    def _check_lack(lack: Lack | None) -> None:
        if lack is not None:
            reason = f"the device holds {lack.held} allocations already" if lack.is_of_device else "the relay is full"
            raise Refused(ErrorCode.CAPACITY, reason, retry_after=5)

    def holds(self, device_id: bytes) -> bool:
        """Whether a device has an allocation in this process."""
        return self._places.holds(device_id)

    def create(self, token: RelayToken, tier: Tier, *, now: float, wall: float, pinned: bool = True) -> Allocation:
        """Make the allocation of ``token``, by a device that is ``pinned`` or not; ``Refused`` as ``check_room`` says."""
        self._check_ended(token, wall)
        self._check_lack(self._places.take(token.device_id, self._max_allocations, tier.max_allocations))
        try:
            allocation = self._make(token, tier, now, wall)
        except BaseException:
            self._places.leave(token.device_id)
            raise
        key = allocation.key
        self._forget(key)  # also what is over and was not swept yet: the wall clock may be set back
        self._live[key] = allocation
        allocation.enter()
        allocation.is_pinned = pinned
        self._counters.allocations_created += 1
        self.accept_token(allocation, wall)
        self.absence_changed(allocation)
        return allocation

    def _make(self, token: RelayToken, tier: Tier, now: float, wall: float) -> Allocation:
        """The allocation of ``token``, going on from what is remembered of it."""
        tombstone = self.tombstone((token.device_id, token.allocation_id), wall)
        allocation = Allocation(
            token, tier,
            now=now, burst_seconds=self._bandwidth_burst, global_bucket=self._global_bucket,
            counters=self._counters, events=self._events,
        )
        if tombstone is not None:
            allocation.bytes_transferred = tombstone.bytes_transferred
            allocation.remembered_until = tombstone.until
            self._check_quota(allocation, token, tier)
            allocation.resume_bandwidth(tombstone.bucket, now)
            for role in tombstone.proven:
                allocation.sides[role].proven = True
        return allocation

    def check_refresh(self, allocation: Allocation, token: RelayToken, tier: Tier) -> None:
        """``Refused`` (QUOTA_EXCEEDED) when ``token`` allows less than was used already (PROTOCOL §5)."""
        self._check_quota(allocation, token, tier)

    @staticmethod
    def _check_quota(allocation: Allocation, token: RelayToken, tier: Tier) -> None:
        quota = allocation.quota_of(token, tier)
        if quota is not None and quota < allocation.bytes_transferred:
            raise Refused(ErrorCode.QUOTA_EXCEEDED, f"{allocation.bytes_transferred} of {quota} bytes are used already")

    def accept_token(self, allocation: Allocation, wall: float) -> None:
        """A token was accepted for ``allocation``: it may live ``allocation_timeout`` from here (R2.5)."""
        allocation.accepted_until = wall + self._allocation_timeout
        self._expiry.set(allocation, allocation.expires_at)

    def absence_changed(self, allocation: Allocation) -> None:
        """A side came or went: wait for the absent one, or stop waiting (R2.6)."""
        self._absence.set(allocation, allocation.absence_deadline(self._wait_timeout, self._idle_timeout))

    def remove(self, allocation: Allocation, reason: TerminationReason, wall: float, *, final: bool | None = None) -> None:
        """Take an ended allocation out and remember it until its token's expiry.

        ``final`` overrides whether ``reason`` keeps it ended (R2.8).
        """
        key = allocation.key
        del self._live[key]
        allocation.leave()
        self._expiry.set(allocation, None)
        self._absence.set(allocation, None)
        device_id, allocation_id = key
        self._places.leave(device_id)
        until = max(allocation.token.expires_at, allocation.remembered_until)
        if until <= wall:
            return
        stays_ended = reason_is_final(reason) if final is None else final
        graves = self._tombstones.setdefault(device_id, OrderedDict())
        graves[allocation_id] = Tombstone(
            allocation.bytes_transferred, until, reason.close_code if stays_ended else None, allocation.bucket,
            frozenset(side.role for side in allocation.sides if side.proven),
        )
        self._burial.set(key, until)
        if len(graves) > TOMBSTONES_PER_DEVICE:
            self._forget((device_id, next(iter(graves))))
        if not allocation.is_pinned:
            self._unpinned[key] = None
            if len(self._unpinned) > UNPINNED_TOMBSTONES:
                self._forget(next(iter(self._unpinned)))

    def tombstone(self, key: AllocationKey, wall: float) -> Tombstone | None:
        """What is remembered of an ended allocation, unless its time is over."""
        graves = self._tombstones.get(key[0])
        found = graves.get(key[1]) if graves is not None else None
        return found if found is not None and found.until > wall else None

    def expired(self, now: float, wall: float) -> list[tuple[Allocation, TerminationReason]]:
        """The allocations that must end now, with the reason; forgets tombstones whose time is over."""
        for key in self._burial.due(wall):
            self._forget(key)
        ended = [(allocation, TerminationReason.EXPIRED) for allocation in self._expiry.due(wall)]
        gone = {allocation for allocation, _ in ended}
        ended += [(allocation, TerminationReason.IDLE) for allocation in self._absence.due(now) if allocation not in gone]
        return ended

    @property
    def tombstones(self) -> int:
        """How many ended allocations are remembered."""
        return len(self._burial)

    def _forget(self, key: AllocationKey) -> None:
        self._burial.set(key, None)
        self._unpinned.pop(key, None)
        graves = self._tombstones.get(key[0])
        if graves is not None:
            graves.pop(key[1], None)
            if not graves:
                del self._tombstones[key[0]]
