"""Where the engines begin: whole messages of every kind, and inputs that once found something.

The second ones stay here for good. ``test_fuzz`` runs both kinds through their targets as they are.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests import raw_quic as raw
from tests.harness import EPOCH, RELAY_ID
from zrc_relay.core.codes import CapsuleType, NoticeCode

DEVICE: Final = Ed25519PrivateKey.from_private_bytes(b"d" * 32)
PEER: Final = Ed25519PrivateKey.from_private_bytes(b"p" * 32)
TOKEN: Final = raw.mint(
    DEVICE, relay_id=RELAY_ID, allocation_id=bytes(16), peer_id=raw.identity(PEER), expires_at=int(EPOCH) + 3600
)
IPV4: Final = b"\x04\xc0\x00\x02\x01\x11\x51"
IPV6: Final = b"\x06" + bytes(15) + b"\x01\x11\x51"

REGRESSIONS: Final[Mapping[str, tuple[bytes, ...]]] = MappingProxyType({
    "wire": (),
    "token": (),
    # XOR-MAPPED-ADDRESS without a value, in an answer: the client looked for the family behind its end.
    "stun": (bytes.fromhex("010100042112a442000102030405060708090a0b00200000"),),
    "demultiplexer": (),
})
"""Inputs that a target once failed with, by target."""


def _wire() -> Iterator[bytes]:
    proof = bytes(96)
    numbers = bytes(range(32))
    values: list[tuple[int, bytes]] = [
        (CapsuleType.ALLOCATE, raw.Allocation(raw.DEVICE, TOKEN).value()),
        (CapsuleType.ALLOCATE, raw.Allocation(raw.PEER, TOKEN, proof, address=IPV6).value()),
        (CapsuleType.REFRESH, TOKEN), (CapsuleType.RELEASE, b""), (CapsuleType.OPEN_CHANNEL, b""), (CapsuleType.LIST_RELAYS, b""),
        (CapsuleType.HELLO, b"\x01" + RELAY_ID + numbers + b"\0\0\0\x05"),
        (CapsuleType.ALLOCATED, bytes(16) + IPV4 + numbers + IPV6 + b"\0\x0f\0\x1e\x01\x04\xb0"),
        (CapsuleType.REFRESHED, numbers), (CapsuleType.RELEASED, b""), (CapsuleType.REDIRECT, b"\x02\x07\x02" + IPV4 + IPV6),
        (CapsuleType.CHANNEL, b"\x05channel"[:7]), (CapsuleType.ERROR, b"\0\x12\0\x03old"),
        (CapsuleType.RELAYS, b"\x02" + 2 * (b"\x12" + bytes(8) + IPV4 + b"\x32\x01\x01r"[:3])), (0x7777, b"from the future"),
        *((CapsuleType.NOTICE, bytes((code,)) + numbers[:16]) for code in NoticeCode),
    ]
    for size in (b"\x00", b"\x27"):
        for kind, value in values:
            yield size + raw.capsule(kind, value)
    yield b"\x05" + b"".join(raw.capsule(kind, value) for kind, value in values)
    yield b"\x03" + raw.varint(1) + raw.varint(4097)
    yield b"\x09" + raw.varint(5) + b"hello" + raw.varint(0) + raw.varint(65535) + bytes(100)


def _token() -> Iterator[bytes]:
    import base64  # noqa: PLC0415 - for these lines only

    yield TOKEN
    yield base64.urlsafe_b64encode(TOKEN).rstrip(b"=")
    yield TOKEN[:116] + bytes(64)
    yield bytes(180)
    yield b" " + base64.urlsafe_b64encode(TOKEN) + b"\n"


def _stun() -> Iterator[bytes]:
    def message(*attributes: bytes, kind: int = 1) -> bytes:
        body = b"".join(attributes)
        return struct.pack("!HH", kind, len(body)) + bytes.fromhex("2112a442") + bytes(range(12)) + body

    def attribute(kind: int, value: bytes = b"") -> bytes:
        return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)

    yield message()
    yield message(attribute(0x8022, b"a client"), attribute(0x8028, bytes(4)))
    yield message(attribute(0x0003, bytes(4)), attribute(0x0024, bytes(4)), attribute(0x0008, bytes(20)), attribute(3))
    yield message(attribute(0x0020, bytes.fromhex("0001a147e112a643")), kind=0x0101)
    yield message(attribute(0x0020, bytes.fromhex("0002a1470113a9faa5d3f179bc25f4b5bed2b9d9")), kind=0x0101)
    yield message(kind=0x0011)


def _demultiplexer() -> Iterator[bytes]:
    for version in (raw.V1, raw.V2):
        initial = raw.Initial(hashlib.sha256(b"id").digest()[:8], version)
        yield b"\0" + initial.protect(raw.crypto_frame(0, b"\x01\0\x01\0"))
        yield b"\0" + initial.protect(raw.crypto_frame(3, b"x") + b"\x01")
        yield b"\0" + initial.protect(b"")[:1199]
    yield b"\0" + b"\xc0\x1a\x2a\x3a\x4a\x08abcdefgh\x08hgfedcba".ljust(1200, b"x")
    yield b"\0" + b"\xc3\0\0\0\0\x08abcdefgh\x08hgfedcba".ljust(1200, b"x")
    for kind in (1, 2, 5):
        yield bytes((kind,)) + bytes(range(100))
    yield b"\x03" + b"strangerx\x08x-source\x00\x44\x00" + bytes(1000)
    yield b"\x04" + b"\x31" + b"\x72" + bytes(48) + b"\x44\x00" + bytes(1000)
    yield from (b"\0" + seed for seed in _stun())
    yield b"\0\x05channel payload"
    yield b""


SEEDS: Final[Mapping[str, tuple[bytes, ...]]] = MappingProxyType({
    "wire": tuple(_wire()), "token": tuple(_token()), "stun": tuple(_stun()), "demultiplexer": tuple(_demultiplexer()),
})
"""Whole messages, by target."""
