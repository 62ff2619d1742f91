"""Plain-int counters of everything that happens, is dropped or refused, by cause (R7.3-5).

They are read when somebody asks, so counting costs one addition on the way of a packet. Every key comes from an Enum: nothing a
client chooses can add one. What depends on all allocations (how many are in which state, how much of all quotas is used) is kept
up to date as each of them changes, so that nobody has to look at all of them to know.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import Final

from zrc_relay.core.codes import DropCause, ErrorCode
from zrc_relay.core.histogram import Histogram, Sizes, Waits

DURATION_BOUNDS: Final[tuple[float, ...]] = (
    1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 8 * 3600.0, 24 * 3600.0, 7 * 86400.0,
)
"""Bounds in seconds for the lives of allocations: failed attempts, calls, working days, what is refreshed for days."""
EGRESS_BOUNDS: Final[tuple[float, ...]] = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Bounds in seconds for waits in egress queues; the default of ``egress_queue_age`` is one of them."""
LARGEST_BATCH: Final = 128
"""Last bound in packets for batches in; a train may carry one over it."""
LARGEST_TRAIN: Final = 64
"""Last bound in packets for one call that sends."""


@unique
class InputDrop(Enum):
    """Why an incoming UDP datagram was thrown away before it reached a session."""

    FIRST_BYTE = "first_byte"
    TRUNCATED = "truncated"
    UNKNOWN_CONNECTION = "unknown_connection"
    MISROUTED = "misrouted"
    SMALL_INITIAL = "small_initial"
    HANDSHAKES_FULL = "handshakes_full"
    CONNECTIONS_FULL = "connections_full"
    STOPPING = "stopping"
    STUN = "stun"
    CHANNEL = "channel"


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


class Traffic:
    """What went through one UDP socket. What is counted for each packet that is sent alone is two additions."""

    __slots__ = ("batches", "bytes_received", "bytes_sent", "reads", "singles", "trains")

    def __init__(self) -> None:
        self.reads = 0
        """System calls that brought something."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self.batches = Sizes(LARGEST_BATCH)
        """Packets that each wake-up brought."""
        self.singles = 0
        """System calls that took one packet out."""
        self.trains = Sizes(LARGEST_TRAIN)
        """Packets that each other call took out."""

    def arrived(self, reads: int, packets: int, octets: int) -> None:
        """A wake-up brought ``packets``, at least one, in so many system calls and bytes."""
        self.reads += reads
        self.bytes_received += octets
        self.batches.observe(packets)

    @property
    def sends(self) -> Sizes:
        """Packets that each sending system call took out."""
        sizes = Sizes(LARGEST_TRAIN)
        first, *others = self.trains.counts
        sizes.counts = [first + self.singles, *others]
        sizes.sum = self.trains.sum + self.singles
        return sizes


class Counters:
    """All counters of one relay; attributes are plain ints, dicts with fixed keys, or histograms."""

    def __init__(self) -> None:
        self.allocations_created = 0
        self.allocations_joined = 0
        self.redirected = 0
        """Clients that were sent to the worker that has their allocation."""
        self.allocations_ended: dict[str, int] = {}
        self.allocations_waiting = 0
        """Live allocations with one side there, or none yet."""
        self.allocations_active = 0
        """Live allocations with both sides there."""
        self.allocation_duration = Histogram(DURATION_BOUNDS)
        """Lives of the allocations that have ended, in seconds."""
        self.quota_granted = 0
        """Sum of the quotas of the live allocations that have one, in bytes."""
        self.quota_used = 0
        """What those allocations have used of them, in bytes."""
        self.quota_warnings = 0
        self.egress_waits = Waits(EGRESS_BOUNDS, 0.0)
        """How long the oldest datagram of a connection had waited when the connection was flushed, where that is worth noting."""
        self.tokens_refreshed = 0
        self.packets_received = 0
        self.channels_opened = 0
        self.channel_packets = 0
        """Packets forwarded by channels; ``packets_forwarded`` has them, too."""
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
