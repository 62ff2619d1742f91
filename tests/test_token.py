"""RelayTokenV1 and proof of possession: bytes, signatures and what they are bound to."""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core.token import (
    SIGNED_SIZE,
    TOKEN_SIZE,
    RelayToken,
    TokenError,
    key_id,
    proof_digest,
    routing_byte,
    verify,
)

DEVICE = SigningKey(b"d" * 32)
DEVICE_KEY = bytes(DEVICE.verify_key)
PEER_KEY = bytes(SigningKey(b"p" * 32).verify_key)
CLAIMS = RelayToken(
    relay_id=b"r" * 16, allocation_id=b"a" * 16, device_id=key_id(DEVICE_KEY), peer_id=key_id(PEER_KEY),
    expires_at=0x0102030405060708, bandwidth_limit=0x11121314, quota_bytes=0x2122232425262728,
)
TOKEN = CLAIMS.sign(DEVICE)
# The order of the Ed25519 group (RFC 8032 §5.1): S and S + L satisfy the same equation.
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def flipped(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def accepted(data: bytes) -> bool:
    """Whether ``data`` is a token that the device signed."""
    try:
        return RelayToken.parse(data).is_signed_by(DEVICE_KEY)
    except TokenError:
        return False


class LayoutTests(SynchronousTestCase):
    """Where each byte of a token is (PROTOCOL §3)."""

    def test_fields_are_in_order_and_integers_little_endian(self) -> None:
        data = TOKEN.encode()
        self.assertEqual(len(data), TOKEN_SIZE)
        self.assertEqual(data[:96], b"r" * 16 + b"a" * 16 + key_id(DEVICE_KEY) + key_id(PEER_KEY))
        self.assertEqual(data[96:104], bytes.fromhex("0807060504030201"))
        self.assertEqual(data[104:108], bytes.fromhex("14131211"))
        self.assertEqual(data[108:116], bytes.fromhex("2827262524232221"))
        self.assertEqual(data[116:], TOKEN.signature)

    def test_the_signature_is_over_the_digest_of_the_first_116_bytes(self) -> None:
        digest = hashlib.sha256(TOKEN.encode()[:SIGNED_SIZE]).digest()
        self.assertEqual(TOKEN.signature, DEVICE.sign(digest).signature)

    def test_ids_are_hashes_of_keys(self) -> None:
        self.assertEqual(key_id(DEVICE_KEY), hashlib.sha256(DEVICE_KEY).digest())

    @settings(deadline=None)
    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
    def test_any_limits_come_back(self, expires_at: int, bandwidth_limit: int, quota_bytes: int) -> None:
        token = replace(CLAIMS, expires_at=expires_at, bandwidth_limit=bandwidth_limit, quota_bytes=quota_bytes).sign(DEVICE)
        self.assertEqual(RelayToken.parse(token.encode()), token)
        self.assertTrue(token.is_signed_by(DEVICE_KEY))

    def test_any_other_length_is_refused(self) -> None:
        for size in (0, 116, 179, 181, 360):
            self.assertRaises(TokenError, RelayToken.parse, (TOKEN.encode() * 2)[:size])

    def test_an_id_of_zeros_is_malformed(self) -> None:
        for start in (32, 64):
            data = TOKEN.encode()[:start] + bytes(32) + TOKEN.encode()[start + 32 :]
            self.assertRaises(TokenError, RelayToken.parse, data)

    def test_relay_and_allocation_ids_may_be_zeros(self) -> None:
        token = replace(CLAIMS, relay_id=bytes(16), allocation_id=bytes(16)).sign(DEVICE)
        self.assertEqual(RelayToken.parse(token.encode()), token)

    def test_the_routing_byte_is_the_first_of_the_hash(self) -> None:
        self.assertEqual(routing_byte(b"a" * 16), hashlib.sha256(b"a" * 16).digest()[0])


class SignatureTests(SynchronousTestCase):
    """A token counts only as the device signed it (R1.2)."""

    def test_the_device_s_own_is_accepted(self) -> None:
        self.assertTrue(accepted(TOKEN.encode()))

    def test_every_single_bit_flip_is_refused(self) -> None:
        data = TOKEN.encode()
        survivors = [bit for bit in range(TOKEN_SIZE * 8) if accepted(flipped(data, bit))]
        self.assertEqual(survivors, [])

    def test_another_key_does_not_verify_it(self) -> None:
        self.assertFalse(TOKEN.is_signed_by(PEER_KEY))

    def test_a_key_that_is_not_the_device_s_cannot_sign(self) -> None:
        self.assertRaises(TokenError, CLAIMS.sign, SigningKey(b"x" * 32))

    def test_an_unsigned_token_is_refused(self) -> None:
        self.assertFalse(CLAIMS.is_signed_by(DEVICE_KEY))

    def test_a_signature_over_the_bytes_instead_of_their_digest_is_refused(self) -> None:
        naive = replace(CLAIMS, signature=DEVICE.sign(CLAIMS.signed_part()).signature)
        self.assertFalse(naive.is_signed_by(DEVICE_KEY))

    def test_the_other_encoding_of_the_same_signature_is_refused(self) -> None:
        scalar = int.from_bytes(TOKEN.signature[32:], "little") + GROUP_ORDER
        twin = replace(TOKEN, signature=TOKEN.signature[:32] + scalar.to_bytes(32, "little"))
        self.assertFalse(twin.is_signed_by(DEVICE_KEY))

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=70))
    def test_verify_is_false_for_garbage_and_never_raises(self, public_key: bytes, message: bytes, signature: bytes) -> None:
        self.assertFalse(verify(public_key, message, signature))


class TextTests(SynchronousTestCase):
    """The text form: base64url without padding (PROTOCOL §3)."""

    def test_it_is_240_characters_of_base64url(self) -> None:
        self.assertRegex(TOKEN.to_text(), r"\A[A-Za-z0-9_-]{240}\Z")
        self.assertEqual(base64.urlsafe_b64decode(TOKEN.to_text()), TOKEN.encode())

    @settings(deadline=None)
    @given(st.binary(min_size=TOKEN_SIZE, max_size=TOKEN_SIZE).filter(lambda data: any(data[32:64]) and any(data[64:96])))
    def test_it_comes_back(self, data: bytes) -> None:
        token = RelayToken.parse(data)
        self.assertEqual(RelayToken.from_text(token.to_text()), token)

    def test_blanks_around_it_do_not_matter(self) -> None:
        self.assertEqual(RelayToken.from_text(f" {TOKEN.to_text()}\n"), TOKEN)

    def test_other_text_is_refused(self) -> None:
        text = TOKEN.to_text()
        wrong = [
            "", text[:-1], text + "A", text + "AAAA", "!" + text[1:], "é" + text[1:], text[:120] + "\n" + text[120:],
            text[:120] + "=" + text[120:], text[:120] + " " + text[120:],
        ]
        for one in wrong:
            self.assertRaises(TokenError, RelayToken.from_text, one)

    def test_there_is_one_spelling_without_padding_and_without_the_alphabet_of_plain_base64(self) -> None:
        text = TOKEN.to_text()
        for wrong in ("+" + text[1:], "/" + text[1:], text + "=", text + "==", text + "===="):
            self.assertRaises(TokenError, RelayToken.from_text, wrong)


class ProofTests(SynchronousTestCase):
    """A proof counts for one relay, certificate, token, connection and role (R6.8, PROTOCOL §4)."""

    def digest(self, **changed: bytes) -> bytes:
        """The digest of a fixed proof, with inputs ``changed``."""
        inputs = {
            "relay_id": b"r" * 16, "certificate_sha256": b"c" * 32, "token": TOKEN.encode(), "challenge": b"h" * 32, **changed,
        }
        return proof_digest(
            relay_id=inputs["relay_id"], certificate_sha256=inputs["certificate_sha256"], token=inputs["token"],
            challenge=inputs["challenge"], role=inputs.get("role", b"\x00")[0],
        )

    def test_the_message_is_the_page_s(self) -> None:
        token_hash = hashlib.sha256(TOKEN.encode()).digest()
        message = struct.pack("!22s16s32s32s32sB", b"zrc-relay/1 possession", b"r" * 16, b"c" * 32, token_hash, b"h" * 32, 0)
        self.assertEqual(self.digest(), hashlib.sha256(message).digest())

    def test_a_changed_input_refuses_the_proof(self) -> None:
        proof = DEVICE.sign(self.digest()).signature
        self.assertTrue(verify(DEVICE_KEY, self.digest(), proof))
        changes = {
            "relay_id": b"r" * 15 + b"s", "certificate_sha256": b"c" * 31 + b"d", "token": flipped(TOKEN.encode(), 1439),
            "challenge": b"h" * 31 + b"i", "role": b"\x01",
        }
        for name, value in changes.items():
            self.assertFalse(verify(DEVICE_KEY, self.digest(**{name: value}), proof), name)

    def test_every_single_bit_flip_is_refused(self) -> None:
        digest = self.digest()
        proof = DEVICE.sign(digest).signature
        survivors = [bit for bit in range(len(proof) * 8) if verify(DEVICE_KEY, digest, flipped(proof, bit))]
        self.assertEqual(survivors, [])

    def test_a_token_s_signature_is_no_proof(self) -> None:
        self.assertFalse(verify(DEVICE_KEY, self.digest(), TOKEN.signature))
