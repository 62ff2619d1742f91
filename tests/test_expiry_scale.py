"""Ten thousand allocations: each ends in time, and the work is that of the ones that end."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import EPOCH, OPEN_TIER, Scene, make_token
from zrc_relay.core import deadlines
from zrc_relay.core.token import RelayToken

ALLOCATIONS = 10_000
SWEEP_INTERVAL = 0.25
LATEST = 1.0
"""Seconds after its expiry by which an allocation has ended (R2.5)."""


class ExpiryTests(SynchronousTestCase):
    """R2.5: at most 1 s late with 10,000 allocations, and no timer and no look at each of them."""

    def setUp(self) -> None:
        self.operations = 0

        def counted(function: Any) -> Any:
            def counting(*arguments: Any) -> Any:
                self.operations += 1
                return function(*arguments)

            return counting

        heap = SimpleNamespace(heappush=counted(heapq.heappush), heappop=counted(heapq.heappop), heapify=counted(heapq.heapify))
        self.patch(deadlines, "heapq", heap)
        self.scene = Scene(max_allocations=ALLOCATIONS, wait_timeout=1e9, max_token_lifetime=1e9)
        self.rng = random.Random(5)  # noqa: S311 - the same lifetimes each time
        self.token = make_token()

    def fill(self, first: int, last: int) -> dict[str, int]:
        """Make the allocations, which end between ``first`` and ``last`` seconds from the start; when, by id."""
        tokens = [self.numbered(number, int(EPOCH) + self.rng.randint(first, last)) for number in range(ALLOCATIONS)]
        for token in tokens:
            self.scene.relay.table.create(token, OPEN_TIER, now=self.scene.now, wall=self.scene.wall)
        return {token.allocation_id.hex(): token.expires_at for token in tokens}

    def numbered(self, number: int, expires_at: int) -> RelayToken:
        """A token that was verified elsewhere."""
        return replace(self.token, allocation_id=b"%016d" % number, expires_at=expires_at)

    def sweep_until(self, end: float) -> dict[str, float]:
        """Sweep as the service does; returns when each allocation ended that did, by id."""
        ended: dict[str, float] = {}
        while self.scene.wall < end:
            self.scene.observer.events.clear()
            self.scene.advance(SWEEP_INTERVAL)
            for fields in self.scene.observer.named("allocation.ended"):
                ended[str(fields["allocation"])] = self.scene.wall
        return ended

    def test_each_ends_in_time_and_none_before(self) -> None:
        expires = self.fill(1, 120)
        self.scene.now += 0.11  # sweeps do not come on the second
        self.scene.wall += 0.11
        ended = self.sweep_until(EPOCH + 122)
        self.assertEqual(ended.keys(), expires.keys())
        late = [ended[each] - expires[each] for each in expires]
        self.assertGreaterEqual(min(late), 0)
        self.assertLessEqual(max(late), LATEST)
        self.assertEqual(len(self.scene.relay.table), 0)

    def test_all_at_the_same_moment(self) -> None:
        self.fill(60, 60)
        self.assertEqual(self.sweep_until(EPOCH + 59.75), {})
        self.assertEqual(len(self.sweep_until(EPOCH + 60 + LATEST)), ALLOCATIONS)

    def test_a_sweep_at_which_nothing_ends_does_nothing(self) -> None:
        self.fill(3600, 7200)
        self.operations = 0
        self.sweep_until(EPOCH + 600)
        self.assertEqual(self.operations, 0)

    def test_a_sweep_at_which_few_end_does_little(self) -> None:
        self.fill(3600, 7200)
        for number in range(ALLOCATIONS, ALLOCATIONS + 10):
            table = self.scene.relay.table
            vars(table)["_max_allocations"] = ALLOCATIONS + 10
            table.create(self.numbered(number, int(EPOCH) + 60), OPEN_TIER, now=self.scene.now, wall=self.scene.wall)
        self.operations = 0
        self.assertEqual(len(self.sweep_until(EPOCH + 61)), 10)
        self.assertLessEqual(self.operations, 10 * 8)

    def test_the_work_for_all_of_them_is_a_few_operations_each(self) -> None:
        self.fill(1, 120)
        self.sweep_until(EPOCH + 122)
        self.assertLessEqual(self.operations, 8 * ALLOCATIONS)

    def test_refreshes_cost_a_look_when_the_old_expiry_comes_and_no_more(self) -> None:
        self.fill(60, 60)
        self.operations = 0
        for turn in range(1, 11):
            for number, allocation in enumerate(self.scene.relay.table):
                token = self.numbered(number, int(EPOCH) + 60 + 10 * turn)
                allocation.set_limits(token, OPEN_TIER, self.scene.now)
                self.scene.relay.table.accept_token(allocation, self.scene.wall)
        self.assertEqual(self.operations, 0)
        self.assertEqual(self.sweep_until(EPOCH + 159), {})
        self.assertLessEqual(self.operations, 4 * ALLOCATIONS)
        self.assertEqual(len(self.sweep_until(EPOCH + 161)), ALLOCATIONS)
