"""What happens to allocations and sessions, as log lines (R5.7, R6.5).

Events come from the core through its ``Observer`` seam, with ids, codes and numbers as fields. Each kind has a rate here, before
anything is formatted, because a flood can make as many events as it has packets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from twisted.logger import Logger

from zrc_relay.logs.rates import Throttle


class EventLog:
    """An ``Observer`` that writes to Twisted's log; ``now`` gives monotonic seconds."""

    _log = Logger()

    def __init__(self, now: Callable[[], float]) -> None:
        self._throttle = Throttle(now)

    def event(self, name: str, **fields: object) -> None:
        """See ``Observer``. Names come from the program, so the tables are bounded by it."""
        suppressed = self._throttle.admit(name)
        if suppressed is None:
            return
        if suppressed:
            fields["suppressed"] = suppressed
        self._log.info(_sentence(*fields), event=name, **fields)


@lru_cache
def _sentence(*fields: str) -> str:
    """The format of a line with these fields: as many as there are kinds of event."""
    return " ".join(("{event}", *(f"{field}={{{field}}}" for field in fields)))
