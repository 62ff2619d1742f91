"""``Vigil``: is the relay still there? Keepalive and the notice of a dead connection (R5.4, PROTOCOL §9), without timers.

Theory of operation
-------------------
The connection tells what it hears and sends; the vigil answers two questions when it is asked at its ``deadline``:

* ``wants_ping``: nothing was heard for ``keepalive_interval`` (ALLOCATED), so that a PING has to keep the session and the
  address translators on the way awake, and to find out whether the relay lives.
* ``is_dead``: something waits for an answer, ``DEAD_PROBES`` probe timeouts in a row have passed without one, and nothing at all
  was heard for ``MIN_SILENCE`` since it was sent. The probes are counted, not only the time: a process that was stopped for a
  while reads what waits in its socket between two of them. The time is there because on a short path three probes take less
  than a hiccup of a wireless link does.
"""

from __future__ import annotations

from typing import Final

DEAD_PROBES: Final = 3
"""Probe timeouts in a row (PROTOCOL §9)."""
MIN_SILENCE: Final = 1.0
"""Seconds; the same as the relay waits before it prefers another connection (PROTOCOL §6)."""


class Vigil:
    """See the module's docstring. Times are monotonic seconds; an interval of 0 means no keepalive."""

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._interval = 0.0
        self._pinged = False
        self._unanswered_since: float | None = None

    def keep_alive(self, interval: float) -> None:
        """The relay wants to hear something every ``interval`` seconds."""
        self._interval = interval

    def heard(self, now: float) -> None:
        """An authentic packet came."""
        self._heard_at = now
        self._pinged = False
        self._unanswered_since = None

    def sent(self, now: float, *, awaits_answer: bool) -> None:
        """Packets were sent; ``awaits_answer`` says whether any, of now or of before, asks for an acknowledgement."""
        if not awaits_answer:
            self._unanswered_since = None
        elif self._unanswered_since is None:
            self._unanswered_since = now

    def wants_ping(self, now: float) -> bool:
        """Whether a PING is due; true once for each silence."""
        if self._interval <= 0 or self._pinged or now < self._heard_at + self._interval:
            return False
        self._pinged = True
        return True

    def is_dead(self, now: float, unanswered_probes: int) -> bool:
        """Whether the relay can be taken to be gone."""
        since = self._unanswered_since
        return since is not None and unanswered_probes >= DEAD_PROBES and now >= since + MIN_SILENCE

    def deadline(self, unanswered_probes: int) -> float | None:
        """When to ask again; None: not before something is sent or heard, or QUIC's own timer has passed."""
        times = []
        if self._interval > 0 and not self._pinged:
            times.append(self._heard_at + self._interval)
        if self._unanswered_since is not None and unanswered_probes >= DEAD_PROBES:
            times.append(self._unanswered_since + MIN_SILENCE)
        return min(times, default=None)
