"""Running allocations learn of settings that were changed (R4.7, R8).

Theory of operation
-------------------
After a reload each allocation gets the limits that its token and the tier of its device give it now, and absent sides the time
they have now. That is done for ``STEP`` allocations at a time, at the end of batches and in sweeps, because ten thousand at once
would keep packets waiting. What an allocation has is never taken back: a quota that came down below what was used is set to what
was used, and the next byte ends it like any other that is used up. An allocation whose device is known no more keeps its limits.

Who is bound hears of limits that changed as after a refresh, by REFRESHED (PROTOCOL §5).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final

from zrc_relay.core.allocation import Allocation
from zrc_relay.core.table import AllocationTable
from zrc_relay.core.tiers import Tier

STEP: Final = 256
"""Allocations that are dealt with in one go: some 3 ms when all of them have to be told."""


class Adjuster:
    """See the module's docstring.

    ``tier_of`` gives the tier of a device id, None for one that is not known; ``tell`` is called for each allocation whose limits
    changed, ``failed`` for one with which something went wrong (R5.6).
    """

    def __init__(
        self,
        table: AllocationTable,
        tier_of: Callable[[bytes], Tier | None],
        tell: Callable[[Allocation], None],
        failed: Callable[[Allocation, Exception], object],
    ) -> None:
        self._table = table
        self._tier_of = tier_of
        self._tell = tell
        self._failed = failed
        self._waiting: dict[Allocation, None] = {}

    @property
    def waits(self) -> bool:
        """Whether there are allocations that were not dealt with."""
        return bool(self._waiting)

    def begin(self) -> None:
        """Settings have changed: it is the turn of all that are there now."""
        self._waiting = dict.fromkeys(self._table)

    def step(self, now: float) -> None:
        """Deal with the next ``STEP`` of them."""
        for allocation in list(islice(self._waiting, STEP)):
            del self._waiting[allocation]
            if self._table.get(allocation.key) is not allocation:
                continue
            try:
                self._adjust(allocation, now)
            except Exception as error:
                self._failed(allocation, error)

    def _adjust(self, allocation: Allocation, now: float) -> None:
        self._table.absence_changed(allocation)
        tier = self._tier_of(allocation.key[0])
        if tier is None:
            return
        before = allocation.bandwidth_limit, allocation.quota
        allocation.set_limits(allocation.token, tier, now)
        if (allocation.bandwidth_limit, allocation.quota) != before:
            self._tell(allocation)
