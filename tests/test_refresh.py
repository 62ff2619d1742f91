"""REFRESH: which token replaces the one in force, who hears of it, and what a refused one leaves as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import DEVICE, EPOCH, PEER, STRANGER, FakeClient, Scene, id_of, make_token
from zrc_relay.core.codes import ErrorCode, NoticeCode
from zrc_relay.core.token import RelayToken
from zrc_relay.core.wire import Notice, Refreshed

EXPIRY = int(EPOCH) + 3600


@dataclass(frozen=True, slots=True)
class Fault:
    """One way for a REFRESH to be wrong: its ERROR code and a name of its own."""

    name: str
    code: ErrorCode


ORDER = (
    Fault("malformed", ErrorCode.TOKEN_MALFORMED), Fault("unknown", ErrorCode.DEVICE_UNKNOWN),
    Fault("signature", ErrorCode.TOKEN_BAD_SIGNATURE), Fault("expired", ErrorCode.TOKEN_EXPIRED),
    Fault("too long", ErrorCode.TOKEN_TOO_LONG), Fault("relay", ErrorCode.TOKEN_WRONG_RELAY),
    Fault("allocation", ErrorCode.TOKEN_WRONG_ALLOCATION), Fault("peer", ErrorCode.TOKEN_WRONG_PEER),
    Fault("older", ErrorCode.TOKEN_EXPIRED), Fault("quota", ErrorCode.QUOTA_EXCEEDED),
)
"""PROTOCOL §5: the order of a token's checks, then the rules of REFRESH."""


class RefreshTestCase(SynchronousTestCase):
    """A pair with 100 bytes exchanged under a token that is good for an hour."""

    def setUp(self) -> None:
        self.scene = Scene(devices=(DEVICE,), max_token_lifetime=10_000.0)
        self.device, self.peer = self.scene.pair(make_token(quota_bytes=1000))
        self.device.datagram(bytes(100))
        self.peer.forget()

    @property
    def in_force(self) -> tuple[RelayToken, int | None, int | None, float]:
        """The token in force and what follows from it."""
        allocation = self.scene.allocation()
        return allocation.token, allocation.bandwidth_limit, allocation.quota, allocation.expires_at


class AcceptedTests(RefreshTestCase):
    """A strictly later token replaces the one in force with its limits, and both sides hear it (R1.7, R2.5)."""

    def test_a_later_token_is_in_force_and_both_hear_it(self) -> None:
        token = make_token(quota_bytes=5000, bandwidth_limit=700, expires_at=EXPIRY + 1)
        self.device.refresh(token)
        self.assertEqual(self.in_force, (token, 700, 5000, EXPIRY + 1))
        told = [Refreshed(EXPIRY + 1, 700, 5000, 100)]
        self.assertEqual((self.device.link.capsules, self.peer.link.capsules), (told, told))
        self.assertEqual(self.scene.relay.counters.tokens_refreshed, 1)
        self.assertEqual(len(self.scene.observer.named("allocation.refreshed")), 1)

    def test_the_peer_may_refresh_too(self) -> None:
        self.peer.refresh(make_token(expires_at=EXPIRY + 1))
        self.assertEqual((len(self.device.refreshed), len(self.peer.refreshed)), (1, 1))

    def test_every_connection_of_both_sides_hears_it(self) -> None:
        second = self.scene.bind(self.peer.session.role, make_token(quota_bytes=1000))
        self.device.refresh(make_token(expires_at=EXPIRY + 1))
        self.assertEqual([len(client.refreshed) for client in (self.device, self.peer, second)], [1, 1, 1])

    def test_limits_of_zero_ask_for_the_tier_s_own(self) -> None:
        self.device.refresh(make_token(expires_at=EXPIRY + 1))
        self.assertEqual(self.device.refreshed, [Refreshed(EXPIRY + 1, 0, 0, 100)])

    def test_it_lives_as_long_as_the_new_token_and_no_longer(self) -> None:
        self.device.refresh(make_token(quota_bytes=1000, expires_at=EXPIRY + 60))
        self.scene.advance(3659.0)
        self.assertEqual(len(self.scene.relay.table), 1)
        self.scene.advance(1.0)
        self.assertEqual((len(self.scene.relay.table), self.device.close_code), (0, ErrorCode.EXPIRED))

    def test_allocation_timeout_begins_again(self) -> None:
        self.scene = Scene(allocation_timeout=100.0)
        device, _ = self.scene.pair()
        self.scene.advance(60.0)
        device.refresh(make_token(expires_at=EXPIRY + 1))
        self.assertEqual(device.refreshed[0].expires_at, int(EPOCH) + 160)
        self.scene.advance(99.0)
        self.assertEqual(len(self.scene.relay.table), 1)

    def test_traffic_goes_on_and_so_do_the_counters(self) -> None:
        self.device.refresh(make_token(expires_at=EXPIRY + 1))
        self.device.datagram(b"after")
        self.assertEqual(self.peer.link.datagrams, [b"after"])
        self.assertEqual(self.scene.allocation().bytes_transferred, 105)

    def test_a_new_bandwidth_holds_at_once_without_a_new_burst(self) -> None:
        self.device.refresh(make_token(bandwidth_limit=1000, expires_at=EXPIRY + 1))
        self.device.datagram(bytes(65_535))
        self.device.refresh(make_token(bandwidth_limit=2000, expires_at=EXPIRY + 2))
        self.device.datagram(b"x")
        self.assertEqual([len(payload) for payload in self.peer.link.datagrams], [65_535])

    def test_the_quota_may_go_down_to_what_was_used(self) -> None:
        self.device.refresh(make_token(quota_bytes=100, expires_at=EXPIRY + 1))
        self.assertEqual(self.device.errors, [])
        self.assertEqual(self.in_force[2], 100)

    def test_a_raised_quota_is_warned_of_again(self) -> None:
        warning = NoticeCode.QUOTA_WARNING
        self.device.datagram(bytes(800))
        self.device.refresh(make_token(quota_bytes=2000, expires_at=EXPIRY + 1))
        self.device.datagram(bytes(900))
        expected = [Notice(warning, 900, 1000), Notice(warning, 1800, 2000)]
        self.assertEqual((self.device.notices(warning), self.peer.notices(warning)), (expected, expected))


class NoOpTests(RefreshTestCase):
    """The identical token changes nothing and is answered to who asked (PROTOCOL §5)."""

    def test_only_the_asker_hears_it(self) -> None:
        self.peer.refresh(make_token(quota_bytes=1000))
        self.assertEqual(self.peer.link.capsules, [Refreshed(EXPIRY, 0, 1000, 100)])
        self.assertEqual(self.device.link.capsules, [])

    def test_nothing_is_prolonged_or_counted(self) -> None:
        self.scene = Scene(allocation_timeout=100.0)
        device, _ = self.scene.pair()
        self.scene.advance(60.0)
        device.refresh(make_token())
        self.assertEqual(device.refreshed[0].expires_at, int(EPOCH) + 100)
        self.assertEqual(self.scene.relay.counters.tokens_refreshed, 0)
        self.scene.advance(40.0)
        self.assertEqual(len(self.scene.relay.table), 0)


class RefusedTests(RefreshTestCase):
    """A refused REFRESH is an ERROR with its code; the session and the token in force stay (R1.4, R1.5, PROTOCOL §5)."""

    def wrong_token(self, faults: frozenset[str]) -> RelayToken:
        """A token with exactly those faults."""
        expires_at = EXPIRY + 60
        if "older" in faults:
            expires_at = EXPIRY - 60
        if "expired" in faults:
            expires_at = int(EPOCH)
        elif "too long" in faults:
            expires_at = int(EPOCH) + 10_001
        peer_id = id_of(STRANGER) if "peer" in faults else id_of(PEER)
        token = make_token(
            STRANGER if "unknown" in faults else DEVICE,
            expires_at=expires_at,
            relay_id=bytes(16) if "relay" in faults else bytes(range(16)),
            allocation_id=b"another one....." if "allocation" in faults else make_token().allocation_id,
            peer_id=bytes(32) if "malformed" in faults else peer_id,
            quota_bytes=99 if "quota" in faults else 0,
        )
        return replace(token, signature=bytes(64)) if "signature" in faults else token

    def refuse(self, token: RelayToken, code: ErrorCode, client: FakeClient | None = None) -> None:
        """The asker gets that ERROR, nobody else anything, and nothing changes."""
        client = client or self.scene.bind(self.device.session.role, make_token(quota_bytes=1000))
        self.device.forget()
        client.forget()
        before, refused = self.in_force, self.scene.relay.counters.refused[code]
        client.refresh(token)
        self.assertEqual(client.errors, [code])
        self.assertEqual((len(client.link.capsules), client.close_code), (1, None))
        self.assertEqual(self.peer.link.capsules, [])
        self.assertEqual(self.in_force, before)
        self.assertEqual(self.scene.relay.counters.refused[code], refused + 1)
        self.assertEqual(self.scene.observer.events[-1][1]["code"], code.name)
        if client is not self.device:
            client.lose()

    def test_each_way_to_be_wrong_has_its_code(self) -> None:
        for fault in ORDER:
            self.refuse(self.wrong_token(frozenset((fault.name,))), fault.code)
        self.assertEqual(self.scene.relay.counters.tokens_refreshed, 0)

    def test_of_several_ways_at_once_the_first_is_told(self) -> None:
        times = {"expired", "too long", "older"}
        count = 0
        for size in range(1, len(ORDER) + 1):
            for faults in combinations(ORDER, size):
                names = frozenset(fault.name for fault in faults)
                if len(names & times) <= 1:
                    count += 1
                    self.refuse(self.wrong_token(names), faults[0].code)
        self.assertEqual(count, 2**7 * 4 - 1)

    def test_the_same_expiry_with_other_limits_is_not_later(self) -> None:
        self.refuse(make_token(quota_bytes=5000), ErrorCode.TOKEN_EXPIRED, self.device)

    def test_another_device_s_token_with_the_same_id_is_for_another_allocation(self) -> None:
        self.scene = Scene(devices=(DEVICE, STRANGER))
        self.device, self.peer = self.scene.pair()
        self.refuse(make_token(STRANGER, expires_at=EXPIRY + 60), ErrorCode.TOKEN_WRONG_ALLOCATION, self.device)

    def test_a_quota_below_what_was_used_by_a_single_byte_is_refused(self) -> None:
        self.refuse(make_token(quota_bytes=99, expires_at=EXPIRY + 60), ErrorCode.QUOTA_EXCEEDED, self.device)

    def test_a_token_that_expired_meanwhile_is_refused_although_it_is_the_one_in_force(self) -> None:
        self.scene.wall += 3600
        self.refuse(make_token(quota_bytes=1000), ErrorCode.TOKEN_EXPIRED, self.device)

    def test_traffic_goes_on(self) -> None:
        self.device.refresh(make_token(STRANGER))
        self.device.datagram(b"x")
        self.assertEqual((self.device.errors, self.peer.link.datagrams), ([ErrorCode.DEVICE_UNKNOWN], [b"x"]))
