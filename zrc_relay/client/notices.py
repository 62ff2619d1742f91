"""The relay's notices as typed events (PROTOCOL §5), and a few events that the library itself has to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

from twisted.logger import Logger

from zrc_relay.core.codes import DropCause, NoticeCode, TerminationReason
from zrc_relay.core.wire import Address, Allocated, Notice

_log = Logger()


@dataclass(frozen=True, slots=True)
class QuotaWarning:
    """Most of the quota is used; both in bytes."""

    used: int
    quota: int


@dataclass(frozen=True, slots=True)
class RateLimitedNotice:
    """Datagrams were dropped because of the allocation's bandwidth limit (bytes per second)."""

    limit: int
    dropped: int


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """The other side, absent until now, is there; a DATAGRAM to it carries ``max_payload`` bytes."""

    max_payload: int


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The other side has no connection any more."""


@dataclass(frozen=True, slots=True)
class RelayDraining:
    """The relay stops at ``deadline`` (Unix seconds); ``alternates`` are where to go, in order."""

    deadline: int
    alternates: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class AllocationTerminated:
    """The allocation ended; the connection is closed next. ``reason`` is None for one that this library does not know."""

    reason: TerminationReason | None


@dataclass(frozen=True, slots=True)
class DatagramsDropped:
    """``packets`` of our datagrams were dropped since the last such notice."""

    cause: DropCause | None
    packets: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another connection of this side carries what comes from the other end now."""


@dataclass(frozen=True, slots=True)
class MaxPayloadChanged:
    """What fits a DATAGRAM towards the other end has changed, in bytes."""

    max_payload: int


@dataclass(frozen=True, slots=True)
class RefreshFailed:
    """No new token could be put in force, because of ``error``; it is tried again in ``retry_in`` seconds (None: no more)."""

    error: Exception
    retry_in: float | None


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection ended with ``error``, or could not be made again; attempt ``attempt`` follows in ``delay`` seconds."""

    error: Exception
    attempt: int
    delay: float


@dataclass(frozen=True, slots=True)
class Reconnected:
    """There is a connection again; ``allocated`` says what is in force. Streams of the old one are gone."""

    allocated: Allocated


NoticeEvent = (
    QuotaWarning
    | RateLimitedNotice
    | PeerJoined
    | PeerLeft
    | RelayDraining
    | AllocationTerminated
    | DatagramsDropped
    | Superseded
    | MaxPayloadChanged
    | RefreshFailed
    | Reconnecting
    | Reconnected
)


_BUILDERS: Final[Mapping[int, Callable[[Notice], NoticeEvent]]] = {
    NoticeCode.QUOTA_WARNING: lambda notice: QuotaWarning(notice.first, notice.second),
    NoticeCode.RATE_LIMITED: lambda notice: RateLimitedNotice(notice.first, notice.second),
    NoticeCode.PEER_JOINED: lambda notice: PeerJoined(notice.first),
    NoticeCode.PEER_LEFT: lambda _: PeerLeft(),
    NoticeCode.DRAINING: lambda notice: RelayDraining(notice.first, notice.addresses),
    NoticeCode.TERMINATED: lambda notice: AllocationTerminated(_known(TerminationReason, notice.first)),
    NoticeCode.DROPPED: lambda notice: DatagramsDropped(_known(DropCause, notice.first), notice.second),
    NoticeCode.SUPERSEDED: lambda _: Superseded(),
    NoticeCode.MAX_PAYLOAD: lambda notice: MaxPayloadChanged(notice.first),
}

_Number = TypeVar("_Number", bound=IntEnum)


def _known(kind: type[_Number], value: int) -> _Number | None:
    return kind(value) if value in set(kind) else None


def notice_event(notice: Notice) -> NoticeEvent | None:
    """The event that ``notice`` is; None for a code that is not known and must be ignored (PROTOCOL)."""
    builder = _BUILDERS.get(notice.code)
    return builder(notice) if builder is not None else None


def tell(handler: Callable[[NoticeEvent], None] | None, event: NoticeEvent) -> None:
    """Call the user's ``handler``, if there is one; what it raises is logged."""
    if handler is not None:
        try:
            handler(event)
        except Exception:
            _log.failure("a callback of the user failed; the connection goes on")
