"""P2: bandwidth never above R4.1, over any interval, and never held back more than that (R4.1, R4.3).

Times are multiples of 2^-20 s and bursts of an eighth of a byte, so that the relay's floating point numbers are exact and no
tolerance is needed: one byte too many fails.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.fakes import DEVICE, FakeClient, Scene, make_token
from tests.properties.settings import Machine, PropertyTestCase
from zrc_relay.core.codes import Role
from zrc_relay.core.tiers import Tier

TICKS: Final = 1 << 20
"""Ticks a second."""
BURST: Final = 0.125
"""The setting ``bandwidth_burst``, in seconds."""
MIN_BURST: Final = 65_535
TIER_LIMIT: Final = 3_000_000
ALLOCATIONS: Final = 3

_limits: Final = st.one_of(st.just(0), st.integers(1, 2000), st.integers(400_000, 2 * TIER_LIMIT))
"""What a token may ask for, in bytes a second: nothing, very little, and what is about where the burst begins to grow with it."""
_sizes: Final = st.one_of(st.integers(0, 1500), st.integers(0, MIN_BURST), st.just(MIN_BURST))
_numbers: Final = st.integers(0, ALLOCATIONS - 1)
_gaps: Final = st.one_of(st.integers(0, 50), st.integers(0, TICKS // 10), st.integers(0, 5 * TICKS))


class Ledger:
    """R4.1 word for word: whenever an interval began, what has passed since is at most burst + limit * t.

    It knows no buckets, only two sums: what has passed, and limit * t. For an interval that began at m the rule says
    ``passed - passed_m <= burst_m + allowed - allowed_m``, that is ``passed - allowed <= burst_m + passed_m - allowed_m``. The
    right side never changes again, so of all the moments that were, the one with the smallest decides. ``limit`` is in bytes a
    second, None for none.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit: int | None = None
        self._allowed = Fraction(0)
        self._passed = 0
        self._least: Fraction | None = None
        self.change(limit)

    def change(self, limit: int | None) -> None:
        """Another limit from now on. Where there was none, or is none now, intervals from before have no bound."""
        self._begin()
        if limit is None or self._limit is None:
            self._least = None
        self._limit = limit
        self._begin()

    def pass_time(self, ticks: int) -> None:
        """Time goes on."""
        self._allowed += Fraction((self._limit or 0) * ticks, TICKS)

    def room(self) -> Fraction | None:
        """How many bytes may pass now, so that every interval that ends here keeps its bound; None for any number."""
        self._begin()
        return None if self._least is None else self._least + self._allowed - self._passed

    def use(self, size: int) -> None:
        """``size`` bytes pass."""
        self._passed += size

    def _begin(self) -> None:
        """An interval may begin at any moment, so also now."""
        if self._limit is not None:
            burst = max(Fraction(self._limit) * Fraction(BURST), Fraction(MIN_BURST))
            begun = burst + self._passed - self._allowed
            self._least = begun if self._least is None else min(self._least, begun)


class Flood(Machine):
    """Devices and peers of three allocations send as they like, and change their limits as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = 0
        self.life = 0
        self.whole: Ledger | None = None
        self.ledgers: list[Ledger] = []
        self.ends: list[tuple[FakeClient, FakeClient]] = []
        self.limits: list[int] = []

    @initialize(
        tier=st.sampled_from((None, TIER_LIMIT)),
        shared=st.one_of(st.none(), st.integers(1, 2000), st.integers(400_000, 2 * TIER_LIMIT)),
        limits=st.tuples(*[_limits] * ALLOCATIONS),
    )
    def begin(self, tier: int | None, shared: int | None, limits: tuple[int, ...]) -> None:
        """Some allocations, with both ends there."""
        self.tier = tier
        self.scene = Scene(
            proving_roles=frozenset(),
            default_tier=Tier("", tier, None, None),
            global_bandwidth_limit=shared,
            bandwidth_burst=BURST,
            max_token_lifetime=1e9,
            allocation_timeout=1e9,
        )
        self.start = self.scene.now
        self.whole = None if shared is None else Ledger(shared)
        for number, limit in enumerate(limits):
            self.limits.append(limit)
            self.ledgers.append(Ledger(self._effective(limit)))
            self.ends.append(self._join(number))

    def _effective(self, limit: int) -> int | None:
        """R4.7: the smaller of token and tier, 0 in a token asks for the tier's."""
        if not limit:
            return self.tier
        return limit if self.tier is None else min(limit, self.tier)

    def _join(self, number: int) -> tuple[FakeClient, FakeClient]:
        self.life += 1
        token = make_token(
            DEVICE,
            allocation_id=bytes((number,)) * 16,
            expires_at=int(self.scene.wall) + 1_000_000 + self.life,
            bandwidth_limit=self.limits[number],
        )
        return self.scene.bind(Role.DEVICE, token), self.scene.bind(Role.PEER, token)

    def _pick(self, number: int, role: Role) -> tuple[FakeClient, FakeClient]:
        ends = self.ends[number]
        return ends[role], ends[role.other]

    def _room(self, number: int) -> Fraction | None:
        rooms = [ledger.room() for ledger in (self.ledgers[number], self.whole) if ledger is not None]
        return min((room for room in rooms if room is not None), default=None)

    def _use(self, number: int, size: int) -> None:
        self.ledgers[number].use(size)
        if self.whole is not None:
            self.whole.use(size)

    @rule(
        number=_numbers,
        role=st.sampled_from(Role),
        batches=st.lists(st.lists(_sizes, min_size=1, max_size=8), min_size=1, max_size=3),
    )
    def datagrams(self, number: int, role: Role, batches: list[list[int]]) -> None:
        """Datagrams, one at a time or in batches: each passes if there is room for it, and only then."""
        sender, receiver = self._pick(number, role)
        allocation = self.scene.allocation(bytes((number,)) * 16)
        for sizes in batches:
            expected = []
            for size in sizes:
                room = self._room(number)
                if room is None or size <= room:
                    expected.append(size)
                    self._use(number, size)
            before, counted = len(receiver.link.datagrams), allocation.bytes_transferred
            sender.session.datagrams_received([bytes(size) for size in sizes], self.scene.now)
            passed = [len(payload) for payload in receiver.link.datagrams[before:]]
            self.case.assertEqual(passed, expected, f"of {sizes}, with room for {self._room(number)} after what was expected")
            self.case.assertEqual(allocation.bytes_transferred - counted, sum(passed))

    @rule(number=_numbers, wanted=st.lists(st.integers(1, MIN_BURST + 1), min_size=1, max_size=4))
    def stream_bytes(self, number: int, wanted: list[int]) -> None:
        """Streams ask for their share: they get what there is room for, and are told to wait when it is nothing."""
        allocation = self.scene.allocation(bytes((number,)) * 16)
        for size in wanted:
            room = self._room(number)
            counted = allocation.bytes_transferred
            granted, delay = allocation.grant_stream_bytes(size, self.scene.now)
            expected = size if room is None else min(size, int(room))
            self.case.assertEqual(granted, expected, f"{size} bytes wanted, where there is room for {room}")
            self.case.assertEqual(allocation.bytes_transferred - counted, granted)
            self.case.assertEqual(delay > 0, granted == 0)
            if granted:
                self._use(number, granted)

    @rule(number=_numbers, role=st.sampled_from(Role), limit=_limits)
    def refresh(self, number: int, role: Role, limit: int) -> None:
        """Another token, which lives longer, with another limit: it holds from this moment on."""
        self.life += 1
        client, _ = self._pick(number, role)
        before = len(client.refreshed)
        client.refresh(make_token(
            DEVICE,
            allocation_id=bytes((number,)) * 16,
            expires_at=int(self.scene.wall) + 1_000_000 + self.life,
            bandwidth_limit=limit,
        ))
        self.case.assertEqual(len(client.refreshed), before + 1)
        self.limits[number] = limit
        self.ledgers[number].change(self._effective(limit))

    @rule(number=_numbers, role=st.sampled_from(Role))
    def release_and_return(self, number: int, role: Role) -> None:
        """Who releases an allocation and creates it again does not get another burst by that."""
        client, _ = self._pick(number, role)
        client.release()
        self.ends[number] = self._join(number)

    @rule(ticks=_gaps)
    def time_passes(self, ticks: int) -> None:
        """Time goes on for all."""
        self.ticks += ticks
        self.scene.now = self.start + self.ticks / TICKS
        self.scene.wall += ticks / TICKS
        self.scene.relay.sweep(self.scene.now, self.scene.wall)
        for ledger in (*self.ledgers, self.whole):
            if ledger is not None:
                ledger.pass_time(ticks)


class BandwidthTests(PropertyTestCase):
    """P2: no interval of any traffic carries more than limit * t + burst, of an allocation or of all together (R4.1, R4.3)."""

    def test_exactly_what_every_interval_has_room_for_passes(self) -> None:
        self.run_machine(Flood, steps=30)
