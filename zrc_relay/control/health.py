"""Whether the relay is well, and whether it takes new work (R7.1, R9.5).

Theory of operation
-------------------
A ``Check`` looks at one thing and answers with a sentence when something is wrong with it. There are three lists of them:

* **failures**: the relay does not do its work, and a restart, or an operator, is needed: 503 from ``/health``.
* **warnings**: it works, and somebody should look at it: told by ``/health``, which stays 200. A restart would not help.
* **unreadiness**: it takes no new allocations, which is right and passes: 503 from ``/ready``. What fails is not ready, either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

Check = Callable[[], str | None]

EXPIRY_WARNING: Final = 7 * 86400.0
"""Seconds before the end of the certificate from which on it is worth a warning: a weekend and the days around it."""
LAG_WARNING: Final = 0.1
"""Seconds that the event loop may be late without a warning: as long as a datagram may wait by default (egress_queue_age)."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the checks found, a sentence each."""

    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    unready: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether the relay does its work."""
        return not self.failures

    @property
    def is_ready(self) -> bool:
        """Whether it takes new allocations."""
        return not self.failures and not self.unready


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of one relay."""

    failures: tuple[Check, ...] = ()
    warnings: tuple[Check, ...] = ()
    unreadiness: tuple[Check, ...] = ()

    def report(self) -> Report:
        """Look now."""
        return Report(_found(self.failures), _found(self.warnings), _found(self.unreadiness))


def _found(checks: Iterable[Check]) -> tuple[str, ...]:
    return tuple(problem for check in checks if (problem := check()) is not None)


class Failing(Protocol):
    """Something that may fail again and again."""

    @property
    def is_failing(self) -> bool:
        """Whether it failed when last tried."""
        ...


def complain_if(condition: Callable[[], bool], problem: str) -> Check:
    """``problem`` while ``condition`` holds."""
    return lambda: problem if condition() else None


def failing(thing: Failing, problem: str) -> Check:
    """``problem`` while ``thing`` fails."""
    return lambda: problem if thing.is_failing else None


class Complaining(Protocol):
    """Something that says itself what is wrong with it."""

    @property
    def problem(self) -> str | None:
        """A sentence; None when nothing is wrong."""
        ...


def complaint(thing: Complaining) -> Check:
    """Whatever ``thing`` says."""
    return lambda: thing.problem


def certificate_expired(expires: Callable[[], float], wall: Callable[[], float]) -> Check:
    """Nobody can connect with a certificate that has expired. Both in Unix seconds."""
    return lambda: "the certificate has expired" if expires() <= wall() else None


def certificate_expires_soon(expires: Callable[[], float], wall: Callable[[], float]) -> Check:
    """It will within ``EXPIRY_WARNING``."""

    def check() -> str | None:
        left = expires() - wall()
        return f"the certificate expires in {left / 86400:.1f} days" if 0 < left <= EXPIRY_WARNING else None

    return check


def loop_late(worst: Callable[[], float]) -> Check:
    """The event loop was late by more than ``LAG_WARNING``; ``worst`` is how late it was lately, in seconds."""

    def check() -> str | None:
        late = worst()
        return f"the event loop was {late:.2f} s late in the last half minute" if late > LAG_WARNING else None

    return check
