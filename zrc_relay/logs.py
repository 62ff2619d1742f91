"""What happens to allocations and sessions, as log lines (R5.7, R6.5).

One line an event, at a bounded rate for each kind: a client that makes many events cannot fill the disk. Fields are ids, codes
and numbers; payload, keys and whole tokens are never given to a log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from zrc_relay.core.limiter import TokenBucket

EVENTS_PER_SECOND: Final = 50
"""Lines of one kind per second, and as many at once."""


class EventLog:
    """An ``Observer`` that writes to Twisted's log; ``now`` gives monotonic seconds."""

    _log = Logger()

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: dict[str, TokenBucket] = {}
        self._suppressed: dict[str, int] = {}

    def event(self, name: str, **fields: object) -> None:
        """See ``Observer``. Names come from the program, so the tables are bounded by it."""
        now = self._now()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = TokenBucket(EVENTS_PER_SECOND, EVENTS_PER_SECOND, now)
        if not bucket.take(1, now):
            self._suppressed[name] = self._suppressed.get(name, 0) + 1
            return
        suppressed = self._suppressed.pop(name, 0)
        if suppressed:
            fields["suppressed"] = suppressed
        text = " ".join(f"{{{key}_label}}={{{key}}}" for key in fields)
        labels = {f"{key}_label": key for key in fields}
        self._log.info("{event} " + text, event=name, **fields, **labels)
