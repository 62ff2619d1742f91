"""ALLOCATE from one source, again and again."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import STRANGER, FakeClient, Scene, make_token
from zrc_relay.core.admission import AdmissionSettings
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import Limit
from zrc_relay.core.sources import Rate
from zrc_relay.core.wire import Address

LIMITS = AdmissionSettings(allocation_rate=Rate(10, 60), rejoin_rate=Rate(20, 60))


class SourceRateTests(SynchronousTestCase):
    """R6.1: allocation requests 10/min a source, failures and creations count; joins and rejoins have a larger budget."""

    def setUp(self) -> None:
        self.scene = Scene(limits=LIMITS, max_connections_per_side=100)

    def attempt(self, number: int, role: Role = Role.DEVICE, *, host: str = "", prove: bool = True) -> FakeClient:
        """A connection that asks for an allocation of its own number."""
        client = self.scene.connect()
        if host:
            client.link.remote = Address(host, 4000)
        client.allocate(role, make_token(allocation_id=number.to_bytes(16, "big")), prove=prove)
        return client

    def check_limited(self, client: FakeClient, limit: Limit, retry_after: int) -> None:
        ((code, reason),) = client.link.closes
        self.assertEqual(code, ErrorCode.RATE_LIMITED)
        self.assertTrue(reason.startswith(f"retry_after={retry_after};"), reason)
        self.assertEqual(self.scene.relay.counters.limited[limit], 1)
        (event,) = self.scene.observer.named(f"security.{limit.value}")
        self.assertEqual(
            (event["code"], event["connection"], event["remote"], event["validated"]),
            ("RATE_LIMITED", client.link.name, str(client.link.remote), True),
        )

    def test_the_eleventh_allocation_is_refused_and_leaves_nothing(self) -> None:
        self.assertTrue(all(self.attempt(number).is_bound for number in range(10)))
        refused = self.attempt(10)
        self.check_limited(refused, Limit.ALLOCATION_RATE, 6)
        self.assertEqual(self.scene.observer.named("session.refused"), [], "one event for one refusal")
        self.assertEqual((len(self.scene.relay.table), self.scene.relay.table.tombstones), (10, 0))
        self.scene.advance(6)
        self.assertTrue(self.attempt(10).is_bound)

    def test_other_sources_are_not_concerned(self) -> None:
        for number in range(11):
            self.attempt(number)
        self.assertTrue(self.attempt(11, host="203.0.113.5").is_bound)

    def test_failures_count(self) -> None:
        for _ in range(10):
            client = self.attempt(1, prove=False)
            self.assertEqual(client.close_code, ErrorCode.PROOF_REQUIRED)
        self.check_limited(self.attempt(1), Limit.ALLOCATION_RATE, 6)

    def test_a_failure_beyond_the_rate_is_told_by_its_own_code(self) -> None:
        # PROTOCOL §5: the token is checked first, then come capacity and rates.
        for _ in range(30):
            self.assertEqual(self.attempt(1, prove=False).close_code, ErrorCode.PROOF_REQUIRED)

    def test_a_full_relay_comes_before_the_rate(self) -> None:
        self.scene = Scene(limits=LIMITS, max_allocations=1)
        self.attempt(0)
        self.assertEqual({self.attempt(1).close_code for _ in range(20)}, {ErrorCode.CAPACITY})

    def test_joins_do_not_count_against_allocations(self) -> None:
        for number in range(10):
            self.assertTrue(self.attempt(number).is_bound)
        for number in range(10):
            self.assertTrue(self.attempt(number, Role.PEER).is_bound)
        self.assertTrue(all(self.attempt(number).is_bound for number in range(10)))
        self.check_limited(self.attempt(0), Limit.REJOIN_RATE, 3)

    def test_a_join_that_is_refused_changes_nothing(self) -> None:
        first = self.attempt(0)
        for _ in range(20):
            self.attempt(0)
        before = list(first.link.capsules)
        refused = self.scene.connect()
        newer = make_token(allocation_id=bytes(16), expires_at=int(self.scene.wall) + 9000, quota_bytes=77)
        refused.allocate(Role.DEVICE, newer)
        self.assertEqual(refused.close_code, ErrorCode.RATE_LIMITED)
        self.assertEqual(first.link.capsules, before)
        self.assertEqual(len(self.scene.allocation(bytes(16)).sides[Role.DEVICE].members), 21)

    def test_a_draining_relay_counts_nothing(self) -> None:
        self.scene.relay.drain(self.scene.wall + 30)
        for _ in range(50):
            self.assertEqual(self.attempt(1).close_code, ErrorCode.DRAINING)
        self.scene.relay.draining = False
        self.assertTrue(self.attempt(1).is_bound)

    def test_peers_whose_device_is_awaited_are_limited_like_those_that_join(self) -> None:
        self.scene = Scene(limits=LIMITS, self_certified_tier="free")
        codes = []
        for _ in range(21):
            client = self.scene.connect()
            client.allocate(Role.PEER, make_token(STRANGER))
            codes.append(client.close_code)
        self.assertEqual(codes, [ErrorCode.DEVICE_UNKNOWN] * 20 + [ErrorCode.RATE_LIMITED])
        self.assertTrue(self.attempt(1).is_bound, "it has made no mistake")

    def test_control_output_that_is_not_read_ends_with_one_event(self) -> None:
        client = self.attempt(0)
        client.link.stalled = True
        client.link.control_backlog = 40_000
        self.scene.relay.drain(self.scene.wall + 30)
        self.scene.settle()
        self.assertEqual(client.close_code, ErrorCode.RATE_LIMITED)
        self.assertEqual([event["code"] for event in self.scene.observer.named("session.refused")], ["RATE_LIMITED"])
        self.assertEqual(self.scene.relay.counters.refused[ErrorCode.RATE_LIMITED], 1)
