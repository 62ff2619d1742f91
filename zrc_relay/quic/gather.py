"""Letting packets gather while the relay is busy, as network cards do ("interrupt moderation").

A wake-up costs much the same however few packets it brings: each connection that has one is looked at, flushed, and sent to with
a system call of its own. A relay that reads as soon as there is a packet therefore spends most of a core on batches of one packet
for each connection, long before it is at its limit. It also never sleeps then, and a scheduler that has to share the core takes
it away for milliseconds at a time from those who never sleep.

So who has worked for more than ``BUSY`` of the time lately waits a moment before it reads. That moment is what it adds to the
latency of a packet, and it is taken only where it saves much: not by a relay that is idle most of the time, and not after a batch
that took so long (``LONG``) that packets are waiting anyway.

The wait is a sleep in place and not a timer: a reactor's timers are good to a millisecond, and a read that is postponed needs the
socket out of the reactor and in again, two system calls for each batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

BUSY: Final = 0.5
"""Share of the time, spent on packets, above which they gather."""
WINDOW: Final = 0.02
"""Seconds over which that share is measured."""
LONG: Final = 0.001
"""Seconds of work on one batch after which the next is read at once."""


class Gather:
    """Says when to wait for ``seconds`` before packets are read (0: never), and waits.

    The kernel adds its timer slack, 50 µs unless somebody has changed it, to each wait. ``now`` gives monotonic seconds.
    """

    __slots__ = ("_began", "_is_busy", "_now", "_seconds", "_since", "_sleep", "_took", "_worked")

    def __init__(self, seconds: float, *, now: Callable[[], float], sleep: Callable[[float], None] = time.sleep) -> None:
        self._seconds = seconds
        self._now = now
        self._sleep = sleep
        self._is_busy = False
        self._since = self._began = now()
        self._took = 0.0
        self._worked = 0.0

    def begin(self) -> None:
        """Packets are there: wait if that is worth it."""
        if self._is_busy and self._took < LONG:
            self._sleep(self._seconds)
        self._began = self._now()

    def end(self) -> None:
        """They were dealt with."""
        now = self._now()
        self._took = now - self._began
        self._worked += self._took
        elapsed = now - self._since
        if elapsed >= WINDOW:
            self._is_busy = self._seconds > 0 and self._worked > BUSY * elapsed
            self._since = now
            self._worked = 0.0
