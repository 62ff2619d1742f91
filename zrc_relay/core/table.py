"""The table of allocations: who is there, who may still come, what is remembered of what ended (R2, R4.4).

Theory of operation
-------------------
Live allocations are in one dict by ``(device_id, allocation_id)``. What ended leaves a ``Tombstone`` until its token's expiry
(``remembered``); so does what another process knew of allocations before it ended.

Room is counted by ``limits.Places``, together with other processes if there are any: a place is taken in one step, and given back
when nothing comes of it.

Expiry and absence are two ``Deadlines`` (wall and monotonic clock) looked at by one sweep, so ten thousand allocations need no
timer each.
"""

from __future__ import annotations

from collections.abc import Iterator

from zrc_relay.core.allocation import Allocation, AllocationKey, Events, reason_is_final
from zrc_relay.core.authorisation import Refused
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.counters import Counters
from zrc_relay.core.deadlines import Deadlines
from zrc_relay.core.limits import Bucket, Lack, LocalPlaces, Places
from zrc_relay.core.remembered import Graves, Remembered, Tombstone, Witness, proven_sides
from zrc_relay.core.tiers import Tier
from zrc_relay.core.token import RelayToken


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
        self._graves = Graves()
        self._expiry: Deadlines[Allocation] = Deadlines()
        self._absence: Deadlines[Allocation] = Deadlines()

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
        self._graves.forget(key)  # also what is over and was not swept yet: the wall clock may be set back
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
        self._changed(allocation.key)

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
        self._places.leave(key[0])
        until = max(allocation.token.expires_at, allocation.remembered_until)
        if until <= wall:
            self._changed(key)
            return
        stays_ended = reason_is_final(reason) if final is None else final
        code = reason.close_code if stays_ended else None
        tombstone = Tombstone(allocation.bytes_transferred, until, code, allocation.bucket, proven_sides(allocation))
        self._graves.put(key, tombstone, pinned=allocation.is_pinned)
        if stays_ended and self._graves.witness is not None:
            self._graves.witness.ended_for_good(key)
        else:
            self._changed(key)

    def tombstone(self, key: AllocationKey, wall: float) -> Tombstone | None:
        """What is remembered of an ended allocation, unless its time is over."""
        return self._graves.get(key, wall)

    # -- across processes

    def report_to(self, witness: Witness) -> None:
        """Let ``witness`` hear from here on whose ``remembered`` has changed, but for the bytes that allocations carry."""
        self._graves.witness = witness

    def remembered(self, key: AllocationKey, wall: float) -> Remembered | None:
        """What another process would have to know of an allocation; None when it is nothing."""
        allocation = self._live.get(key)
        if allocation is not None:
            return Remembered.of_live(allocation)
        tombstone = self.tombstone(key, wall)
        return Remembered.of_ended(key, tombstone, pinned=self._graves.is_pinned(key)) if tombstone is not None else None

    def remember(self, remembered: Remembered, wall: float) -> None:
        """Know what another process knew: as a tombstone, within their bounds, and never of an allocation that lives here."""
        key = remembered.key
        if key not in self._live and remembered.until > wall:
            self._graves.put(key, remembered.tombstone(self.tombstone(key, wall)), pinned=remembered.pinned)

    def _changed(self, key: AllocationKey) -> None:
        if self._graves.witness is not None:
            self._graves.witness.changed(key)

    # -- what is due

    def expired(self, now: float, wall: float) -> list[tuple[Allocation, TerminationReason]]:
        """The allocations that must end now, with the reason; forgets tombstones whose time is over."""
        self._graves.sweep(wall)
        ended = [(allocation, TerminationReason.EXPIRED) for allocation in self._expiry.due(wall)]
        gone = {allocation for allocation, _ in ended}
        ended += [(allocation, TerminationReason.IDLE) for allocation in self._absence.due(now) if allocation not in gone]
        return ended

    @property
    def tombstones(self) -> int:
        """How many ended allocations are remembered."""
        return len(self._graves)
