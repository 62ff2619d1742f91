"""Plain-int counters of everything that happens, is dropped or refused, by cause (R7.3-5).

They are read when somebody asks, so counting costs one addition on the way of a packet. Every key comes from an Enum: nothing a
client chooses can add one.
"""

from __future__ import annotations

from enum import Enum, unique

from zrc_relay.core.codes import DropCause, ErrorCode


@unique
class InputDrop(Enum):
    """Why an incoming UDP datagram was thrown away before it reached a session."""

    FIRST_BYTE = "first_byte"
    TRUNCATED = "truncated"
    UNKNOWN_CONNECTION = "unknown_connection"
    SMALL_INITIAL = "small_initial"
    HANDSHAKES_FULL = "handshakes_full"
    CONNECTIONS_FULL = "connections_full"
    STOPPING = "stopping"
    STUN = "stun"


@unique
class Limit(Enum):
    """What a source was limited by (R6.1-R6.4); the names are those of the events, too: ``security.<value>``."""

    CONNECTION_RATE = "connection_rate"
    ALLOCATION_RATE = "allocation_rate"
    REJOIN_RATE = "rejoin_rate"
    STUN_RATE = "stun_rate"
    BLOCKED = "blocked"
    AMPLIFICATION = "amplification"
    HANDSHAKE_PRESSURE = "handshake_pressure"
    RETRY_INVALID = "retry_invalid"


@unique
class Handshake(Enum):
    """How handshakes end."""

    STARTED = "started"
    COMPLETED = "completed"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


@unique
class StreamReset(Enum):
    """Why the relay itself reset a stream."""

    UNKNOWN_TYPE = "unknown_type"
    NO_COUNTERPART = "no_counterpart"
    COUNTERPART_LOST = "counterpart_lost"
    PENDING_LIMIT = "pending_limit"


class Counters:
    """All counters of one relay; attributes are plain ints or dicts with fixed keys."""

    def __init__(self) -> None:
        self.allocations_created = 0
        self.allocations_joined = 0
        self.allocations_ended: dict[str, int] = {}
        self.tokens_refreshed = 0
        self.packets_received = 0
        self.packets_forwarded = 0
        self.bytes_forwarded = 0
        self.dropped_packets = dict.fromkeys(DropCause, 0)
        self.dropped_bytes = dict.fromkeys(DropCause, 0)
        self.refused = dict.fromkeys(ErrorCode, 0)
        self.input_dropped = dict.fromkeys(InputDrop, 0)
        self.handshakes = dict.fromkeys(Handshake, 0)
        self.limited = dict.fromkeys(Limit, 0)
        self.retries_sent = 0
        self.connections_refused = 0
        self.stun_answered = 0
        self.version_negotiations = 0
        self.connections_closed = dict.fromkeys(ErrorCode, 0)
        self.capsules_received = 0
        self.capsules_unknown = 0
        self.token_cache_hits = 0
        self.token_cache_misses = 0
        self.sends_blocked = 0
        self.session_errors = 0
        self.stateless_resets_sent = 0
        self.streams_mirrored = 0
        self.streams_reset = dict.fromkeys(StreamReset, 0)
        self.path_changes = 0
        self.key_updates = 0
