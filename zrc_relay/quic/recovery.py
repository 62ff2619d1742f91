"""``Recovery``: aioquic's loss recovery (RFC 9002) on the state that the short way works with, too.

aioquic's class reads and writes attributes of its own; these are properties here, and what they stand for is in ``PathState``,
with the congestion control and the pacer of ``congestion.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

from zrc_relay.quic.onertt import MAX_SENT_ACKS, PacketSpace, PathState, SentCryptoPacket, SentPacket, or_never, or_none


def kept_in(part: str, name: str) -> Any:
    """A property that is the attribute ``name`` of the owner's attribute ``part``."""

    def put(owner: object, value: object) -> None:
        setattr(getattr(owner, part), name, value)

    return property(attrgetter(f"{part}.{name}"), put)


def kept_time(part: str, name: str) -> Any:
    """The same for a time: None stands for infinity."""
    kept = attrgetter(f"{part}.{name}")

    def get(owner: object) -> float | None:
        at: float = kept(owner)
        return or_none(at)

    def put(owner: object, at: float | None) -> None:
        setattr(getattr(owner, part), name, or_never(at))

    return property(get, put)


def _let_go(_owner: object, _made: object) -> None:
    """What aioquic made is not used."""


class Recovery(QuicPacketRecovery):
    """See the module's docstring. ``initial_rtt`` is in seconds, ``send_probe`` asks for something that is acknowledged."""

    def __init__(self, *, initial_rtt: float, max_datagram_size: int, is_client: bool, send_probe: Callable[[], None]) -> None:
        self.path = PathState(max_datagram_size, initial_rtt)
        super().__init__(
            congestion_control_algorithm="reno", initial_rtt=initial_rtt, max_datagram_size=max_datagram_size,
            peer_completed_address_validation=not is_client, send_probe=send_probe,
        )

    def on_packet_sent(self, *, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        """See ``QuicPacketRecovery``. What is kept of a 1-RTT packet is the same on both ways."""
        super().on_packet_sent(packet=packet, space=space)
        if not isinstance(space, PacketSpace):
            return
        if packet.in_flight or len(space.sent_packets) <= MAX_SENT_ACKS:
            make = SentCryptoPacket if packet.is_crypto_packet else SentPacket
            number, handlers = packet.packet_number, packet.delivery_handlers
            kept = make(number, packet.sent_time or 0.0, packet.sent_bytes, handlers, packet.is_ack_eliciting)
            kept.in_flight = packet.in_flight  # with padding it is, even if it asks for no acknowledgement
            space.sent_packets[number] = kept
        else:
            del space.sent_packets[packet.packet_number]

    def get_probe_timeout(self, *, include_max_ack_delay: bool = True) -> float:
        """See ``QuicPacketRecovery``."""
        timeout = self.path.probe_timeout()
        return timeout if include_max_ack_delay or not self.path.rtt_initialized else timeout - self.path.max_ack_delay

    def get_loss_detection_time(self, *, amplification_limited: bool) -> float | None:
        """See ``QuicPacketRecovery``. When the handshake is confirmed there are no packets but in the last space."""
        if self.handshake_confirmed and not amplification_limited:
            return or_none(self.path.loss_detection_at(cast("PacketSpace", self.spaces[-1])))
        return super().get_loss_detection_time(amplification_limited=amplification_limited)

    # aioquic makes a congestion control and a pacer of its own when it begins.
    _cc: Any = property(attrgetter("path.congestion"), _let_go)
    _pacer: Any = property(attrgetter("path.pacer"), _let_go)
    max_ack_delay = kept_in("path", "max_ack_delay")
    _pto_count = kept_in("path", "pto_count")
    _rtt_first_sample_time = kept_in("path", "rtt_first_sample_at")
    _rtt_initialized = kept_in("path", "rtt_initialized")
    _rtt_latest = kept_in("path", "rtt_latest")
    _rtt_min = kept_in("path", "rtt_min")
    _rtt_smoothed = kept_in("path", "rtt_smoothed")
    _rtt_variance = kept_in("path", "rtt_variance")
    _time_of_last_sent_ack_eliciting_packet = kept_in("path", "last_eliciting_at")
