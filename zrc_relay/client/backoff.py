"""When to try again, and when not to (PROTOCOL §9): growing delays, and which errors are final."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zrc_relay.client.errors import ConnectFailed, ConnectionLost, RelayError
from zrc_relay.core.codes import ErrorCode

FIRST_DELAY: Final = 0.1
"""Seconds before the first attempt (PROTOCOL §9)."""
LAST_DELAY: Final = 10.0
"""Seconds between two attempts, at most, unless the relay asks for more."""

_PASSING: Final = frozenset({
    ErrorCode.ALLOCATE_TIMEOUT,
    ErrorCode.CAPACITY,
    ErrorCode.RATE_LIMITED,
    ErrorCode.TOO_MANY_CONNECTIONS,
    ErrorCode.DRAINING,
    ErrorCode.IDLE,
    ErrorCode.INTERNAL,
})
"""Close codes after which trying again may get another answer."""


def is_final(error: Exception) -> bool:
    """Whether trying again after ``error`` would be of no use. Where the relay says when to come again, it is not."""
    if isinstance(error, RelayError):
        return error.code not in _PASSING and not error.retry_after
    return not isinstance(error, (ConnectFailed, ConnectionLost))


class Backoff:
    """Delays that double from ``FIRST_DELAY`` to ``LAST_DELAY``, each drawn from the upper half of its range.

    So many clients of one relay do not come back at once. ``random`` gives numbers from 0 to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.attempts = 0
        """How many delays were asked for since the last ``reset``."""

    def next(self, error: Exception) -> float:
        """The delay in seconds after ``error``; not less than the relay asked for with ``retry_after``."""
        longest = min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(self.attempts, 16))
        self.attempts += 1
        asked = float(error.retry_after) if isinstance(error, RelayError) else 0.0
        return max(asked, longest * (1 + self._random()) / 2)

    def reset(self) -> None:
        """What was tried works."""
        self.attempts = 0
