"""Tiers and effective limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core.tiers import BUILT_IN_TIERS, Tier, effective_limits

_caps = st.none() | st.integers(1, 2**63)


class EffectiveLimits(SynchronousTestCase):
    """R4.7: effective = min(token, tier); 0 in a token asks for the tier's own."""

    def test_a_token_may_ask_for_less_than_its_tier(self) -> None:
        self.assertEqual(effective_limits(100, 2000, Tier("", 500, 3000, 1)), (100, 2000))

    def test_a_token_gets_no_more_than_its_tier(self) -> None:
        self.assertEqual(effective_limits(1000, 4000, Tier("", 500, 3000, 1)), (500, 3000))

    def test_zero_asks_for_the_tiers_own(self) -> None:
        self.assertEqual(effective_limits(0, 0, Tier("", 500, 3000, 1)), (500, 3000))

    def test_without_caps_the_token_alone_decides(self) -> None:
        self.assertEqual(effective_limits(2**32 - 1, 2**64 - 1, Tier("", None, None, None)), (2**32 - 1, 2**64 - 1))

    def test_zero_without_caps_is_no_cap(self) -> None:
        self.assertEqual(effective_limits(0, 0, Tier("", None, None, None)), (None, None))

    def test_each_limit_is_decided_by_itself(self) -> None:
        self.assertEqual(effective_limits(0, 7, Tier("", None, 3000, 1)), (None, 7))
        self.assertEqual(effective_limits(7, 0, Tier("", 500, None, 1)), (7, None))

    @given(bandwidth=st.integers(0, 2**32 - 1), quota=st.integers(0, 2**64 - 1), caps=st.tuples(_caps, _caps))
    def test_no_token_exceeds_a_tier(self, bandwidth: int, quota: int, caps: tuple[int | None, int | None]) -> None:
        limits = effective_limits(bandwidth, quota, Tier("x", *caps, 1))
        for asked, cap, limit in zip((bandwidth, quota), caps, limits, strict=True):
            if cap is not None:
                self.assertIsNotNone(limit)
            if limit is None:
                self.assertEqual(asked, 0)
            else:
                self.assertIn(limit, (asked, cap))
                self.assertLessEqual(limit, cap or limit)
                self.assertLessEqual(limit, asked or limit)


class BuiltInTiers(SynchronousTestCase):
    """R8: the tiers that exist without configuration."""

    def test_their_limits(self) -> None:
        self.assertEqual(dict(BUILT_IN_TIERS), {
            "free": Tier("free", 5_000_000 // 8, 500 * 10**6, 10),
            "paid": Tier("paid", 50_000_000 // 8, 10 * 10**9, 100),
            "unlimited": Tier("unlimited", None, None, None),
        })
