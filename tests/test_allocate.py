"""ALLOCATE: what it is refused for and in which order, what it answers, and who joins what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import (
    ALLOCATION_ID,
    DEVICE,
    EPOCH,
    PEER,
    RELAY_ADDRESS,
    STRANGER,
    FakeClient,
    Scene,
    id_of,
    make_token,
    public,
)
from zrc_relay.core.allocation import State
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.tiers import Tier
from zrc_relay.core.wire import Address, Allocate, Allocated

EXPIRY = int(EPOCH) + 3600
OTHER_DEVICE = SigningKey(b"o" * 32)
ORDER = (
    ErrorCode.VERSION, ErrorCode.TOKEN_MALFORMED, ErrorCode.DEVICE_UNKNOWN, ErrorCode.TOKEN_BAD_SIGNATURE,
    ErrorCode.TOKEN_EXPIRED, ErrorCode.TOKEN_TOO_LONG, ErrorCode.TOKEN_WRONG_RELAY, ErrorCode.TOKEN_WRONG_ALLOCATION,
    ErrorCode.TOKEN_WRONG_PEER, ErrorCode.PROOF_REQUIRED, ErrorCode.PROOF_INVALID, ErrorCode.CAPACITY,
)
"""PROTOCOL §5: a token is checked in this order, and the first failure names the code."""
EXCLUSIVE = ({ErrorCode.TOKEN_EXPIRED, ErrorCode.TOKEN_TOO_LONG}, {ErrorCode.PROOF_REQUIRED, ErrorCode.PROOF_INVALID})
"""What one request cannot be at once."""


def fault_sets() -> Iterator[frozenset[ErrorCode]]:
    """Every way to be wrong, alone and together with every other."""
    for size in range(1, len(ORDER) + 1):
        for faults in map(frozenset, combinations(ORDER, size)):
            if not any(pair <= faults for pair in EXCLUSIVE):
                yield faults


def wrong_request(client: FakeClient, role: Role, faults: frozenset[ErrorCode]) -> Allocate:
    """An ALLOCATE with exactly those faults (but for CAPACITY, which is the relay's)."""
    signer = STRANGER if ErrorCode.DEVICE_UNKNOWN in faults else DEVICE
    expires_at = EXPIRY
    if ErrorCode.TOKEN_EXPIRED in faults:
        expires_at = int(EPOCH)
    elif ErrorCode.TOKEN_TOO_LONG in faults:
        expires_at = int(EPOCH) + 86_401
    token = make_token(
        signer,
        expires_at=expires_at,
        peer_id=bytes(32) if ErrorCode.TOKEN_MALFORMED in faults else id_of(PEER),
        relay_id=b"another relay..." if ErrorCode.TOKEN_WRONG_RELAY in faults else bytes(range(16)),
    )
    if ErrorCode.TOKEN_BAD_SIGNATURE in faults:
        token = replace(token, signature=bytes(64))
    key = signer if role is Role.DEVICE else PEER
    request = Allocate(
        role,
        b"another one....." if ErrorCode.TOKEN_WRONG_ALLOCATION in faults else token.allocation_id,
        b"another peer................" * 2 if ErrorCode.TOKEN_WRONG_PEER in faults else token.peer_id,
        token.encode(),
        version=2 if ErrorCode.VERSION in faults else 1,
    )
    request = replace(request, peer_id=request.peer_id[:32])
    if ErrorCode.PROOF_REQUIRED in faults:
        return request
    prover = OTHER_DEVICE if ErrorCode.PROOF_INVALID in faults else key
    return replace(request, public_key=public(key), proof=client.prove(prover, request.token, role))


class OrderTests(SynchronousTestCase):
    """The first failure names the code, and a refused request creates nothing (R1.1, R1.5, P1, PROTOCOL §5)."""

    def setUp(self) -> None:
        self.roomy = Scene()
        self.full = Scene(devices=(DEVICE, OTHER_DEVICE), max_allocations=1)
        token = make_token(OTHER_DEVICE)
        self.full.bind(Role.PEER, token)

    def state_of(self, scene: Scene) -> tuple[object, ...]:
        """Everything that a refused request must not change."""
        relay, counters = scene.relay, scene.relay.counters
        return (
            len(relay.table), relay.table.tombstones, relay.table.load, counters.allocations_created, counters.allocations_joined,
            counters.tokens_refreshed, dict(counters.allocations_ended), [list(one.members) for one in relay.table],
        )

    def refuse(self, role: Role, faults: frozenset[ErrorCode]) -> None:
        """A request with those faults is closed with the first one's code and leaves nothing."""
        scene = self.full if ErrorCode.CAPACITY in faults else self.roomy
        client = scene.connect()
        before, refused = self.state_of(scene), dict(scene.relay.counters.refused)
        client.feed(wrong_request(client, role, faults).encode())
        expected = next(code for code in ORDER if code in faults)
        self.assertEqual(client.close_code, expected, faults)
        self.assertEqual(client.link.capsules, [], faults)
        self.assertEqual(self.state_of(scene), before, faults)
        self.assertEqual(scene.relay.counters.refused, {**refused, expected: refused[expected] + 1}, faults)
        self.assertEqual(scene.observer.events[-1][0], "session.refused")
        self.assertEqual(scene.observer.events[-1][1]["code"], expected.name)

    def test_each_way_to_be_wrong_has_its_own_code(self) -> None:
        for role in Role:
            for code in ORDER:
                self.refuse(role, frozenset((code,)))

    def test_of_several_ways_to_be_wrong_at_once_the_first_is_told(self) -> None:
        sets = list(fault_sets())
        self.assertEqual(len(sets), 2**8 * 3 * 3 - 1)
        for number, faults in enumerate(sets):
            self.refuse(Role(number % 2), faults)

    def test_without_a_fault_it_is_granted(self) -> None:
        for role in Role:
            client = self.roomy.connect()
            client.feed(wrong_request(client, role, frozenset()).encode())
            self.assertTrue(client.is_bound)

    def test_a_refusal_s_reason_is_for_people(self) -> None:
        client = self.full.connect()
        client.allocate(Role.DEVICE)
        ((_, reason),) = client.link.closes
        self.assertRegex(reason, r"\Aretry_after=[0-9]+;[a-z]")


class AnswerTests(SynchronousTestCase):
    """ALLOCATED carries the relay's address, the expiry and the effective limits (R2.2, R2.3, R4.7)."""

    def test_it_says_everything(self) -> None:
        scene = Scene(keepalive_interval=15.0, idle_timeout=30.0)
        client = scene.bind(Role.DEVICE, make_token(bandwidth_limit=1000, quota_bytes=5000))
        self.assertEqual(client.link.capsules, [Allocated(
            allocation_id=ALLOCATION_ID, relay_addr=RELAY_ADDRESS, expires_at=EXPIRY, bandwidth_limit=1000, quota_bytes=5000,
            bytes_transferred=0, observed_addr=client.link.remote, keepalive_interval=15, idle_timeout=30, peer_present=False,
            peer_max_payload=0,
        )])

    def test_zero_means_no_limit(self) -> None:
        answer = Scene().bind(Role.DEVICE).allocated
        self.assertEqual((answer.bandwidth_limit, answer.quota_bytes), (0, 0))

    def test_the_limits_are_those_of_the_device_s_tier(self) -> None:
        keys = DeviceKeys([Device(public(DEVICE), "small"), Device(public(STRANGER))])
        scene = Scene(keys=keys, tiers={"small": Tier("small", 1000, 5000, 1)}, default_tier=Tier("", 7000, 8000, 2))
        asked: dict[str, Any] = {"bandwidth_limit": 2000, "quota_bytes": 6000}
        small, default = scene.bind(Role.DEVICE, make_token(**asked)), scene.bind(Role.PEER, make_token(STRANGER, **asked))
        self.assertEqual((small.allocated.bandwidth_limit, small.allocated.quota_bytes), (1000, 5000))
        self.assertEqual((default.allocated.bandwidth_limit, default.allocated.quota_bytes), (2000, 6000))

    def test_a_device_holds_as_many_as_its_tier_allows(self) -> None:
        scene = Scene(default_tier=Tier("", None, None, 1))
        scene.bind(Role.DEVICE)
        scene.bind(Role.PEER)
        refused = scene.connect()
        refused.allocate(Role.DEVICE, make_token(allocation_id=bytes(16)))
        self.assertIs(refused.close_code, ErrorCode.CAPACITY)

    def test_the_end_is_the_earlier_of_token_and_allocation_timeout(self) -> None:
        self.assertEqual(Scene(allocation_timeout=100.0).bind(Role.DEVICE).allocated.expires_at, int(EPOCH) + 100)
        self.assertEqual(Scene(allocation_timeout=9999.0).bind(Role.DEVICE).allocated.expires_at, EXPIRY)

    def test_it_announces_what_is_configured_else_the_address_that_was_reached(self) -> None:
        for announced, expected in (
            (Address(), Address("192.0.2.1", 4433)),
            (Address("203.0.113.5", 0), Address("203.0.113.5", 4433)),
            (Address("", 443), Address("192.0.2.1", 443)),
            (Address("2001:db8::5", 443), Address("2001:db8::5", 443)),
        ):
            self.assertEqual(Scene(relay_addr=announced).bind(Role.DEVICE).allocated.relay_addr, expected)

    def test_the_second_side_hears_that_the_first_is_there_and_what_fits_towards_it(self) -> None:
        scene = Scene()
        scene.bind(Role.PEER)
        answer = scene.bind(Role.DEVICE).allocated
        self.assertEqual((answer.peer_present, answer.peer_max_payload), (True, 1200))

    def test_what_fits_is_said_in_sixteen_bits(self) -> None:
        scene = Scene()
        device = scene.bind(Role.DEVICE)
        device.link.max_payload = 100_000
        self.assertEqual(scene.bind(Role.PEER).allocated.peer_max_payload, 65_535)

    def test_it_is_counted_and_told(self) -> None:
        scene = Scene()
        scene.pair()
        scene.bind(Role.PEER)
        self.assertEqual((scene.relay.counters.allocations_created, scene.relay.counters.allocations_joined), (1, 3))
        self.assertEqual(len(scene.observer.named("allocation.created")), 1)
        self.assertEqual([fields["role"] for fields in scene.observer.named("session.bound")], ["device", "peer", "peer"])


class JoinTests(SynchronousTestCase):
    """Who joins a live allocation, and with which token (R1.4, R2.5, R1.7, PROTOCOL §3, §5)."""

    def setUp(self) -> None:
        self.scene = Scene(devices=(DEVICE, STRANGER))

    def refused(self, role: Role, token_changes: dict[str, Any]) -> ErrorCode | None:
        """The code that a join is refused with."""
        client = self.scene.connect()
        client.allocate(role, make_token(**token_changes))
        return client.close_code

    def test_either_side_may_be_first(self) -> None:
        for first, second in ((Role.DEVICE, Role.PEER), (Role.PEER, Role.DEVICE)):
            self.scene = Scene()
            self.scene.bind(first)
            self.scene.bind(second)
            self.assertIs(self.scene.allocation().state, State.ACTIVE)

    def test_the_same_id_of_another_device_is_another_allocation(self) -> None:
        device, peer = self.scene.pair()
        other = self.scene.bind(Role.PEER, make_token(STRANGER))
        self.assertEqual(len(self.scene.relay.table), 2)
        other.datagram(b"x")
        self.assertEqual((device.link.datagrams, peer.link.datagrams), ([], []))

    def test_a_token_for_another_peer_does_not_join(self) -> None:
        self.scene.pair()
        self.assertIs(self.refused(Role.DEVICE, {"peer_id": id_of(STRANGER)}), ErrorCode.TOKEN_WRONG_PEER)
        later = {"peer_id": id_of(STRANGER), "expires_at": EXPIRY + 60}
        self.assertIs(self.refused(Role.DEVICE, later), ErrorCode.TOKEN_WRONG_PEER)
        self.assertEqual(self.scene.allocation().token, make_token())

    def test_an_older_token_joins_and_changes_nothing(self) -> None:
        device = self.scene.bind(Role.DEVICE, make_token(quota_bytes=9000))
        device.forget()
        older = make_token(quota_bytes=10, bandwidth_limit=10, expires_at=EXPIRY - 60)
        answer = self.scene.bind(Role.PEER, older).allocated
        self.assertEqual((answer.quota_bytes, answer.bandwidth_limit, answer.expires_at), (9000, 0, EXPIRY))
        self.assertEqual(device.refreshed, [])
        self.assertEqual(self.scene.allocation().token, make_token(quota_bytes=9000))

    def test_of_two_tokens_with_one_expiry_the_first_stays_in_force(self) -> None:
        self.scene.bind(Role.DEVICE, make_token(quota_bytes=9000))
        self.assertEqual(self.scene.bind(Role.PEER, make_token(quota_bytes=20_000)).allocated.quota_bytes, 9000)

    def test_a_later_token_is_put_in_force_and_the_others_hear_of_it(self) -> None:
        device = self.scene.bind(Role.DEVICE, make_token(quota_bytes=9000))
        device.forget()
        peer = self.scene.bind(Role.PEER, make_token(quota_bytes=20_000, expires_at=EXPIRY + 60))
        self.assertEqual((peer.allocated.quota_bytes, peer.allocated.expires_at), (20_000, EXPIRY + 60))
        self.assertEqual(peer.refreshed, [])
        (refreshed,) = device.refreshed
        self.assertEqual((refreshed.quota_bytes, refreshed.expires_at), (20_000, EXPIRY + 60))
        self.scene.advance(1.0)
        self.assertEqual(self.scene.allocation().expires_at, EXPIRY + 60)

    def test_a_later_token_that_allows_less_than_was_used_does_not_join(self) -> None:
        device, _ = self.scene.pair()
        device.datagram(bytes(100))
        code = self.refused(Role.PEER, {"expires_at": EXPIRY + 60, "quota_bytes": 99})
        self.assertIs(code, ErrorCode.QUOTA_EXCEEDED)
        self.assertEqual((self.scene.allocation().token, self.scene.allocation().quota), (make_token(), None))
        self.assertEqual((device.refreshed, device.notices()), ([], []))

    def test_every_join_counts_as_an_accepted_token(self) -> None:
        self.scene = Scene(allocation_timeout=100.0)
        self.scene.bind(Role.DEVICE)
        self.scene.advance(40.0)
        self.scene.bind(Role.PEER)
        self.scene.advance(99.0)
        self.assertEqual(len(self.scene.relay.table), 1)
        self.scene.advance(1.0)
        self.assertEqual(len(self.scene.relay.table), 0)

    def test_the_count_goes_on_when_it_is_made_again(self) -> None:
        device, peer = self.scene.pair()
        device.datagram(bytes(100))
        peer.release()
        self.assertEqual(self.scene.bind(Role.DEVICE).allocated.bytes_transferred, 100)

    def test_what_stays_ended_is_closed_with_its_code(self) -> None:
        self.scene.pair()
        self.scene.relay.end(self.scene.allocation(), TerminationReason.ADMINISTRATOR, self.scene.now, self.scene.wall)
        self.assertIs(self.refused(Role.DEVICE, {}), ErrorCode.TERMINATED)
        self.assertIs(self.refused(Role.PEER, {"expires_at": EXPIRY + 60}), ErrorCode.TERMINATED)
        self.assertEqual(len(self.scene.relay.table), 0)
