"""What is decided about a source before there is a connection, and afterwards; all without packets."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core import admission as admission_module
from zrc_relay.core.admission import (
    ADMIT,
    PATTERN,
    PRESSURE_HOLD,
    REFUSALS,
    REFUSE_RATE,
    RETRY_AMPLIFICATION,
    RETRY_PRESSURE,
    RETRY_RATE,
    SILENT_BLOCKED,
    SILENT_RATE,
    Admission,
    AdmissionSettings,
    Decision,
)
from zrc_relay.core.authorisation import Refused
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.counters import Limit
from zrc_relay.core.sources import MAX_SOURCES, Rate, numeric

START = 1000.0
WALL = 1_800_000_000.0
SETTINGS = AdmissionSettings(Rate(30, 60), Rate(10, 60), Rate(100, 60), Rate(60, 60))
VICTIM = "192.0.2.1"
OTHER = "192.0.2.2"


class AdmissionTestCase(SynchronousTestCase):
    """Helpers."""

    def setUp(self) -> None:
        self.now = START
        self.lists = AccessLists()
        self.admission = Admission(SETTINGS, self.lists, now=START)

    def decide(self, host: str = VICTIM, *, validated: bool = False, open_handshakes: int = 0) -> Decision:
        """One attempt."""
        return self.admission.decide(
            numeric(host), validated=validated, open_handshakes=open_handshakes, now=self.now, wall=WALL
        )

    def refusal(self, call: object, *arguments: object) -> Refused:
        """What a call is refused with."""
        error: Refused = self.assertRaises(Refused, call, *arguments)
        return error

    def tables(self) -> dict[str, int]:
        """The tables that hold something."""
        return {name: size for name, size in self.admission.tables if size}


class ConnectionRateTests(AdmissionTestCase):
    """R6.2: connection attempts 30/min; unvalidated sources over it get a Retry, validated ones a refusal."""

    def test_a_validated_source_has_its_rate_and_is_refused_beyond_it(self) -> None:
        decisions = [self.decide(validated=True) for _ in range(31)]
        self.assertEqual(decisions, [ADMIT] * 30 + [REFUSE_RATE])
        self.now += 2
        self.assertEqual([self.decide(validated=True) for _ in range(2)], [ADMIT, REFUSE_RATE])

    def test_refusals_have_a_rate_of_their_own_and_then_there_is_silence(self) -> None:
        decisions = [self.decide(validated=True) for _ in range(30 + REFUSALS.events + 5)]
        self.assertEqual(decisions[30:], [REFUSE_RATE] * REFUSALS.events + [SILENT_RATE] * 5)

    def test_refusals_have_a_rate_for_all_sources_together(self) -> None:
        decisions = []
        for number in range(150):
            host = f"198.51.100.{number}"
            for _ in range(30):
                self.decide(host, validated=True)
            decisions.append(self.decide(host, validated=True))
        self.assertEqual(decisions, [REFUSE_RATE] * 100 + [SILENT_RATE] * 50)

    def test_an_unvalidated_attempt_of_a_source_over_its_rate_gets_a_retry(self) -> None:
        for _ in range(30):
            self.decide(validated=True)
        self.assertEqual(self.decide(), RETRY_RATE)
        self.assertEqual(self.decide(OTHER), ADMIT)

    def test_unvalidated_attempts_get_a_retry_beyond_the_rate_too(self) -> None:
        self.assertEqual([self.decide() for _ in range(40)], [ADMIT] * 30 + [RETRY_RATE] * 10)

    def test_a_handshake_without_a_token_counts_when_it_is_complete(self) -> None:
        for _ in range(30):
            self.admission.validated(numeric(VICTIM), self.now)
        refusal = self.refusal(self.admission.validated, numeric(VICTIM), self.now)
        self.assertEqual((refusal.code, refusal.limit, refusal.retry_after), (ErrorCode.RATE_LIMITED, Limit.CONNECTION_RATE, 2))
        self.assertEqual(self.decide(validated=True), REFUSE_RATE)

    def test_neighbours_in_a_64_share_a_rate(self) -> None:
        decisions = [self.decide(f"2001:db8::{number:x}", validated=True) for number in range(31)]
        self.assertEqual(decisions[-1], REFUSE_RATE)
        self.assertEqual(self.decide("2001:db8:0:1::1", validated=True), ADMIT)

    def test_off_lets_everybody_in(self) -> None:
        self.admission = Admission(AdmissionSettings(), self.lists, now=START)
        self.assertEqual({self.decide(validated=validated) for validated in (True, False) for _ in range(1000)}, {ADMIT})
        self.admission.validated(numeric(VICTIM), self.now)
        self.assertEqual(self.tables(), {})


class SpoofedSourceTests(AdmissionTestCase):
    """R6.2: a spoofed source must not spend its victim's budget, nor get it blocked."""

    def test_whatever_is_spoofed_a_valid_token_is_admitted(self) -> None:
        for _ in range(10_000):
            self.assertIn(self.decide(), (ADMIT, RETRY_RATE))
        for _ in range(1000):
            self.admission.abandoned(numeric(VICTIM), self.now)
        self.assertEqual([self.decide(validated=True) for _ in range(31)], [ADMIT] * 30 + [REFUSE_RATE])

    def test_an_honest_client_without_a_token_gets_no_worse_than_a_retry(self) -> None:
        for _ in range(1000):
            self.decide()
            self.admission.abandoned(numeric(VICTIM), self.now)
        self.assertEqual(self.decide(), RETRY_AMPLIFICATION)
        self.assertEqual(self.decide(validated=True), ADMIT)

    def test_under_pressure_a_valid_token_is_admitted(self) -> None:
        self.assertEqual(self.decide(open_handshakes=1023), RETRY_PRESSURE)
        self.assertEqual(self.decide(validated=True, open_handshakes=1023), ADMIT)

    def test_what_is_answered_by_a_retry_under_pressure_leaves_nothing(self) -> None:
        for number in range(5000):
            self.decide(f"127.{number >> 8}.{number & 255}.1", open_handshakes=64)
        self.assertEqual(self.tables(), {})


class PressureTests(AdmissionTestCase):
    """R6.1, issue "per-source limits": with handshake_pressure open handshakes everybody is asked for a Retry."""

    def test_it_begins_when_so_many_are_open(self) -> None:
        self.assertEqual([self.decide(open_handshakes=count) for count in (0, 63, 64, 65)], [ADMIT, ADMIT] + [RETRY_PRESSURE] * 2)

    def test_it_ends_a_second_after_its_reason(self) -> None:
        self.decide(open_handshakes=64)
        self.now += PRESSURE_HOLD - 0.01
        self.assertEqual(self.decide(OTHER), RETRY_PRESSURE)
        self.now += 0.02
        self.assertEqual(self.decide(OTHER), ADMIT)

    def test_it_lasts_as_long_as_a_flood_does_although_no_handshake_is_open(self) -> None:
        self.decide(open_handshakes=64)
        decisions = set()
        for number in range(20_000):
            decisions.add(self.decide(f"198.51.{number >> 8}.{number & 255}"))
            self.now += 1 / 1000
        self.assertEqual(decisions, {RETRY_PRESSURE})
        self.now += PRESSURE_HOLD
        self.assertEqual(self.decide(), ADMIT)

    def test_many_attempts_alone_are_no_pressure(self) -> None:
        decisions = set()
        for number in range(5000):
            decisions.add(self.decide(f"198.51.{number >> 8}.{number & 255}"))
            self.now += 1 / 1000
        self.assertEqual(decisions, {ADMIT})

    def test_zero_asks_always(self) -> None:
        self.admission = Admission(replace(SETTINGS, handshake_pressure=0), self.lists, now=START)
        self.assertEqual(self.decide(), RETRY_PRESSURE)


class AmplificationTests(AdmissionTestCase):
    """R6.4: a source that leaves handshakes unfinished, as a victim of reflection does, is forced through Retry for a while."""

    def abandon(self, times: int, host: str = VICTIM) -> list[bool]:
        return [self.admission.abandoned(numeric(host), self.now) for _ in range(times)]

    def test_a_few_are_no_pattern(self) -> None:
        self.assertEqual(self.abandon(PATTERN), [False] * PATTERN)
        self.assertEqual(self.decide(), ADMIT)

    def test_more_are_and_it_is_told_once(self) -> None:
        self.assertEqual(self.abandon(PATTERN + 5), [False] * PATTERN + [True] + [False] * 4)
        self.assertEqual((self.decide(), self.decide(OTHER)), (RETRY_AMPLIFICATION, ADMIT))

    def test_it_lasts_for_amplification_block(self) -> None:
        self.abandon(PATTERN + 1)
        self.now += 599
        self.assertEqual(self.decide(), RETRY_AMPLIFICATION)
        self.now += 1.1
        self.assertEqual(self.decide(), ADMIT)

    def test_slow_ones_are_no_pattern(self) -> None:
        for _ in range(50):
            self.assertEqual(self.abandon(1), [False])
            self.now += 600 / PATTERN


class ListTests(AdmissionTestCase):
    """R6.3: who is blocked gets silence before a connection is made, and BLOCKED afterwards."""

    def setUp(self) -> None:
        super().setUp()
        self.network = Network.parse("192.0.2.0/24")

    def test_silence_whatever_else_there_is(self) -> None:
        self.lists.add(Entry(self.network, Access.BLOCK, WALL + 60), WALL)
        decisions = {
            self.decide(validated=validated, open_handshakes=count) for validated in (True, False) for count in (0, 1000)
        }
        self.assertEqual(decisions, {SILENT_BLOCKED})
        self.assertEqual(self.tables(), {})
        self.assertFalse(self.admission.serves(numeric(VICTIM), WALL))

    def test_afterwards_the_code_says_when_to_come_again(self) -> None:
        self.admission.check_access(numeric(VICTIM), WALL)
        self.lists.add(Entry(self.network, Access.BLOCK, WALL + 59.5), WALL)
        refusal = self.refusal(self.admission.check_access, numeric(VICTIM), WALL)
        self.assertEqual((refusal.code, refusal.limit, refusal.retry_after), (ErrorCode.BLOCKED, Limit.BLOCKED, 60))
        self.admission.check_access(numeric(VICTIM), WALL + 59.5)

    def test_a_block_without_an_end_names_no_time(self) -> None:
        self.lists.add(Entry(self.network, Access.BLOCK), WALL)
        refusal = self.refusal(self.admission.check_access, numeric(VICTIM), WALL)
        self.assertEqual((refusal.retry_after, refusal.reason), (0, "this address is not served here"))

    def test_a_long_block_does_not_ask_for_more_than_a_day(self) -> None:
        self.lists.add(Entry(self.network, Access.BLOCK, WALL + 1e7), WALL)
        self.assertEqual(self.refusal(self.admission.check_access, numeric(VICTIM), WALL).retry_after, 86_400)


class AllocationRateTests(AdmissionTestCase):
    """R6.1: allocation requests 10/min, failures and creations count; joins have a larger budget of their own."""

    def test_creations_and_failures_share_a_budget(self) -> None:
        address = numeric(VICTIM)
        for _ in range(5):
            self.admission.allocating(address, self.now)
            self.admission.failed(address, self.now)
        refusal = self.refusal(self.admission.allocating, address, self.now)
        self.assertEqual((refusal.code, refusal.limit, refusal.retry_after), (ErrorCode.RATE_LIMITED, Limit.ALLOCATION_RATE, 6))
        self.assertIn("retry_after=6;", refusal.reason)
        self.admission.allocating(address, self.now + 6)

    def test_failures_beyond_the_budget_do_not_make_the_wait_longer(self) -> None:
        for _ in range(1000):
            self.admission.failed(numeric(VICTIM), self.now)
        self.assertEqual(self.refusal(self.admission.allocating, numeric(VICTIM), self.now).retry_after, 6)

    def test_joins_have_a_budget_of_their_own(self) -> None:
        address = numeric(VICTIM)
        for _ in range(10):
            self.admission.failed(address, self.now)
        for _ in range(100):
            self.admission.joining(address, self.now)
        refusal = self.refusal(self.admission.joining, address, self.now)
        self.assertEqual((refusal.code, refusal.limit, refusal.retry_after), (ErrorCode.RATE_LIMITED, Limit.REJOIN_RATE, 1))

    def test_others_are_not_concerned(self) -> None:
        for _ in range(20):
            self.admission.failed(numeric(VICTIM), self.now)
        self.admission.allocating(numeric(OTHER), self.now)


class StunRateTests(AdmissionTestCase):
    """PROTOCOL §8: STUN is rate limited per source."""

    def test_each_source_has_its_rate(self) -> None:
        answered = [self.admission.answers_stun(numeric(VICTIM), self.now) for _ in range(61)]
        self.assertEqual(answered, [True] * 60 + [False])
        self.assertTrue(self.admission.answers_stun(numeric(OTHER), self.now))
        self.assertTrue(self.admission.answers_stun(numeric(VICTIM), self.now + 1))

    def test_it_spends_nothing_else(self) -> None:
        for _ in range(100):
            self.admission.answers_stun(numeric(VICTIM), self.now)
        self.assertEqual((self.decide(), self.decide(validated=True)), (ADMIT, ADMIT))


class BoundTests(AdmissionTestCase):
    """R6.9: every table is bounded, whoever fills it."""

    def test_all_tables_together_under_a_flood_of_sources(self) -> None:
        for number in range(MAX_SOURCES + 500):
            address = (32, number)
            self.admission.decide(address, validated=bool(number & 1), open_handshakes=0, now=self.now, wall=WALL)
            self.admission.failed(address, self.now)
            self.admission.joining(address, self.now)
            self.admission.answers_stun(address, self.now)
            self.admission.abandoned(address, self.now)
        self.assertEqual(set(dict(self.admission.tables)), set(admission_module.TABLES))
        self.assertLessEqual(max(dict(self.admission.tables).values()), MAX_SOURCES)
        self.assertEqual(dict(self.admission.tables)["stun"], MAX_SOURCES)
