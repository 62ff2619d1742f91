"""Allocations: their life, their two sides, and the one place where a payload is counted, forwarded or dropped (R2, R3, R4).

Theory of operation
-------------------
An ``Allocation`` is known by ``(device_id, allocation_id)``. Its life is a transition table (``TRANSITIONS``); an event that the
table does not hold for a state raises and changes nothing::

    created --side joined--> waiting --both there--> active --side gone--> waiting
    any of these --end--> terminating --closed--> terminated

Each ``Side`` holds the *members* bound to it (sessions of connections), the newest last, and which of them is *current*, that
is, carries egress (PROTOCOL §6). Payloads go through ``Allocation.forward``; nothing else counts bytes and nothing else drops.

Two clocks: ``now`` is monotonic seconds (absence, limits), ``wall`` is Unix seconds (expiry of tokens).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import Enum, unique
from typing import Final, Protocol

from zrc_relay.core.channel import Channel
from zrc_relay.core.codes import DropCause, Role, TerminationReason
from zrc_relay.core.counters import Counters
from zrc_relay.core.limiter import TokenBucket, bandwidth_bucket, bandwidth_burst
from zrc_relay.core.limits import Bucket
from zrc_relay.core.tiers import Tier, effective_limits
from zrc_relay.core.token import RelayToken

AllocationKey = tuple[bytes, bytes]
"""``(device_id, allocation_id)`` (PROTOCOL §3)."""

QUOTA_WARNING_FRACTION: Final = 0.9
MIN_STREAM_DELAY: Final = 0.001
"""Shortest wait in seconds that is asked of a stream held back by a cap: a timer for less would cost more than it gives."""


@unique
class State(Enum):
    """Where an allocation is in its life (R2.4)."""

    CREATED = "created"
    WAITING = "waiting"
    ACTIVE = "active"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


@unique
class Change(Enum):
    """What moves an allocation on."""

    SIDE_JOINED = "side joined"
    BOTH_THERE = "both there"
    SIDE_GONE = "side gone"
    END = "end"
    CLOSED = "closed"


TRANSITIONS: Final[Mapping[tuple[State, Change], State]] = {
    (State.CREATED, Change.SIDE_JOINED): State.WAITING,
    (State.WAITING, Change.SIDE_JOINED): State.WAITING,
    (State.WAITING, Change.BOTH_THERE): State.ACTIVE,
    (State.WAITING, Change.SIDE_GONE): State.WAITING,
    (State.ACTIVE, Change.SIDE_GONE): State.WAITING,
    (State.CREATED, Change.END): State.TERMINATING,
    (State.WAITING, Change.END): State.TERMINATING,
    (State.ACTIVE, Change.END): State.TERMINATING,
    (State.TERMINATING, Change.CLOSED): State.TERMINATED,
}


class IllegalTransition(Exception):
    """An event that makes no sense in this state: a bug in the caller."""


class Member(Protocol):
    """What an allocation needs of a session that is bound to it."""

    role: Role
    last_heard: float
    """When the connection last heard its client, monotonic seconds."""

    @property
    def patience(self) -> float:
        """Seconds of silence after which the connection no longer counts as heard from: max(3 PTO, 1 s)."""
        ...

    def send_datagrams(self, payloads: list[bytes], now: float) -> None:
        """Put payloads on the way to the client, in order."""
        ...

    def note_drop(self, cause: DropCause, size: int, now: float) -> None:
        """One of the client's datagrams was dropped."""
        ...

    def superseded(self) -> None:
        """Another connection of the side carries egress now."""
        ...

    def send(self, data: bytes) -> None:
        """Send an encoded capsule to the client."""
        ...

    def terminate(self, reason: TerminationReason) -> None:
        """The allocation ended."""
        ...

    @property
    def max_payload(self) -> int:
        """The longest payload that fits a DATAGRAM towards the client, in bytes."""
        ...


class Events(Protocol):
    """What an allocation asks of the relay it belongs to."""

    def quota_warning(self, allocation: Allocation) -> None:
        """90 % of the quota is used."""
        ...

    def quota_exceeded(self, allocation: Allocation) -> None:
        """The next byte would cross the quota."""
        ...


class Side:
    """One end of an allocation: its bound members and whose turn it is."""

    __slots__ = ("absent_since", "current", "ever_present", "members", "proven", "role")

    def __init__(self, role: Role, now: float) -> None:
        self.role = role
        self.members: list[Member] = []
        self.current: Member | None = None
        self.proven = False
        self.ever_present = False
        self.absent_since = now

    def add(self, member: Member, now: float) -> None:
        """Bind ``member`` as the newest, which makes it current."""
        self.members.append(member)
        self.ever_present = True
        self.select(now)

    def remove(self, member: Member, now: float) -> None:
        """Unbind ``member``."""
        self.members.remove(member)
        if not self.members:
            self.absent_since = now
        if self.current is member:
            self.current = None
        self.select(now)

    def select(self, now: float) -> None:
        """Choose the current member (PROTOCOL §6): the newest heard from lately, else the one heard from last."""
        chosen: Member | None = None
        for member in reversed(self.members):
            if now - member.last_heard <= member.patience:
                chosen = member
                break
        else:
            chosen = max(reversed(self.members), key=lambda member: member.last_heard, default=None)
        previous = self.current
        if chosen is not previous:
            self.current = chosen
            if previous is not None:
                previous.superseded()


class Allocation:
    """One allocation: token in force, limits, sides, counters. Made by ``AllocationTable.create`` only."""

    __slots__ = (
        "_bucket", "_counters", "_events", "_global_bucket", "accepted_until", "bandwidth_limit", "burst_seconds",
        "bytes_transferred", "channel", "created_at", "is_live", "is_pinned", "key", "last_activity", "quota", "quota_warned",
        "remembered_until", "sides", "state", "tier", "token",
    )

    def __init__(
        self,
        token: RelayToken,
        tier: Tier,
        *,
        now: float,
        burst_seconds: float,
        global_bucket: Bucket | None,
        counters: Counters,
        events: Events,
    ) -> None:
        self.key: AllocationKey = (token.device_id, token.allocation_id)
        self.token = token
        self.tier = tier
        self.state = State.CREATED
        self.created_at = now
        self.last_activity = now
        self.accepted_until = 0.0
        self.bytes_transferred = 0
        self.remembered_until = 0
        """Expiry of the token that an earlier life of it had, Unix seconds: its bytes count until then (PROTOCOL §5)."""
        self.channel: Channel | None = None
        """The way around QUIC, once a side has asked for it."""
        self.is_live = False
        self.is_pinned = True
        """Whether an operator has pinned the key of its device."""
        self.quota_warned = False
        self.sides = (Side(Role.DEVICE, now), Side(Role.PEER, now))
        self.burst_seconds = burst_seconds
        self._global_bucket = global_bucket
        self._counters = counters
        self._events = events
        self._bucket: TokenBucket | None = None
        self.bandwidth_limit: int | None = None
        self.quota: int | None = None
        self.set_limits(token, tier, now)

    # -- life

    def change(self, change: Change) -> None:
        """Move along ``TRANSITIONS``; ``IllegalTransition`` (and nothing changed) where the table holds no way."""
        try:
            state = TRANSITIONS[self.state, change]
        except KeyError:
            msg = f"{change.value!r} cannot happen to an allocation that is {self.state.value}"
            raise IllegalTransition(msg) from None
        self._account(-1)
        self.state = state
        self._account(1)

    def enter(self) -> None:
        """It is in the table from here on, and in the figures of all of them."""
        self.is_live = True
        self._account(1)

    def leave(self) -> None:
        """It is no longer."""
        self._account(-1)
        self.is_live = False

    def _account(self, sign: int) -> None:
        """Take it out of the figures of all live allocations (-1), or put it in (1), if it is one of them."""
        if not self.is_live:
            return
        counters = self._counters
        if self.state is State.ACTIVE:
            counters.allocations_active += sign
        else:
            counters.allocations_waiting += sign
        if self.quota is not None:
            counters.quota_granted += sign * self.quota
            counters.quota_used += sign * self.bytes_transferred

    @property
    def expires_at(self) -> float:
        """When it expires, Unix seconds: min(token in force, last accepted token + allocation_timeout) (R2.5)."""
        return min(self.token.expires_at, self.accepted_until)

    @property
    def members(self) -> Iterator[Member]:
        """Every bound member of both sides."""
        for side in self.sides:
            yield from side.members

    def bind(self, member: Member, now: float) -> bool:
        """Add ``member`` to its side; returns whether the side was absent until now."""
        side = self.sides[member.role]
        was_absent = not side.members
        other = self.sides[member.role.other]
        if was_absent:
            self.change(Change.SIDE_JOINED)
            if other.members:
                self.change(Change.BOTH_THERE)
        side.add(member, now)
        return was_absent

    def unbind(self, member: Member, now: float) -> bool:
        """Remove ``member`` from its side; returns whether the side is absent now."""
        side = self.sides[member.role]
        side.remove(member, now)
        if side.members or self.state not in (State.WAITING, State.ACTIVE):
            return False
        self.change(Change.SIDE_GONE)
        return True

    def absence_deadline(self, wait_timeout: float, idle_timeout: float) -> float | None:
        """When the absence of a side ends the allocation (monotonic seconds); None while both are there (R2.6)."""
        deadlines = [
            side.absent_since + (idle_timeout if side.ever_present else wait_timeout)
            for side in self.sides
            if not side.members
        ]
        return min(deadlines, default=None)

    # -- limits

    def set_limits(self, token: RelayToken, tier: Tier, now: float) -> None:
        """Put ``token`` in force with the limits it gets in ``tier`` (R4.7)."""
        self.token = token
        self.tier = tier
        bandwidth, quota = effective_limits(token.bandwidth_limit, token.quota_bytes, tier)
        if quota is not None:
            quota = max(quota, self.bytes_transferred)  # a cap that came down ends it with the next byte, and not before (R3.7)
        if bandwidth is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = bandwidth_bucket(bandwidth, self.burst_seconds, now)
        else:
            self._bucket.set_rate(bandwidth, bandwidth_burst(bandwidth, self.burst_seconds), now)
        self.bandwidth_limit = bandwidth
        if quota is None or self.quota is None or quota > self.quota:
            self.quota_warned = False
        self._account(-1)
        self.quota = quota
        self._account(1)

    def share(self, global_bucket: Bucket | None, burst_seconds: float) -> None:
        """Use another bucket for what all allocations have together; the burst is for the next ``set_limits``."""
        self._global_bucket = global_bucket
        self.burst_seconds = burst_seconds

    @property
    def bucket(self) -> TokenBucket | None:
        """What is left of its bandwidth; None without a limit."""
        return self._bucket

    def resume_bandwidth(self, bucket: TokenBucket | None, now: float) -> None:
        """Go on with what an earlier life of it had left: the intervals of R4.1 do not end with a life."""
        if bucket is not None and self._bucket is not None:
            bucket.set_rate(self._bucket.rate, self._bucket.burst, now)
            self._bucket = bucket

    @staticmethod
    def quota_of(token: RelayToken, tier: Tier) -> int | None:
        """The quota in bytes that ``token`` gets in ``tier``; None without one."""
        return effective_limits(token.bandwidth_limit, token.quota_bytes, tier)[1]

    # -- the way of a payload

    def forward(self, sender: Member, payloads: list[bytes], now: float) -> None:
        """Forward datagram payloads of ``sender`` to the other side in order, or drop each with its one cause (R3).

        They come as a batch, and at one time, so what is the same for all of them is looked at once.
        """
        side = self.sides[1 - sender.role]
        if len(side.members) > 1:
            side.select(now)  # silence may have changed it
        target = side.current
        if target is None:
            for payload in payloads:
                self.drop(sender, DropCause.NO_COUNTERPART, len(payload), now)
            return
        accepted = self.admit(sender, payloads, 0, now)
        if accepted:
            target.send_datagrams(accepted, now)

    def admit(self, sender: Member, packets: list[bytes], header: int, now: float) -> list[bytes]:
        """Those of ``packets`` that caps and quota let pass, in order, counted; the others are dropped, each with its one cause.

        ``header`` is how many bytes of each are not payload.
        """
        total = -header * len(packets)
        for packet in packets:
            total += len(packet)
        if self.admit_all(total, len(packets), now):
            return packets
        bucket, shared, quota = self._bucket, self._global_bucket, self.quota
        allowed = bucket.available(now) if bucket is not None else math.inf
        allowed_by_all = shared.available(now, total) if shared is not None else math.inf
        left = quota - self.bytes_transferred if quota is not None else math.inf
        accepted: list[bytes] = []
        total = 0
        for packet in packets:
            size = len(packet) - header
            if total + size > allowed:
                self.drop(sender, DropCause.BANDWIDTH, size, now)
            elif total + size > allowed_by_all:
                self.drop(sender, DropCause.GLOBAL_BANDWIDTH, size, now)
            elif total + size > left:
                left = -math.inf  # nothing passes after it, however small
                self.drop(sender, DropCause.QUOTA, size, now)
                self._events.quota_exceeded(self)
            else:
                accepted.append(packet)
                total += size
        if accepted:
            self._take(total, len(accepted), now)
        if shared is not None:
            shared.trim(now)
        return accepted

    def admit_all(self, total: int, packets: int, now: float) -> bool:
        """Count ``packets`` with ``total`` bytes of payload if caps and quota let all of them pass; else change nothing."""
        bucket, shared, quota = self._bucket, self._global_bucket, self.quota
        if (
            (bucket is not None and total > bucket.available(now))
            or (quota is not None and total > quota - self.bytes_transferred)
            or (shared is not None and total > shared.available(now, total))  # last: what it was asked for is taken
        ):
            return False
        self._take(total, packets, now)
        return True

    def _take(self, total: int, packets: int, now: float) -> None:
        if self._bucket is not None:
            self._bucket.tokens -= total
        if self._global_bucket is not None:
            self._global_bucket.tokens -= total
        self._counters.packets_forwarded += packets
        self._count(total, now)

    def grant_stream_bytes(self, wanted: int, now: float) -> tuple[int, float]:
        """How many of ``wanted`` stream bytes may be taken now, and, when none may, the seconds to wait.

        They are counted as they are granted. Streams are delayed by the caps, never dropped (R3.5); (0, 0) says that the quota
        ended the allocation.
        """
        if wanted <= 0:
            return 0, 0.0
        allowed = float(wanted)
        if self.quota is not None:
            allowed = min(allowed, self.quota - self.bytes_transferred)
            if allowed <= 0:
                self._events.quota_exceeded(self)
                return 0, 0.0
        bucket, shared = self._bucket, self._global_bucket
        if bucket is not None:
            allowed = min(allowed, bucket.available(now))
        if shared is not None:
            allowed = min(allowed, shared.available(now, allowed))
        size = int(allowed)
        if size > 0:
            if bucket is not None:
                bucket.tokens -= size
            if shared is not None:
                shared.tokens -= size
                shared.trim(now)
            self._count(size, now)
            return size, 0.0
        delay = MIN_STREAM_DELAY
        if bucket is not None:
            delay = max(delay, bucket.wait(min(wanted, bucket.burst / 4), now))
        if shared is not None:
            shared.trim(now)
            delay = max(delay, shared.wait(min(wanted, shared.burst / 4), now))
        return 0, delay

    def _count(self, size: int, now: float) -> None:
        """Count bytes that were accepted: the one place (PROTOCOL §6)."""
        total = self.bytes_transferred = self.bytes_transferred + size
        self._counters.bytes_forwarded += size
        self.last_activity = now
        quota = self.quota
        if quota is not None:
            self._counters.quota_used += size
            if not self.quota_warned and total >= quota * QUOTA_WARNING_FRACTION:
                self.quota_warned = True
                self._counters.quota_warnings += 1
                self._events.quota_warning(self)

    def drop(self, sender: Member | None, cause: DropCause, size: int, now: float) -> None:
        """The one place where a datagram of an allocation is dropped; ``sender`` hears of it, if still there (R4.5)."""
        self._counters.dropped_packets[cause] += 1
        self._counters.dropped_bytes[cause] += size
        if sender is not None:
            sender.note_drop(cause, size, now)


def reason_is_final(reason: TerminationReason) -> bool:
    """Whether an allocation that ended for ``reason`` stays ended until its token's expiry (R2.8)."""
    return reason in (TerminationReason.QUOTA, TerminationReason.ADMINISTRATOR)
