"""Who gets in: what is decided about a source before the relay keeps anything for it, and afterwards (R6.1-R6.3).

Theory of operation
-------------------
``Admission`` is asked about each Initial that belongs to no connection, before one is made, and answers with one of four
verdicts:

* **ADMIT**: make a connection.
* **RETRY**: answer with a stateless Retry (RFC 9000 §8.1.2). It is smaller than what it answers, keeps nothing here, and costs
  an honest client one round trip. It is what an address gets that may be spoofed, *when* there is a reason to ask: the source is
  over ``connection_rate``, ``handshake_pressure`` handshakes are open, or the source shows the amplification pattern.
* **REFUSE**: answer with CONNECTION_REFUSED. Only for a source that has shown by a Retry token that it is there, and is over its
  rate. This answer has a rate of its own.
* **SILENCE**: nothing. For sources that are blocked, and for what is beyond the rate of refusals.

Pressure, once there, lasts as long as more Initials without a token come than ``handshake_pressure`` a second, and
``PRESSURE_HOLD`` longer. Otherwise a flood would get its next handshakes all at once, whenever those before are given up.

What makes this safe against spoofed sources is what is counted where:

* ``connection_rate`` counts only sources that are *validated*, by a Retry token or by a handshake that came to its end. Nobody
  can spend it for somebody else, and an Initial with a valid token is judged by it alone.
* Unvalidated attempts that were admitted are counted too, with the same rate and in a table of their own. Being over *that* rate
  means a Retry and nothing worse.
* The amplification pattern is a source for which ``PATTERN`` handshakes within ``amplification_block`` were answered and then
  abandoned before the address was validated: what a victim of reflection looks like. Its answers are Retries from then on, for
  ``amplification_block``.

After the handshake a source can still turn out to be over its rate or blocked; then the connection is closed with a code of the
protocol, which says when to come again. ALLOCATE and STUN have rates of their own.

Every table is bounded and holds nothing but numbers; where it is, and whether other processes count there, too, is for ``limits``
to say. How many handshakes are open, and whether that is pressure, each process decides for itself: they are its own work only.
``now`` is monotonic, ``wall`` Unix time, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, unique
from math import ceil, inf
from typing import Final

from zrc_relay.core.authorisation import Refused
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.counters import Limit
from zrc_relay.core.limits import Limits, LocalLimits, Sources
from zrc_relay.core.sources import Numeric, Rate, source_of

PATTERN: Final = 5
"""Handshakes that a source may leave unanswered within ``amplification_block``: a client that tries three times does not count as
an attack, and a victim has got less than 20 kB."""
REFUSALS: Final = Rate(5, 10)
"""CONNECTION_REFUSED for one source: enough for an honest client to hear why it does not get in."""
REFUSALS_PER_SECOND: Final = 100
"""CONNECTION_REFUSED for all sources: a refusal costs several times what silence costs."""
TABLES: Final = ("connections", "attempts", "allocations", "rejoins", "stun", "unanswered", "forced", "refusals")
"""What is kept of sources, each by a ``Sources``."""
BUCKETS: Final = ("usual_attempts", "all_refusals")
"""What all sources share, each by a ``Bucket``: Initials without a token that are no reason for pressure, and refusals."""
PRESSURE_HOLD: Final = 1.0
"""Seconds that pressure outlasts its reason."""
MAX_RETRY_AFTER: Final = 86_400
"""Longest time in seconds that a client is told to wait; a block without an end says nothing."""


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """The settings that decide about sources; names as in the configuration. A rate of None is off."""

    connection_rate: Rate | None = None
    allocation_rate: Rate | None = None
    rejoin_rate: Rate | None = None
    stun_rate: Rate | None = None
    handshake_pressure: int | None = 64
    """Open handshakes from which on everybody is asked for a Retry; 0 asks always, None never."""
    amplification_block: float | None = 600.0
    """Seconds; None looks for no pattern."""


UNLIMITED: Final = AdmissionSettings(handshake_pressure=None, amplification_block=None)
"""Settings that hold nobody to anything."""


@unique
class Verdict(Enum):
    """What to do with an Initial that belongs to no connection."""

    ADMIT = "admit"
    RETRY = "retry"
    REFUSE = "refuse"
    SILENCE = "silence"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, and which limit it is for; None for ADMIT."""

    verdict: Verdict
    limit: Limit | None


ADMIT: Final = Decision(Verdict.ADMIT, None)
RETRY_PRESSURE: Final = Decision(Verdict.RETRY, Limit.HANDSHAKE_PRESSURE)
RETRY_AMPLIFICATION: Final = Decision(Verdict.RETRY, Limit.AMPLIFICATION)
RETRY_RATE: Final = Decision(Verdict.RETRY, Limit.CONNECTION_RATE)
REFUSE_RATE: Final = Decision(Verdict.REFUSE, Limit.CONNECTION_RATE)
SILENT_RATE: Final = Decision(Verdict.SILENCE, Limit.CONNECTION_RATE)
SILENT_BLOCKED: Final = Decision(Verdict.SILENCE, Limit.BLOCKED)


class Admission:
    """Decides about sources; see the module's docstring. ``lists`` may change at any time."""

    def __init__(
        self, settings: AdmissionSettings, lists: AccessLists, *, now: float, limits: Limits | None = None
    ) -> None:
        limits = limits or LocalLimits()
        self.settings = settings
        self.lists = lists
        rates = _rates(settings)
        self._connections = limits.sources("connections", rates["connections"], now)
        self._attempts = limits.sources("attempts", rates["attempts"], now)
        self._allocations = limits.sources("allocations", rates["allocations"], now)
        self._rejoins = limits.sources("rejoins", rates["rejoins"], now)
        self._stun = limits.sources("stun", rates["stun"], now)
        self._unanswered = limits.sources("unanswered", rates["unanswered"], now)
        self._forced = limits.sources("forced", rates["forced"], now)
        self._refusals = limits.sources("refusals", REFUSALS, now)
        pressure = settings.handshake_pressure or 0
        self._usual_attempts = limits.bucket("usual_attempts", pressure, pressure, now)
        self._pressed_until = now
        self._all_refusals = limits.bucket("all_refusals", REFUSALS_PER_SECOND, REFUSALS_PER_SECOND, now)

    def reconfigure(self, settings: AdmissionSettings, now: float) -> None:
        """Go by other settings from ``now`` on; what is known of sources counts on."""
        self.settings = settings
        for name, rate in _rates(settings).items():
            limiter: Sources = getattr(self, f"_{name}")
            limiter.set_rate(rate, now)
        pressure = settings.handshake_pressure or 0
        self._usual_attempts.set_rate(pressure, pressure, now)

    # -- before there is a connection

    def decide(self, address: Numeric, *, validated: bool, open_handshakes: int, now: float, wall: float) -> Decision:
        """What to do with an Initial from ``address``. ``validated``: it brought a Retry token that is good.

        What is admitted is counted, here for a validated source, in ``validated`` for another.
        """
        if not self.serves(address, wall):
            return SILENT_BLOCKED
        source = source_of(address)
        return self._validated_attempt(source, now) if validated else self._attempt(source, open_handshakes, now)

    def _validated_attempt(self, source: int, now: float) -> Decision:
        if self._connections.take(source, now):
            return ADMIT
        return REFUSE_RATE if self._may_refuse(source, now) else SILENT_RATE

    def _attempt(self, source: int, open_handshakes: int, now: float) -> Decision:
        if self._is_pressed(open_handshakes, now):
            return RETRY_PRESSURE
        if self._forced.wait(source, now):
            return RETRY_AMPLIFICATION
        if self._connections.wait(source, now) or not self._attempts.take(source, now):
            return RETRY_RATE
        return ADMIT

    def _is_pressed(self, open_handshakes: int, now: float) -> bool:
        pressure = self.settings.handshake_pressure
        if pressure is None:
            return False
        is_usual = self._usual_attempts.take(1, now)
        if open_handshakes >= pressure or (now < self._pressed_until and not is_usual):
            self._pressed_until = now + PRESSURE_HOLD
        return now < self._pressed_until

    def serves(self, address: Numeric, wall: float) -> bool:
        """Whether the lists let ``address`` in."""
        return self.lists.blocked_until(address, wall) is None

    def may_refuse(self, address: Numeric, now: float) -> bool:
        """Whether another attempt of ``address`` that comes to nothing gets an answer, with the rate of refusals."""
        return self._may_refuse(source_of(address), now)

    def abandoned(self, address: Numeric, now: float) -> bool:
        """A handshake was answered, and ended before ``address`` was validated; whether that makes it a pattern."""
        source = source_of(address)
        return not self._unanswered.take(source, now) and self._forced.take(source, now)

    def answers_stun(self, address: Numeric, now: float) -> bool:
        """Whether a STUN request of ``address``, which the lists let in, is answered; counted if so."""
        return self._stun.take(source_of(address), now)

    # -- when there is one

    def validated(self, address: Numeric, now: float) -> None:
        """A handshake of ``address`` that came without a token is complete; ``Refused`` when it is one too many."""
        self._take(self._connections, Limit.CONNECTION_RATE, address, now, "too many connections from this address")

    def check_access(self, address: Numeric, wall: float) -> None:
        """``Refused`` (BLOCKED) when the lists no longer let ``address`` in."""
        until = self.lists.blocked_until(address, wall)
        if until is not None:
            wait = 0 if until == inf else min(MAX_RETRY_AFTER, max(1, ceil(until - wall)))
            raise Refused(ErrorCode.BLOCKED, "this address is not served here", retry_after=wait, limit=Limit.BLOCKED)

    def allocating(self, address: Numeric, now: float) -> None:
        """A valid ALLOCATE asks for an allocation that is not there; ``Refused`` when it is one too many."""
        self._take(self._allocations, Limit.ALLOCATION_RATE, address, now, "too many allocations from this address")

    def joining(self, address: Numeric, now: float) -> None:
        """A valid ALLOCATE asks for an allocation that is there; ``Refused`` when it is one too many."""
        self._take(self._rejoins, Limit.REJOIN_RATE, address, now, "too many joins from this address")

    def failed(self, address: Numeric, now: float) -> None:
        """An ALLOCATE was refused for what it holds: it counts like one that was granted."""
        self._allocations.take(source_of(address), now)

    def _may_refuse(self, source: int, now: float) -> bool:
        return self._refusals.take(source, now) and self._all_refusals.take(1, now)

    @staticmethod
    def _take(limiter: Sources, limit: Limit, address: Numeric, now: float, reason: str) -> None:
        source = source_of(address)
        if not limiter.take(source, now):
            wait = max(1, ceil(limiter.wait(source, now)))
            raise Refused(ErrorCode.RATE_LIMITED, reason, retry_after=wait, limit=limit)

    @property
    def tables(self) -> Iterable[tuple[str, int]]:
        """How many sources each of ``TABLES`` remembers."""
        for name in TABLES:
            yield name, len(getattr(self, f"_{name}"))


def _rates(settings: AdmissionSettings) -> dict[str, Rate | None]:
    """What each of ``TABLES`` that follows the settings is held to."""
    block = settings.amplification_block
    seconds = max(1, ceil(block)) if block is not None else 0
    return {
        "connections": settings.connection_rate,
        "attempts": settings.connection_rate,
        "allocations": settings.allocation_rate,
        "rejoins": settings.rejoin_rate,
        "stun": settings.stun_rate,
        "unanswered": Rate(PATTERN, seconds) if seconds else None,
        "forced": Rate(1, seconds) if seconds else None,
    }
