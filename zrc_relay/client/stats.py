"""What a connection has carried: ``RelayStats`` for users, ``Tally`` to count it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RelayStats:
    """Datagrams (oversize ones and those of a channel included) and their payload bytes, and the round-trip time to the relay.

    ``datagrams_dropped`` is what was dropped on our own side, sent or received: queues that were full, payloads that waited too
    long, payloads sent while there was no connection, those of a channel that nobody takes. What the relay drops it tells in
    notices, but for a channel's. ``strays`` are packets that looked like a channel's and were not ours. ``round_trip_time`` is
    smoothed, in seconds; None before the first sample and while there is no connection.
    """

    datagrams_sent: int = 0
    bytes_sent: int = 0
    datagrams_received: int = 0
    bytes_received: int = 0
    datagrams_dropped: int = 0
    strays: int = 0
    round_trip_time: float | None = None

    def __add__(self, later: RelayStats) -> RelayStats:
        """Both together, with the round-trip time of ``later``."""
        return RelayStats(
            self.datagrams_sent + later.datagrams_sent,
            self.bytes_sent + later.bytes_sent,
            self.datagrams_received + later.datagrams_received,
            self.bytes_received + later.bytes_received,
            self.datagrams_dropped + later.datagrams_dropped,
            self.strays + later.strays,
            later.round_trip_time,
        )


@dataclass(slots=True)
class Tally:
    """The counters behind ``RelayStats``."""

    datagrams_sent: int = 0
    bytes_sent: int = 0
    datagrams_received: int = 0
    bytes_received: int = 0
    datagrams_dropped: int = 0
    strays: int = 0

    def sent(self, size: int) -> None:
        """A payload of ``size`` bytes was taken for sending."""
        self.datagrams_sent += 1
        self.bytes_sent += size

    def received(self, size: int) -> None:
        """A payload of ``size`` bytes has arrived."""
        self.datagrams_received += 1
        self.bytes_received += size

    def dropped(self, size: int) -> None:
        """A payload of ``size`` bytes was dropped."""
        del size
        self.datagrams_dropped += 1

    def stats(self, round_trip_time: float | None) -> RelayStats:
        """A snapshot."""
        return RelayStats(
            self.datagrams_sent, self.bytes_sent, self.datagrams_received, self.bytes_received, self.datagrams_dropped,
            self.strays, round_trip_time,
        )
