"""What several processes have counted together, over the lives of each (R7.2).

Theory of operation
-------------------
A process that dies takes its counters with it, and the sum over those that are left would go back, which scrapers take for a
restart of everything. ``Totals`` remembers the last snapshot of each process. When one is gone, what it had counted (counters and
histograms, whose rule is addition) goes into one ``retired`` snapshot, which is part of every sum from then on. Gauges say how
things are, and end with their process.

What a process counted after its last snapshot and before its death is lost, and never told twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from zrc_relay.metrics.snapshot import Merge, Snapshot, merge


def counted(snapshot: Snapshot, counters: Collection[str]) -> Snapshot:
    """What stays of a snapshot when its process is gone: the metrics called ``counters``, and the histograms."""
    return Snapshot({name: values for name, values in snapshot.values.items() if name in counters}, snapshot.histograms)


class Totals:
    """See the module's docstring. ``rules`` says how each metric merges, ``counters`` which of them are counters."""

    def __init__(self, rules: Mapping[str, Merge], counters: Collection[str]) -> None:
        self._rules = rules
        self._counters = frozenset(counters)
        self._last: dict[int, Snapshot] = {}
        self.retired = Snapshot()
        """What those that are gone had counted."""

    def seen(self, who: int, snapshot: Snapshot) -> None:
        """The process ``who`` has these numbers now."""
        self._last[who] = snapshot

    def gone(self, who: int) -> None:
        """It has none any more; whoever is called ``who`` next begins at nothing."""
        last = self._last.pop(who, None)
        if last is not None:
            self.retired = merge((self.retired, counted(last, self._counters)), self._rules)

    def together(self, *others: Snapshot) -> Snapshot:
        """All of them, with ``others`` first: the facts are those of the first that has them."""
        return merge((*others, *self._last.values(), self.retired), self._rules)
