"""``Vigil``: is the relay still there? Keepalive and the notice of a dead connection (R5.4, PROTOCOL §9), without timers.

Theory of operation
-------------------
The connection tells what it hears and sends, and asks at each ``deadline`` what to do:

* Nothing was heard for ``keepalive_interval`` (ALLOCATED): a PING keeps the session and the address translators on the way awake,
  and finds out whether the relay lives.
* Something was sent beside QUIC, which nothing acknowledges (PROTOCOL §7), and nothing was heard for ``BESIDE_PATIENCE`` since:
  a PING. If an address translator on the way has given us another address, it takes QUIC, and with it the channel, there.
* Something waits for an answer, and nothing at all was heard for a *round* since: a PING, a *probe*. When ``DEAD_PROBES`` probes
  in a row have had no answer, the connection is dead.

A round is one PTO, and not less than ``MIN_ROUND``: on a short path three PTOs are less than a hiccup of a wireless link. QUIC's
own probe timeouts cannot be counted instead, because each packet that is sent puts them off (RFC 9002 §6.2.1): while datagrams go
out steadily there are none. Probes are counted when they are sent, so a process that was stopped for a while first hears what
waits in its socket.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import Final

DEAD_PROBES: Final = 3
"""Probes in a row without an answer (PROTOCOL §9, "3 PTOs unanswered")."""
MIN_ROUND: Final = 1 / 3
"""Seconds between two probes at least; three of them are as long as a relay waits before it prefers another connection."""
BESIDE_PATIENCE: Final = 1.0
"""Seconds that a channel may be silent after something was sent on it (PROTOCOL §7)."""


@unique
class Advice(Enum):
    """What to do now."""

    NOTHING = "nothing"
    PING = "ping"
    GIVE_UP = "give up"


class Vigil:
    """See the module's docstring. Times are monotonic seconds; an interval of 0 means no keepalive."""

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._interval = 0.0
        self._pinged = False
        self._probes = 0
        self._beside_at: float | None = None
        """When a PING is due for what was sent beside QUIC; None while nothing was that is not followed by an answer."""
        self._probe_at: float | None = None
        """When the next round ends; None while nothing waits for an answer."""

    def keep_alive(self, interval: float) -> None:
        """The relay wants to hear something every ``interval`` seconds."""
        self._interval = interval

    def heard(self, now: float) -> None:
        """An authentic packet came."""
        self._heard_at = now
        self._pinged = False
        self._probes = 0
        self._beside_at = None
        self._probe_at = None

    def sent_beside(self, now: float) -> bool:
        """Something was sent beside QUIC; whether there is a new deadline now."""
        if self._beside_at is not None:
            return False
        self._beside_at = now + BESIDE_PATIENCE
        return True

    def heard_beside(self) -> None:
        """Something came beside QUIC. It may be anybody's, so it says nothing of the connection."""
        self._beside_at = None

    def sent(self, now: float, probe_timeout: float, *, awaits_answer: bool) -> None:
        """Packets were sent; ``awaits_answer`` says whether any, of now or of before, asks for an acknowledgement."""
        if not awaits_answer:
            self._probes = 0
            self._probe_at = None
        elif self._probe_at is None:
            self._probe_at = now + max(probe_timeout, MIN_ROUND)

    def advise(self, now: float, probe_timeout: float) -> Advice:
        """What to do; PING is said once for each silence and each round."""
        if self._probe_at is not None and now >= self._probe_at:
            if self._probes >= DEAD_PROBES:
                return Advice.GIVE_UP
            self._probes += 1
            # The last probe is given one PTO, however short: by then the minimum has passed.
            self._probe_at = now + (probe_timeout if self._probes == DEAD_PROBES else max(probe_timeout, MIN_ROUND))
            return Advice.PING
        if self._beside_at is not None and now >= self._beside_at:
            self._beside_at = None
            return Advice.PING
        if self._interval > 0 and not self._pinged and now >= self._heard_at + self._interval:
            self._pinged = True
            return Advice.PING
        return Advice.NOTHING

    @property
    def deadline(self) -> float | None:
        """When to ask again; None: not before something is sent or heard."""
        times = [at for at in (self._probe_at, self._beside_at) if at is not None]
        if self._interval > 0 and not self._pinged:
            times.append(self._heard_at + self._interval)
        return min(times, default=None)
