"""When a worker that died comes back: at once, and ever later while it keeps dying.

A worker that dies once a day is back before its clients have noticed. One that dies whenever it starts would otherwise keep a
core busy with starting, and the log with saying so.
"""

from __future__ import annotations

from typing import Final

FIRST_DELAY: Final = 0.25
"""Seconds before the second start in a row; the first comes at once."""
MAX_DELAY: Final = 30.0
STEADY: Final = 10.0
"""Seconds that a worker must have lived for the next death to be the first again."""


class Restarts:
    """The delays of one worker's starts."""

    def __init__(self) -> None:
        self._delay = 0.0
        self.count = 0
        """How often it was started again."""

    def next_delay(self, lived: float) -> float:
        """It has died after ``lived`` seconds: how long to wait before it is started again, in seconds."""
        self.count += 1
        if lived >= STEADY:
            self._delay = 0.0
        delay = self._delay
        self._delay = min(MAX_DELAY, max(FIRST_DELAY, 2 * delay))
        return delay
