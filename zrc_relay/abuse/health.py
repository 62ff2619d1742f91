"""How an external system is doing: counted for gauges, logged when it changes, and how long to leave it alone (R6.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

FIRST_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 120.0
"""Seconds until the next attempt after the first failure, and at most; each failure in a row doubles it."""


class Health:
    """The health of ``what``, a noun phrase. ``wall`` gives Unix seconds, ``random`` numbers from 0 to 1.

    The log hears of the first failure in a row and of its end: a system that is down for a day is two lines.
    """

    _log = Logger()

    def __init__(self, what: str, *, wall: Callable[[], float], random: Callable[[], float]) -> None:
        self._what = what
        self._wall = wall
        self._random = random
        self.failures = 0
        self.failures_in_a_row = 0
        self.last_success: float | None = None
        """Unix seconds; None when there was none yet."""

    def succeeded(self) -> None:
        """An exchange went well."""
        if self.failures_in_a_row:
            self._log.info(
                "{what} works again, after {failures} failures", event="external.recovered",
                what=self._what, failures=self.failures_in_a_row,
            )
        self.failures_in_a_row = 0
        self.last_success = self._wall()

    def failed(self, problem: str) -> None:
        """An exchange failed because of ``problem``."""
        self.failures += 1
        self.failures_in_a_row += 1
        if self.failures_in_a_row == 1:
            self._log.error(
                "{what} does not work, and is tried again: {problem}", event="external.failed", what=self._what, problem=problem
            )

    def backoff(self) -> float:
        """Seconds until the next attempt: doubled with each failure in a row, and shortened by up to half at random.

        The chance keeps many relays from coming back to a system at the same moment.
        """
        doubled = FIRST_BACKOFF * 2.0 ** min(self.failures_in_a_row - 1, 32)
        return min(MAX_BACKOFF, doubled) * (1 - self._random() / 2)
