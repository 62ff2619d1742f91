"""Long work in slices, between which packets get their turn (R3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from twisted.internet.task import deferLater

T = TypeVar("T")

LOOKS: Final = 500
"""Things that are looked at in one go, some 0.5 ms."""
ADDRESSES: Final = 100
"""The same where an address is looked at, or the ids of a connection, which takes longer."""
NAMES: Final = 2000
"""Names that are made in one go: each costs some 0.5 µs."""
ROWS: Final = 25
"""Rows that are made in one go: each costs some 20 µs."""


async def in_slices(items: Sequence[T], visit: Callable[[T], object], clock: Any, size: int = LOOKS) -> None:
    """Call ``visit`` for each of ``items``, ``size`` of them at a time; a list that fits is done at once."""
    for start in range(0, len(items), size):
        if start:
            await deferLater(clock, 0)
        for item in items[start : start + size]:
            visit(item)
