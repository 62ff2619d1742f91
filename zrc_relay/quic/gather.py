"""Letting packets gather where they come densely, as network cards do ("interrupt moderation", ``ethtool -C``).

A wake-up costs much the same however few packets it brings: the reactor's turn, then each connection that has one is looked at,
flushed, and sent to with a system call of its own. A relay that reads as soon as there is a packet therefore spends most of a
core on batches of one packet for each connection, long before it is at its limit. It also never sleeps then, and a scheduler
that has to share the core takes it away for milliseconds at a time from those who never sleep.

So batches are held apart: the next is read when ``PACKETS`` more should have come at the rate of late, but at most ``seconds``
after the one before was. That is what it adds to the latency of a packet, less the faster packets come, and nothing where fewer
than ``WORTH`` would gather, nor where the work on a batch takes longer than that.

The wait is a sleep in place and not a timer: a reactor's timers are good to a millisecond, and a read that is postponed needs the
socket out of the reactor and in again, two system calls for each batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PACKETS: Final = 20
"""Packets that are worth a wake-up. With 24 one more tenth would be saved at 20,000 a second, and a fifth more latency added."""
WORTH: Final = 7
"""Packets that must be expected within ``seconds``: fewer are not worth that they wait."""
WINDOW: Final = 0.02
"""Seconds over which the rate is measured."""
SOON: Final = 0.0009
"""Seconds between batches up to which several may be read before anything else has its turn: four of them are 3.6 ms."""
SLACK: Final = 0.00006
"""Seconds that a sleep takes longer than it should: Linux's timer slack is 50 µs unless somebody has changed it."""


class Gather:
    """Holds batches up to ``seconds`` apart (0: never). ``now`` gives monotonic seconds."""

    __slots__ = ("_began", "_now", "_packets", "_pause", "_seconds", "_since", "_sleep")

    def __init__(self, seconds: float, *, now: Callable[[], float], sleep: Callable[[float], None] = time.sleep) -> None:
        self._seconds = seconds
        self._now = now
        self._sleep = sleep
        self._pause = 0.0
        self._since = self._began = now()
        self._packets = 0

    @property
    def is_dense(self) -> bool:
        """Whether batches are held apart, and so little that nothing else needs a turn in between."""
        return 0.0 < self._pause <= SOON

    def begin(self) -> None:
        """Packets are to be read: wait if more should come with them."""
        now = self._now()
        if self._pause > 0.0:
            left = self._began + self._pause - now - SLACK
            if left > 0.0:
                self._sleep(left)
                now = self._now()
        self._began = now

    def end(self, packets: int) -> None:
        """There were ``packets`` of them, and they were dealt with."""
        self._packets += packets
        elapsed = self._began - self._since
        if elapsed >= WINDOW:
            expected = self._packets * self._seconds
            if expected < WORTH * elapsed:
                self._pause = 0.0
            elif expected < PACKETS * elapsed:
                self._pause = self._seconds
            else:
                self._pause = PACKETS * elapsed / self._packets
            self._since = self._began
            self._packets = 0
