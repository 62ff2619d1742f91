"""Which packets were received lately: what tells a duplicate (RFC 9000 §12.3).

A bit for each of the last ``WINDOW`` packet numbers, in one integer. It has the interface of aioquic's window, and the same
meaning: a number that fell out of the window counts as received.
"""

from __future__ import annotations

from typing import Final

from aioquic.quic.recovery import MAX_ACK_RANGES

WINDOW: Final = 2 * MAX_ACK_RANGES
WINDOW_MASK: Final = (1 << WINDOW) - 1


class RecentPackets:
    """See the module's docstring. Bit n of ``bits`` stands for ``highest - n``."""

    def __init__(self) -> None:
        self.highest = -1
        self.bits = 0

    def add(self, packet_number: int) -> None:
        """A packet was received; one below the window changes nothing."""
        ahead = packet_number - self.highest
        if ahead > 0:
            self.bits = (self.bits << ahead | 1) & WINDOW_MASK if ahead < WINDOW else 1
            self.highest = packet_number
        elif ahead > -WINDOW:
            self.bits |= 1 << -ahead

    def __contains__(self, packet_number: int) -> bool:
        back = self.highest - packet_number
        return back >= 0 and (back >= WINDOW or self.bits >> back & 1 == 1)
