"""The relay as such: which notices come how often, its caps, its draining, and what logs may hold."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import (
    ALLOCATION_ID,
    CERTIFICATE,
    DEVICE,
    EPOCH,
    OPEN_TIER,
    PEER,
    STRANGER,
    FakeClient,
    Scene,
    make_token,
    public,
)
from zrc_relay.core.codes import DropCause, ErrorCode, NoticeCode, Role, TerminationReason
from zrc_relay.core.relay import Policy
from zrc_relay.core.tiers import Tier
from zrc_relay.core.wire import Notice

EXPIRY = int(EPOCH) + 3600
BURST = 65_535


class DropNoticeTests(SynchronousTestCase):
    """Who sends what is dropped hears the cause and the count, at most once a second for each cause (R4.5, PROTOCOL §5)."""

    def setUp(self) -> None:
        self.scene = Scene()
        self.device, self.peer = self.scene.pair(make_token(bandwidth_limit=1))

    def told(self, client: FakeClient) -> list[tuple[int, int, int]]:
        """The notices so far, which are then forgotten."""
        notices = [(notice.code, notice.first, notice.second) for notice in client.notices()]
        client.forget()
        return notices

    def test_the_first_drop_is_told_at_once_and_the_rest_a_second_later(self) -> None:
        self.peer.lose()
        self.device.forget()
        for _ in range(7):
            self.device.datagram(b"x")
        self.assertEqual(self.told(self.device), [(NoticeCode.DROPPED, DropCause.NO_COUNTERPART, 1)])
        self.scene.advance(0.99)
        self.assertEqual(self.told(self.device), [])
        self.scene.advance(0.01)
        self.assertEqual(self.told(self.device), [(NoticeCode.DROPPED, DropCause.NO_COUNTERPART, 6)])
        self.scene.advance(5.0)
        self.assertEqual(self.told(self.device), [])

    def test_a_steady_loss_is_told_once_a_second_with_the_right_counts(self) -> None:
        self.peer.lose()
        self.device.forget()
        counts = []
        for tick in range(40):
            self.device.datagram(b"x")
            self.scene.advance(0.125)
            for code, cause, count in self.told(self.device):
                self.assertEqual((code, cause), (NoticeCode.DROPPED, DropCause.NO_COUNTERPART))
                counts.append((tick, count))
        self.assertEqual(counts, [(0, 1), (7, 7), (15, 8), (23, 8), (31, 8), (39, 8)])

    def test_each_cause_is_told_for_itself(self) -> None:
        self.device.datagram(bytes(BURST))
        self.assertEqual(len(self.peer.link.datagrams), 1)
        self.device.datagram(bytes(10))
        self.peer.session.drop_egress(DropCause.EGRESS_QUEUE, 10, self.scene.now)
        self.peer.session.drop_egress(DropCause.OVERSIZE, 10, self.scene.now)
        causes = [first for code, first, _ in self.told(self.device) if code == NoticeCode.DROPPED]
        self.assertEqual(causes, [DropCause.BANDWIDTH, DropCause.EGRESS_QUEUE, DropCause.OVERSIZE])
        self.assertEqual(self.told(self.peer), [])

    def test_each_cause_is_counted_for_itself(self) -> None:
        for _ in range(3):
            self.peer.session.drop_egress(DropCause.EGRESS_QUEUE, 10, self.scene.now)
        for _ in range(6):
            self.peer.session.drop_egress(DropCause.OVERSIZE, 10, self.scene.now)
        self.device.forget()
        self.scene.advance(1.0)
        dropped = NoticeCode.DROPPED
        self.assertEqual(self.told(self.device), [(dropped, DropCause.EGRESS_QUEUE, 2), (dropped, DropCause.OVERSIZE, 5)])

    def test_the_bandwidth_cap_is_told_with_the_limit(self) -> None:
        self.device.datagram(bytes(BURST))
        for _ in range(3):
            self.device.datagram(bytes(10))
        once = [(NoticeCode.RATE_LIMITED, 1, 1), (NoticeCode.DROPPED, DropCause.BANDWIDTH, 1)]
        self.assertEqual(self.told(self.device), once)
        self.scene.advance(1.0)
        again = [(NoticeCode.RATE_LIMITED, 1, 2), (NoticeCode.DROPPED, DropCause.BANDWIDTH, 2)]
        self.assertEqual(self.told(self.device), again)

    def test_the_global_cap_has_its_own_cause(self) -> None:
        self.scene = Scene(global_bandwidth_limit=10)
        self.device, self.peer = self.scene.pair()
        other, _ = self.scene.pair(make_token(allocation_id=bytes(16)))
        self.device.datagram(bytes(BURST))
        other.datagram(b"x")
        self.assertEqual(self.told(other), [(NoticeCode.DROPPED, DropCause.GLOBAL_BANDWIDTH, 1)])
        self.assertEqual(self.told(self.device), [])

    def test_every_drop_is_counted_whether_told_or_not(self) -> None:
        self.peer.lose()
        for _ in range(7):
            self.device.datagram(b"xy")
        counters = self.scene.relay.counters
        self.assertEqual(counters.dropped_packets[DropCause.NO_COUNTERPART], 7)
        self.assertEqual(counters.dropped_bytes[DropCause.NO_COUNTERPART], 14)

    def test_a_second_after_the_last_notice_a_drop_is_told_at_once(self) -> None:
        self.peer.lose()
        self.device.datagram(b"x")
        self.scene.now += 1.0
        self.device.forget()
        self.device.datagram(b"x")
        self.assertEqual(self.told(self.device), [(NoticeCode.DROPPED, DropCause.NO_COUNTERPART, 1)])

    def test_nothing_is_told_after_the_end(self) -> None:
        self.peer.lose()
        for _ in range(2):
            self.device.datagram(b"x")
        self.scene.relay.end(self.scene.allocation(), TerminationReason.IDLE, self.scene.now, self.scene.wall)
        self.scene.advance(1.0)
        self.assertEqual(len(self.device.notices(NoticeCode.DROPPED)), 1)
        self.assertEqual(self.scene.relay.reporting, set())

    def test_what_is_still_to_be_told_goes_with_the_session(self) -> None:
        self.peer.lose()
        for _ in range(2):
            self.device.datagram(b"x")
        self.assertEqual(self.scene.relay.reporting, {self.device.session})
        self.device.lose()
        self.assertEqual(self.scene.relay.reporting, set())
        self.scene.advance(2.0)
        self.assertEqual(len(self.device.notices(NoticeCode.DROPPED)), 1)

    def test_nobody_is_kept_once_everything_was_told(self) -> None:
        self.peer.lose()
        for _ in range(2):
            self.device.datagram(b"x")
        self.scene.advance(1.0)
        self.assertEqual(self.scene.relay.reporting, set())


class BandwidthTests(SynchronousTestCase):
    """The caps of policy and tier hold on the way through the relay (R4.1, R4.3, R4.7)."""

    def test_the_tier_s_cap_holds_whatever_the_token_asks(self) -> None:
        scene = Scene(default_tier=Tier("", 1000, None, None))
        device, peer = scene.pair(make_token(bandwidth_limit=10**9))
        device.datagram(bytes(BURST))
        device.datagram(b"x")
        self.assertEqual(len(peer.link.datagrams), 1)
        scene.advance(0.5)
        device.datagram(bytes(500))
        device.datagram(b"x")
        self.assertEqual([len(data) for data in peer.link.datagrams], [BURST, 500])

    def test_the_burst_is_the_policy_s_share_of_the_limit(self) -> None:
        for seconds, burst in ((0.5, 500_000), (0.0, BURST)):
            scene = Scene(default_tier=Tier("", 1_000_000, None, None), bandwidth_burst=seconds)
            device, peer = scene.pair()
            for _ in range(600):
                device.datagram(bytes(1000))
            self.assertEqual(sum(map(len, peer.link.datagrams)), burst // 1000 * 1000)

    def test_one_global_cap_holds_for_all_together(self) -> None:
        scene = Scene(global_bandwidth_limit=1_000_000, bandwidth_burst=0.1)
        pairs = [scene.pair(make_token(allocation_id=b"%16d" % number)) for number in range(4)]
        for _ in range(30):
            for device, _ in pairs:
                device.datagram(bytes(1000))
        self.assertEqual(sum(len(data) for _, peer in pairs for data in peer.link.datagrams), 100_000)


class SecrecyTests(SynchronousTestCase):
    """Payload, whole tokens, proofs and keys are never in what is observed (R6.7, R3.2)."""

    def test_no_event_holds_a_secret(self) -> None:
        scene = Scene(default_tier=OPEN_TIER)
        token = make_token(quota_bytes=1000)
        device, peer = scene.pair(token)
        device.datagram(b"a payload of twenty-nine bytes")
        device.refresh(make_token(STRANGER))
        device.refresh(make_token(quota_bytes=2000, expires_at=EXPIRY + 60))
        refused = scene.connect()
        refused.allocate(Role.PEER, token, proof=bytes(range(64)))
        scene.connect().feed(b"\x01\x02garbage")
        peer.lose()
        device.release()
        names = {name for name, _ in scene.observer.events}
        self.assertEqual(names, {
            "allocation.created", "session.bound", "allocation.refreshed", "session.refused", "session.lost", "allocation.ended",
        })
        text = repr(scene.observer.events)
        secrets = [
            b"a payload of twenty-nine bytes", token.encode(), token.signature, bytes(range(64)), device.nonce, refused.nonce,
            CERTIFICATE, *(form(key) for key in (DEVICE, PEER) for form in (bytes, public)),
            device.prove(DEVICE, token.encode(), Role.DEVICE),
        ]
        for secret in secrets:
            encoded = (secret.hex(), base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode())
            for form in (*encoded, repr(secret)[2:-1]):
                self.assertNotIn(form[:40], text)
        self.assertIn(ALLOCATION_ID.hex(), text)


class IsolationTests(SynchronousTestCase):
    """What one allocation's clients do wrong changes nothing in another (R5.6, P6)."""

    @given(st.lists(st.sampled_from(("garbage", "flood", "release", "lose", "twice", "over", "fin", "drop")), max_size=12))
    def test_whatever_others_do_traffic_goes_on(self, steps: list[str]) -> None:
        scene = Scene()
        device, peer = scene.pair()
        for number, step in enumerate(steps):
            other, _ = scene.pair(make_token(allocation_id=b"%16d" % number, quota_bytes=100))
            match step:
                case "garbage":
                    other.feed(bytes(range(1, 200)))
                case "flood":
                    other.feed(b"\x3f\x00" * 60)
                case "release":
                    other.release()
                case "lose":
                    other.lose()
                case "twice":
                    other.allocate(Role.DEVICE)
                case "over":
                    other.datagram(bytes(101))
                case "fin":
                    other.session.control_ended(scene.now, scene.wall)
                case _:
                    other.session.drop_egress(DropCause.OVERSIZE, 5000, scene.now)
            scene.settle()
            device.datagram(b"%d" % number)
        self.assertEqual(peer.link.datagrams, [b"%d" % number for number in range(len(steps))])
        self.assertEqual((device.link.capsules, peer.link.capsules, device.close_code, peer.close_code), ([], [], None, None))


class PolicyTests(SynchronousTestCase):
    """What a relay does when nothing else is said (R8)."""

    def test_the_defaults_are_those_of_the_settings(self) -> None:
        policy = Policy(relay_id=bytes(16), instance_id=bytes(8), default_tier=OPEN_TIER)
        self.assertEqual((policy.max_allocations, policy.max_connections_per_side), (1000, 4))
        self.assertEqual((policy.allocation_timeout, policy.max_token_lifetime), (8 * 3600, 24 * 3600))
        self.assertEqual((policy.wait_timeout, policy.idle_timeout, policy.keepalive_interval), (60, 30, 15))
        self.assertEqual((policy.bandwidth_burst, policy.global_bandwidth_limit), (0.1, None))
        self.assertEqual(policy.proving_roles, {Role.DEVICE, Role.PEER})


class DrainTests(SynchronousTestCase):
    """A relay that is about to stop takes nobody new and says so (R9.4, PROTOCOL §5)."""

    def test_allocate_is_refused(self) -> None:
        scene = Scene()
        scene.bind(Role.DEVICE)
        scene.relay.drain(scene.wall + 30)
        for token in (make_token(), make_token(allocation_id=bytes(16))):
            client = scene.connect()
            client.allocate(Role.PEER, token)
            self.assertIs(client.close_code, ErrorCode.DRAINING)
        self.assertEqual(len(scene.relay.table), 1)

    def test_everyone_who_is_bound_gets_the_notice(self) -> None:
        scene = Scene()
        clients = [*scene.pair(), *scene.pair(make_token(allocation_id=bytes(16)))]
        unbound = scene.connect()
        self.assertFalse(scene.relay.draining)
        scene.relay.drain(scene.wall + 30.7)
        self.assertTrue(scene.relay.draining)
        for client in clients:
            self.assertEqual(client.notices(), [Notice(NoticeCode.DRAINING, int(EPOCH) + 30)])
        self.assertEqual(unbound.notices(), [])

    def test_traffic_goes_on(self) -> None:
        scene = Scene()
        device, peer = scene.pair()
        scene.relay.drain(scene.wall + 30)
        device.datagram(b"x")
        device.refresh(make_token(expires_at=EXPIRY + 60))
        self.assertEqual((peer.link.datagrams, len(peer.refreshed)), ([b"x"], 1))
