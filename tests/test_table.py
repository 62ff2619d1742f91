"""The table of allocations: capacity, expiry, absence, and what is remembered of what ended."""

from __future__ import annotations

from functools import partial
from typing import Any

from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import DEVICE, EPOCH, OPEN_TIER, START, STRANGER, FakeEvents, FakeMember, id_of, make_token, refusal_of
from zrc_relay.core.allocation import Allocation
from zrc_relay.core.authorisation import Refused
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.counters import Counters
from zrc_relay.core.remembered import TOMBSTONES_PER_DEVICE, Tombstone
from zrc_relay.core.table import AllocationTable
from zrc_relay.core.tiers import Tier
from zrc_relay.core.token import RelayToken

EXPIRY = int(EPOCH) + 3600


def numbered(number: int) -> bytes:
    """A 16-byte allocation id."""
    return b"allocation%6d" % number


def small_tier(allocations: int | None = None, quota: int | None = None) -> Tier:
    """A tier with so many allocations a device, each with that quota."""
    return Tier("small", None, quota, allocations)


class TableTestCase(SynchronousTestCase):
    """A table and two clocks that tests move."""

    def setUp(self) -> None:
        self.now, self.wall = START, EPOCH
        self.counters = Counters()
        self.table = self.make_table()

    def make_table(self, **changes: Any) -> AllocationTable:
        """A table with small, round numbers."""
        settings: dict[str, Any] = {
            "max_allocations": 1000, "allocation_timeout": 8 * 3600.0, "wait_timeout": 60.0, "idle_timeout": 30.0,
            "bandwidth_burst": 0.1, "global_bucket": None, "counters": self.counters, "events": FakeEvents(),
        }
        return AllocationTable(**settings | changes)

    def create(self, token: RelayToken | None = None, tier: Tier = OPEN_TIER) -> Allocation:
        """Make the allocation of a token."""
        return self.table.create(token or make_token(), tier, now=self.now, wall=self.wall)

    def end(self, allocation: Allocation, reason: TerminationReason, *, used: int = 0, final: bool | None = None) -> None:
        """End it after so many bytes."""
        allocation.bytes_transferred += used
        self.table.remove(allocation, reason, self.wall, final=final)

    def ended(self, after: float = 0.0) -> list[tuple[Allocation, TerminationReason]]:
        """Let ``after`` seconds pass on both clocks and ask what must end."""
        self.now += after
        self.wall += after
        return self.table.expired(self.now, self.wall)

    def refusal(self, token: RelayToken | None = None, tier: Tier = OPEN_TIER) -> Refused:
        """Why an allocation is not made; nothing may have changed."""
        before = (len(self.table), self.table.tombstones, self.counters.allocations_created, self.table.load)
        refusal = refusal_of(lambda: self.create(token, tier))
        self.assertEqual((len(self.table), self.table.tombstones, self.counters.allocations_created, self.table.load), before)
        return refusal


class CreationTests(TableTestCase):
    """An allocation is known by (device_id, allocation_id) (R2.4, PROTOCOL §3)."""

    def test_it_is_found_by_its_key_and_counted(self) -> None:
        allocation = self.create()
        self.assertIs(self.table.get((id_of(DEVICE), make_token().allocation_id)), allocation)
        self.assertEqual((len(self.table), list(self.table), self.counters.allocations_created), (1, [allocation], 1))

    def test_the_same_id_of_another_device_is_another_allocation(self) -> None:
        one, other = self.create(), self.create(make_token(STRANGER))
        self.assertIsNot(one, other)
        self.assertIs(self.table.get(one.key), one)
        self.assertIs(self.table.get(other.key), other)

    def test_it_gets_the_limits_of_its_token_in_its_tier(self) -> None:
        tier = Tier("", 1000, 5000, 10)
        allocation = self.create(make_token(bandwidth_limit=2000, quota_bytes=300), tier)
        self.assertEqual((allocation.bandwidth_limit, allocation.quota), (1000, 300))

    def test_another_token_brings_its_limits_and_its_tier(self) -> None:
        allocation = self.create(make_token(), Tier("", 1000, 5000, 10))
        token, tier = make_token(expires_at=EXPIRY + 1), Tier("better", 2000, 6000, 10)
        allocation.set_limits(token, tier, self.now)
        self.assertEqual((allocation.token, allocation.tier), (token, tier))
        self.assertEqual((allocation.bandwidth_limit, allocation.quota), (2000, 6000))

    def test_a_new_one_was_active_just_now(self) -> None:
        allocation = self.create()
        self.assertEqual((allocation.created_at, allocation.last_activity, allocation.bytes_transferred), (self.now, self.now, 0))

    def test_what_is_removed_is_not_found(self) -> None:
        allocation = self.create()
        self.end(allocation, TerminationReason.RELEASED)
        self.assertIsNone(self.table.get(allocation.key))
        self.assertEqual((len(self.table), list(self.table)), (0, []))


class CapacityTests(TableTestCase):
    """So many at once in all, and so many a device by its tier (R4.4)."""

    def test_the_relay_holds_its_maximum_and_no_more(self) -> None:
        self.table = self.make_table(max_allocations=2)
        first = self.create(make_token(allocation_id=numbered(1)))
        self.create(make_token(STRANGER))
        refusal = self.refusal(make_token(allocation_id=numbered(2)))
        self.assertIs(refusal.code, ErrorCode.CAPACITY)
        self.assertTrue(refusal.reason.startswith("retry_after="))
        self.end(first, TerminationReason.RELEASED)
        self.create(make_token(allocation_id=numbered(2)))

    def test_a_device_holds_what_its_tier_allows(self) -> None:
        tier = small_tier(allocations=2)
        first = self.create(make_token(allocation_id=numbered(1)), tier)
        self.create(make_token(allocation_id=numbered(2)), tier)
        self.assertIs(self.refusal(make_token(allocation_id=numbered(3)), tier).code, ErrorCode.CAPACITY)
        self.create(make_token(STRANGER), tier)
        self.end(first, TerminationReason.IDLE)
        self.create(make_token(allocation_id=numbered(3)), tier)
        self.assertIs(self.refusal(make_token(allocation_id=numbered(4)), tier).code, ErrorCode.CAPACITY)

    def test_a_tier_without_a_number_has_no_bound_of_its_own(self) -> None:
        for number in range(50):
            self.create(make_token(allocation_id=numbered(number)), small_tier(allocations=None))
        self.assertEqual(len(self.table), 50)

    def test_the_load_is_how_full_the_relay_is(self) -> None:
        self.table = self.make_table(max_allocations=8)
        loads = []
        for number in range(8):
            loads.append(self.table.load)
            self.create(make_token(allocation_id=numbered(number)))
        self.assertEqual([*loads, self.table.load], [0, 12, 25, 37, 50, 62, 75, 87, 100])


class ExpiryTests(TableTestCase):
    """It ends at min(token in force, last accepted token + allocation_timeout) (R2.5, P4)."""

    def test_it_ends_with_its_token(self) -> None:
        allocation = self.create()
        self.both_there(allocation)
        self.assertEqual(allocation.expires_at, EXPIRY)
        self.assertEqual(self.ended(3599.5), [])
        self.assertEqual(self.ended(0.5), [(allocation, TerminationReason.EXPIRED)])

    def test_it_ends_allocation_timeout_after_the_last_accepted_token(self) -> None:
        self.table = self.make_table(allocation_timeout=100.0)
        allocation = self.create()
        self.both_there(allocation)
        self.assertEqual(allocation.expires_at, EPOCH + 100.0)
        self.wall += 40.0
        self.table.accept_token(allocation, self.wall)
        self.assertEqual(allocation.expires_at, EPOCH + 140.0)
        self.wall -= 40.0
        self.assertEqual(self.ended(139.0), [])
        self.assertEqual(self.ended(1.0), [(allocation, TerminationReason.EXPIRED)])

    def test_accepting_a_token_never_outlives_the_one_in_force(self) -> None:
        allocation = self.create()
        self.both_there(allocation)
        self.wall += 3000.0
        self.table.accept_token(allocation, self.wall)
        self.assertEqual(allocation.expires_at, EXPIRY)
        self.assertEqual(self.ended(600.0), [(allocation, TerminationReason.EXPIRED)])

    def test_a_later_token_in_force_moves_the_end(self) -> None:
        allocation = self.create()
        self.both_there(allocation)
        allocation.set_limits(make_token(expires_at=EXPIRY + 50), OPEN_TIER, self.now)
        self.table.accept_token(allocation, self.wall)
        self.assertEqual(self.ended(3649.0), [])
        self.assertEqual(self.ended(1.0), [(allocation, TerminationReason.EXPIRED)])

    def test_it_goes_by_the_wall_clock_alone(self) -> None:
        allocation = self.create()
        self.both_there(allocation)
        self.now += 1e6
        self.assertEqual(self.ended(), [])
        self.wall += 3600.0
        self.assertEqual(self.ended(), [(allocation, TerminationReason.EXPIRED)])

    def test_one_that_is_both_expired_and_alone_ends_once(self) -> None:
        allocation = self.create()
        self.assertEqual(self.ended(4000.0), [(allocation, TerminationReason.EXPIRED)])
        self.assertEqual(self.ended(), [])

    def test_what_was_removed_does_not_end_again(self) -> None:
        self.end(self.create(), TerminationReason.RELEASED)
        self.assertEqual(self.ended(4000.0), [])

    def both_there(self, allocation: Allocation) -> None:
        """Let both sides join, so that absence plays no part."""
        for role in Role:
            allocation.bind(FakeMember(role), self.now)
        self.table.absence_changed(allocation)


class AbsenceTests(TableTestCase):
    """A side that is absent too long ends it, by the monotonic clock (R2.6)."""

    def test_a_side_that_never_came_ends_it_after_wait_timeout(self) -> None:
        allocation = self.create()
        allocation.bind(FakeMember(Role.DEVICE), self.now)
        self.table.absence_changed(allocation)
        self.assertEqual(self.ended(59.9), [])
        self.assertEqual(self.ended(0.1), [(allocation, TerminationReason.IDLE)])

    def test_a_side_that_left_ends_it_after_idle_timeout(self) -> None:
        allocation = self.create()
        device = FakeMember(Role.DEVICE)
        for member in (device, FakeMember(Role.PEER)):
            allocation.bind(member, self.now)
        self.table.absence_changed(allocation)
        self.assertEqual(self.ended(1000.0), [])
        allocation.unbind(device, self.now)
        self.table.absence_changed(allocation)
        self.assertEqual(self.ended(29.9), [])
        self.assertEqual(self.ended(0.1), [(allocation, TerminationReason.IDLE)])

    def test_a_side_that_comes_back_in_time_keeps_it(self) -> None:
        allocation = self.create()
        device = FakeMember(Role.DEVICE)
        for member in (device, FakeMember(Role.PEER)):
            allocation.bind(member, self.now)
        allocation.unbind(device, self.now)
        self.table.absence_changed(allocation)
        self.assertEqual(self.ended(29.0), [])
        allocation.bind(device, self.now)
        self.table.absence_changed(allocation)
        self.assertEqual(self.ended(1000.0), [])

    def test_an_allocation_nobody_joined_is_not_kept(self) -> None:
        allocation = self.create()
        self.assertEqual(self.ended(60.0), [(allocation, TerminationReason.IDLE)])


class TombstoneTests(TableTestCase):
    """What is remembered of an ended allocation until its token's expiry (R2.8, PROTOCOL §5 after the end)."""

    FINAL = (
        (TerminationReason.QUOTA, ErrorCode.QUOTA_EXCEEDED),
        (TerminationReason.ADMINISTRATOR, ErrorCode.TERMINATED),
    )
    OTHERS = (TerminationReason.IDLE, TerminationReason.RELEASED, TerminationReason.ERROR, TerminationReason.EXPIRED)

    def test_what_quota_or_administrator_ended_stays_ended_with_its_code(self) -> None:
        for reason, code in self.FINAL:
            self.table = self.make_table()
            allocation = self.create()
            self.end(allocation, reason, used=70)
            self.assertEqual(self.table.tombstone(allocation.key, self.wall), Tombstone(70, EXPIRY, code))
            self.assertIs(self.refusal().code, code)
            self.assertIs(self.refusal(make_token(expires_at=EXPIRY + 100, quota_bytes=10**9)).code, code)

    def test_until_the_token_s_expiry_and_no_longer(self) -> None:
        for reason, code in self.FINAL:
            self.wall = EPOCH
            self.table = self.make_table()
            self.end(self.create(), reason, used=70)
            self.wall = EXPIRY - 0.5
            self.assertIs(self.refusal(make_token(expires_at=EXPIRY + 100)).code, code)
            self.wall = EXPIRY
            self.assertEqual(self.create(make_token(expires_at=EXPIRY + 100)).bytes_transferred, 0)

    def test_the_token_in_force_when_it_ended_counts(self) -> None:
        allocation = self.create()
        allocation.set_limits(make_token(expires_at=EXPIRY + 500), OPEN_TIER, self.now)
        self.end(allocation, TerminationReason.ADMINISTRATOR)
        self.wall = EXPIRY + 499
        self.assertIs(self.refusal(make_token(expires_at=EXPIRY + 900)).code, ErrorCode.TERMINATED)

    def test_the_token_s_expiry_counts_although_the_allocation_s_own_was_earlier(self) -> None:
        self.table = self.make_table(allocation_timeout=100.0)
        self.end(self.create(), TerminationReason.ADMINISTRATOR)
        self.assertEqual(self.ended(3599.0), [])
        self.assertIs(self.refusal().code, ErrorCode.TERMINATED)

    def test_what_ended_otherwise_can_be_made_again_and_goes_on_counting(self) -> None:
        for reason in self.OTHERS:
            self.table = self.make_table()
            self.end(self.create(), reason, used=70)
            again = self.create()
            self.assertEqual((again.bytes_transferred, self.table.tombstones), (70, 0), reason)
            self.end(again, reason, used=5)
            self.assertEqual(self.create().bytes_transferred, 75, reason)

    def test_a_device_that_comes_back_with_a_shorter_token_does_not_shorten_the_memory(self) -> None:
        self.end(self.create(), TerminationReason.RELEASED, used=70)
        self.end(self.create(make_token(expires_at=EXPIRY - 3000)), TerminationReason.RELEASED, used=5)
        self.wall = EXPIRY - 1000
        self.assertEqual(self.ended(), [])
        self.assertEqual(self.create().bytes_transferred, 75)

    def test_what_one_device_did_is_not_remembered_of_another(self) -> None:
        self.end(self.create(), TerminationReason.ADMINISTRATOR, used=70)
        self.assertEqual(self.create(make_token(STRANGER)).bytes_transferred, 0)

    def test_the_verdict_can_be_overruled_both_ways(self) -> None:
        self.end(self.create(), TerminationReason.ADMINISTRATOR, final=False)
        self.end(self.create(), TerminationReason.RELEASED, final=True)
        self.assertIs(self.refusal().code, ErrorCode.NO_ERROR)

    def test_a_token_that_allows_less_than_was_used_makes_nothing(self) -> None:
        self.end(self.create(), TerminationReason.IDLE, used=70)
        self.assertIs(self.refusal(make_token(quota_bytes=69)).code, ErrorCode.QUOTA_EXCEEDED)
        self.assertIs(self.refusal(tier=small_tier(quota=69)).code, ErrorCode.QUOTA_EXCEEDED)
        self.assertEqual(self.create(make_token(quota_bytes=70)).bytes_transferred, 70)

    def test_a_refusal_leaves_the_memory_as_it_was(self) -> None:
        self.table = self.make_table(max_allocations=1)
        allocation = self.create()
        self.end(allocation, TerminationReason.IDLE, used=70)
        self.create(make_token(STRANGER))
        self.assertIs(self.refusal().code, ErrorCode.CAPACITY)
        self.assertEqual(self.table.tombstone(allocation.key, self.wall), Tombstone(70, EXPIRY, None))

    def test_staying_ended_is_told_before_a_lack_of_room(self) -> None:
        self.table = self.make_table(max_allocations=1)
        self.end(self.create(), TerminationReason.ADMINISTRATOR)
        self.create(make_token(STRANGER))
        self.assertIs(self.refusal().code, ErrorCode.TERMINATED)

    def test_nothing_is_remembered_beyond_the_token(self) -> None:
        allocation = self.create()
        self.wall = EXPIRY
        self.end(allocation, TerminationReason.EXPIRED, used=70)
        self.assertEqual((self.table.tombstones, self.table.tombstone(allocation.key, self.wall)), (0, None))

    def test_it_is_forgotten_when_its_time_is_over(self) -> None:
        for number in range(3):
            token = make_token(allocation_id=numbered(number), expires_at=EXPIRY + number)
            self.end(self.create(token), TerminationReason.QUOTA)
        self.wall = EXPIRY
        counts = []
        for _ in range(3):
            self.table.expired(self.now, self.wall)
            counts.append(self.table.tombstones)
            self.wall += 1
        self.assertEqual(counts, [2, 1, 0])

    def test_one_that_was_made_again_is_not_forgotten_at_the_old_time(self) -> None:
        self.end(self.create(), TerminationReason.IDLE, used=70)
        again = self.create(make_token(expires_at=EXPIRY + 100))
        self.end(again, TerminationReason.ADMINISTRATOR)
        self.wall = EXPIRY + 50
        self.table.expired(self.now, self.wall)
        self.assertIs(self.refusal(make_token(expires_at=EXPIRY + 900)).code, ErrorCode.TERMINATED)

    def test_a_device_is_remembered_so_many_and_the_oldest_goes_first(self) -> None:
        self.end(self.create(make_token(STRANGER)), TerminationReason.ADMINISTRATOR)
        for number in range(TOMBSTONES_PER_DEVICE + 1):
            self.end(self.create(make_token(allocation_id=numbered(number))), TerminationReason.ADMINISTRATOR)
        self.assertEqual(self.table.tombstones, TOMBSTONES_PER_DEVICE + 1)
        self.assertIs(self.refusal(make_token(STRANGER)).code, ErrorCode.TERMINATED)
        self.assertIs(self.refusal(make_token(allocation_id=numbered(1))).code, ErrorCode.TERMINATED)
        self.create(make_token(allocation_id=numbered(0)))

    def test_the_age_of_a_memory_is_that_of_the_last_end(self) -> None:
        first = make_token(allocation_id=numbered(0))
        self.end(self.create(first), TerminationReason.IDLE)
        self.end(self.create(make_token(allocation_id=numbered(1))), TerminationReason.IDLE, used=7)
        self.end(self.create(first), TerminationReason.IDLE, used=70)
        for number in range(2, TOMBSTONES_PER_DEVICE + 1):
            self.end(self.create(make_token(allocation_id=numbered(number))), TerminationReason.IDLE)
        self.assertEqual(self.create(first).bytes_transferred, 70)
        self.assertEqual(self.create(make_token(allocation_id=numbered(1))).bytes_transferred, 0)


class SizeTests(TableTestCase):
    """Nothing is kept of what is over (R6.9)."""

    @property
    def sizes(self) -> list[int]:
        """How much each part of the table holds."""
        table = self.table
        graves = table._graves  # noqa: SLF001
        parts = (table, table._places, graves._of_devices, graves, table._expiry, table._absence)  # noqa: SLF001
        return [len(part) for part in parts]

    def test_an_empty_table_holds_nothing_whatever_was_in_it(self) -> None:
        for number in range(20):
            token = make_token(SigningKey(bytes((number,)) * 32))
            self.end(self.create(token), TerminationReason.IDLE)
            self.end(self.create(token), TerminationReason.QUOTA)
        self.assertEqual(self.sizes, [0, 0, 20, 20, 0, 0])
        self.assertEqual(self.ended(3600.0), [])
        self.assertEqual(self.sizes, [0] * 6)

    def test_what_was_made_again_is_no_longer_remembered_as_ended(self) -> None:
        self.end(self.create(), TerminationReason.IDLE)
        self.create()
        self.assertEqual(self.sizes, [1, 1, 0, 0, 1, 1])

    def test_what_was_forgotten_for_lack_of_room_is_forgotten_wholly(self) -> None:
        for number in range(TOMBSTONES_PER_DEVICE + 10):
            self.end(self.create(make_token(allocation_id=numbered(number))), TerminationReason.IDLE)
        self.assertEqual(self.sizes, [0, 0, 1, TOMBSTONES_PER_DEVICE, 0, 0])


class RefreshCheckTests(TableTestCase):
    """A quota below what was already used is refused (PROTOCOL §5)."""

    def test_what_was_used_must_fit(self) -> None:
        allocation = self.create()
        allocation.bytes_transferred = 500
        self.table.check_refresh(allocation, make_token(quota_bytes=500), OPEN_TIER)
        self.table.check_refresh(allocation, make_token(), OPEN_TIER)
        for token, tier in ((make_token(quota_bytes=499), OPEN_TIER), (make_token(), small_tier(quota=499))):
            refusal = refusal_of(partial(self.table.check_refresh, allocation, token, tier))
            self.assertIs(refusal.code, ErrorCode.QUOTA_EXCEEDED)
