"""``Recovery``: aioquic's loss recovery (RFC 9002) on the state that the short way works with, too.

Nothing is decided here. aioquic's class reads and writes attributes of its own; these are properties, and what they stand for is
in ``PathState``, with the congestion control and the pacer of ``congestion.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from aioquic.quic.recovery import QuicPacketRecovery

from zrc_relay.quic.onertt import PathState


def kept_in(part: str, name: str) -> Any:
    """A property that is the attribute ``name`` of the owner's attribute ``part``."""

    def put(owner: object, value: object) -> None:
        setattr(getattr(owner, part), name, value)

    return property(attrgetter(f"{part}.{name}"), put)


def _let_go(_owner: object, _made: object) -> None:
    """What aioquic made is not used."""


class Recovery(QuicPacketRecovery):
    """See the module's docstring. ``initial_rtt`` is in seconds, ``send_probe`` asks for something that is acknowledged."""

    def __init__(self, *, initial_rtt: float, max_datagram_size: int, is_client: bool, send_probe: Callable[[], None]) -> None:
        self.path = PathState(max_datagram_size)
        super().__init__(
            congestion_control_algorithm="reno", initial_rtt=initial_rtt, max_datagram_size=max_datagram_size,
            peer_completed_address_validation=not is_client, send_probe=send_probe,
        )

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
