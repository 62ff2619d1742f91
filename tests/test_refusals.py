"""Tokens and proofs at the relay's door: each wrong one has its own answer, changes nothing, and the right ones get in.

Tokens and proofs are made with ``cryptography`` and ``hashlib`` straight from PROTOCOL §3-4 (``tests.raw_quic``), not with the
code that checks them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import EPOCH, OPEN_TIER, RELAY_ID, TestClient, World
from tests.raw_quic import ScriptedClient
from zrc_relay.client import errors
from zrc_relay.client.connection import Identity
from zrc_relay.core import wire
from zrc_relay.core.authorisation import Authoriser, Challenge, Refused
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import Counters
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.relay import Policy
from zrc_relay.core.token import RelayToken

DEVICE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
STRANGER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
ALLOCATION_ID = b"an allocation id"
KEYS = {raw.DEVICE: DEVICE_KEY, raw.PEER: PEER_KEY}


def mint(key: Ed25519PrivateKey = DEVICE_KEY, **changes: Any) -> bytes:
    """A token that is right but for ``changes``."""
    fields: dict[str, Any] = {
        "relay_id": RELAY_ID, "allocation_id": ALLOCATION_ID, "peer_id": raw.identity(PEER_KEY), "expires_at": int(EPOCH) + 3600,
    }
    return raw.mint(key, **(fields | changes))


def world_of(*devices: Ed25519PrivateKey, policy: Policy | None = None) -> World:
    """A scene in which ``devices`` are pinned."""
    world = World(policy=policy)
    keys = DeviceKeys([Device(raw.public_bytes(key)) for key in devices or (DEVICE_KEY,)])
    world.relay.replace_keys(keys, world.now(), world.wall())
    return world


def scripted(world: World, token: bytes, role: int, key: Ed25519PrivateKey | None, **changes: Any) -> ScriptedClient:
    """A client that has sent ALLOCATE, and long enough ago to know the answer."""
    client = ScriptedClient(world)
    world.run(0.1)
    client.allocate(token, key, role, **changes)
    world.run(1)
    return client


class IndependentTests(SynchronousTestCase):
    """PROTOCOL §3-4, issue "must show": what another implementation of Ed25519 and SHA-256 makes is accepted."""

    def test_token_and_proofs_of_both_sides_are_accepted_and_data_flows(self) -> None:
        world = world_of()
        token = mint(bandwidth_limit=1_000_000, quota=5_000_000)
        device, peer = (scripted(world, token, role, KEYS[role]) for role in (raw.DEVICE, raw.PEER))
        for client in (device, peer):
            (allocated,) = client.values(raw.ALLOCATED)
            self.assertEqual(allocated[:16], ALLOCATION_ID)
            limits = [int.from_bytes(allocated[at : at + 8], "big") for at in (23, 31, 39)]
            self.assertEqual(limits, [int(EPOCH) + 3600, 1_000_000, 5_000_000])
        device.send_datagram(b"to the peer")
        peer.send_datagram(b"to the device")
        world.run(0.1)
        self.assertEqual((device.datagrams, peer.datagrams), ([b"to the device"], [b"to the peer"]))

    def test_hello_says_that_both_must_prove_and_that_there_are_channels(self) -> None:
        world = world_of()
        client = ScriptedClient(world)
        world.run(0.1)
        self.assertEqual(client.hello[0], 1)
        self.assertEqual(client.hello[49:], (0b111).to_bytes(4, "big"))

    def test_challenges_are_different_each_time(self) -> None:
        world = world_of()
        clients = [ScriptedClient(world) for _ in range(10)]
        world.run(0.2)
        self.assertEqual(len({client.challenge for client in clients}), 10)

    def test_a_proof_is_accepted_where_none_is_asked_for_and_then_wanted_for_ever(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, proving_roles=frozenset())
        world = world_of(policy=policy)
        token = mint()
        self.assertEqual(len(scripted(world, token, raw.PEER, None).values(raw.ALLOCATED)), 1)
        self.assertEqual(len(scripted(world, token, raw.DEVICE, DEVICE_KEY).values(raw.ALLOCATED)), 1)
        self.assertEqual(scripted(world, token, raw.DEVICE, None).close_code, ErrorCode.PROOF_REQUIRED)
        self.assertEqual(len(scripted(world, token, raw.PEER, None).values(raw.ALLOCATED)), 1)


class TwoDevicesTests(SynchronousTestCase):
    """PROTOCOL §3: an allocation is known by device and allocation id; another device's of the same id is another one."""

    def test_the_same_allocation_id_of_two_devices_is_two_allocations(self) -> None:
        world = world_of(DEVICE_KEY, STRANGER_KEY)
        first, second = mint(), mint(STRANGER_KEY)
        ends = [
            scripted(world, token, role, key)
            for token, device in ((first, DEVICE_KEY), (second, STRANGER_KEY))
            for role, key in ((raw.DEVICE, device), (raw.PEER, PEER_KEY))
        ]
        self.assertEqual(len(world.relay.table), 2)
        for number, end in enumerate(ends):
            end.send_datagram(b"%d" % number)
        world.run(0.1)
        self.assertEqual([end.datagrams for end in ends], [[b"1"], [b"0"], [b"3"], [b"2"]])
        ends[0].send_control(raw.capsule(raw.RELEASE))
        world.run(1)
        self.assertEqual([end.closed is None for end in ends], [False, False, True, True])

    def test_a_device_cannot_join_anothers_allocation_with_a_token_of_its_own(self) -> None:
        world = world_of(DEVICE_KEY, STRANGER_KEY)
        owner = scripted(world, mint(), raw.DEVICE, DEVICE_KEY)
        thief = scripted(world, mint(STRANGER_KEY), raw.PEER, PEER_KEY)
        thief.send_datagram(b"hello?")
        owner.send_datagram(b"anyone?")
        world.run(0.1)
        self.assertEqual((owner.datagrams, thief.datagrams), ([], []))


class Liar(TestClient):
    """A client of the library that changes its ALLOCATE before it is sent."""

    def __init__(self, world: World, lie: Callable[[Liar, wire.Allocate], wire.Allocate], role: Role = Role.DEVICE) -> None:
        identity = Identity(RelayToken.parse(mint()), role, None)
        super().__init__(world, identity, None, start=False)
        self._lie = lie
        self.start()

    def _allocate(self, hello: wire.Hello) -> None:
        if self.identity is None:
            return
        token = self.identity.token
        request = wire.Allocate(self.identity.role, token.allocation_id, token.peer_id, token.encode())
        self.hello = hello
        self.quic.send_stream_data(0, self._lie(self, request).encode())

    def proven(
        self, request: wire.Allocate, key: Ed25519PrivateKey | None = None, proof_role: int | None = None, **changes: Any
    ) -> wire.Allocate:
        """``request`` with a proof that is right for it but for ``changes``."""
        hello = cast(wire.Hello, self.hello)
        fields: dict[str, Any] = {
            "relay_id": hello.relay_id, "token": request.token, "challenge": hello.challenge,
            "certificate": vars(self.quic.tls)["_peer_certificate"].public_bytes(Encoding.DER),
        }
        key = key or KEYS[request.role]
        role = request.role if proof_role is None else proof_role
        proof = raw.prove(key, role=role, **(fields | changes))
        return replace(request, public_key=raw.public_bytes(key), proof=proof)


def with_token(token: bytes) -> Callable[[Liar, wire.Allocate], wire.Allocate]:
    """An ALLOCATE whose only mistake is its token."""
    return lambda liar, request: liar.proven(
        replace(request, token=token, allocation_id=token[16:32], peer_id=token[64:96])
    )


def flipped(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed."""
    return data[: bit // 8] + bytes((data[bit // 8] ^ 1 << bit % 8,)) + data[bit // 8 + 1 :]


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with an ALLOCATE, and the error a client of the library gets for it."""

    name: str
    error: type[errors.RelayError]
    lie: Callable[[Liar, wire.Allocate], wire.Allocate]
    role: Role = Role.DEVICE


MISTAKES = [
    Mistake("version", errors.VersionUnsupported, lambda liar, r: replace(liar.proven(r), version=2)),
    Mistake("zero peer id", errors.TokenMalformed, with_token(mint(peer_id=bytes(32)))),
    Mistake("zero device id", errors.TokenMalformed, with_token(mint()[:32] + bytes(32) + mint()[64:])),
    Mistake("unknown device", errors.DeviceUnknown, with_token(mint(STRANGER_KEY))),
    Mistake("signed by the peer", errors.TokenBadSignature, with_token(mint()[:116] + mint(PEER_KEY)[116:])),
    Mistake("no signature", errors.TokenBadSignature, with_token(mint()[:116] + bytes(64))),
    Mistake("a limit raised", errors.TokenBadSignature, with_token(flipped(mint(bandwidth_limit=1000), 8 * 107))),
    Mistake("just expired", errors.TokenExpired, with_token(mint(expires_at=int(EPOCH)))),
    Mistake("long expired", errors.TokenExpired, with_token(mint(expires_at=1))),
    Mistake("expires too late", errors.TokenTooLong, with_token(mint(expires_at=int(EPOCH) + 86400 + 60))),
    Mistake("never expires", errors.TokenTooLong, with_token(mint(expires_at=(1 << 64) - 1))),
    Mistake("another relay", errors.TokenWrongRelay, with_token(mint(relay_id=bytes(16)))),
    Mistake("another allocation", errors.TokenWrongAllocation, lambda liar, r: liar.proven(replace(r, allocation_id=bytes(16)))),
    Mistake("another peer", errors.TokenWrongPeer, lambda liar, r: liar.proven(replace(r, peer_id=bytes(32)))),
    Mistake("no proof of a device", errors.ProofRequired, lambda _, r: r),
    Mistake("no proof of a peer", errors.ProofRequired, lambda _, r: r, Role.PEER),
    Mistake("a stranger's key", errors.ProofInvalid, lambda liar, r: liar.proven(r, STRANGER_KEY)),
    Mistake("the device's key as peer", errors.ProofInvalid, lambda liar, r: liar.proven(r, DEVICE_KEY), Role.PEER),
    Mistake("the peer's key as device", errors.ProofInvalid, lambda liar, r: liar.proven(r, PEER_KEY)),
    Mistake("proof of the other role", errors.ProofInvalid, lambda liar, r: liar.proven(r, proof_role=raw.PEER)),
    Mistake("proof for another challenge", errors.ProofInvalid, lambda liar, r: liar.proven(r, challenge=bytes(32))),
    Mistake("proof for another certificate", errors.ProofInvalid, lambda liar, r: liar.proven(r, certificate=b"another")),
    Mistake("proof for another relay", errors.ProofInvalid, lambda liar, r: liar.proven(r, relay_id=bytes(16))),
    Mistake("proof for another token", errors.ProofInvalid, lambda liar, r: liar.proven(r, token=mint(quota=1))),
    Mistake("a proof of zeros", errors.ProofInvalid, lambda liar, r: replace(liar.proven(r), proof=bytes(64))),
]


class MistakeTests(SynchronousTestCase):
    """R1.5, R6.8: every mistake has its own code, a typed error at the client, is counted and reported, and creates nothing."""

    def test_each_mistake_is_answered_with_its_own_error_and_nothing_is_created(self) -> None:
        for mistake in MISTAKES:
            world = world_of()
            client = Liar(world, mistake.lie, mistake.role)
            world.run(1)
            self.assertIs(type(client.error), mistake.error, f"{mistake.name}: {client.error!r}")
            self.assertIsNone(client.allocated)
            self.assertEqual(len(world.relay.table), 0, mistake.name)
            self.assertEqual(world.relay.table.tombstones, 0)
            self.assertEqual(world.relay.counters.allocations_created, 0)
            refused = {code for code, count in world.relay.counters.refused.items() if count}
            self.assertEqual(refused, {mistake.error.code}, mistake.name)
            reported = [fields for name, fields in world.recorder.events if name == "session.refused"]
            self.assertEqual([fields["code"] for fields in reported], [mistake.error.code.name])
            self.check_no_secrets(reported)

    def check_no_secrets(self, reported: list[dict[str, object]]) -> None:
        # R6.7: nothing of the token's signature, of a proof or of a key is ever given to a log.
        text = repr(reported)
        for secret in (mint()[116:], raw.public_bytes(DEVICE_KEY), raw.public_bytes(PEER_KEY)):
            self.assertNotIn(secret.hex()[:16], text)
            self.assertNotIn(repr(secret)[2:18], text)

    def test_a_refused_one_does_not_disturb_the_allocation_it_asked_for(self) -> None:
        world = world_of()
        device, peer = (scripted(world, mint(), role, KEYS[role]) for role in (raw.DEVICE, raw.PEER))
        for mistake in MISTAKES:
            Liar(world, mistake.lie, mistake.role)
        world.run(1)
        device.send_datagram(b"x")
        world.run(0.1)
        self.assertEqual(peer.datagrams, [b"x"])
        self.assertEqual((device.notices()[1:], peer.notices()), ([], []))
        self.assertEqual(len(world.relay.table), 1)

    def test_a_proof_overheard_on_one_connection_is_worth_nothing_on_another(self) -> None:
        world = world_of()
        overheard: list[wire.Allocate] = []

        def remember(liar: Liar, request: wire.Allocate) -> wire.Allocate:
            overheard.append(liar.proven(request))
            return overheard[0]

        self.assertIsNotNone(self.result(world, remember).allocated)
        self.assertIsInstance(self.result(world, lambda _liar, _request: overheard[0]).error, errors.ProofInvalid)

    def result(self, world: World, lie: Callable[[Liar, wire.Allocate], wire.Allocate]) -> Liar:
        client = Liar(world, lie)
        world.run(1)
        return client

    def test_a_full_relay_and_too_many_connections_have_their_codes_and_say_when_to_come_again(self) -> None:
        policy = Policy(
            relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, max_allocations=1, max_connections_per_side=1
        )
        world = world_of(policy=policy)
        self.assertIsNotNone(self.result(world, lambda liar, request: liar.proven(request)).allocated)
        again = self.result(world, lambda liar, request: liar.proven(request))
        other = self.result(world, with_token(mint(allocation_id=bytes(16))))
        for client, expected in ((again, errors.TooManyConnections), (other, errors.CapacityExceeded)):
            error = client.error
            if not isinstance(error, expected):
                self.fail(f"{error!r} instead of {expected}")
            self.assertGreater(error.retry_after, 0)


class BitFlipTests(SynchronousTestCase):
    """R1.2, R6.8, issue "must show": flipping any single bit of token, public key or proof is refused."""

    def setUp(self) -> None:
        keys = DeviceKeys([Device(raw.public_bytes(DEVICE_KEY))])
        self.authoriser = Authoriser(
            relay_id=RELAY_ID, keys=keys, max_token_lifetime=86400, proving_roles=frozenset(Role), counters=Counters()
        )
        self.challenge = Challenge(RELAY_ID, hashlib.sha256(b"certificate").digest(), bytes(32))
        token = mint(bandwidth_limit=12345, quota=67890)
        # A proof of what is sent, so that only the flip can be what is wrong: made again for each changed token.
        self.request = self.proven(wire.Allocate(Role.DEVICE, token[16:32], token[64:96], token))

    def proven(self, request: wire.Allocate) -> wire.Allocate:
        proof = raw.prove(
            DEVICE_KEY, relay_id=RELAY_ID, certificate=b"certificate", token=request.token, challenge=bytes(32), role=raw.DEVICE
        )
        return replace(request, public_key=raw.public_bytes(DEVICE_KEY), proof=proof)

    def is_refused(self, request: wire.Allocate) -> bool:
        try:
            self.authoriser.allocate(request, self.challenge, EPOCH)
        except Refused:
            return True
        return False

    def test_the_request_is_granted_as_it_is(self) -> None:
        self.assertFalse(self.is_refused(self.request))

    def test_each_of_the_1440_bits_of_a_token(self) -> None:
        accepted = []
        for bit in range(1440):
            token = flipped(self.request.token, bit)
            request = self.proven(replace(self.request, token=token, allocation_id=token[16:32], peer_id=token[64:96]))
            if not self.is_refused(request):
                accepted.append(bit)
        self.assertEqual(accepted, [])

    def test_each_of_the_768_bits_of_public_key_and_proof(self) -> None:
        accepted = [
            bit
            for bit in range(256 + 512)
            if not self.is_refused(
                replace(self.request, public_key=flipped(self.request.public_key, bit))
                if bit < 256
                else replace(self.request, proof=flipped(self.request.proof, bit - 256))
            )
        ]
        self.assertEqual(accepted, [])

    def test_a_token_that_was_verified_before_opens_no_door_to_its_forgeries(self) -> None:
        self.assertFalse(self.is_refused(self.request))  # from here on it is in the cache of verified tokens
        forged = flipped(self.request.token, 8 * 110)  # a bit of the quota
        self.assertTrue(self.is_refused(self.proven(replace(self.request, token=forged))))

    def test_a_sample_of_bits_on_the_wire(self) -> None:
        world = world_of()
        token = mint()
        self.assertEqual(len(scripted(world, token, raw.DEVICE, DEVICE_KEY).values(raw.ALLOCATED)), 1)
        for bit in (*range(0, 1440, 97), 1439):
            client = scripted(world, flipped(token, bit), raw.DEVICE, DEVICE_KEY)
            self.assertIn(client.close_code, range(0x10, 0x1A), bit)
        for bit in (*range(0, 768, 97), 767):
            client = ScriptedClient(world)
            world.run(0.1)
            proof = flipped(client.proof(token, DEVICE_KEY, raw.DEVICE), bit)
            client.send_control(raw.Allocation(raw.DEVICE, token, proof).encode())
            world.run(1)
            self.assertEqual(client.close_code, ErrorCode.PROOF_INVALID, bit)
        self.assertEqual(world.relay.counters.allocations_joined, 1)
