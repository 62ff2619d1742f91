"""What can go wrong between a client and a relay: one exception for each close code of PROTOCOL §5, and a few of our own.

``RelayError`` and its kin are about the connection, ``StreamFailure`` and its kin about one stream of it.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from zrc_relay.core.codes import ErrorCode, StreamError
from zrc_relay.core.wire import Redirect

_RETRY_AFTER: Final = re.compile(r"retry_after=(\d{1,9});")


class RelayError(Exception):
    """The relay closed the connection, or refused something, with a code of PROTOCOL §5.

    ``reason`` is the relay's sentence for people, ``retry_after`` the seconds after which trying again makes sense (0: not said).
    """

    code: ClassVar[ErrorCode]

    def __init__(self, reason: str = "") -> None:
        found = _RETRY_AFTER.match(reason)
        self.retry_after = int(found.group(1)) if found else 0
        self.reason = reason[found.end() :] if found else reason
        super().__init__(f"{self.code.name}: {self.reason}" if self.reason else self.code.name)


class ProtocolError(RelayError):
    """One of the two ends broke the protocol."""

    code = ErrorCode.PROTOCOL_ERROR


class ControlTooLarge(RelayError):
    """A capsule was longer than 4096 bytes."""

    code = ErrorCode.CONTROL_TOO_LARGE


class AllocateTimeout(RelayError):
    """ALLOCATE did not come within 10 s."""

    code = ErrorCode.ALLOCATE_TIMEOUT


class VersionUnsupported(RelayError):
    """The relay does not speak this version of the protocol."""

    code = ErrorCode.VERSION


class TokenMalformed(RelayError):
    """The token can be no token."""

    code = ErrorCode.TOKEN_MALFORMED


class TokenBadSignature(RelayError):
    """The token's signature is not the device's."""

    code = ErrorCode.TOKEN_BAD_SIGNATURE


class TokenExpired(RelayError):
    """The token has expired (or, for a refresh, is older than the one in force)."""

    code = ErrorCode.TOKEN_EXPIRED


class TokenWrongRelay(RelayError):
    """The token is for another relay."""

    code = ErrorCode.TOKEN_WRONG_RELAY


class TokenWrongAllocation(RelayError):
    """The token is for another allocation."""

    code = ErrorCode.TOKEN_WRONG_ALLOCATION


class TokenWrongPeer(RelayError):
    """The token is for another peer."""

    code = ErrorCode.TOKEN_WRONG_PEER


class DeviceUnknown(RelayError):
    """The relay does not know the device's key."""

    code = ErrorCode.DEVICE_UNKNOWN


class ProofRequired(RelayError):
    """The relay wants a proof of possession."""

    code = ErrorCode.PROOF_REQUIRED


class ProofInvalid(RelayError):
    """The proof of possession is not right."""

    code = ErrorCode.PROOF_INVALID


class TokenTooLong(RelayError):
    """The token lives longer than the relay allows."""

    code = ErrorCode.TOKEN_TOO_LONG


class CapacityExceeded(RelayError):
    """Relay or device hold as many allocations as they may."""

    code = ErrorCode.CAPACITY


class RateLimited(RelayError):
    """Too many requests."""

    code = ErrorCode.RATE_LIMITED


class Blocked(RelayError):
    """The relay does not serve this address."""

    code = ErrorCode.BLOCKED


class TooManyConnections(RelayError):
    """The side has as many connections as it may."""

    code = ErrorCode.TOO_MANY_CONNECTIONS


class Draining(RelayError):
    """The relay is about to stop."""

    code = ErrorCode.DRAINING


class Terminated(RelayError):
    """An administrator ended the allocation."""

    code = ErrorCode.TERMINATED


class QuotaExceeded(RelayError):
    """The allocation's quota is used up."""

    code = ErrorCode.QUOTA_EXCEEDED


class AllocationExpired(RelayError):
    """The allocation's token has expired."""

    code = ErrorCode.EXPIRED


class AllocationIdle(RelayError):
    """One of the sides was absent for too long."""

    code = ErrorCode.IDLE


class InternalError(RelayError):
    """Something failed inside the relay."""

    code = ErrorCode.INTERNAL


_TRANSPORT_ERRORS: Final = {
    0x02: "the relay takes no more connections from this address for now",
    0x0B: "the relay did not accept our Retry token",
}
_BY_CODE: Final = {error.code: error for error in RelayError.__subclasses__()}


def error_for(code: int, reason: str) -> RelayError | UnknownCode:
    """The exception for a close code; ``UnknownCode`` for one that a later version of the protocol may have added."""
    try:
        return _BY_CODE[ErrorCode(code)](reason)
    except (ValueError, KeyError):
        return UnknownCode(code, reason)


def transport_error(code: int) -> str:
    """What an error code of QUIC itself, which came without a reason, means to a client of a relay (RFC 9000 §20.1)."""
    return _TRANSPORT_ERRORS.get(code, f"QUIC error {code:#x}")


class UnknownCode(Exception):
    """The relay closed with a code that this library does not know."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"close code {code:#x}: {reason}")


class ConnectFailed(Exception):
    """There is no connection to the relay: nobody answered, or the handshake failed (a certificate, a protocol)."""


class ConnectionLost(Exception):
    """The connection ended without a word of the relay: it was silent for too long, was reset, or QUIC itself failed."""


class NotConnected(ConnectionLost):
    """There is no connection to the relay at the moment; a ``ResilientConnection`` is making another."""


class PayloadTooLarge(ValueError):
    """A payload longer than 65,535 bytes, or one that does not fit a DATAGRAM to a relay that allows no stream for it."""


class RedirectLoop(ConnectFailed):
    """The relays sent the client from one to the next more than three times."""


class Redirected(Exception):
    """The relay answered ALLOCATE with other addresses."""

    def __init__(self, redirect: Redirect) -> None:
        super().__init__(f"redirected to {', '.join(map(str, redirect.addresses)) or 'nowhere'}")
        self.redirect = redirect


class ChannelRefused(Exception):
    """The relay opens no channel: it offers none, or its answer was ``error``."""

    def __init__(self, why: str, error: RelayError | UnknownCode | None = None) -> None:
        super().__init__(why)
        self.error = error


class ChannelClosed(Exception):
    """We have closed the channel."""


class StreamFailure(Exception):
    """A stream ended before all that was written had been read.

    ``code`` is what the other end said, an application's code; ``relay_code`` is set when it was the relay that ended the stream.
    """

    what: ClassVar[str]

    def __init__(self, code: int) -> None:
        self.code = code
        self.relay_code = StreamError(code) if code in set(StreamError) else None
        super().__init__(f"{self.what}: {_RELAY_REASONS[self.relay_code] if self.relay_code is not None else f'code {code:#x}'}")


class StreamReset(StreamFailure):
    """The other end (or the relay) gave up what it was sending: not all of it has arrived."""

    what = "the stream was reset"


class StreamStopped(StreamFailure):
    """The other end (or the relay) does not want what we send: not all of it was read."""

    what = "the stream was stopped"


class TooManyStreams(Exception):
    """As many streams wait for the relay's limit as may wait."""


_RELAY_REASONS: Final = {
    StreamError.UNKNOWN_TYPE: "the relay does not know its type",
    StreamError.NO_COUNTERPART: "the other end is not there, or has too many streams waiting",
    StreamError.COUNTERPART_LOST: "the connection of the other end is gone",
}
