"""P1: no allocation without a verified signature (R1.1, R1.2, R1.6)."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, invariant, rule
from nacl.signing import SigningKey

from tests.fakes import DEVICE, PEER, STRANGER, FakeClient, Scene, id_of, make_token, public
from tests.properties.settings import Machine, PropertyTestCase
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.wire import Allocate, Refresh

SECOND: Final = SigningKey(b"2" * 32)
PINNED: Final = (DEVICE, SECOND)
"""Devices whose keys the relay may know; that of ``STRANGER`` it never does."""
SIGNED: Final = 116
FIELDS: Final = ((0, 16), (16, 32), (32, 64), (64, 96), (96, 104), (104, 108), (108, 116), (116, 148), (148, 180))
"""Where the fields of a token begin and end (PROTOCOL §3), both halves of the signature being one each."""
GROUP_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Of edwards25519: a signature's second half is a number below it (RFC 8032 §5.1.7)."""
NOT_A_TOKEN: Final = frozenset(
    code for code in ErrorCode if code is ErrorCode.DEVICE_UNKNOWN or code.name.startswith("TOKEN_")
)


def sign(key: SigningKey, claims: bytes) -> bytes:
    """``claims`` and their signature by ``key``, whoever they speak of."""
    return claims + key.sign(hashlib.sha256(claims).digest()).signature


class Forger(Machine):
    """Devices mint tokens; a forger who sees them all makes others, and presents everything in every way there is.

    ``signed`` holds all that a device has really signed. Whatever is in force must be in it, and by a device that is pinned now.
    """

    minted = Bundle("minted")
    forged = Bundle("forged")

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(devices=PINNED, proving_roles=frozenset(), max_connections_per_side=1000)
        self.pinned = set(PINNED)
        self.signed: dict[bytes, SigningKey] = {}
        self.checked: set[bytes] = set()
        self.clients: list[FakeClient] = []

    @initialize(target=minted)
    def first_token(self) -> bytes:
        """There is always something to forge, and somebody for whom a better token would be worth something."""
        token = self.mint(DEVICE, 0, 3600, 1000, 1000)
        self.a_good_token_is_taken(token, Role.DEVICE)
        return token

    def mint(self, device: SigningKey, number: int, life: int, bandwidth: int, quota: int) -> bytes:
        """A token as a device makes it."""
        token = make_token(
            device,
            allocation_id=bytes((number,)) * 16,
            expires_at=int(self.scene.wall) + life,
            bandwidth_limit=bandwidth,
            quota_bytes=quota,
        ).encode()
        self.signed[token] = device
        return token

    @rule(
        target=minted,
        device=st.sampled_from(PINNED),
        number=st.integers(0, 2),
        life=st.integers(1, 4000),
        bandwidth=st.integers(0, 2**32 - 1),
        quota=st.integers(0, 2**64 - 1),
    )
    def some_token(self, device: SigningKey, number: int, life: int, bandwidth: int, quota: int) -> bytes:
        """A device mints a token."""
        return self.mint(device, number, life, bandwidth, quota)

    # -- forgeries

    @rule(target=forged, token=minted, at=st.integers(0, 179), bits=st.integers(1, 255))
    def flip_bits(self, token: bytes, at: int, bits: int) -> bytes:
        """Change one byte."""
        return self.tried(token[:at] + bytes((token[at] ^ bits,)) + token[at + 1 :])

    @rule(target=forged, token=minted, mask=st.binary(min_size=180, max_size=180))
    def noise(self, token: bytes, mask: bytes) -> bytes:
        """Change many bytes."""
        return self.tried(bytes(a ^ b for a, b in zip(token, mask, strict=True)))

    @rule(target=forged, first=minted, second=minted, at=st.integers(1, 179))
    def splice(self, first: bytes, second: bytes, at: int) -> bytes:
        """The beginning of one token and the end of another."""
        return self.tried(first[:at] + second[at:])

    @rule(target=forged, first=minted, second=minted, field=st.sampled_from(FIELDS))
    def graft(self, first: bytes, second: bytes, field: tuple[int, int]) -> bytes:
        """One field of another token."""
        begin, end = field
        return self.tried(first[:begin] + second[begin:end] + first[end:])

    @rule(target=forged, token=minted, later=st.integers(0, 3000), limits=st.none() | st.binary(min_size=12, max_size=12))
    def better_terms(self, token: bytes, later: int, limits: bytes | None) -> bytes:
        """A later expiry, other limits, or both, under the old signature."""
        expires_at = int.from_bytes(token[96:104], "little") + later
        return self.tried(token[:96] + expires_at.to_bytes(8, "little") + (limits or token[104:SIGNED]) + token[SIGNED:])

    @rule(target=forged, token=minted, signer=st.sampled_from((STRANGER, PEER, SECOND)), bandwidth=st.integers(0, 2**32 - 1))
    def sign_for_another(self, token: bytes, signer: SigningKey, bandwidth: int) -> bytes:
        """Claims of one device under a signature of somebody else, which is right as such."""
        made = sign(signer, token[:104] + bandwidth.to_bytes(4, "little") + token[108:SIGNED])
        if id_of(signer) == token[32:64]:
            self.signed[made] = signer
        return self.tried(made)

    @rule(target=forged, token=minted)
    def own_device(self, token: bytes) -> bytes:
        """The allocation of another device, under a key of one's own that nobody has pinned."""
        return self.tried(sign(STRANGER, token[:32] + id_of(STRANGER) + token[64:SIGNED]))

    @rule(target=forged, token=minted)
    def other_scalar(self, token: bytes) -> bytes:
        """The same signature written in another way, which RFC 8032 §5.1.7 forbids."""
        scalar = int.from_bytes(token[148:], "little") + GROUP_ORDER
        return self.tried(token[:148] + scalar.to_bytes(32, "little"))

    @rule(target=forged, token=minted, signature=st.sampled_from((bytes(64), b"\1" + bytes(63), b"\xff" * 64)))
    def simple_signature(self, token: bytes, signature: bytes) -> bytes:
        """Signatures that sloppy verifiers take."""
        return self.tried(token[:SIGNED] + signature)

    @rule(target=forged, token=minted, device=st.sampled_from(PINNED))
    def other_message(self, token: bytes, device: SigningKey) -> bytes:
        """A signature that the device has made, of something else: of the claims themselves instead of their digest."""
        return self.tried(token[:SIGNED] + device.sign(token[:SIGNED]).signature)

    # -- what is done with them

    def tried(self, data: bytes) -> bytes:
        """``data``, after it was presented in every way; it is kept, and may be good for something later."""
        self.allocate(data)
        self.refresh_where_it_fits(data)
        return data

    @rule(data=st.one_of(minted, forged))
    def allocate(self, data: bytes) -> None:
        """Present it with ALLOCATE on two connections: having seen it once must not make it better."""
        for role in Role:
            client = self.scene.connect()
            self._present(data, client, Allocate(role, data[16:32], data[64:96], data).encode())
            if client.is_bound:
                self.clients.append(client)
            elif not self._is_good(data):
                self.case.assertIn(client.close_code, NOT_A_TOKEN)

    @rule(data=st.one_of(minted, forged), index=st.integers(0, 100))
    def refresh(self, data: bytes, index: int) -> None:
        """Present it with REFRESH, on a connection that is bound."""
        bound = [client for client in self.clients if client.is_bound]
        if bound:
            self._present(data, bound[index % len(bound)], Refresh(data).encode())

    @rule(data=st.one_of(minted, forged))
    def refresh_where_it_fits(self, data: bytes) -> None:
        """Present it with REFRESH to the allocation that it names, if somebody is bound to it."""
        for client in self.clients:
            allocation = client.session.allocation
            if client.is_bound and allocation is not None and allocation.key == (data[32:64], data[16:32]):
                self._present(data, client, Refresh(data).encode())
                return

    def _present(self, data: bytes, client: FakeClient, capsule: bytes) -> None:
        before = self._state()
        client.feed(capsule)
        if not self._is_good(data):
            self.case.assertTrue(self._state() == before, "a token that nobody has signed has changed something")

    def _is_good(self, data: bytes) -> bool:
        return self.signed.get(data) in self.pinned

    def _state(self) -> object:
        relay = self.scene.relay
        allocations = {
            one.key: (one.token, one.bandwidth_limit, one.quota, one.expires_at, one.state, len(list(one.members)))
            for one in relay.table
        }
        counters = relay.counters
        made = (counters.allocations_created, counters.allocations_joined, counters.tokens_refreshed)
        return allocations, relay.table.tombstones, made

    @rule(token=minted, role=st.sampled_from(Role))
    def a_good_token_is_taken(self, token: bytes, role: Role) -> None:
        """Otherwise refusing everything would do."""
        expires_at = int.from_bytes(token[96:104], "little")
        client = self.scene.connect()
        client.feed(Allocate(role, token[16:32], token[64:96], token).encode())
        if self._is_good(token) and expires_at > self.scene.wall:
            self.case.assertTrue(client.is_bound, client.link.closes)
            self.clients.append(client)
        else:
            self.case.assertFalse(client.is_bound)

    @rule(pinned=st.sets(st.sampled_from(PINNED)))
    def other_keys(self, pinned: set[SigningKey]) -> None:
        """The operator changes the key file; tokens that were verified under a key that is gone are good no longer."""
        self.pinned = pinned
        keys = DeviceKeys([Device(public(key)) for key in pinned])
        self.scene.relay.replace_keys(keys, self.scene.now, self.scene.wall)

    @rule(seconds=st.sampled_from((0.25, 1.0, 30.0, 1000.0)))
    def time_passes(self, seconds: float) -> None:
        """Tokens expire, allocations end."""
        self.scene.advance(seconds)

    @rule(index=st.integers(0, 100))
    def release(self, index: int) -> None:
        """An allocation ends and leaves its memory."""
        bound = [client for client in self.clients if client.is_bound]
        if bound:
            bound[index % len(bound)].release()

    @invariant()
    def everything_in_force_was_signed(self) -> None:
        """By a device that is pinned, as an implementation that is not ours sees it."""
        for allocation in self.scene.relay.table:
            data = allocation.token.encode()
            self.case.assertTrue(self._is_good(data), "a token is in force that no pinned device has signed")
            self.case.assertEqual(allocation.key, (data[32:64], data[16:32]))
            if data not in self.checked:
                self.checked.add(data)
                key = Ed25519PublicKey.from_public_bytes(public(self.signed[data]))
                try:
                    key.verify(data[SIGNED:], hashlib.sha256(data[:SIGNED]).digest())
                except InvalidSignature as error:
                    msg = "a token is in force whose signature is wrong"
                    raise AssertionError(msg) from error


class VerifiedTests(PropertyTestCase):
    """P1: whatever a forger makes of tokens that were really minted, it creates, joins and changes nothing (R1.1-R1.6)."""

    def test_nothing_is_in_force_that_no_pinned_device_has_signed(self) -> None:
        self.run_machine(Forger, steps=30)
