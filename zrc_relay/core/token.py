"""RelayTokenV1 and proof of possession: bytes, signing, verifying (PROTOCOL §3, §4; R1, R6.8).

Theory of operation
-------------------
A token is 116 bytes of claims and an Ed25519 signature over their SHA-256 digest. This module knows only bytes and keys: whether
a token is *wanted* (its relay, peer, expiry, device) is decided by ``authorisation.py``, in the protocol's order.

The rules: the three integers are little-endian, as in the system that mints the tokens; everything signed is a 32-byte digest,
never a string a stranger could choose.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from dataclasses import dataclass, replace
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

TOKEN_SIZE: Final = 180
SIGNED_SIZE: Final = 116
MAX_BANDWIDTH_LIMIT: Final = 0xFFFF_FFFF
_SIGNED = struct.Struct("<16s16s32s32sQIQ")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_PROOF_CONTEXT = b"zrc-relay/1 possession"


class TokenError(ValueError):
    """The bytes or the text are not a RelayTokenV1."""


@dataclass(frozen=True, slots=True)
class RelayToken:
    """What a device allows: one allocation of one relay, for one peer, until ``expires_at``.

    ``expires_at`` is Unix seconds, ``bandwidth_limit`` bytes per second (32 bits), ``quota_bytes`` bytes (64 bits); a limit of 0
    asks for the tier's default. The ids are 16, 16, 32 and 32 bytes.
    """

    relay_id: bytes
    allocation_id: bytes
    device_id: bytes
    peer_id: bytes
    expires_at: int
    bandwidth_limit: int = 0
    quota_bytes: int = 0
    signature: bytes = bytes(64)

    @classmethod
    def parse(cls, data: bytes) -> RelayToken:
        """From the 180 bytes of the wire; ``TokenError`` if it cannot be a token.

        A device or peer id of 32 zero bytes is the hash of no key, so a token with one is malformed.
        """
        if len(data) != TOKEN_SIZE:
            msg = f"a token is {TOKEN_SIZE} bytes, not {len(data)}"
            raise TokenError(msg)
        token = cls(*_SIGNED.unpack_from(data))
        token = replace(token, signature=data[SIGNED_SIZE:])
        if not any(token.device_id) or not any(token.peer_id):
            msg = "a token's device and peer ids cannot be zero"
            raise TokenError(msg)
        return token

    @classmethod
    def from_text(cls, text: str) -> RelayToken:
        """From base64url without padding, the form that people and configuration carry; ``TokenError`` otherwise."""
        stripped = text.strip()
        try:
            if _BASE64URL.fullmatch(stripped) is None:
                msg = "a character of another alphabet"
                raise ValueError(msg)
            data = base64.urlsafe_b64decode(stripped + "=" * (-len(stripped) % 4))
        except ValueError as error:
            msg = f"not base64url without padding: {error}"
            raise TokenError(msg) from error
        return cls.parse(data)

    def signed_part(self) -> bytes:
        """The 116 bytes that the signature covers through their digest."""
        return _SIGNED.pack(
            self.relay_id, self.allocation_id, self.device_id, self.peer_id,
            self.expires_at, self.bandwidth_limit, self.quota_bytes,
        )

    def encode(self) -> bytes:
        """The 180 bytes of the wire."""
        return self.signed_part() + self.signature

    def to_text(self) -> str:
        """Base64url without padding."""
        return base64.urlsafe_b64encode(self.encode()).rstrip(b"=").decode()

    def sign(self, key: SigningKey) -> RelayToken:
        """The same token with its signature by ``key``; the key must hash to ``device_id``, else ``TokenError``."""
        if key_id(bytes(key.verify_key)) != self.device_id:
            msg = "the signing key is not the device's"
            raise TokenError(msg)
        signature = key.sign(hashlib.sha256(self.signed_part()).digest()).signature
        return replace(self, signature=signature)

    def is_signed_by(self, public_key: bytes) -> bool:
        """Whether the signature is by ``public_key`` (32 bytes)."""
        return verify(public_key, hashlib.sha256(self.signed_part()).digest(), self.signature)


def key_id(public_key: bytes) -> bytes:
    """Device or peer id of an Ed25519 public key: its SHA-256."""
    return hashlib.sha256(public_key).digest()


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` (64 bytes) by ``public_key`` (32 bytes) over ``message`` is right; never raises for their content."""
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        # A key that is no point, or wrong lengths, is a wrong signature as far as anyone outside can tell.
        return False
    return True


def proof_digest(*, relay_id: bytes, certificate_sha256: bytes, token: bytes, challenge: bytes, role: int) -> bytes:
    """What a proof of possession signs (PROTOCOL §4): bound to relay, certificate, token, connection and role."""
    return hashlib.sha256(
        b"".join((
            _PROOF_CONTEXT, relay_id, certificate_sha256, hashlib.sha256(token).digest(), challenge, bytes((role,)),
        ))
    ).digest()


def routing_byte(allocation_id: bytes) -> int:
    """First byte of a client's first Destination Connection ID (PROTOCOL §1)."""
    return hashlib.sha256(allocation_id).digest()[0]
