"""What the short and the general way of a 1-RTT packet share: one object each for the connection, its path and its packets.

aioquic keeps this in attributes of its own objects. ``Connection`` and ``Recovery`` keep it here and give aioquic properties of
the names that it knows, so that there is one state however a packet is dealt with, and the short way, which deals with nearly all
of them, looks at plain slots.
"""

from __future__ import annotations

from math import inf
from typing import Any

from aioquic.quic.rangeset import RangeSet

from zrc_relay.quic.congestion import Congestion, Pacer
from zrc_relay.quic.recent import RecentPackets


class PacketSpace:
    """The packet number space of 1-RTT packets (RFC 9000 §12.3), with the attributes that aioquic's has."""

    __slots__ = (
        "ack_at", "ack_eliciting_in_flight", "ack_queue", "discarded", "expected_packet_number", "is_application_data",
        "largest_acked_packet", "largest_received_packet", "largest_received_time", "loss_time", "received_packets",
        "sent_packets",
    )

    def __init__(self) -> None:
        self.ack_at: float | None = None
        self.ack_queue = RangeSet()
        self.discarded = False
        self.expected_packet_number = 0
        self.is_application_data = True
        self.largest_received_packet = -1
        self.largest_received_time: float | None = None
        self.received_packets = RecentPackets()
        self.ack_eliciting_in_flight = 0
        self.largest_acked_packet = 0
        self.loss_time: float | None = None
        self.sent_packets: dict[int, Any] = {}


class PathState:
    """What is known of the path to the peer: RTT (RFC 9002 §5), probe timeouts (§6.2), congestion (§7). Times are seconds."""

    __slots__ = (
        "congestion", "last_eliciting_at", "max_ack_delay", "pacer", "pto_count", "rtt_first_sample_at", "rtt_initialized",
        "rtt_latest", "rtt_min", "rtt_smoothed", "rtt_variance",
    )

    def __init__(self, max_datagram_size: int) -> None:
        self.congestion = Congestion(max_datagram_size=max_datagram_size)
        self.pacer = Pacer(max_datagram_size=max_datagram_size)
        self.max_ack_delay = 0.025
        self.pto_count = 0
        self.last_eliciting_at = 0.0
        self.rtt_first_sample_at = 0.0
        self.rtt_initialized = False
        self.rtt_latest = 0.0
        self.rtt_min = inf
        self.rtt_smoothed = 0.0
        self.rtt_variance = 0.0

    def forget(self, max_datagram_size: int) -> None:
        """Another path, of which nothing is known (RFC 9000 §9.4)."""
        self.congestion = Congestion(max_datagram_size=max_datagram_size)
        self.pacer.packet_time = None
        self.pto_count = 0
        self.rtt_initialized = False
        self.rtt_latest = self.rtt_smoothed = self.rtt_variance = 0.0
        self.rtt_min = inf


class OneRtt:
    """The connection as far as each packet changes it. Times are monotonic seconds."""

    __slots__ = (
        "acks_sent",
        "attention",
        "close_at",
        "pacing_at",
        "packet_number",
        "probe_at",
        "spin_bit",
        "spin_highest",
    )

    def __init__(self) -> None:
        self.attention = True
        """Whether anything but datagrams and acknowledgements may have to be looked after: the general machinery decides what is
        sent until nothing is left."""
        self.close_at: float | None = None
        """When the idle timeout ends the connection."""
        self.pacing_at: float | None = None
        """When the pacer lets the next packet go, if it holds one back."""
        self.probe_at = 0.0
        """When a probe of the path's MTU may leave."""
        self.packet_number = 0
        """The next one to send."""
        self.spin_bit = False
        self.spin_highest = 0
        """The packet number of the peer that decided about ``spin_bit`` (RFC 9000 §17.4)."""
        self.acks_sent = 0
        """ACK frames."""
