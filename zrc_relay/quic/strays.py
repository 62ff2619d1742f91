"""Packets to connection ids that lead nowhere, and stateless resets (RFC 9000 §10.3, R5.9).

Theory of operation
-------------------
A packet with a short header whose connection id is not known belongs to a connection that is gone, of this life of the relay or
of an earlier one, and whoever sent it is told so, at a bounded rate.

Where a relay is several workers there is another reason for not knowing an id: it is another worker's. The connection lives, and
a reset would kill it, because all workers derive their tokens from the same secret. Such packets do come: a train of packets
that the kernel hands over in one piece goes where its first packet goes, and a worker's own port is open to everybody. They are
dropped, counted apart, and **never answered**.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zrc_relay.core.counters import Counters, InputDrop
from zrc_relay.core.limiter import TokenBucket
from zrc_relay.quic.door import reply
from zrc_relay.quic.ids import CONNECTION_ID_SIZE, ConnectionIds
from zrc_relay.quic.paths import MIN_STATELESS_RESET
from zrc_relay.quic.udp import Path

RESET_SIZE: Final = 43
"""Size in bytes of a stateless reset where the packet it answers allows it: looks like a short packet with data."""
RESETS_PER_SECOND: Final = 100
"""Stateless resets sent each second: enough to let a full relay's clients know within some seconds after a restart."""


class Strays:
    """See the module's docstring. ``random`` gives random bytes; ``now`` is monotonic seconds."""

    def __init__(self, counters: Counters, ids: ConnectionIds, random: Callable[[int], bytes], now: float) -> None:
        self._counters = counters
        self._ids = ids
        self._random = random
        self._resets = TokenBucket(RESETS_PER_SECOND, RESETS_PER_SECOND, now)

    def short(self, data: bytes, path: Path, now: float) -> None:
        """A packet with a short header whose id is not known: tell whoever uses it that the connection is gone.

        The answer is smaller than what it answers, so that two endpoints cannot keep resetting each other. An id that is live, or
        was retired lately, never gets here.
        """
        connection_id = data[1 : 1 + CONNECTION_ID_SIZE]
        if not self.drop(connection_id, InputDrop.UNKNOWN_CONNECTION):
            return
        size = min(len(data) - 1, RESET_SIZE)
        if size < MIN_STATELESS_RESET or not self._resets.take(1, now):
            return
        token = self._ids.reset_token(connection_id)
        noise = self._random(size - len(token))
        reply(len(data), bytes((0x40 | (noise[0] & 0x3F),)) + noise[1:] + token, path)
        self._counters.stateless_resets_sent += 1

    def drop(self, identifier: bytes, cause: InputDrop) -> bool:
        """Count a packet to a connection or channel id that is not known, and say whether it can be one of ours at all."""
        is_ours = self._ids.owns(identifier)
        self._counters.input_dropped[cause if is_ours else InputDrop.MISROUTED] += 1
        return is_ours
