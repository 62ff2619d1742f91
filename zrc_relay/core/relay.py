"""The relay as such: what all sessions share, and everything that one of them does to others (R1, R2, R4).

``Relay`` owns the table of allocations, the authoriser, the policy and the counters. Sessions call it; it calls the sessions that
are concerned. It knows no sockets and no clock: the shell passes ``now`` (monotonic seconds) and ``wall`` (Unix seconds), sweeps
it a few times a second and hears of noteworthy things through an ``Observer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol, cast

from zrc_relay.core.adjustment import Adjuster
from zrc_relay.core.admission import UNLIMITED, Admission
from zrc_relay.core.allocation import Allocation, Change
from zrc_relay.core.authorisation import Authoriser, Challenge, Grant, Refused
from zrc_relay.core.channel import Channel
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import DropCause, ErrorCode, HelloFeature, NoticeCode, Role, TerminationReason
from zrc_relay.core.counters import Counters, Limit
from zrc_relay.core.failures import Failure
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.limiter import bandwidth_burst
from zrc_relay.core.limits import Bucket, Limits, LocalLimits
from zrc_relay.core.routing import ALONE, Share, redirect
from zrc_relay.core.session import UNREAD, Session
from zrc_relay.core.sources import numeric
from zrc_relay.core.table import AllocationTable
from zrc_relay.core.tiers import Tier
from zrc_relay.core.token import RelayToken
from zrc_relay.core.wire import (
    NO_ADDRESS,
    Address,
    Allocate,
    Allocated,
    Hello,
    Notice,
    Redirect,
    Refreshed,
    RelayEntry,
    Relays,
)

MAX_U16: Final = 0xFFFF
RECHECKS: Final = 256
"""Sessions whose address is looked at in one go: some 2 ms. After a change of the lists it is the turn of all, in any number."""


class Observer(Protocol):
    """Who hears of what happens: logs, later events and metrics. Called on control events only, never for each packet."""

    def event(self, name: str, **fields: object) -> None:
        """``name`` happened; ``fields`` hold ids and numbers, never payload, keys or whole tokens (R6.7)."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that decide about allocations; names as in the configuration. Times are seconds, bandwidths bytes a second."""

    relay_id: bytes
    instance_id: bytes
    default_tier: Tier
    tiers: Mapping[str, Tier] = field(default_factory=dict)
    proving_roles: frozenset[Role] = frozenset(Role)
    relay_addr: Address = NO_ADDRESS
    """What is announced; family 0 means the address that the client reached, with ``port`` when that is not 0."""
    max_allocations: int = 1000
    max_connections_per_side: int = 4
    max_token_lifetime: float = 86400.0
    allocation_timeout: float = 8 * 3600.0
    wait_timeout: float = 60.0
    idle_timeout: float = 30.0
    keepalive_interval: float = 15.0
    global_bandwidth_limit: int | None = None
    bandwidth_burst: float = 0.1
    revoke_ends_sessions: bool = True
    self_certified_tier: str | None = None
    """The tier of devices that are not pinned; None admits none of them."""
    channels: bool = True
    worker_port_base: int = 0
    """The port that leads to worker 0 only, before those of the others; 0: there are no such ports."""


class Relay:
    """Shared state of all sessions; see the module's docstring. Without an ``admission`` no source is limited.

    ``share`` says which allocations are this process's, if there are several, and ``limits`` where all of them count.
    """

    def __init__(
        self,
        policy: Policy,
        keys: DeviceKeys,
        observer: Observer,
        *,
        now: float,
        admission: Admission | None = None,
        share: Share = ALONE,
        limits: Limits | None = None,
    ) -> None:
        self.policy = policy
        self.share = share
        self.admission = admission or Admission(UNLIMITED, AccessLists(), now=now)
        self.counters = Counters()
        self.draining = False
        self.reporting: set[Session] = set()
        """Sessions with drops that are still to be told; at most one entry a session."""
        self.overrun: list[Session] = []
        """Sessions whose client does not read control output; closed at the end of the batch."""
        self._rechecks: dict[Session, None] = {}
        self.failures: list[Failure] = []
        """Errors of our own that were kept to one allocation or session; the shell logs them and closes the session (R5.6)."""
        self._observer = observer
        self._authoriser = Authoriser(
            relay_id=policy.relay_id, keys=keys, max_token_lifetime=policy.max_token_lifetime,
            proving_roles=policy.proving_roles, counters=self.counters, self_certified_tier=policy.self_certified_tier,
        )
        self._limits: Limits = limits or LocalLimits()
        self._global_bucket: Bucket | None = None
        if policy.global_bandwidth_limit is not None:
            self._global_bucket = self._limits.bandwidth(policy.global_bandwidth_limit, policy.bandwidth_burst, now)
        self.table = AllocationTable(
            max_allocations=policy.max_allocations, allocation_timeout=policy.allocation_timeout,
            wait_timeout=policy.wait_timeout, idle_timeout=policy.idle_timeout, bandwidth_burst=policy.bandwidth_burst,
            global_bucket=self._global_bucket, counters=self.counters, events=self, places=self._limits.places,
        )
        self.channels: dict[bytes, Channel] = {}
        """By their ids; at most one for each allocation."""
        self._exceeded: list[Allocation] = []
        self._adjuster = Adjuster(self.table, self._tier_of_device, self._limits_changed, self._failed)

    # -- what sessions ask

    def hello(self, nonce: bytes) -> Hello:
        """The HELLO of a connection with that challenge."""
        features = HelloFeature(0)
        if self._authoriser.must_prove(Role.DEVICE):
            features |= HelloFeature.DEVICES_PROVE
        if self._authoriser.must_prove(Role.PEER):
            features |= HelloFeature.PEERS_PROVE
        if self.policy.channels:
            features |= HelloFeature.CHANNELS
        return Hello(self.policy.relay_id, nonce, features)

    def allocate(
        self, session: Session, request: Allocate, challenge: Challenge, now: float, wall: float
    ) -> Allocated | Redirect:
        """Bind ``session`` to the allocation it asks for, made if need be; ``Refused`` otherwise, and nothing changed.

        An allocation that is another worker's is for that one to judge: a REDIRECT says where it is, nothing changes and nothing
        counts. What is refused counts against the source's ``allocation_rate``, like what is made (R6.1); a relay that drains, or
        a device that is still awaited, is nobody's mistake.
        """
        if self.draining:
            raise Refused(ErrorCode.DRAINING, "the relay is about to stop")
        try:
            grant = self._authoriser.allocate(request, challenge, wall)
            return self._redirect(session, request) or self._grant(session, request, grant, now, wall)
        except Refused as refusal:
            source = numeric(session.link.remote.host)
            if refusal.code is ErrorCode.DEVICE_UNKNOWN and refusal.retry_after:
                elsewhere = self._redirect(session, request)  # the worker that has the allocation may know the device
                if elsewhere is not None:
                    return elsewhere
                self.admission.joining(source, now)
            elif refusal.limit is None:
                self.admission.failed(source, now)
            raise

    def _redirect(self, session: Session, request: Allocate) -> Redirect | None:
        announced = self._announced(session.link.local)
        answer = redirect(self.share, self.policy.worker_port_base, announced, request.allocation_id)
        if answer is not None:
            self.counters.redirected += 1
            self._observer.event(
                "session.redirected", **session.ids, remote=str(session.link.remote), address=str(answer.addresses[0]),
                allocation=request.allocation_id.hex(),
            )
        return answer

    def _grant(self, session: Session, request: Allocate, grant: Grant, now: float, wall: float) -> Allocated:
        source = numeric(session.link.remote.host)
        token, tier = grant.token, self._tier_of(grant.device)
        role = Role(request.role)
        key = (token.device_id, token.allocation_id)
        allocation = self.table.get(key)
        if allocation is not None and allocation.token.peer_id != token.peer_id:
            raise Refused(ErrorCode.TOKEN_WRONG_PEER, "the allocation is for another peer")
        if self.table.has_proven(key, role, wall) and not grant.proven:
            raise Refused(ErrorCode.PROOF_REQUIRED, "this side was bound with a proof before")
        if allocation is None:
            self.table.check_room(token, tier, wall)
            self.admission.allocating(source, now)
            allocation = self.table.create(token, tier, now=now, wall=wall, pinned=not grant.device.self_certified)
            if grant.device.self_certified:
                self._authoriser.remember(grant.device)
            self._event("allocation.created", allocation, tier=tier.name)
        else:
            side = allocation.sides[role]
            if len(side.members) >= self.policy.max_connections_per_side:
                reason = f"this side has {len(side.members)} connections"
                raise Refused(ErrorCode.TOO_MANY_CONNECTIONS, reason, retry_after=1)
            is_newer = token.expires_at > allocation.token.expires_at
            if is_newer:
                self.table.check_refresh(allocation, token, tier)
            self.admission.joining(source, now)
            if is_newer:
                self._put_in_force(allocation, token, tier, now, wall)
            else:
                if tier != allocation.tier:  # the keys were reloaded since: the token in force gets what its tier allows now
                    allocation.set_limits(allocation.token, tier, now)
                self.table.accept_token(allocation, wall)
        if grant.proven:
            allocation.sides[role].proven = True
        session.role = role
        session.last_heard = now
        session.allocation = allocation
        allocation.bind(session, now)
        self.table.absence_changed(allocation)
        self.counters.allocations_joined += 1
        self._event(
            "session.bound", allocation,
            role=role.name.lower(), connection=session.link.name,
            remote=str(session.link.remote), claimed=str(request.client_addr),
        )
        counterpart = allocation.sides[role.other].current
        return Allocated(
            allocation_id=token.allocation_id,
            relay_addr=self._announced(session.link.local),
            expires_at=int(allocation.expires_at),
            bandwidth_limit=allocation.bandwidth_limit or 0,
            quota_bytes=allocation.quota or 0,
            bytes_transferred=allocation.bytes_transferred,
            observed_addr=session.link.remote,
            keepalive_interval=_whole_seconds(self.policy.keepalive_interval),
            idle_timeout=_whole_seconds(self.policy.idle_timeout),
            peer_present=counterpart is not None,
            peer_max_payload=min(counterpart.max_payload, MAX_U16) if counterpart is not None else 0,
        )

    def announce(self, session: Session) -> None:
        """After ``session`` was answered: tell the other side that this one is there, if it was absent until now."""
        allocation = session.allocation
        if allocation is not None and len(allocation.sides[session.role].members) == 1:
            self._tell(allocation, session.role.other, Notice(NoticeCode.PEER_JOINED, min(session.link.max_payload, MAX_U16)))

    def refresh(self, session: Session, data: bytes, now: float, wall: float) -> None:
        """REFRESH with the token ``data`` (PROTOCOL §5); ``Refused`` when it changes nothing."""
        allocation = session.allocation
        if allocation is None:
            raise Refused(ErrorCode.PROTOCOL_ERROR, "nothing to refresh")
        token, device = self._authoriser.token(data, wall)
        if (token.device_id, token.allocation_id) != allocation.key:
            raise Refused(ErrorCode.TOKEN_WRONG_ALLOCATION, "the token is for another allocation")
        if token.peer_id != allocation.token.peer_id:
            raise Refused(ErrorCode.TOKEN_WRONG_PEER, "the token is for another peer")
        if token == allocation.token:
            session.send(self._refreshed(allocation).encode())
            return
        if token.expires_at <= allocation.token.expires_at:
            raise Refused(ErrorCode.TOKEN_EXPIRED, "the token in force lives at least as long")
        tier = self._tier_of(device)
        self.table.check_refresh(allocation, token, tier)
        self._put_in_force(allocation, token, tier, now, wall)
        self.counters.tokens_refreshed += 1

    def open_channel(self, allocation: Allocation, session: Session) -> Channel:
        """Make ``session`` an end of its allocation's channel, which is made if need be (PROTOCOL §7)."""
        if not self.policy.channels:
            raise Refused(ErrorCode.PROTOCOL_ERROR, "this relay offers no channels")
        channel = allocation.channel
        if channel is None:
            channel_id = session.link.new_channel_id()
            while channel_id in self.channels:
                channel_id = session.link.new_channel_id()
            channel = allocation.channel = self.channels[channel_id] = Channel(channel_id, allocation, self.counters)
        channel.open(session)
        self.counters.channels_opened += 1
        return channel

    def relays(self, local: Address) -> Relays:
        """The answer to LIST_RELAYS: this relay, at the address it announces."""
        return Relays((RelayEntry(self.policy.instance_id, self._announced(local), self.table.load, self.draining),))

    def drop_unbound(self, size: int, cause: DropCause) -> None:
        """A datagram came from, or was queued for, a connection that is bound to no allocation."""
        self.counters.dropped_packets[cause] += 1
        self.counters.dropped_bytes[cause] += size

    def unbind(self, session: Session, now: float, wall: float) -> None:
        """``session`` is over: take it out of its allocation and tell the other side when nobody is left."""
        del wall
        self.reporting.discard(session)
        allocation, session.allocation = session.allocation, None
        if allocation is None:
            return
        was_current = allocation.sides[session.role].current is session
        if allocation.channel is not None:
            allocation.channel.close(session)
        absent = allocation.unbind(session, now)
        if was_current:
            self.egress_moved(allocation, session.role, session.max_payload)
        self.table.absence_changed(allocation)
        self._event("session.lost", allocation, role=session.role.name.lower(), connection=session.link.name)
        if absent:
            self._tell(allocation, session.role.other, Notice(NoticeCode.PEER_LEFT))

    def refused(self, session: Session, code: ErrorCode, reason: str, limit: Limit | None = None) -> None:
        """Count and report a refusal, by the limit of the source that it is for if there is one, else by its code."""
        if limit is None:
            self.counters.refused[code] += 1
            name = "session.refused"
        else:
            self.counters.limited[limit] += 1
            name = f"security.{limit.value}"
        self._observer.event(
            name, code=code.name, reason=reason, **session.ids, remote=str(session.link.remote), validated=True,
        )

    def limited(
        self, limit: Limit, host: str, port: int, cause: str, *, validated: bool = False, is_told: bool = True
    ) -> None:
        """Count what was done about a source that has no connection, in the one word ``cause``; report it if it ``is_told``.

        A source that is not ``validated`` may be anybody's: who blocks by events must not believe it (R6.2).
        """
        self.counters.limited[limit] += 1
        if is_told:
            self._observer.event(f"security.{limit.value}", source=host, port=port, cause=cause, validated=validated)

    def moved(self, session: Session) -> None:
        """A client's address has changed: worth a line (R5.3), and the new one may be blocked."""
        self.recheck(session)
        self._observer.event("session.moved", **session.ids, remote=str(session.link.remote))

    def tell_max_payload(self, session: Session) -> None:
        """What fits towards ``session`` changed: the other end hears it if ``session`` is current."""
        allocation = session.allocation
        if allocation is not None and allocation.sides[session.role].current is session:
            self.egress_moved(allocation, session.role, None)

    def egress_moved(self, allocation: Allocation, role: Role, before: int | None) -> None:
        """Egress towards a side goes another way: the other end hears what fits now, unless it is ``before`` bytes as before."""
        current = allocation.sides[role].current
        if current is not None and current.max_payload != before:
            self._tell(allocation, role.other, Notice(NoticeCode.MAX_PAYLOAD, min(current.max_payload, MAX_U16)))

    def recheck(self, session: Session) -> None:
        """Look, soon, whether the lists still let the address of ``session`` in, and end it otherwise (R6.3)."""
        self._rechecks[session] = None

    # -- what the shell asks

    @property
    def is_in_use(self) -> bool:
        """Whether any client is bound to an allocation."""
        return any(side.members for allocation in self.table for side in allocation.sides)

    def sweep(self, now: float, wall: float) -> None:
        """End what is over, send the notices that were held back; a few times a second."""
        for allocation, reason in self.table.expired(now, wall):
            self.end(allocation, reason, now, wall)
        self.settle(now, wall)
        self._limits.rest(now)
        self.reporting = {session for session in self.reporting if self._report(session, now)}

    def settle(self, now: float, wall: float) -> None:
        """Finish what could not be done in the middle of a packet; at the end of each batch."""
        while self._exceeded:
            allocation = self._exceeded.pop()
            if self.table.get(allocation.key) is allocation:
                self.end(allocation, TerminationReason.QUOTA, now, wall)
        if self._rechecks:
            self._check_access(now, wall)
        if self._adjuster.waits:
            self._adjuster.step(now)
        while self.overrun:
            session = self.overrun.pop()
            self.unbind(session, now, wall)
            self.refused(session, ErrorCode.RATE_LIMITED, UNREAD)
            session.shut(ErrorCode.RATE_LIMITED, UNREAD)

    def end(
        self, allocation: Allocation, reason: TerminationReason, now: float, wall: float, *, final: bool | None = None
    ) -> None:
        """End ``allocation`` for ``reason``: everyone bound hears it and is closed (R2.7, R2.8).

        It never raises: an error on the way is this allocation's, nobody would try again, and others wait for their turn (R5.6).
        """
        try:
            self._end(allocation, reason, now, wall, final=final)
        except Exception as error:
            for session in self._failed(allocation, error).sessions:
                session.allocation = None

    def _failed(self, allocation: Allocation, error: Exception) -> Failure:
        sessions = tuple(cast("Session", member) for member in allocation.members)
        failure = Failure(f"allocation {allocation.key[1].hex()}", error, sessions, allocation.key)
        self.failures.append(failure)
        return failure

    def _end(
        self, allocation: Allocation, reason: TerminationReason, now: float, wall: float, *, final: bool | None
    ) -> None:
        name = reason.name.lower()
        try:
            allocation.change(Change.END)
            members = list(allocation.members)
            for member in members:
                member.terminate(reason)
            for member in members:  # all of them are closed by now: nobody hears that another one took over
                allocation.unbind(member, now)
            allocation.change(Change.CLOSED)
        finally:
            if allocation.channel is not None:
                del self.channels[allocation.channel.channel_id]
            self.table.remove(allocation, reason, wall, final=final)
            self.counters.allocations_ended[name] = self.counters.allocations_ended.get(name, 0) + 1
            self.counters.allocation_duration.observe(now - allocation.created_at)
            if not self.table.holds(allocation.key[0]):
                self._authoriser.forget(allocation.key[0])
        self._event(
            "allocation.ended", allocation,
            reason=name, bytes_transferred=allocation.bytes_transferred, seconds=round(now - allocation.created_at, 3),
        )

    def replace_keys(self, keys: DeviceKeys, now: float, wall: float) -> int:
        """Use other pinned keys from the next request on; returns how many allocations ended because their device is gone.

        They may be created again once the device is back: a key that was removed is not an administrator's verdict on one
        allocation.
        """
        gone = set(self._authoriser.replace_keys(keys))
        return self._revoke(gone, now, wall)

    def reconfigure(self, policy: Policy, keys: DeviceKeys, now: float, wall: float) -> int:
        """Put another policy of the same relay and other keys in force; returns what ``replace_keys`` does.

        New requests are judged by them at once. Running allocations get their new limits and timeouts some at a time, in
        ``settle`` (see ``Adjuster``); when they expire is decided anew with the next token.
        """
        self.policy = policy
        gone = set(self._authoriser.replace_keys(keys)) | set(self._authoriser.reconfigure(
            max_token_lifetime=policy.max_token_lifetime, proving_roles=policy.proving_roles,
            self_certified_tier=policy.self_certified_tier,
        ))
        limit, burst = policy.global_bandwidth_limit, policy.bandwidth_burst
        if limit is None or self._global_bucket is None:
            self._global_bucket = self._limits.bandwidth(limit, burst, now) if limit is not None else None
        else:
            self._global_bucket.set_rate(limit, bandwidth_burst(limit, burst), now)
        self.table.reconfigure(
            max_allocations=policy.max_allocations, allocation_timeout=policy.allocation_timeout,
            wait_timeout=policy.wait_timeout, idle_timeout=policy.idle_timeout, bandwidth_burst=burst,
            global_bucket=self._global_bucket,
        )
        self._adjuster.begin()
        return self._revoke(gone, now, wall)

    def _revoke(self, gone: set[bytes], now: float, wall: float) -> int:
        if not self.policy.revoke_ends_sessions:
            return 0
        revoked = [allocation for allocation in self.table if allocation.key[0] in gone]
        for allocation in revoked:
            self.end(allocation, TerminationReason.ADMINISTRATOR, now, wall, final=False)
        return len(revoked)

    def drain(self, deadline: float) -> None:
        """Refuse new ALLOCATEs from here on and tell everyone that the relay stops at ``deadline`` (Unix seconds)."""
        self.draining = True
        notice = Notice(NoticeCode.DRAINING, int(deadline)).encode()
        for allocation in self.table:
            for member in allocation.members:
                member.send(notice)

    # -- Events of allocations

    def quota_warning(self, allocation: Allocation) -> None:
        """See ``Events``."""
        used, quota = allocation.bytes_transferred, allocation.quota or 0
        for member in allocation.members:
            member.send(Notice(NoticeCode.QUOTA_WARNING, used, quota).encode())

    def quota_exceeded(self, allocation: Allocation) -> None:
        """See ``Events``. The end waits for ``settle``: the caller is in the middle of a packet."""
        self._exceeded.append(allocation)

    # -- helpers

    def _check_access(self, now: float, wall: float) -> None:
        for session in list(islice(self._rechecks, RECHECKS)):
            del self._rechecks[session]
            try:
                if session.is_established:
                    self.admission.check_access(numeric(session.link.remote.host), wall)
            except Refused as refusal:
                session.refuse(refusal, now, wall)

    def _report(self, session: Session, now: float) -> bool:
        try:
            return session.report_drops(now)
        except Exception as error:
            self.failures.append(Failure(f"connection {session.link.name}", error, (session,)))
            return False

    def _put_in_force(self, allocation: Allocation, token: RelayToken, tier: Tier, now: float, wall: float) -> None:
        allocation.set_limits(token, tier, now)
        self.table.accept_token(allocation, wall)
        self._tell_limits(allocation)
        self._event("allocation.refreshed", allocation, expires_at=token.expires_at)

    def _limits_changed(self, allocation: Allocation) -> None:
        self._tell_limits(allocation)
        self._event(
            "allocation.limits", allocation,
            tier=allocation.tier.name, bandwidth_limit=allocation.bandwidth_limit, quota=allocation.quota,
        )

    def _tell_limits(self, allocation: Allocation) -> None:
        refreshed = self._refreshed(allocation).encode()
        for member in allocation.members:
            member.send(refreshed)

    @staticmethod
    def _refreshed(allocation: Allocation) -> Refreshed:
        return Refreshed(
            int(allocation.expires_at), allocation.bandwidth_limit or 0, allocation.quota or 0, allocation.bytes_transferred
        )

    def _announced(self, local: Address) -> Address:
        announced = self.policy.relay_addr
        return Address(announced.host or local.host, announced.port or local.port)

    def _tier_of_device(self, device_id: bytes) -> Tier | None:
        device = self._authoriser.device(device_id)
        return self._tier_of(device) if device is not None else None

    def _tier_of(self, device: Device) -> Tier:
        return self.policy.tiers.get(device.tier, self.policy.default_tier)

    @staticmethod
    def _tell(allocation: Allocation, role: Role, notice: Notice) -> None:
        data = notice.encode()
        for member in allocation.sides[role].members:
            member.send(data)

    def _event(self, name: str, allocation: Allocation, **fields: object) -> None:
        self._observer.event(name, device=allocation.key[0].hex(), allocation=allocation.key[1].hex(), **fields)


def _whole_seconds(seconds: float) -> int:
    return min(MAX_U16, round(seconds))
