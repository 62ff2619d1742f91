"""What is remembered of allocations where their process is no more: what is told of them, and what another table makes of it."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import DEVICE, EPOCH, STRANGER, Scene, id_of, make_token
from tests.test_table import EXPIRY, TableTestCase, numbered, small_tier
from zrc_relay.core import remembered as remembered_module
from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.remembered import TOMBSTONES_PER_DEVICE, Remembered, Tombstone

TOKEN = make_token()
KEY = (TOKEN.device_id, TOKEN.allocation_id)


class FakeWitness:
    """A ``Witness`` that remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, AllocationKey]] = []

    def changed(self, key: AllocationKey) -> None:
        """Remember."""
        self.heard.append(("changed", key))

    def ended_for_good(self, key: AllocationKey) -> None:
        """Remember."""
        self.heard.append(("ended", key))

    def keys(self) -> set[AllocationKey]:
        """Of whom it heard since it was asked last."""
        heard, self.heard = self.heard, []
        return {key for _, key in heard}


def known(key: AllocationKey = KEY, used: int = 70, until: int = EXPIRY, code: ErrorCode | None = None) -> Remembered:
    """What another process knew of an allocation of a pinned device."""
    return Remembered(*key, used, until, code, frozenset(), pinned=True)


class RememberTests(TableTestCase):
    """R2.8, R3.7, PROTOCOL §5: what another process knew of an allocation holds until its token's expiry."""

    def remember(self, *those: Remembered) -> None:
        for each in those:
            self.table.remember(each, self.wall)

    def test_it_goes_on_counting(self) -> None:
        self.remember(known())
        self.assertEqual((len(self.table), self.table.tombstones), (0, 1))
        self.assertIs(self.refusal(make_token(quota_bytes=69)).code, ErrorCode.QUOTA_EXCEEDED)
        self.assertEqual(self.create().bytes_transferred, 70)

    def test_what_ended_for_good_stays_ended_until_the_token_s_expiry(self) -> None:
        for code in (ErrorCode.TERMINATED, ErrorCode.QUOTA_EXCEEDED):
            self.wall, self.table = EPOCH, self.make_table()
            self.remember(known(code=code))
            self.assertIs(self.refusal().code, code)
            self.wall = EXPIRY - 1
            self.assertIs(self.refusal(make_token(expires_at=EXPIRY + 9)).code, code)
            self.assertEqual(self.ended(1), [])
            self.assertEqual((self.table.tombstones, self.create(make_token(expires_at=EXPIRY + 9)).bytes_transferred), (0, 0))

    def test_a_side_that_had_proven_itself_has(self) -> None:
        self.remember(replace(known(), proven=frozenset({Role.PEER})))
        self.assertEqual([self.table.has_proven(KEY, role, self.wall) for role in Role], [False, True])
        self.assertEqual([side.proven for side in self.create().sides], [False, True])

    def test_one_that_lives_here_is_known_better(self) -> None:
        allocation = self.create()
        self.remember(known(code=ErrorCode.TERMINATED))
        self.assertEqual((allocation.bytes_transferred, self.table.tombstones), (0, 0))
        self.assertIs(self.table.get(KEY), allocation)

    def test_one_whose_time_is_over_is_not_remembered(self) -> None:
        self.remember(known(until=int(EPOCH)))
        self.assertEqual(self.table.tombstones, 0)

    def test_nothing_goes_back_whatever_comes_last(self) -> None:
        more = replace(known(used=90, until=EXPIRY + 5, code=ErrorCode.TERMINATED), proven=frozenset({Role.DEVICE}))
        less = replace(known(), proven=frozenset({Role.PEER}))
        for order in ((more, less), (less, more)):
            self.table = self.make_table()
            self.remember(*order)
            self.assertEqual(
                self.table.tombstone(KEY, self.wall), Tombstone(90, EXPIRY + 5, ErrorCode.TERMINATED, None, frozenset(Role))
            )

    def test_what_is_left_of_the_bandwidth_here_is_not_forgotten(self) -> None:
        allocation = self.create(make_token(bandwidth_limit=1000))
        self.end(allocation, TerminationReason.RELEASED)
        self.remember(known())
        tombstone = self.table.tombstone(KEY, self.wall)
        self.assertIs(tombstone.bucket if tombstone is not None else None, allocation.bucket)

    def test_a_device_has_so_many_and_the_oldest_goes_first(self) -> None:
        device = id_of(DEVICE)
        self.remember(known((id_of(STRANGER), numbered(0))))
        self.remember(*[known((device, numbered(number))) for number in range(TOMBSTONES_PER_DEVICE + 1)])
        self.assertEqual(self.table.tombstones, 1 + TOMBSTONES_PER_DEVICE)
        self.assertIsNone(self.table.tombstone((device, numbered(0)), self.wall))
        self.assertIsNotNone(self.table.tombstone((device, numbered(1)), self.wall))

    def test_those_of_devices_that_are_not_pinned_are_bounded_all_together(self) -> None:
        self.patch(remembered_module, "UNPINNED_TOMBSTONES", 3)
        self.remember(known())
        self.remember(*[replace(known((bytes((number,)) * 32, numbered(0))), pinned=False) for number in range(1, 8)])
        self.assertEqual(self.table.tombstones, 1 + 3)
        self.assertIsNotNone(self.table.tombstone(KEY, self.wall))

    def test_a_device_that_has_been_pinned_since_is_not_among_those_that_are_not(self) -> None:
        self.patch(remembered_module, "UNPINNED_TOMBSTONES", 3)
        self.remember(replace(known(), pinned=False), known())
        self.remember(*[replace(known((bytes((number,)) * 32, numbered(0))), pinned=False) for number in range(1, 8)])
        self.assertEqual(self.table.tombstones, 1 + 3)
        self.assertIsNotNone(self.table.tombstone(KEY, self.wall))

    def test_it_holds_no_place(self) -> None:
        self.table = self.make_table(max_allocations=1)
        self.remember(known(), known((id_of(STRANGER), numbered(0))))
        self.assertEqual(self.create(tier=small_tier(1)).bytes_transferred, 70)


class TellingTests(TableTestCase):
    """R2.8, R3.7: what another process would have to know is told of everyone of whom it changes."""

    def setUp(self) -> None:
        super().setUp()
        self.witness = FakeWitness()
        self.table.report_to(self.witness)

    def known(self, key: AllocationKey = KEY) -> Remembered | None:
        return self.table.remembered(key, self.wall)

    def test_one_that_lives_can_be_made_again_and_goes_on(self) -> None:
        allocation = self.create()
        allocation.bytes_transferred = 70
        allocation.sides[Role.PEER].proven = True
        self.assertEqual(self.witness.keys(), {KEY})
        expected = replace(known(), proven=frozenset({Role.PEER}))
        self.assertEqual(self.known(), expected)
        allocation.set_limits(make_token(expires_at=EXPIRY + 50), small_tier(), self.now)
        self.table.accept_token(allocation, self.wall)
        self.assertEqual(self.witness.keys(), {KEY})
        self.assertEqual(self.known(), replace(expected, until=EXPIRY + 50))

    def test_an_earlier_life_s_longer_memory_is_not_shortened(self) -> None:
        self.end(self.create(), TerminationReason.RELEASED, used=70)
        self.create(make_token(expires_at=EXPIRY - 3000))
        self.assertEqual(self.known(), known())

    def test_an_end_is_told_and_one_for_good_at_once(self) -> None:
        for reason, code, said in (
            (TerminationReason.RELEASED, None, "changed"),
            (TerminationReason.QUOTA, ErrorCode.QUOTA_EXCEEDED, "ended"),
            (TerminationReason.ADMINISTRATOR, ErrorCode.TERMINATED, "ended"),
        ):
            self.setUp()
            allocation = self.create()
            self.witness.keys()
            self.end(allocation, reason, used=70)
            self.assertEqual((self.witness.heard, self.known()), ([(said, KEY)], known(code=code)))

    def test_what_is_forgotten_is_told(self) -> None:
        self.end(self.create(), TerminationReason.QUOTA)
        self.witness.keys()
        self.ended(3600)
        self.assertEqual((self.witness.keys(), self.known()), ({KEY}, None))

    def test_what_ends_with_its_token_is_nothing_to_remember(self) -> None:
        allocation = self.create()
        self.witness.keys()
        self.wall = EXPIRY
        self.end(allocation, TerminationReason.EXPIRED)
        self.assertEqual((self.witness.keys(), self.known()), ({KEY}, None))

    def test_what_is_forgotten_for_lack_of_room_is_told(self) -> None:
        device = id_of(DEVICE)
        for number in range(TOMBSTONES_PER_DEVICE + 1):
            self.table.remember(known((device, numbered(number))), self.wall)
        self.assertEqual(self.witness.keys(), {(device, numbered(0))})

    def test_what_another_process_knew_is_not_told_again_but_passes_on(self) -> None:
        there = (replace(known(code=ErrorCode.TERMINATED), proven=frozenset(Role)),
                 replace(known((id_of(STRANGER), numbered(0))), pinned=False))
        for each in there:
            self.table.remember(each, self.wall)
        self.assertEqual(self.witness.keys(), set())
        self.assertEqual(tuple(self.known(each.key) for each in there), there)


class RelayTests(SynchronousTestCase):
    """R2.8, R3.7, PROTOCOL §4, §5: a relay that goes on where another one stopped."""

    def setUp(self) -> None:
        self.token = make_token(quota_bytes=100)
        before, witness = Scene(), FakeWitness()
        before.relay.table.report_to(witness)
        device, _ = before.pair(self.token)
        self.told = witness.keys()
        device.datagram(bytes(60))
        remembered = before.relay.table.remembered(KEY, before.wall)
        self.scene = Scene(proving_roles=frozenset())
        if remembered is not None:
            self.scene.relay.table.remember(remembered, self.scene.wall)

    def test_a_quota_is_for_both_lives_together(self) -> None:
        device, _ = self.scene.pair(self.token)
        device.datagram(bytes(40))
        self.assertEqual(self.scene.allocation().bytes_transferred, 100)
        device.datagram(bytes(1))
        self.scene.settle()
        self.assertIs(device.close_code, ErrorCode.QUOTA_EXCEEDED)

    def test_who_had_proven_himself_must_again(self) -> None:
        for role in Role:
            client = self.scene.connect()
            client.allocate(role, self.token, prove=False)
            self.assertIs(client.close_code, ErrorCode.PROOF_REQUIRED)

    def test_an_earlier_end_is_told_as_it_is_by_whoever_ended_it(self) -> None:
        table = self.scene.relay.table
        table.remember(known(used=60, code=ErrorCode.TERMINATED), self.scene.wall)
        client = self.scene.connect()
        client.allocate(Role.DEVICE, self.token)
        self.assertIs(client.close_code, ErrorCode.TERMINATED)

    def test_joining_is_told(self) -> None:
        self.assertEqual(self.told, {KEY})
        witness = FakeWitness()
        self.scene.bind(Role.DEVICE, self.token)
        self.scene.relay.table.report_to(witness)
        self.scene.bind(Role.PEER, self.token)
        self.assertEqual(witness.keys(), {KEY})
