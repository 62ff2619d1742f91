"""What a reload does to a relay that runs: limits, tiers, rates, lists, keys, without sockets or files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import DEVICE, STRANGER, Scene, id_of, make_token, public
from zrc_relay.core.adjustment import STEP
from zrc_relay.core.admission import Admission, AdmissionSettings
from zrc_relay.core.authorisation import Refused
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.core.codes import ErrorCode, HelloFeature, Role
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.sources import Rate, SourceLimiter, numeric
from zrc_relay.core.tiers import BUILT_IN_TIERS, Tier

KEYS = DeviceKeys([Device(public(DEVICE))])
FREE_KEYS = DeviceKeys([Device(public(DEVICE), "free")])
PAYLOAD = bytes(1000)


class ReloadCase(SynchronousTestCase):
    """A relay that is given other settings."""

    scene: Scene

    def start(self, **policy: Any) -> None:
        keys = policy.pop("keys", KEYS)
        self.scene = Scene(keys=keys, **policy)

    def reload(self, keys: DeviceKeys = KEYS, **changes: Any) -> int:
        """Reload with these fields of the policy changed; returns how many allocations ended."""
        relay = self.scene.relay
        ended = relay.reconfigure(replace(relay.policy, **changes), keys, self.scene.now, self.scene.wall)
        self.scene.settle()
        return ended


class LimitTests(ReloadCase):
    """R4.7: effective = min(token, tier), and the tier may change while an allocation runs."""

    def test_a_running_allocation_gets_the_limits_of_its_tier_as_it_is_now_and_both_sides_are_told(self) -> None:
        self.start(keys=FREE_KEYS, tiers=BUILT_IN_TIERS)
        device, peer = self.scene.pair()
        self.reload(FREE_KEYS, tiers={**BUILT_IN_TIERS, "free": Tier("free", 1_000, 5_000, 3)})
        for client in (device, peer):
            (told,) = client.refreshed
            self.assertEqual((told.bandwidth_limit, told.quota_bytes, told.bytes_transferred), (1_000, 5_000, 0))
        allocation = self.scene.allocation()
        self.assertEqual((allocation.bandwidth_limit, allocation.quota), (1_000, 5_000))
        self.assertEqual(self.scene.observer.named("allocation.limits")[0]["quota"], 5_000)

    def test_limits_that_are_the_same_are_told_to_nobody(self) -> None:
        self.start(keys=FREE_KEYS, tiers=BUILT_IN_TIERS)
        device, peer = self.scene.pair()
        self.reload(FREE_KEYS, max_allocations=7, tiers={**BUILT_IN_TIERS, "paid": Tier("paid", 1, 1, 1)})
        self.assertEqual(device.refreshed + peer.refreshed, [])

    def test_a_token_that_asks_for_less_than_the_new_tier_keeps_what_it_asks_for(self) -> None:
        self.start(keys=FREE_KEYS, tiers=BUILT_IN_TIERS)
        self.scene.pair(make_token(bandwidth_limit=2_000, quota_bytes=3_000))
        self.reload(FREE_KEYS, tiers={**BUILT_IN_TIERS, "free": Tier("free", None, None, 3)})
        allocation = self.scene.allocation()
        self.assertEqual((allocation.bandwidth_limit, allocation.quota), (2_000, 3_000))

    def test_the_tier_of_a_device_may_change_with_the_keys(self) -> None:
        self.start(keys=FREE_KEYS, tiers=BUILT_IN_TIERS)
        self.scene.pair()
        self.reload(DeviceKeys([Device(public(DEVICE), "paid")]))
        self.assertEqual(self.scene.allocation().quota, BUILT_IN_TIERS["paid"].quota)

    def test_defaults_are_for_devices_without_a_tier(self) -> None:
        self.start()
        self.scene.pair()
        self.reload(default_tier=Tier("", 10_000, 20_000, 1))
        self.assertEqual(self.scene.allocation().quota, 20_000)

    def test_a_quota_below_what_was_used_ends_the_allocation_with_its_next_byte_and_not_before(self) -> None:
        self.start()
        device, peer = self.scene.pair()
        for _ in range(5):
            device.datagram(PAYLOAD)
        self.reload(default_tier=Tier("", None, 2_000, None))
        self.scene.advance(5)
        self.assertEqual(peer.close_code, None)
        self.assertEqual(peer.refreshed[-1].quota_bytes, 5_000)
        self.assertEqual(self.scene.allocation().bytes_transferred, self.scene.allocation().quota)
        device.datagram(b"x")
        self.scene.settle()
        self.assertEqual((device.close_code, peer.close_code), (ErrorCode.QUOTA_EXCEEDED, ErrorCode.QUOTA_EXCEEDED))
        self.assertEqual(len(peer.link.datagrams), 5)

    def test_a_quota_that_rises_again_lets_it_go_on(self) -> None:
        self.start()
        device, peer = self.scene.pair()
        device.datagram(PAYLOAD)
        self.reload(default_tier=Tier("", None, 10, None))
        self.reload(default_tier=Tier("", None, 2_000, None))
        device.datagram(PAYLOAD)
        self.scene.settle()
        self.assertEqual((len(peer.link.datagrams), device.close_code), (2, None))

    def test_bandwidth_holds_at_once_and_buys_no_second_burst(self) -> None:
        self.start(default_tier=Tier("", 1_000_000, None, None))
        device, peer = self.scene.pair()
        for _ in range(100):
            device.datagram(PAYLOAD)
        self.assertEqual(len(peer.link.datagrams), 100)
        self.reload(default_tier=Tier("", 100_000, None, None))
        peer.forget()
        for _ in range(100):
            device.datagram(PAYLOAD)
        self.assertEqual(len(peer.link.datagrams), 0)
        self.scene.advance(0.1)
        for _ in range(100):
            device.datagram(PAYLOAD)
        self.assertEqual(len(peer.link.datagrams), 10)

    def test_the_global_limit_comes_changes_and_goes(self) -> None:
        self.start()
        device, peer = self.scene.pair()
        for limit, expected in ((100_000, 65), (None, 100), (1_000_000, 100)):
            self.reload(global_bandwidth_limit=limit)
            peer.forget()
            for _ in range(100):
                device.datagram(PAYLOAD)
            self.assertEqual(len(peer.link.datagrams), expected, limit)
        self.reload(global_bandwidth_limit=200_000)
        peer.forget()
        device.datagram(PAYLOAD)
        self.assertEqual(len(peer.link.datagrams), 0)

    def test_allocations_made_later_share_the_same_global_limit(self) -> None:
        self.start()
        self.reload(global_bandwidth_limit=1)
        device, peer = self.scene.pair()
        for _ in range(66):
            device.datagram(PAYLOAD)
        self.assertEqual(len(peer.link.datagrams), 65)

    def test_very_many_allocations_get_theirs_some_at_a_time(self) -> None:
        self.start(max_allocations=3 * STEP)
        for number in range(2 * STEP + 10):
            self.scene.bind(Role.DEVICE, make_token(allocation_id=number.to_bytes(16, "big")))
        adjusted = lambda: sum(allocation.quota == 99 for allocation in self.scene.relay.table)  # noqa: E731
        self.reload(default_tier=Tier("", None, 99, None))
        self.assertEqual(adjusted(), STEP)
        self.scene.settle()
        self.scene.settle()
        self.assertEqual(adjusted(), 2 * STEP + 10)

    def test_an_allocation_for_which_that_fails_is_the_only_one(self) -> None:
        self.start()
        first, _ = self.scene.pair()
        other, _ = self.scene.pair(make_token(allocation_id=b"another one....."))

        def explode(_: bytes) -> None:
            raise ZeroDivisionError

        self.patch(first.link, "send_control", explode)
        self.reload(default_tier=Tier("", None, 77, None))
        (failure,) = self.scene.relay.failures
        self.assertEqual(failure.key, self.scene.allocation().key)
        self.assertEqual(len(other.refreshed), 1)


class PolicyTests(ReloadCase):
    """R8: new requests are judged by the new settings, what runs goes on."""

    def test_fewer_allocations_end_nothing_and_let_nobody_in(self) -> None:
        self.start()
        self.scene.pair()
        self.scene.pair(make_token(allocation_id=b"another one....."))
        self.reload(max_allocations=1)
        self.assertEqual(len(self.scene.relay.table), 2)
        refused = self.scene.connect()
        refused.allocate(Role.DEVICE, make_token(allocation_id=b"one too many...."))
        self.assertEqual(refused.close_code, ErrorCode.CAPACITY)

    def test_timeouts_of_absent_sides_follow(self) -> None:
        self.start(idle_timeout=30.0, wait_timeout=60.0)
        device, peer = self.scene.pair()
        self.scene.bind(Role.DEVICE, make_token(allocation_id=b"waits for a peer"))
        peer.lose()
        self.scene.advance(5)
        self.reload(idle_timeout=6.0, wait_timeout=8.0)
        self.scene.advance(1.1)
        self.assertEqual(device.close_code, ErrorCode.IDLE)
        self.assertEqual(len(self.scene.relay.table), 1)
        self.scene.advance(2)
        self.assertEqual(len(self.scene.relay.table), 0)

    def test_longer_timeouts_follow_too(self) -> None:
        self.start(idle_timeout=6.0)
        _, peer = self.scene.pair()
        peer.lose()
        self.scene.advance(5)
        self.reload(idle_timeout=60.0)
        self.scene.advance(30)
        self.assertEqual(len(self.scene.relay.table), 1)

    def test_the_lifetime_of_tokens_and_of_allocations_is_for_the_next_token(self) -> None:
        self.start(max_token_lifetime=10_000.0, allocation_timeout=10_000.0)
        device, _ = self.scene.pair(make_token(expires_at=make_token().expires_at))
        before = self.scene.allocation().expires_at
        self.reload(max_token_lifetime=100.0, allocation_timeout=50.0)
        self.assertEqual((self.scene.allocation().expires_at, device.close_code), (before, None))
        refused = self.scene.connect()
        refused.allocate(Role.PEER)
        self.assertEqual(refused.close_code, ErrorCode.TOKEN_TOO_LONG)
        short = make_token(allocation_id=b"a short one.....", expires_at=int(self.scene.wall) + 99)
        self.assertEqual(self.scene.bind(Role.DEVICE, short).allocated.expires_at, int(self.scene.wall) + 50)

    def test_who_must_prove_and_what_is_announced(self) -> None:
        self.start(proving_roles=frozenset())
        self.reload(proving_roles=frozenset((Role.PEER,)), keepalive_interval=3.0)
        client = self.scene.connect()
        proving = HelloFeature.PEERS_PROVE | HelloFeature.DEVICES_PROVE
        self.assertEqual(client.hello.features & proving, HelloFeature.PEERS_PROVE)
        self.assertEqual(self.scene.bind(Role.DEVICE, prove=False).allocated.keepalive_interval, 3)
        client.allocate(Role.PEER, prove=False)
        self.assertEqual(client.close_code, ErrorCode.PROOF_REQUIRED)


class KeyTests(ReloadCase):
    """R1.2, R1.6: devices that are gone are gone at once, in every trust model."""

    def test_an_allocation_of_a_device_that_is_gone_ends_or_keeps_its_limits(self) -> None:
        for ends in (True, False):
            self.start(revoke_ends_sessions=ends)
            device, _ = self.scene.pair()
            ended = self.reload(DeviceKeys(), default_tier=Tier("", None, 10, None))
            self.assertEqual((ended, device.close_code is None), (int(ends), not ends))
            if not ends:
                self.assertIsNone(self.scene.allocation().quota)
            late = self.scene.connect()
            late.allocate(Role.PEER)
            self.assertEqual(late.close_code, ErrorCode.DEVICE_UNKNOWN)

    def test_when_self_certified_devices_are_no_longer_welcome_those_without_a_pin_go(self) -> None:
        self.start(self_certified_tier="free", tiers=BUILT_IN_TIERS, keys=DeviceKeys())
        for key in (DEVICE, STRANGER):
            self.scene.bind(Role.DEVICE, make_token(key=key) if key is DEVICE else self.strangers())
        self.assertEqual(self.reload(KEYS, self_certified_tier=None), 1)
        self.assertEqual([one.key[0] for one in self.scene.relay.table], [id_of(DEVICE)])

    def test_their_tier_can_change(self) -> None:
        self.start(self_certified_tier="free", tiers=BUILT_IN_TIERS, keys=DeviceKeys())
        self.scene.bind(Role.DEVICE)
        self.reload(DeviceKeys(), self_certified_tier="paid")
        self.assertEqual(self.scene.allocation().quota, BUILT_IN_TIERS["paid"].quota)
        self.assertTrue(self.scene.bind(Role.PEER).is_bound)

    @staticmethod
    def strangers() -> Any:
        return make_token(key=STRANGER, device_id=id_of(STRANGER))


class RateTests(SynchronousTestCase):
    """R6.1: rates change, and what a source has done so far counts on."""

    SOURCE = 5

    def taken(self, limiter: SourceLimiter, now: float) -> int:
        count = 0
        while count < 1000 and limiter.take(self.SOURCE, now):
            count += 1
        return count

    def test_a_higher_rate_gives_the_difference_and_no_more(self) -> None:
        limiter = SourceLimiter(Rate(10, 60))
        self.assertEqual(self.taken(limiter, 0.0), 10)
        limiter.set_rate(Rate(30, 60), 0.0)
        self.assertEqual(self.taken(limiter, 0.0), 20)
        self.assertEqual(self.taken(limiter, 2.0), 1)

    def test_a_lower_one_is_used_up_but_for_one_period(self) -> None:
        limiter = SourceLimiter(Rate(30, 60))
        self.taken(limiter, 0.0)
        limiter.set_rate(Rate(2, 10), 0.0)
        self.assertEqual(self.taken(limiter, 4.9), 0)
        self.assertEqual(self.taken(limiter, 5.1), 1)
        self.assertEqual(self.taken(limiter, 20.0), 2)

    def test_the_same_rate_changes_nothing(self) -> None:
        limiter = SourceLimiter(Rate(3, 60))
        self.taken(limiter, 0.0)
        limiter.set_rate(Rate(3, 60), 30.0)
        self.assertEqual(self.taken(limiter, 30.0), 1)

    def test_off_holds_nobody_and_from_off_everybody_begins_anew(self) -> None:
        limiter = SourceLimiter(Rate(3, 60))
        self.taken(limiter, 0.0)
        limiter.set_rate(None, 0.0)
        self.assertEqual((self.taken(limiter, 0.0), len(limiter)), (1000, 0))
        limiter.set_rate(Rate(4, 60), 0.0)
        self.assertEqual(self.taken(limiter, 0.0), 4)

    def test_who_has_nothing_outstanding_is_forgotten(self) -> None:
        limiter = SourceLimiter(Rate(3, 60))
        self.taken(limiter, 0.0)
        limiter.set_rate(Rate(5, 60), 100.0)
        self.assertEqual((len(limiter), self.taken(limiter, 100.0)), (0, 5))

    _rates = st.builds(Rate, st.integers(1, 20), st.integers(1, 100))

    @given(_rates, _rates, st.integers(0, 20), st.floats(0, 200), st.floats(0, 200))
    def test_whatever_changes_nobody_ever_gets_more_than_the_new_burst_or_waits_longer_than_its_period(
        self, before: Rate, after: Rate, taken: int, changed: float, later: float,
    ) -> None:
        limiter = SourceLimiter(before)
        for _ in range(taken):
            limiter.take(self.SOURCE, 0.0)
        limiter.set_rate(after, changed)
        self.assertLessEqual(limiter.wait(self.SOURCE, changed), after.seconds + 1e-3)
        self.assertLessEqual(self.taken(limiter, changed + later), after.events)

    def test_every_rate_of_the_settings_is_changed(self) -> None:
        address = numeric("192.0.2.1")
        rates = AdmissionSettings(Rate(1, 60), Rate(1, 60), Rate(1, 60), Rate(1, 60), 1000, 60.0)
        admission = Admission(AdmissionSettings(handshake_pressure=None), AccessLists(), now=0.0)
        admission.reconfigure(rates, 0.0)
        self.assertIs(admission.settings, rates)
        self.assertEqual([admission.answers_stun(address, 0.0) for _ in range(2)], [True, False])
        admission.validated(address, 0.0)
        admission.allocating(address, 0.0)
        admission.joining(address, 0.0)
        for refuse in (admission.validated, admission.allocating, admission.joining):
            with self.assertRaises(Refused):
                refuse(address, 0.0)
        patterns = [admission.abandoned(address, 0.0) for _ in range(6)]
        self.assertEqual(patterns, [False] * 5 + [True])
        admission.reconfigure(AdmissionSettings(handshake_pressure=0), 0.0)
        self.assertEqual(
            admission.decide(address, validated=False, open_handshakes=0, now=1.0, wall=1.0).verdict.value, "retry")


class ListTests(SynchronousTestCase):
    """R6.3: the configuration's networks are replaced, what run time added survives."""

    A, B, C = (Network.parse(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))
    WALL = 100.0

    def blocked(self, lists: AccessLists, text: str) -> bool:
        return lists.blocked_until(numeric(text), self.WALL) is not None

    def test_networks_come_and_go(self) -> None:
        lists = AccessLists(block=[self.A])
        before = lists.revision
        lists.configure([], [self.B])
        self.assertEqual([self.blocked(lists, each) for each in ("192.0.2.1", "198.51.100.1")], [False, True])
        self.assertGreater(lists.revision, before)
        self.assertEqual(len(lists), 1)

    def test_an_allowlist_closes_and_opens_the_relay(self) -> None:
        lists = AccessLists()
        lists.configure([self.A], [])
        self.assertEqual([self.blocked(lists, each) for each in ("192.0.2.1", "198.51.100.1")], [False, True])
        lists.configure([], [])
        self.assertEqual((self.blocked(lists, "198.51.100.1"), lists.is_empty), (False, True))

    def test_a_network_may_change_sides(self) -> None:
        lists = AccessLists(block=[self.A])
        lists.configure([self.A], [])
        self.assertFalse(self.blocked(lists, "192.0.2.1"))
        self.assertEqual(len(lists), 1)

    def test_what_run_time_added_survives(self) -> None:
        lists = AccessLists(block=[self.A])
        lists.add(Entry(self.B, Access.BLOCK), self.WALL)
        lists.configure([], [self.C])
        self.assertTrue(self.blocked(lists, "198.51.100.1"))
        self.assertEqual([entry.network for entry in lists.runtime_entries], [self.B])

    def test_for_the_same_network_the_configuration_has_the_last_word(self) -> None:
        lists = AccessLists()
        lists.add(Entry(self.B, Access.ALLOW, until=200.0), self.WALL)
        changes = lists.changes
        lists.configure([], [self.B])
        self.assertTrue(self.blocked(lists, "198.51.100.1"))
        self.assertEqual((lists.runtime_entries, len(lists), lists.changes > changes), ([], 1, True))
        self.assertEqual(lists.sweep(300.0), 0)
        self.assertTrue(self.blocked(lists, "198.51.100.1"))

    def test_the_same_lists_make_nobody_look_again(self) -> None:
        lists = AccessLists([self.A], [self.B])
        before = lists.revision
        lists.configure([self.A], [self.B])
        self.assertEqual(lists.revision, before)

    _networks = st.frozensets(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0"]))

    @given(_networks, _networks, _networks, _networks, _networks)
    def test_afterwards_it_is_as_if_it_had_been_so_from_the_beginning(
        self, allow: frozenset[str], block: frozenset[str], then_allow: frozenset[str], then_block: frozenset[str],
        added: frozenset[str],
    ) -> None:
        def parse(texts: frozenset[str]) -> list[Network]:
            return [Network.parse(text) for text in texts]

        lists = AccessLists(parse(allow - block), parse(block))
        fresh = AccessLists(parse(then_allow - then_block), parse(then_block))
        for text in added:
            entry = Entry(Network.parse(text), Access.BLOCK)
            lists.add(entry, self.WALL)
            if text not in block | allow:  # else it was refused then, and would not be now
                fresh.add(entry, self.WALL)
        lists.configure(parse(then_allow - then_block), parse(then_block))
        self.assertEqual(set(lists), set(fresh))
        for text in ("10.1.2.3", "10.1.3.3", "10.2.3.4", "192.0.2.1", "2001:db8::1", "2001:db9::1"):
            self.assertEqual(self.blocked(lists, text), self.blocked(fresh, text), text)


