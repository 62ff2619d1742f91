"""Who may use which token: each check has its code, and the cache never decides more than it knows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import CERTIFICATE, DEVICE, EPOCH, PEER, RELAY_ID, STRANGER, id_of, make_token, public, refusal_of
from zrc_relay.core import authorisation
from zrc_relay.core.authorisation import TOKEN_CACHE_SIZE, Authoriser, Challenge, Grant, Refused
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import Counters
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.token import RelayToken, proof_digest
from zrc_relay.core.wire import Allocate

CHALLENGE = Challenge(RELAY_ID, CERTIFICATE, b"n" * 32)
LIFETIME = 86_400.0


def keys_of(*keys: SigningKey) -> DeviceKeys:
    """The pinned keys of so many devices."""
    return DeviceKeys([Device(public(key)) for key in keys])


def proof_by(key: SigningKey, token: bytes, role: Role, /, **changes: Any) -> bytes:
    """A proof for ``CHALLENGE``, over other inputs where ``changes`` say so."""
    inputs: dict[str, Any] = {
        "relay_id": RELAY_ID, "certificate_sha256": CERTIFICATE, "token": token, "challenge": CHALLENGE.nonce, "role": role,
    }
    return bytes(key.sign(proof_digest(**inputs | changes)).signature)


def request_of(role: Role, token: RelayToken, prover: SigningKey | None = None, **changes: Any) -> Allocate:
    """An ALLOCATE, proven by ``prover``."""
    request = Allocate(role, token.allocation_id, token.peer_id, token.encode())
    if prover is not None:
        request = replace(request, public_key=public(prover), proof=proof_by(prover, request.token, role))
    return replace(request, **changes)


class AuthoriserTestCase(SynchronousTestCase):
    """An authoriser that knows one device."""

    def setUp(self) -> None:
        self.counters = Counters()
        self.authoriser = self.make()

    def make(self, proving: Collection[Role] = tuple(Role), devices: tuple[SigningKey, ...] = (DEVICE,)) -> Authoriser:
        """An authoriser for those pinned devices."""
        return Authoriser(
            relay_id=RELAY_ID, keys=keys_of(*devices), max_token_lifetime=LIFETIME, proving_roles=proving, counters=self.counters,
        )

    def grant(self, request: Allocate, wall: float = EPOCH) -> Grant:
        """The answer to a good request."""
        return self.authoriser.allocate(request, CHALLENGE, wall)

    def refusal(self, request: Allocate, wall: float = EPOCH) -> ErrorCode:
        """The code of a refused request."""
        return refusal_of(lambda: self.authoriser.allocate(request, CHALLENGE, wall)).code

    def token_code(self, data: bytes, wall: float = EPOCH) -> ErrorCode | None:
        """The code a token is refused with; None for a good one."""
        try:
            self.authoriser.token(data, wall)
        except Refused as refusal:
            return refusal.code
        return None

    @property
    def cache(self) -> tuple[int, int]:
        """Hits and misses since the last look."""
        counts = (self.counters.token_cache_hits, self.counters.token_cache_misses)
        self.counters.token_cache_hits = self.counters.token_cache_misses = 0
        return counts


class TokenTests(AuthoriserTestCase):
    """Signature, expiry, lifetime and relay, each refused with its own code (R1.2 to R1.5)."""

    def test_a_good_token_is_granted_to_its_device(self) -> None:
        token = make_token()
        self.assertEqual(self.grant(request_of(Role.DEVICE, token, DEVICE)), Grant(token, Device(public(DEVICE)), proven=True))

    def test_each_way_to_be_wrong_has_its_code(self) -> None:
        good = make_token()
        wrong = {
            ErrorCode.TOKEN_MALFORMED: replace(good, peer_id=bytes(32)),
            ErrorCode.DEVICE_UNKNOWN: make_token(STRANGER),
            ErrorCode.TOKEN_BAD_SIGNATURE: replace(good, signature=make_token(quota_bytes=1).signature),
            ErrorCode.TOKEN_EXPIRED: make_token(expires_at=int(EPOCH)),
            ErrorCode.TOKEN_TOO_LONG: make_token(expires_at=int(EPOCH) + 86_401),
            ErrorCode.TOKEN_WRONG_RELAY: make_token(relay_id=bytes(16)),
        }
        for code, token in wrong.items():
            self.assertEqual(self.token_code(token.encode()), code)
            self.assertEqual(self.refusal(request_of(Role.DEVICE, token, DEVICE)), code)

    def test_a_token_of_another_length_is_malformed(self) -> None:
        for data in (b"", make_token().encode()[:-1], make_token().encode() + b"x"):
            self.assertIs(self.token_code(data), ErrorCode.TOKEN_MALFORMED)

    def test_it_is_good_until_the_second_before_its_expiry(self) -> None:
        data = make_token(expires_at=int(EPOCH) + 10).encode()
        self.assertEqual([self.token_code(data, EPOCH + after) for after in (9.999, 10.0)], [None, ErrorCode.TOKEN_EXPIRED])

    def test_it_may_live_exactly_as_long_as_the_relay_allows(self) -> None:
        longest = int(EPOCH) + 86_400
        self.assertIsNone(self.token_code(make_token(expires_at=longest).encode()))
        self.assertIs(self.token_code(make_token(expires_at=longest + 1).encode()), ErrorCode.TOKEN_TOO_LONG)
        self.assertIs(self.token_code(make_token(expires_at=2**64 - 1).encode()), ErrorCode.TOKEN_TOO_LONG)

    def test_a_token_for_another_allocation_or_peer_than_the_request_is_refused(self) -> None:
        token = make_token()
        other = request_of(Role.DEVICE, token, DEVICE, allocation_id=bytes(16))
        self.assertIs(self.refusal(other), ErrorCode.TOKEN_WRONG_ALLOCATION)
        for role, key in ((Role.DEVICE, DEVICE), (Role.PEER, PEER)):
            other = request_of(role, token, key, peer_id=id_of(STRANGER))
            self.assertIs(self.refusal(other), ErrorCode.TOKEN_WRONG_PEER)

    def test_another_version_is_refused_before_anything_is_read(self) -> None:
        self.assertIs(self.refusal(Allocate(0, b"", b"", b"", version=2)), ErrorCode.VERSION)


class ProofTests(AuthoriserTestCase):
    """Proof of possession, for this relay, certificate, token, connection and role (R6.8, PROTOCOL §4)."""

    def test_each_role_proves_with_its_own_key(self) -> None:
        token = make_token()
        self.assertTrue(self.grant(request_of(Role.DEVICE, token, DEVICE)).proven)
        self.assertTrue(self.grant(request_of(Role.PEER, token, PEER)).proven)

    def test_the_key_of_the_other_role_proves_nothing(self) -> None:
        token = make_token()
        self.assertIs(self.refusal(request_of(Role.DEVICE, token, PEER)), ErrorCode.PROOF_INVALID)
        self.assertIs(self.refusal(request_of(Role.PEER, token, DEVICE)), ErrorCode.PROOF_INVALID)

    def test_a_right_key_shown_with_another_s_signature_proves_nothing(self) -> None:
        token = make_token()
        request = request_of(Role.DEVICE, token, DEVICE, proof=proof_by(STRANGER, token.encode(), Role.DEVICE))
        self.assertIs(self.refusal(request), ErrorCode.PROOF_INVALID)

    def test_a_stranger_s_key_proves_nothing_although_its_signature_is_right(self) -> None:
        self.assertIs(self.refusal(request_of(Role.DEVICE, make_token(), STRANGER)), ErrorCode.PROOF_INVALID)

    def test_a_proof_over_anything_else_is_refused(self) -> None:
        token = make_token()
        over: tuple[dict[str, Any], ...] = (
            {"relay_id": bytes(16)}, {"certificate_sha256": bytes(32)}, {"challenge": bytes(32)}, {"role": Role.PEER},
            {"token": make_token(quota_bytes=1).encode()},
        )
        for changes in over:
            proof = proof_by(DEVICE, token.encode(), Role.DEVICE, **changes)
            self.assertIs(self.refusal(request_of(Role.DEVICE, token, DEVICE, proof=proof)), ErrorCode.PROOF_INVALID, changes)

    def test_a_missing_proof_is_another_matter_than_a_wrong_one(self) -> None:
        for role in Role:
            self.assertIs(self.refusal(request_of(role, make_token())), ErrorCode.PROOF_REQUIRED)

    def test_only_the_roles_that_must_prove_are_asked(self) -> None:
        for proving in ((), (Role.DEVICE,), (Role.PEER,), tuple(Role)):
            self.authoriser = self.make(proving)
            for role in Role:
                self.assertEqual(self.authoriser.must_prove(role), role in proving)
                if role in proving:
                    self.assertIs(self.refusal(request_of(role, make_token())), ErrorCode.PROOF_REQUIRED)
                else:
                    self.assertFalse(self.grant(request_of(role, make_token())).proven)

    def test_a_proof_that_nobody_asked_for_counts_and_must_be_right(self) -> None:
        self.authoriser = self.make(())
        token = make_token()
        self.assertTrue(self.grant(request_of(Role.PEER, token, PEER)).proven)
        self.assertIs(self.refusal(request_of(Role.PEER, token, DEVICE)), ErrorCode.PROOF_INVALID)

    def test_a_proof_is_not_remembered(self) -> None:
        token = make_token()
        request = request_of(Role.DEVICE, token, DEVICE)
        self.grant(request)
        elsewhere = replace(CHALLENGE, nonce=b"m" * 32)
        refusal = refusal_of(lambda: self.authoriser.allocate(request, elsewhere, EPOCH))
        self.assertIs(refusal.code, ErrorCode.PROOF_INVALID)


class CacheTests(AuthoriserTestCase):
    """Verified tokens are remembered by every byte; nothing else is (R1.3, R1.6)."""

    def test_the_second_use_is_a_hit(self) -> None:
        data = make_token().encode()
        self.token_code(data)
        self.assertEqual(self.cache, (0, 1))
        self.assertIsNone(self.token_code(data))
        self.assertEqual(self.cache, (1, 0))

    def test_what_was_refused_for_its_signature_is_never_a_hit(self) -> None:
        data = replace(make_token(), signature=bytes(64)).encode()
        for _ in range(2):
            self.assertIs(self.token_code(data), ErrorCode.TOKEN_BAD_SIGNATURE)
        self.assertEqual(self.cache, (0, 2))

    def test_a_forged_limit_is_not_a_hit(self) -> None:
        token = make_token(quota_bytes=1000, bandwidth_limit=1000)
        self.token_code(token.encode())
        self.assertEqual(self.cache, (0, 1))
        later = token.expires_at + 60
        for forged in (replace(token, quota_bytes=10**12), replace(token, bandwidth_limit=0), replace(token, expires_at=later)):
            self.assertIs(self.token_code(forged.encode()), ErrorCode.TOKEN_BAD_SIGNATURE)
        self.assertEqual(self.cache, (0, 3))

    def test_no_changed_byte_is_a_hit(self) -> None:
        data = make_token().encode()
        self.token_code(data)
        self.assertEqual(self.cache, (0, 1))
        for index in range(len(data)):
            changed = data[:index] + bytes((data[index] ^ 1,)) + data[index + 1 :]
            self.assertIn(self.token_code(changed), (ErrorCode.TOKEN_BAD_SIGNATURE, ErrorCode.DEVICE_UNKNOWN), index)
        self.assertEqual(self.cache[0], 0)

    def test_time_is_looked_at_on_a_hit_too(self) -> None:
        data = make_token().encode()
        self.assertIsNone(self.token_code(data))
        self.assertIs(self.token_code(data, EPOCH + 3600), ErrorCode.TOKEN_EXPIRED)
        self.assertIs(self.token_code(data, EPOCH - LIFETIME), ErrorCode.TOKEN_TOO_LONG)
        self.assertEqual(self.cache, (2, 1))

    def test_the_request_is_looked_at_on_a_hit_too(self) -> None:
        token = make_token()
        self.grant(request_of(Role.DEVICE, token, DEVICE))
        self.assertIs(self.refusal(request_of(Role.DEVICE, token)), ErrorCode.PROOF_REQUIRED)
        other = request_of(Role.DEVICE, token, DEVICE, allocation_id=bytes(16))
        self.assertIs(self.refusal(other), ErrorCode.TOKEN_WRONG_ALLOCATION)
        self.assertEqual(self.cache, (2, 1))

    def test_it_is_bounded_and_the_least_recently_used_goes(self) -> None:
        self.assertLessEqual(TOKEN_CACHE_SIZE * 180, 1_000_000)
        self.patch(authorisation, "TOKEN_CACHE_SIZE", 3)
        first, second, *others = [make_token(quota_bytes=number).encode() for number in range(1, 5)]
        for data in (first, second, others[0], first, others[1]):
            self.token_code(data)
        self.assertEqual(self.cache, (1, 4))
        self.token_code(first)
        self.assertEqual(self.cache, (1, 0))
        self.token_code(second)
        self.assertEqual(self.cache, (0, 1))

    def test_an_entry_goes_with_its_device_s_key(self) -> None:
        self.authoriser = self.make(devices=(DEVICE, STRANGER))
        mine, theirs = make_token().encode(), make_token(STRANGER).encode()
        self.token_code(mine)
        self.token_code(theirs)
        self.assertEqual(self.cache, (0, 2))
        self.assertEqual(self.authoriser.replace_keys(keys_of(STRANGER)), [id_of(DEVICE)])
        self.assertIs(self.token_code(mine), ErrorCode.DEVICE_UNKNOWN)
        self.assertEqual(self.authoriser.replace_keys(keys_of(DEVICE, STRANGER)), [])
        self.assertEqual(self.cache, (0, 0))
        self.assertIsNone(self.token_code(mine))
        self.assertEqual(self.cache, (0, 1))
        self.token_code(theirs)
        self.assertEqual(self.cache, (1, 0))


class RefusedTests(SynchronousTestCase):
    """What a refusal says (PROTOCOL §5: the reason may begin with retry_after)."""

    def test_a_reason_to_wait_is_said_first(self) -> None:
        refusal = Refused(ErrorCode.CAPACITY, "full", retry_after=7)
        self.assertEqual((refusal.code, refusal.reason, refusal.retry_after), (ErrorCode.CAPACITY, "retry_after=7;full", 7))

    def test_without_one_the_reason_stands_alone(self) -> None:
        refusal = Refused(ErrorCode.BLOCKED, "no")
        self.assertEqual((refusal.reason, refusal.retry_after, str(refusal)), ("no", 0, "no"))
