"""The part of a reactor that tells time and calls back; Twisted's reactors and its ``Clock`` for tests have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class DelayedCall(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Do not make it."""
        ...


class Clock(Protocol):
    """What calls back later."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> DelayedCall:  # noqa: N802, A002
        """Call ``callable`` in ``delay`` seconds (Twisted's names)."""
        ...
