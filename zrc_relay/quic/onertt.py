"""What the short and the general way of a 1-RTT packet share: one object each for the connection, its path and its packets.

aioquic keeps this in attributes of its own objects. ``Connection`` and ``Recovery`` keep it here and give aioquic properties of
the names that it knows, so that there is one state however a packet is dealt with, and the short way, which deals with nearly all
of them, looks at plain slots. A time that is not set is infinity here, and None for aioquic: numbers need no object of their own.
"""

from __future__ import annotations

from math import inf
from typing import Any, ClassVar, Final

from aioquic.quic.packet import QuicPacketType
from aioquic.tls import Epoch

from zrc_relay.quic.congestion import Congestion, Pacer
from zrc_relay.quic.recent import ReceivedRanges, RecentPackets

GRANULARITY: Final = 0.001
"""Of timers, in seconds (RFC 9002 §6.1.2)."""
MAX_SENT_ACKS: Final = 1024
"""Packets on their way above which those that only acknowledge are not kept: nothing but an acknowledgement of them would end
that, and a peer need not send any. A congestion window bounds the others."""


class SentPacket:
    """A 1-RTT packet on its way, with the attributes that loss recovery looks at.

    The same as aioquic's ``QuicSentPacket`` where it matters, at a quarter of the cost: what never differs is a class attribute.
    """

    __slots__ = ("delivery_handlers", "in_flight", "is_ack_eliciting", "packet_number", "sent_bytes", "sent_time")

    epoch: ClassVar = Epoch.ONE_RTT
    is_crypto_packet: ClassVar = False
    packet_type: ClassVar = QuicPacketType.ONE_RTT

    def __init__(  # one for each packet that leaves
        self, packet_number: int, sent_time: float, sent_bytes: int, handlers: Any, eliciting: bool  # noqa: FBT001
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.delivery_handlers = handlers
        self.in_flight = eliciting
        self.is_ack_eliciting = eliciting


class SentCryptoPacket(SentPacket):
    """One with a CRYPTO frame, which a probe timeout sends again (RFC 9002 §6.2.4)."""

    is_crypto_packet: ClassVar = True


class PacketSpace:
    """The packet number space of 1-RTT packets (RFC 9000 §12.3), with the attributes that aioquic's has."""

    __slots__ = (
        "ack_eliciting_in_flight", "ack_queue", "acks_at", "discarded", "expected_packet_number", "heard_at",
        "is_application_data", "largest_acked_packet", "largest_received_packet", "loses_at", "received_packets", "sent_packets",
    )

    def __init__(self) -> None:
        self.acks_at = inf
        """When the acknowledgement that is owed leaves at the latest."""
        self.heard_at = inf
        """When the packet of the largest number came."""
        self.loses_at = inf
        """When the oldest packet on its way is taken for lost, if a later one was acknowledged."""
        self.ack_queue = ReceivedRanges()
        self.discarded = False
        self.expected_packet_number = 0
        self.is_application_data = True
        self.largest_received_packet = -1
        self.received_packets = RecentPackets()
        self.ack_eliciting_in_flight = 0
        self.largest_acked_packet = 0
        self.sent_packets: dict[int, SentPacket] = {}

    @property
    def ack_at(self) -> float | None:
        """``acks_at`` by aioquic's name."""
        return or_none(self.acks_at)

    @ack_at.setter
    def ack_at(self, at: float | None) -> None:
        self.acks_at = or_never(at)

    @property
    def largest_received_time(self) -> float | None:
        """``heard_at`` by aioquic's name."""
        return or_none(self.heard_at)

    @largest_received_time.setter
    def largest_received_time(self, at: float | None) -> None:
        self.heard_at = or_never(at)

    @property
    def loss_time(self) -> float | None:
        """``loses_at`` by aioquic's name."""
        return or_none(self.loses_at)

    @loss_time.setter
    def loss_time(self, at: float | None) -> None:
        self.loses_at = or_never(at)


class PathState:
    """What is known of the path to the peer: RTT (RFC 9002 §5), probe timeouts (§6.2), congestion (§7). Times are seconds."""

    __slots__ = (
        "congestion", "last_eliciting_at", "max_ack_delay", "pacer", "pto_count", "rtt_first_sample_at", "rtt_initial",
        "rtt_initialized", "rtt_latest", "rtt_min", "rtt_smoothed", "rtt_variance",
    )

    def __init__(self, max_datagram_size: int, initial_rtt: float) -> None:
        self.congestion = Congestion(max_datagram_size=max_datagram_size)
        self.pacer = Pacer(max_datagram_size=max_datagram_size)
        self.max_ack_delay = 0.025
        self.pto_count = 0
        self.last_eliciting_at = 0.0
        self.rtt_first_sample_at = 0.0
        self.rtt_initial = initial_rtt
        self.rtt_initialized = False
        self.rtt_latest = 0.0
        self.rtt_min = inf
        self.rtt_smoothed = 0.0
        self.rtt_variance = 0.0

    def forget(self, max_datagram_size: int) -> None:
        """Another path, of which nothing is known (RFC 9000 §9.4)."""
        self.congestion = Congestion(max_datagram_size=max_datagram_size)
        self.pacer.packet_time = 0.0
        self.pto_count = 0
        self.rtt_initialized = False
        self.rtt_latest = self.rtt_smoothed = self.rtt_variance = 0.0
        self.rtt_min = inf

    def probe_timeout(self) -> float:
        """The PTO for 1-RTT packets in seconds without backoff (RFC 9002 §6.2.1)."""
        if not self.rtt_initialized:
            return 2 * self.rtt_initial
        return self.rtt_smoothed + max(GRANULARITY, 4 * self.rtt_variance) + self.max_ack_delay

    def loss_detection_at(self, space: PacketSpace) -> float:
        """When the loss detection timer expires once 1-RTT packets are all that is sent (RFC 9002 §A.8); or infinity."""
        if space.loses_at < inf:
            return space.loses_at
        if space.ack_eliciting_in_flight:
            return self.last_eliciting_at + self.probe_timeout() * (1 << self.pto_count)
        return inf


class OneRtt:
    """The connection as far as each packet changes it. Times are monotonic seconds."""

    __slots__ = (
        "acks_sent",
        "attention",
        "close_at",
        "pacing_at",
        "packet_number",
        "probe_at",
        "revision",
        "search_at",
        "spin_bit",
        "spin_highest",
    )

    def __init__(self) -> None:
        self.attention = True
        """Whether anything but datagrams and acknowledgements may have to be looked after: the general machinery decides what is
        sent until nothing is left."""
        self.revision = 0
        """Raised whenever the general machinery has had its turn: what only that changes may be another since."""
        self.close_at = inf
        """When the idle timeout ends the connection."""
        self.pacing_at = inf
        """When the pacer lets the next packet go, if it holds one back."""
        self.probe_at = 0.0
        """When a probe of the path's MTU may leave."""
        self.search_at = inf
        """When the first one is to leave, whether anything else does or not; infinity once it has."""
        self.packet_number = 0
        """The next one to send."""
        self.spin_bit = False
        self.spin_highest = 0
        """The packet number of the peer that decided about ``spin_bit`` (RFC 9000 §17.4)."""
        self.acks_sent = 0
        """ACK frames."""


def or_none(at: float) -> float | None:
    """A time for aioquic: None if it is infinity."""
    return None if at == inf else at


def or_never(at: float | None) -> float:
    """The inverse."""
    return inf if at is None else at
