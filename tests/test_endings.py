"""How allocations end, for everyone who is bound, and what stays afterwards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import ALLOCATION_ID, DEVICE, EPOCH, STRANGER, FakeClient, Scene, id_of, make_token, public
from zrc_relay.core.allocation import State
from zrc_relay.core.codes import ErrorCode, NoticeCode, Role, TerminationReason
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.remembered import Tombstone
from zrc_relay.core.wire import Notice, Released

EXPIRY = int(EPOCH) + 3600
KEY = (id_of(DEVICE), ALLOCATION_ID)


def terminated(reason: TerminationReason) -> Notice:
    """The notice of an end."""
    return Notice(NoticeCode.TERMINATED, reason)


class EndTests(SynchronousTestCase):
    """Whatever ends an allocation ends it for everyone, with its reason and close code (R2.5 to R2.8, P4)."""

    def setUp(self) -> None:
        self.scene = Scene()
        self.device, self.peer = self.scene.pair()
        self.second = self.scene.bind(Role.PEER)
        for client in self.everyone:
            client.forget()

    @property
    def everyone(self) -> tuple[FakeClient, ...]:
        """Every bound client."""
        return self.device, self.peer, self.second

    def assert_ended(self, reason: TerminationReason, code: ErrorCode, *clients: FakeClient) -> None:
        """Those heard the reason and were closed with the code, and the allocation is gone."""
        for client in clients:
            self.assertEqual((client.link.capsules[-1], client.close_code), (terminated(reason), code))
        self.assertEqual(len(self.scene.relay.table), 0)
        self.assertEqual(self.scene.relay.counters.allocations_ended, {reason.name.lower(): 1})
        (event,) = self.scene.observer.named("allocation.ended")
        self.assertEqual((event["reason"], event["allocation"]), (reason.name.lower(), ALLOCATION_ID.hex()))

    def test_every_reason_ends_it_for_everyone(self) -> None:
        for reason in TerminationReason:
            self.setUp()
            allocation = self.scene.allocation()
            self.scene.relay.end(allocation, reason, self.scene.now, self.scene.wall)
            self.assertEqual((allocation.state, list(allocation.members)), (State.TERMINATED, []))
            self.assert_ended(reason, reason.close_code, *self.everyone)
            for client in self.everyone:
                self.assertEqual((client.link.capsules, client.session.allocation), ([terminated(reason)], None))

    def test_a_release_is_answered_to_who_asked_and_told_to_the_others(self) -> None:
        for role in Role:
            self.setUp()
            asker, other = (self.device, self.peer) if role is Role.DEVICE else (self.peer, self.device)
            asker.release()
            self.assertEqual((asker.link.capsules, asker.close_code), ([Released()], ErrorCode.NO_ERROR))
            self.assert_ended(TerminationReason.RELEASED, ErrorCode.NO_ERROR, other, self.second)

    def test_expiry_ends_it(self) -> None:
        self.scene.advance(3599.0)
        self.assertEqual(len(self.scene.relay.table), 1)
        self.scene.advance(1.0)
        self.assert_ended(TerminationReason.EXPIRED, ErrorCode.EXPIRED, *self.everyone)
        self.assertEqual(self.scene.observer.named("allocation.ended")[0]["seconds"], 3600.0)

    def test_a_side_that_stays_away_ends_it_for_the_other(self) -> None:
        self.peer.lose()
        self.second.lose()
        self.scene.advance(29.9)
        self.assertEqual(len(self.scene.relay.table), 1)
        self.scene.advance(0.1)
        self.assert_ended(TerminationReason.IDLE, ErrorCode.IDLE, self.device)

    def test_a_side_that_never_came_ends_it_for_the_other(self) -> None:
        self.scene = Scene()
        client = self.scene.bind(Role.PEER)
        self.scene.advance(59.9)
        self.assertIsNone(client.close_code)
        self.scene.advance(0.1)
        self.assert_ended(TerminationReason.IDLE, ErrorCode.IDLE, client)

    def test_what_a_client_says_or_loses_afterwards_changes_nothing(self) -> None:
        self.device.release()
        before = len(self.scene.observer.events)
        for client in self.everyone:
            client.datagram(b"x")
            client.refresh(make_token(expires_at=EXPIRY + 1))
            client.lose()
        self.assertEqual(len(self.scene.observer.events), before)
        self.assertEqual([len(client.link.closes) for client in self.everyone], [1, 1, 1])

    def test_coming_back_buys_no_further_burst(self) -> None:
        token = make_token(bandwidth_limit=1000, allocation_id=bytes(16))
        device, peer = self.scene.pair(token)
        device.datagram(bytes(65_535))
        device.release()
        self.scene.advance(1.0)
        device, peer = self.scene.pair(token)
        device.datagram(bytes(1001))
        device.datagram(bytes(1000))
        self.assertEqual([len(data) for data in peer.link.datagrams], [1000])

    def test_coming_back_with_another_limit_goes_on_at_that_rate(self) -> None:
        for again, passes in ((2000, [2000]), (0, [2001, 2000])):
            self.setUp()
            device, peer = self.scene.pair(make_token(bandwidth_limit=1000, allocation_id=bytes(16)))
            device.datagram(bytes(65_535))
            device.release()
            device, peer = self.scene.pair(make_token(bandwidth_limit=again, allocation_id=bytes(16)))
            self.scene.advance(1.0)
            device.datagram(bytes(2001))
            device.datagram(bytes(2000))
            self.assertEqual([len(data) for data in peer.link.datagrams], passes)

    def test_the_others_of_the_relay_are_not_concerned(self) -> None:
        others = self.scene.pair(make_token(allocation_id=bytes(16)))
        self.device.release()
        others[0].datagram(b"x")
        self.assertEqual((others[1].link.datagrams, others[1].link.capsules, others[1].close_code), ([b"x"], [], None))


class QuotaTests(SynchronousTestCase):
    """At 90 % both sides are told, and the byte that would cross the quota ends it (R3.7, R4.6, P3)."""

    def setUp(self) -> None:
        self.scene = Scene()
        self.token = make_token(quota_bytes=1000)
        self.device, self.peer = self.scene.pair(self.token)

    def test_both_sides_are_warned_once(self) -> None:
        for _ in range(10):
            self.device.datagram(bytes(95))
        warnings = [Notice(NoticeCode.QUOTA_WARNING, 950, 1000)]
        self.assertEqual((self.device.notices(), self.peer.notices()), (warnings, warnings))

    def test_the_quota_to_the_byte_is_carried_and_no_byte_more(self) -> None:
        self.device.datagram(bytes(600))
        self.peer.datagram(bytes(400))
        self.scene.settle()
        self.assertIsNone(self.device.close_code)
        self.peer.datagram(b"x")
        self.scene.settle()
        for client in (self.device, self.peer):
            self.assertEqual(client.link.capsules[-1], terminated(TerminationReason.QUOTA))
            self.assertIs(client.close_code, ErrorCode.QUOTA_EXCEEDED)
        self.assertEqual([len(data) for data in self.device.link.datagrams], [400])

    def test_it_stays_ended_until_its_token_expires(self) -> None:
        self.device.datagram(bytes(999))
        self.device.datagram(bytes(2))
        self.scene.settle()
        tombstone = self.scene.relay.table.tombstone(KEY, self.scene.wall)
        self.assertEqual(tombstone, Tombstone(999, EXPIRY, ErrorCode.QUOTA_EXCEEDED, proven=frozenset(Role)))
        client = self.scene.connect()
        client.allocate(Role.DEVICE, make_token(quota_bytes=10**9, expires_at=EXPIRY + 60))
        self.assertIs(client.close_code, ErrorCode.QUOTA_EXCEEDED)
        self.scene.advance(3600.0)
        again = self.scene.bind(Role.DEVICE, make_token(quota_bytes=1000, expires_at=EXPIRY + 60))
        self.assertEqual(again.allocated.bytes_transferred, 0)

    def test_a_sweep_alone_ends_it_too(self) -> None:
        self.device.datagram(bytes(1001))
        self.scene.advance(0.0)
        self.assertIs(self.peer.close_code, ErrorCode.QUOTA_EXCEEDED)

    def test_crossing_it_several_times_in_a_batch_ends_it_once(self) -> None:
        for _ in range(5):
            self.device.datagram(bytes(2000))
        self.scene.settle()
        self.scene.advance(1.0)
        self.assertEqual(self.scene.relay.counters.allocations_ended, {"quota": 1})

    def test_a_new_one_of_the_same_name_is_not_ended_for_the_old_one(self) -> None:
        self.device.datagram(bytes(2000))
        self.device.release()
        again = self.scene.bind(Role.DEVICE, self.token)
        self.scene.settle()
        self.assertTrue(again.is_bound)

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=20))
    def test_what_arrives_never_exceeds_it(self, sends: list[tuple[bool, int]]) -> None:
        self.setUp()
        for from_device, size in sends:
            (self.device if from_device else self.peer).datagram(bytes(size))
            self.scene.settle()
        arrived = sum(map(len, self.device.link.datagrams + self.peer.link.datagrams))
        sent = sum(size for _, size in sends)
        self.assertLessEqual(arrived, 1000)
        self.assertEqual(self.device.close_code is not None, sent > 1000)
        if sent <= 1000:
            self.assertEqual(arrived, sent)


class RevocationTests(SynchronousTestCase):
    """A key that is taken away ends its sessions; nothing else is touched (R1.2, R1.6)."""

    def setUp(self) -> None:
        self.scene = Scene(devices=(DEVICE, STRANGER))
        self.gone, self.stays = self.scene.pair(), self.scene.pair(make_token(STRANGER))

    def replace(self, *devices: Device) -> int:
        """Use those keys from now on."""
        return self.scene.relay.replace_keys(DeviceKeys(devices), self.scene.now, self.scene.wall)

    def test_it_ends_what_the_device_held(self) -> None:
        self.assertEqual(self.replace(Device(public(STRANGER))), 1)
        for client in self.gone:
            self.assertEqual(client.notices(), [terminated(TerminationReason.ADMINISTRATOR)])
            self.assertIs(client.close_code, ErrorCode.TERMINATED)
        self.stays[0].datagram(b"x")
        self.assertEqual((self.stays[1].link.datagrams, self.stays[1].notices()), ([b"x"], []))

    def test_its_tokens_are_refused_from_then_on(self) -> None:
        self.replace(Device(public(STRANGER)))
        client = self.scene.connect()
        client.allocate(Role.DEVICE)
        self.assertIs(client.close_code, ErrorCode.DEVICE_UNKNOWN)

    def test_when_it_is_back_it_may_go_on_and_so_does_the_count(self) -> None:
        self.gone[0].datagram(bytes(50))
        self.replace(Device(public(STRANGER)))
        self.assertEqual(self.replace(Device(public(STRANGER)), Device(public(DEVICE))), 0)
        self.assertEqual(self.scene.bind(Role.DEVICE).allocated.bytes_transferred, 50)

    def test_a_key_whose_tier_changes_ends_nothing(self) -> None:
        self.assertEqual(self.replace(Device(public(STRANGER), "paid"), Device(public(DEVICE), note="moved")), 0)
        self.assertEqual(len(self.scene.relay.table), 2)

    def test_sessions_may_be_let_run_to_their_end(self) -> None:
        self.scene = Scene(revoke_ends_sessions=False)
        device, peer = self.scene.pair()
        self.assertEqual(self.replace(), 0)
        device.datagram(b"x")
        self.assertEqual(peer.link.datagrams, [b"x"])
        device.refresh(make_token(expires_at=EXPIRY + 60))
        self.assertEqual(device.errors, [ErrorCode.DEVICE_UNKNOWN])
