"""Keeps Python's garbage collector from stopping a relay process.

Theory of operation
-------------------
The collector looks for cycles of objects that only know each other. A full collection looks at everything that there is: with a
thousand allocations that takes a quarter of a second, in which no packet moves. But nothing here depends on it: a connection that
is over has no cycles (``RelayConnection.let_go``), so reference counting frees it at once.

So what has lived for a while is *frozen*: taken out of the collector's sight, some ``MANY`` new connections at a time. The young
generations are still collected, which costs as much as was made lately, and a full collection looks only at what came since.
Frozen objects that die are freed like any other; what was part of a cycle when it was frozen waits until the relay has nothing to
do. Then, without a connection, everything is looked at once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

INTERVAL: Final = 0.25
"""Seconds between two looks."""
MANY: Final = 16
"""New connections after which what there is gets frozen."""
THRESHOLDS: Final = (5000, 5, 1000)
"""Objects made and not freed after which the youngest generation is collected, and how many of these collections make one of the
next: about a millisecond each, and a full one hardly ever."""


class Garbage:
    """See the module's docstring. ``begun`` counts the connections there ever were, ``present`` those that there are."""

    def __init__(self, begun: Callable[[], int], present: Callable[[], int]) -> None:
        self._begun = begun
        self._present = present
        self._frozen_at = 0
        self._is_clean = True

    def start(self) -> None:
        """Freeze what is there before the first connection: code, for the most part."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)

    def look(self) -> None:
        """Freeze, or clean up, if it is time for that."""
        begun = self._begun()
        if begun - self._frozen_at >= MANY:
            self._frozen_at = begun
            self._is_clean = False
            gc.freeze()
        elif not self._is_clean and not self._present():
            self._is_clean = True
            gc.unfreeze()
            gc.collect()
            gc.freeze()
