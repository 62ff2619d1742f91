"""``Tunnel``: a local UDP port carried over an allocation; what ``zrc-relay tunnel`` runs.

Theory of operation
-------------------
Between a ``LocalPort`` and a ``ClientConnection`` each datagram becomes one payload and each payload one datagram, unchanged, at
once and in order: there is no queue here, so nothing can be reordered. What does not fit the path is dropped and counted; the
user hears of it once, and again at most every ``WARNING_INTERVAL`` seconds, because a program that sends one datagram that is too
big sends thousands.

The tunnel goes on while the other end is away. It ends when ``close`` is called or when the relay ends the connection; ``ended``
says which.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure as TwistedFailure

from zrc_relay.cli.console import size, when
from zrc_relay.cli.errors import EndedByRelay
from zrc_relay.cli.local_port import LocalPort
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.tokens import BANDWIDTH, QUOTA
from zrc_relay.client.connect import CONNECT_TIMEOUT, connect
from zrc_relay.client.connection import ClientConnection, Identity
from zrc_relay.client.errors import PayloadTooLarge
from zrc_relay.client.notices import (
    AllocationTerminated,
    DatagramsDropped,
    MaxPayloadChanged,
    NoticeEvent,
    PeerJoined,
    PeerLeft,
    QuotaWarning,
    RateLimitedNotice,
    RelayDraining,
    Superseded,
)
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import Role, TerminationReason
from zrc_relay.core.token import RelayToken

WARNING_INTERVAL: Final = 10.0
"""Seconds between two warnings of one kind."""


@dataclass(slots=True)
class Flow:
    """What passed in one direction."""

    datagrams: int = 0
    volume: int = 0
    """Bytes."""

    def count(self, payload: bytes) -> None:
        """One more."""
        self.datagrams += 1
        self.volume += len(payload)

    def __str__(self) -> str:
        return f"{self.datagrams} datagrams ({size(self.volume)})"


@dataclass(slots=True)
class Statistics:
    """What a tunnel carried, and what it had to drop, by cause."""

    sent: Flow = field(default_factory=Flow)
    received: Flow = field(default_factory=Flow)
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        drops = ", ".join(f"{count} {cause}" for cause, count in sorted(self.dropped.items()) if count) or "none"
        return f"sent {self.sent}, received {self.received}; dropped: {drops}"


@dataclass(frozen=True, slots=True)
class RelayLink:
    """Which allocation a tunnel uses: the relay, whom to take for it, the token, and our key (of its device or of its peer)."""

    relay: HostPort
    trust: Trust
    token: RelayToken
    key: SigningKey


class Tunnel:
    """See the module's docstring. ``tell`` takes lines for the user, ``warn`` those about what goes wrong."""

    def __init__(
        self, *, tell: Callable[[str], None], warn: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._warn = warn
        self._now = now
        self._statistics = Statistics()
        self._warned: dict[str, float] = {}
        self._terminated: AllocationTerminated | None = None
        self._is_leaving = False
        self._other_end = ""
        self._connection: ClientConnection | None = None
        self._local: LocalPort | None = None
        self.ended: Deferred[None] = Deferred()
        """Fires after ``close``; fails with the reason when the relay, or the network, has ended the connection."""

    async def open(self, reactor: Any, link: RelayLink, local: LocalPort, *, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect and allocate; raises what ``connect`` does. The tunnel owns ``local`` from here on, also when this fails."""
        self._local = local
        role = Identity.of(link.token, link.key).role
        self._other_end = role.other.name.lower()
        try:
            connection = await connect(
                reactor,
                link.relay.host,
                link.relay.port,
                token=link.token,
                key=link.key,
                role=role,
                trust=link.trust,
                timeout=timeout,
                on_datagram=self._from_relay,
                on_notice=self.noticed,
            )
        except BaseException:  # cancelled, too
            local.stop()
            raise
        self._connection = connection
        connection.closed.addBoth(self._closed)
        self._introduce(connection, link, role)

    @property
    def statistics(self) -> Statistics:
        """What was carried and dropped until now."""
        if self._connection is not None:
            self._statistics.dropped["waited too long here"] = self._connection.dropped
        if self._local is not None:
            self._statistics.dropped["from strangers"] = self._local.strangers
            self._statistics.dropped["not taken by this host"] = self._local.blocked
        return self._statistics

    def close(self) -> None:
        """Leave; the allocation stays, so that we may come back within the relay's ``idle_timeout``."""
        self._is_leaving = True
        if self._connection is not None:
            self._connection.close()

    # -- payloads

    def from_local(self, payload: bytes) -> None:
        """A datagram of the local program; what ``LocalPort`` calls."""
        connection = self._connection
        if connection is None or connection.is_closed:
            self._statistics.dropped["without a relay"] += 1
            return
        try:
            connection.send(payload)
        except PayloadTooLarge:
            self._statistics.dropped["too large"] += 1
            self._warn_sometimes(
                "too large", f"a datagram of {len(payload)} bytes was dropped: at most {connection.max_payload} pass this relay"
            )
        else:
            self._statistics.sent.count(payload)

    def _from_relay(self, payload: bytes) -> None:
        if self._local is not None and self._local.send(payload):
            self._statistics.received.count(payload)
        else:
            self._statistics.dropped["for no local program yet"] += 1
            self._warn_sometimes("for no local program yet", "what arrives is dropped until a local program has sent something")

    # -- what the user hears

    def _introduce(self, connection: ClientConnection, link: RelayLink, role: Role) -> None:
        allocated = connection.allocated
        if allocated is not None:
            bandwidth = BANDWIDTH.format(allocated.bandwidth_limit) if allocated.bandwidth_limit else "no bandwidth limit"
            quota = QUOTA.format(allocated.quota_bytes) if allocated.quota_bytes else "no quota"
            self._tell(
                f"connected to {link.relay} as the {role.name.lower()} of allocation {allocated.allocation_id.hex()}, "
                f"until {when(allocated.expires_at)}, {bandwidth}, {quota}"
            )
        if connection.peer_present:
            self._tell(f"the {self._other_end} is there")
        else:
            self._tell(f"waiting for the {self._other_end}")

    def noticed(self, event: NoticeEvent) -> None:
        """A notice of the relay; what the connection calls."""
        match event:
            case PeerJoined(max_payload=largest):
                self._tell(f"the {self._other_end} joined; it takes datagrams of up to {largest} bytes")
            case PeerLeft():
                self._tell(f"the {self._other_end} left; waiting for it to come back")
            case MaxPayloadChanged(max_payload=largest):
                self._tell(f"the {self._other_end} takes datagrams of up to {largest} bytes now")
            case DatagramsDropped(cause=cause, packets=packets):
                why = "unknown cause" if cause is None else cause.name.lower().replace("_", " ")
                kind = f"at the relay ({why})"
                self._statistics.dropped[kind] += packets
                self._warn_sometimes(kind, f"the relay dropped {packets} of our datagrams: {why}")
            case RateLimitedNotice(limit=limit):
                self._warn_sometimes("bandwidth", f"the allocation is at its bandwidth limit, {BANDWIDTH.format(limit)}")
            case QuotaWarning(used=used, quota=quota):
                self._warn(f"{size(used)} of the quota of {size(quota)} are used")
            case RelayDraining(deadline=deadline):
                self._warn(f"the relay is about to stop, at {when(deadline)} at the latest")
            case Superseded():
                self._warn("another connection of this side gets what arrives now")
            case AllocationTerminated():
                self._terminated = event

    def _warn_sometimes(self, kind: str, text: str) -> None:
        now = self._now()
        warned = self._warned.get(kind)
        if warned is None or now - warned >= WARNING_INTERVAL:
            self._warned[kind] = now
            total = self._statistics.dropped[kind]
            self._warn(f"{text} ({total} until now)" if total > 1 else text)

    # -- the end

    def _closed(self, result: object) -> object:
        if self._local is not None:
            self._local.stop()
        if isinstance(result, TwistedFailure):
            self.ended.errback(result.value)
        else:
            self._ended_in_peace()
        return result

    def _ended_in_peace(self) -> None:
        if self._is_leaving:
            self.ended.callback(None)
        elif self._terminated is not None and self._terminated.reason is TerminationReason.RELEASED:
            self.ended.errback(EndedByRelay(f"the {self._other_end} released the allocation"))
        else:
            self.ended.errback(EndedByRelay("the relay closed the connection"))
