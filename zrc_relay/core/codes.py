"""Every number of the wire protocol that names something: error codes, capsule types, reasons, causes (PROTOCOL §4-6)."""

from __future__ import annotations

from enum import IntEnum, IntFlag, unique


@unique
class ErrorCode(IntEnum):
    """Application close codes, and codes of the ERROR capsule (PROTOCOL §5)."""

    NO_ERROR = 0x00
    PROTOCOL_ERROR = 0x01
    CONTROL_TOO_LARGE = 0x02
    ALLOCATE_TIMEOUT = 0x03
    VERSION = 0x04
    TOKEN_MALFORMED = 0x10
    TOKEN_BAD_SIGNATURE = 0x11
    TOKEN_EXPIRED = 0x12
    TOKEN_WRONG_RELAY = 0x13
    TOKEN_WRONG_ALLOCATION = 0x14
    TOKEN_WRONG_PEER = 0x15
    DEVICE_UNKNOWN = 0x16
    PROOF_REQUIRED = 0x17
    PROOF_INVALID = 0x18
    TOKEN_TOO_LONG = 0x19
    CAPACITY = 0x20
    RATE_LIMITED = 0x21
    BLOCKED = 0x22
    TOO_MANY_CONNECTIONS = 0x23
    DRAINING = 0x24
    TERMINATED = 0x30
    QUOTA_EXCEEDED = 0x31
    EXPIRED = 0x32
    IDLE = 0x33
    INTERNAL = 0x3F


@unique
class StreamError(IntEnum):
    """Codes the relay resets streams with (PROTOCOL §6)."""

    UNKNOWN_TYPE = 0x7A726300
    NO_COUNTERPART = 0x7A726301
    COUNTERPART_LOST = 0x7A726302


@unique
class CapsuleType(IntEnum):
    """Capsule types (PROTOCOL §4 client to relay, §5 relay to client)."""

    ALLOCATE = 0x01
    REFRESH = 0x02
    RELEASE = 0x03
    OPEN_CHANNEL = 0x04
    LIST_RELAYS = 0x05
    CLOSE_CHANNEL = 0x06
    HELLO = 0x10
    ALLOCATED = 0x11
    REFRESHED = 0x12
    RELEASED = 0x13
    REDIRECT = 0x14
    NOTICE = 0x15
    CHANNEL = 0x16
    RELAYS = 0x17
    ERROR = 0x1F


@unique
class NoticeCode(IntEnum):
    """First byte of a NOTICE (PROTOCOL §5)."""

    QUOTA_WARNING = 1
    RATE_LIMITED = 2
    PEER_JOINED = 3
    PEER_LEFT = 4
    DRAINING = 5
    TERMINATED = 6
    DROPPED = 7
    SUPERSEDED = 8
    MAX_PAYLOAD = 9


@unique
class Role(IntEnum):
    """Which end of an allocation a connection belongs to."""

    DEVICE = 0
    PEER = 1

    @property
    def other(self) -> Role:
        """The role of the counterpart."""
        return Role.PEER if self is Role.DEVICE else Role.DEVICE


@unique
class TerminationReason(IntEnum):
    """Why an allocation ended, as NOTICE TERMINATED says it."""

    EXPIRED = 1
    IDLE = 2
    QUOTA = 3
    RELEASED = 4
    ADMINISTRATOR = 5
    ERROR = 6

    @property
    def close_code(self) -> ErrorCode:
        """The close code that goes with the reason (PROTOCOL §5, last table)."""
        return _CLOSE_CODES[self]


_CLOSE_CODES = {
    TerminationReason.EXPIRED: ErrorCode.EXPIRED,
    TerminationReason.IDLE: ErrorCode.IDLE,
    TerminationReason.QUOTA: ErrorCode.QUOTA_EXCEEDED,
    TerminationReason.RELEASED: ErrorCode.NO_ERROR,
    TerminationReason.ADMINISTRATOR: ErrorCode.TERMINATED,
    TerminationReason.ERROR: ErrorCode.INTERNAL,
}


@unique
class DropCause(IntEnum):
    """Why a datagram was not forwarded, as NOTICE DROPPED says it (PROTOCOL §5).

    QUOTA is never said: the allocation ends with the datagram that would have crossed its quota.
    """

    QUOTA = 0
    BANDWIDTH = 1
    GLOBAL_BANDWIDTH = 2
    NO_COUNTERPART = 3
    EGRESS_QUEUE = 4
    OVERSIZE = 5


@unique
class RedirectReason(IntEnum):
    """First byte of a REDIRECT."""

    OWNED_ELSEWHERE = 1
    DRAINING = 2
    OTHER_WORKER = 3


class HelloFeature(IntFlag):
    """Feature bits of HELLO."""

    DEVICES_PROVE = 1
    CHANNELS = 2
    PEERS_PROVE = 4


class AllocateFeature(IntFlag):
    """Feature bits of ALLOCATE."""

    PROOF = 1
