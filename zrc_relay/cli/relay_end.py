"""``RelayEnd``: our end of an allocation as a command has it: connected once, with every event told to the user.

Theory of operation
-------------------
It goes on while the other end is away. It ends when ``close`` is called or when the relay ends the connection; ``ended`` says
which. What happens is told in lines; what happens again and again is told at most every ``WARNING_INTERVAL`` seconds, with how
often, because a program that does one thing that does not work does it thousands of times.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure as TwistedFailure

from zrc_relay.cli.console import size, when
from zrc_relay.cli.errors import EndedByRelay
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.tokens import BANDWIDTH, QUOTA
from zrc_relay.client.connect import CONNECT_TIMEOUT, connect
from zrc_relay.client.connection import ClientConnection, Identity
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
from zrc_relay.client.streams import RelayStream
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import Role, TerminationReason
from zrc_relay.core.token import RelayToken

WARNING_INTERVAL: Final = 10.0
"""Seconds between two warnings of one kind."""


def by_cause(counts: Counter[str]) -> str:
    """Counts for people, those that are not zero: "3 too large, 1 from strangers"."""
    return ", ".join(f"{count} {cause}" for cause, count in sorted(counts.items()) if count) or "none"


@dataclass(frozen=True, slots=True)
class RelayLink:
    """Which allocation is used: the relay, whom to take for it, the token, and our key (of its device or of its peer)."""

    relay: HostPort
    trust: Trust
    token: RelayToken
    key: SigningKey


class RelayEnd:
    """See the module's docstring. ``tell`` takes lines for the user, ``warn`` those about what goes wrong.

    ``dropped`` counts what could not be carried, by cause.
    """

    def __init__(
        self, *, tell: Callable[[str], None], warn: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self.ended: Deferred[None] = Deferred()
        """Fires after ``close``; fails with the reason when the relay, or the network, has ended the connection."""
        self._tell = tell
        self._warn = warn
        self._now = now
        self._warned: dict[str, float] = {}
        self._terminated: AllocationTerminated | None = None
        self._is_leaving = False
        self._other_end = ""
        self._connection: ClientConnection | None = None

    async def connect(
        self,
        reactor: Any,
        link: RelayLink,
        *,
        timeout: float = CONNECT_TIMEOUT,
        on_datagram: Callable[[bytes], None] | None = None,
        on_stream: Callable[[RelayStream], None] | None = None,
    ) -> None:
        """Connect and allocate; raises what ``zrc_relay.client.connect`` does. In any case ``release_local`` is called once."""
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
                on_datagram=on_datagram,
                on_notice=self.noticed,
                on_stream=on_stream,
            )
        except BaseException:  # cancelled, too
            self.release_local()
            raise
        self._connection = connection
        connection.closed.addBoth(self._closed)
        self._introduce(connection, link, role)

    def close(self) -> None:
        """Leave; the allocation stays, so that we may come back within the relay's ``idle_timeout``."""
        self._is_leaving = True
        if self._connection is not None:
            self._connection.close()

    def release_local(self) -> None:
        """There is no relay any more: let go what belongs to this host."""

    @property
    def open_connection(self) -> ClientConnection | None:
        """The connection, while there is one."""
        connection = self._connection
        return None if connection is None or connection.is_closed else connection

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
                self._tell(f"the {self._other_end} joined{self.describe(largest)}")
            case PeerLeft():
                self._tell(f"the {self._other_end} left; waiting for it to come back")
            case MaxPayloadChanged(max_payload=largest) if self.describe(largest):
                self._tell(f"the path to the {self._other_end} has changed{self.describe(largest)}")
            case DatagramsDropped(cause=cause, packets=packets):
                why = "unknown cause" if cause is None else cause.name.lower().replace("_", " ")
                kind = f"at the relay ({why})"
                self.dropped[kind] += packets
                self.warn_sometimes(kind, f"the relay dropped {packets} of our datagrams: {why}")
            case RateLimitedNotice(limit=limit):
                self.warn_sometimes("bandwidth", f"the allocation is at its bandwidth limit, {BANDWIDTH.format(limit)}")
            case QuotaWarning(used=used, quota=quota):
                self._warn(f"{size(used)} of the quota of {size(quota)} are used")
            case RelayDraining(deadline=deadline):
                self._warn(f"the relay is about to stop, at {when(deadline)} at the latest")
            case Superseded():
                self._warn("another connection of this side gets what arrives now")
            case AllocationTerminated():
                self._terminated = event

    def describe(self, max_payload: int) -> str:
        """What is worth saying about a DATAGRAM to the other end carrying ``max_payload`` bytes; nothing as a rule."""
        del max_payload
        return ""

    def warn_sometimes(self, kind: str, text: str) -> None:
        """Warn of something of which ``dropped`` counts the ``kind``, unless that was done lately."""
        now = self._now()
        warned = self._warned.get(kind)
        if warned is None or now - warned >= WARNING_INTERVAL:
            self._warned[kind] = now
            total = self.dropped[kind]
            self._warn(f"{text} ({total} until now)" if total > 1 else text)

    # -- the end

    def _closed(self, result: object) -> object:
        self.release_local()
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
