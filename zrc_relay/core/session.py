"""One connection's control protocol (PROTOCOL §2, §4, §5).

Theory of operation
-------------------
A ``Session`` lives as long as one QUIC connection. The shell around it reports what happens (``handshake_completed``,
``control_received``, ``datagrams_received``, ``lost`` ...) and gives it a ``Link`` to act through; the ``Relay`` knows everything
that is shared. A session never touches another one directly: it asks the relay, which asks the others' sessions.

Its states::

    greeting --handshake--> choosing --ALLOCATE granted--> bound --> closed
                                     --ALLOCATE belongs elsewhere--> redirected --> closed
        (any of them) --protocol error, refusal, loss--> closed

A session that was redirected is over but for the client's close: it can do nothing more, and is closed when it stays.

Rules: a fatal error is a close code, sent once (``_fail``); what is refused while the session lives is an ERROR capsule. Control
input is not decoded while more than ``MAX_CONTROL_OUTPUT`` bytes of control output wait: what was not decoded is not credited,
so the client's flow control stops it. When that lasts for ``READ_TIMEOUT`` the client is closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum, unique
from typing import TYPE_CHECKING, Final, Protocol

from zrc_relay.core.authorisation import Challenge, Refused
from zrc_relay.core.codes import DropCause, ErrorCode, NoticeCode, Role, TerminationReason
from zrc_relay.core.counters import Limit
from zrc_relay.core.wire import (
    CLIENT_CAPSULES,
    Address,
    Allocate,
    Capsule,
    CapsuleDecoder,
    CloseChannel,
    Error,
    ListRelays,
    Notice,
    OpenChannel,
    Redirect,
    Refresh,
    Release,
    Released,
    Unknown,
    WireError,
)
from zrc_relay.core.wire import Channel as ChannelCapsule

if TYPE_CHECKING:
    from zrc_relay.core.allocation import Allocation
    from zrc_relay.core.relay import Relay

ALLOCATE_TIMEOUT: Final = 10.0
"""Seconds from the handshake within which ALLOCATE must come (PROTOCOL §4)."""
LEAVE_TIMEOUT: Final = 5.0
"""Seconds from a REDIRECT within which the client should have closed: many round trips; the connection is all that is kept."""
MAX_CONTROL_OUTPUT: Final = 16 * 1024
"""Unsent control bytes above which no further control input is read (PROTOCOL §2)."""
READ_TIMEOUT: Final = 10.0
"""Seconds that requests may wait because the answers to those before are not read."""
UNREAD: Final = "control output is not read"
CAPSULES_PER_SECOND: Final = 50
"""Capsules a client may send each second (PROTOCOL §2)."""
NOTICE_INTERVAL: Final = 1.0
"""Shortest time in seconds between two RATE_LIMITED, or two DROPPED of one cause (PROTOCOL §5)."""


@unique
class SessionState(Enum):
    """Where a session is."""

    GREETING = "greeting"
    CHOOSING = "choosing"
    BOUND = "bound"
    REDIRECTED = "redirected"
    CLOSED = "closed"


@unique
class SessionChange(Enum):
    """What moves a session on."""

    HANDSHAKE = "handshake"
    GRANTED = "granted"
    REDIRECT = "redirect"
    CLOSE = "close"


SESSION_TRANSITIONS: Final[Mapping[tuple[SessionState, SessionChange], SessionState]] = {
    (SessionState.GREETING, SessionChange.HANDSHAKE): SessionState.CHOOSING,
    (SessionState.CHOOSING, SessionChange.GRANTED): SessionState.BOUND,
    (SessionState.CHOOSING, SessionChange.REDIRECT): SessionState.REDIRECTED,
    (SessionState.GREETING, SessionChange.CLOSE): SessionState.CLOSED,
    (SessionState.CHOOSING, SessionChange.CLOSE): SessionState.CLOSED,
    (SessionState.BOUND, SessionChange.CLOSE): SessionState.CLOSED,
    (SessionState.REDIRECTED, SessionChange.CLOSE): SessionState.CLOSED,
}


class Link(Protocol):
    """The connection under a session, as far as the session needs it."""

    @property
    def name(self) -> str:
        """What logs call the connection."""
        ...

    @property
    def remote(self) -> Address:
        """The client's validated address."""
        ...

    @property
    def local(self) -> Address:
        """The address of the relay that the client reached."""
        ...

    @property
    def max_payload(self) -> int:
        """The longest payload in bytes that fits a DATAGRAM towards the client."""
        ...

    @property
    def patience(self) -> float:
        """max(3 PTO, 1 s), in seconds."""
        ...

    @property
    def certificate_sha256(self) -> bytes:
        """SHA-256 of the DER certificate that the connection showed."""
        ...

    @property
    def control_backlog(self) -> int:
        """Control bytes that wait to be sent."""
        ...

    @property
    def route(self) -> object:
        """The validated path to the client, compared by value."""
        ...

    def new_channel_id(self) -> bytes:
        """Seven random bytes."""
        ...

    def send_packets(self, packets: list[bytes]) -> None:
        """Send UDP datagrams to the client as they are, around QUIC."""
        ...

    def send_train(self, train: bytes, size: int) -> None:
        """The same, for datagrams of ``size`` bytes each in one piece, the last perhaps shorter."""
        ...

    def send_hello(self, data: bytes) -> None:
        """Send ``data`` and FIN on stream 3."""
        ...

    def send_control(self, data: bytes) -> None:
        """Send ``data`` on stream 0."""
        ...

    def send_datagrams(self, payloads: list[bytes], now: float) -> None:
        """Queue payloads for the client, in order."""
        ...

    def close(self, code: ErrorCode, reason: str) -> None:
        """Send what is queued on the control stream, then close; nothing is reported afterwards but ``lost``."""
        ...


class Session:
    """The relay's side of one connection."""

    def __init__(self, relay: Relay, link: Link, nonce: bytes, now: float) -> None:
        self._relay = relay
        self.link = link
        self._nonce = nonce
        self.state = SessionState.GREETING
        self.role = Role.DEVICE
        self.allocation: Allocation | None = None
        self.last_heard = now
        self._act_by: float | None = None
        """Until when the client must ask for its allocation, or leave once it was redirected."""
        self._read_by: float | None = None
        self._decoder = CapsuleDecoder(CLIENT_CAPSULES)
        self._capsules: deque[float] = deque(maxlen=CAPSULES_PER_SECOND)
        """When the last capsules came."""
        self._drops: dict[DropCause, int] = {}
        self._drop_noticed: dict[DropCause, float] = {}
        self.send_datagrams = link.send_datagrams

    # -- what the shell reports

    def greet(self) -> None:
        """1-RTT keys are there: send HELLO."""
        self.link.send_hello(self._relay.hello(self._nonce).encode())

    def handshake_completed(self, now: float) -> None:
        """The handshake is complete: ALLOCATE is expected from here."""
        self._change(SessionChange.HANDSHAKE)
        self._act_by = now + ALLOCATE_TIMEOUT

    def control_received(self, data: bytes, now: float, wall: float) -> None:
        """Bytes of stream 0 in order. What is not decoded yet counts as ``control_pending``."""
        if self.state is SessionState.CLOSED:
            return
        self._decoder.feed(data)
        self.resume_control(now, wall)

    def resume_control(self, now: float, wall: float) -> None:
        """Decode what waits, as far as control output allows."""
        self._decode(now, wall)
        self._watch_backlog(now)

    def _decode(self, now: float, wall: float) -> None:
        while self.state is not SessionState.CLOSED and self.link.control_backlog <= MAX_CONTROL_OUTPUT:
            try:
                capsule = self._decoder.next()
                if capsule is None:
                    return
                self._relay.counters.capsules_received += 1
                if not self._may_take_capsule(now):
                    raise Refused(ErrorCode.RATE_LIMITED, "too many capsules", retry_after=1)
                self._handle(capsule, now, wall)
            except WireError as error:
                self._fail(error.code, str(error), now, wall)
            except Refused as refusal:
                self.refuse(refusal, now, wall)

    def _may_take_capsule(self, now: float) -> bool:
        """Whether this capsule is at most the fiftieth within any second."""
        times = self._capsules
        if len(times) == CAPSULES_PER_SECOND and now - times[0] < 1.0:
            return False
        times.append(now)
        return True

    @property
    def deadline(self) -> float | None:
        """When ``timed_out`` wants to be called, monotonic seconds."""
        if self._act_by is None or self._read_by is None:
            return self._act_by or self._read_by
        return min(self._act_by, self._read_by)

    def _watch_backlog(self, now: float) -> None:
        """See that a client that asks, and does not read the answers, does not wait for ever."""
        is_over = self.state is SessionState.CLOSED or not self._decoder.pending
        if is_over or self.link.control_backlog <= MAX_CONTROL_OUTPUT:
            self._read_by = None
        elif self._read_by is None:
            self._read_by = now + READ_TIMEOUT

    @property
    def control_pending(self) -> int:
        """Bytes of control input that were received and not decoded."""
        return self._decoder.pending

    def control_ended(self, now: float, wall: float) -> None:
        """The client closed or reset stream 0 (PROTOCOL §2: an error before RELEASED)."""
        if self.state is not SessionState.CLOSED:
            self._fail(ErrorCode.PROTOCOL_ERROR, "the control stream was closed", now, wall)

    def broken(self, error: WireError, now: float, wall: float) -> None:
        """The client broke the protocol outside the control stream."""
        self._fail(error.code, str(error), now, wall)

    @property
    def ids(self) -> dict[str, object]:
        """What finds the lines about this session in a log."""
        ids: dict[str, object] = {"connection": self.link.name}
        if self.allocation is not None:
            ids.update(device=self.allocation.key[0].hex(), allocation=self.allocation.key[1].hex())
        return ids

    @property
    def is_established(self) -> bool:
        """Whether the handshake is complete and the session not over."""
        return self.state not in (SessionState.GREETING, SessionState.CLOSED)

    def refuse(self, refusal: Refused, now: float, wall: float) -> None:
        """What the client is, or does, is not granted: close with the code that says why."""
        self._fail(refusal.code, refusal.reason, now, wall, refusal.limit)

    def moved(self) -> None:
        """The client's packets come from another address now."""
        self._relay.moved(self)

    def datagrams_received(self, payloads: list[bytes], now: float) -> None:
        """DATAGRAM payloads of the client, in order of arrival."""
        allocation = self.allocation
        if allocation is not None:
            allocation.forward(self, payloads, now)
        else:
            for payload in payloads:
                self._relay.drop_unbound(len(payload), DropCause.NO_COUNTERPART)

    def heard(self, now: float) -> None:
        """The client was heard: once a batch, if nothing unusual is in it."""
        self.last_heard = now
        allocation = self.allocation
        if allocation is not None:
            side = allocation.sides[self.role]
            if len(side.members) > 1:
                side.select(now)

    def timed_out(self, now: float, wall: float) -> None:
        """``deadline`` has come."""
        if self._read_by is not None and now >= self._read_by:
            self._read_by = None
            if self.link.control_backlog > MAX_CONTROL_OUTPUT:
                self._fail(ErrorCode.RATE_LIMITED, UNREAD, now, wall)
        if self._act_by is not None and now >= self._act_by:
            self._act_by = None
            if self.state is SessionState.CHOOSING:
                self._fail(ErrorCode.ALLOCATE_TIMEOUT, "no ALLOCATE within 10 s of the handshake", now, wall)
            elif self.state is SessionState.REDIRECTED:
                self.shut(ErrorCode.NO_ERROR, "redirected")

    def lost(self, now: float, wall: float) -> None:
        """The connection is gone, for whatever reason. Safe to call more than once."""
        if self.state is not SessionState.CLOSED:
            self._change(SessionChange.CLOSE)
            self._relay.unbind(self, now, wall)

    def max_payload_changed(self) -> None:
        """``link.max_payload`` has another value: the other end should know."""
        if self.allocation is not None:
            self._relay.tell_max_payload(self)

    # -- what the relay (and the allocation) asks

    @property
    def patience(self) -> float:
        """See ``Member``."""
        return self.link.patience

    @property
    def max_payload(self) -> int:
        """See ``Member``."""
        return self.link.max_payload

    def notice(self, notice: Notice) -> None:
        """Send a NOTICE."""
        self.send(notice.encode())

    def send(self, data: bytes) -> None:
        """Send an encoded capsule, unless the client has let too much pile up."""
        if self.state is SessionState.CLOSED:
            return
        if self.link.control_backlog > 2 * MAX_CONTROL_OUTPUT:
            # Answers stop at MAX_CONTROL_OUTPUT because requests are no longer read; only notices get here.
            self._relay.overrun.append(self)
            return
        self.link.send_control(data)

    def superseded(self) -> None:
        """See ``Member``."""
        self.notice(Notice(NoticeCode.SUPERSEDED))
        if self.allocation is not None:
            self._relay.egress_moved(self.allocation, self.role, self.max_payload)

    def note_drop(self, cause: DropCause, size: int, now: float) -> None:
        """Tell the client that its datagrams are dropped, at most once a second for each cause (PROTOCOL §5)."""
        del size
        if cause is DropCause.QUOTA:
            return  # the allocation ends with this, which says more
        self._drops[cause] = self._drops.get(cause, 0) + 1
        if now - self._drop_noticed.get(cause, float("-inf")) >= NOTICE_INTERVAL:
            self._report_drop(cause, now)
        else:
            self._relay.reporting.add(self)

    def drop_egress(self, cause: DropCause, size: int, now: float) -> None:
        """A payload on its way to this client was dropped: who sent it hears of it."""
        allocation = self.allocation
        if allocation is None:
            self._relay.drop_unbound(size, cause)
        else:
            allocation.drop(allocation.sides[1 - self.role].current, cause, size, now)

    def report_drops(self, now: float) -> bool:
        """Send the notices that are due; returns whether some are still to come."""
        for cause in list(self._drops):
            if now - self._drop_noticed[cause] >= NOTICE_INTERVAL:
                self._report_drop(cause, now)
        return bool(self._drops)

    def _report_drop(self, cause: DropCause, now: float) -> None:
        packets = self._drops.pop(cause)
        self._drop_noticed[cause] = now
        if cause is DropCause.BANDWIDTH and self.allocation is not None:
            limit = self.allocation.bandwidth_limit or 0
            self.notice(Notice(NoticeCode.RATE_LIMITED, limit, packets))
        self.notice(Notice(NoticeCode.DROPPED, cause, packets))

    def terminate(self, reason: TerminationReason) -> None:
        """The allocation ended: say so and close."""
        if self.state is SessionState.CLOSED:
            return
        self.notice(Notice(NoticeCode.TERMINATED, reason))
        self.shut(reason.close_code, f"the allocation ended: {reason.name.lower()}")

    def shut(self, code: ErrorCode, reason: str) -> None:
        """Close the connection; the session is over, and no longer bound as far as it is concerned."""
        if self.state is SessionState.CLOSED:
            return
        self._change(SessionChange.CLOSE)
        self.allocation = None
        self._relay.counters.connections_closed[code] += 1
        self.link.close(code, reason)

    # -- capsules

    def _handle(self, capsule: Capsule | Unknown, now: float, wall: float) -> None:
        match capsule:
            case Allocate():
                if self.state in (SessionState.BOUND, SessionState.REDIRECTED):
                    raise WireError(ErrorCode.PROTOCOL_ERROR, "ALLOCATE came twice")
                self._allocate(capsule, now, wall)
            case ListRelays():
                self.send(self._relay.relays(self.link.local).encode())
            case Refresh():
                self._refresh(capsule, now, wall)
            case Release():
                self._release(now, wall)
            case OpenChannel():
                self._open_channel()
            case CloseChannel():
                channel = self._bound("CLOSE_CHANNEL").channel
                if channel is not None:
                    channel.close(self)
            case _:
                self._relay.counters.capsules_unknown += 1

    def _allocate(self, request: Allocate, now: float, wall: float) -> None:
        challenge = Challenge(self._relay.policy.relay_id, self.link.certificate_sha256, self._nonce)
        answer = self._relay.allocate(self, request, challenge, now, wall)
        if isinstance(answer, Redirect):
            self._act_by = now + LEAVE_TIMEOUT
            self._change(SessionChange.REDIRECT)
            self.send(answer.encode())
            return
        self._act_by = None
        self._change(SessionChange.GRANTED)
        self.send(answer.encode())
        self._relay.announce(self)

    def _refresh(self, request: Refresh, now: float, wall: float) -> None:
        self._bound("REFRESH")
        try:
            self._relay.refresh(self, request.token, now, wall)
        except Refused as refusal:
            self._refuse(refusal)

    def _open_channel(self) -> None:
        allocation = self._bound("OPEN_CHANNEL")
        try:
            channel = self._relay.open_channel(allocation, self)
        except Refused as refusal:
            self._refuse(refusal)
        else:
            self.send(ChannelCapsule(channel.channel_id).encode())

    def _release(self, now: float, wall: float) -> None:
        allocation = self._bound("RELEASE")
        self.send(Released().encode())
        self.shut(ErrorCode.NO_ERROR, "released")
        self._relay.end(allocation, TerminationReason.RELEASED, now, wall)

    def _bound(self, what: str) -> Allocation:
        if self.allocation is None:
            raise WireError(ErrorCode.PROTOCOL_ERROR, f"{what} came before ALLOCATE")
        return self.allocation

    def _refuse(self, refusal: Refused) -> None:
        self._relay.refused(self, refusal.code, refusal.reason)
        self.send(Error(refusal.code, refusal.reason).encode())

    def _fail(self, code: ErrorCode, reason: str, now: float, wall: float, limit: Limit | None = None) -> None:
        if self.state is SessionState.CLOSED:
            return
        self._relay.refused(self, code, reason, limit)
        self._relay.unbind(self, now, wall)
        self.shut(code, reason)

    def _change(self, change: SessionChange) -> None:
        self.state = SESSION_TRANSITIONS[self.state, change]
