"""The encoder behind the test vectors, and the fixed world that they speak of.

Theory of operation
-------------------
Vectors prove something only if they do not come from the code they check. So nothing here imports the package: the layouts are
copied by hand from docs/protocol.md, in its notation, and interpreted by a few lines; signatures come from the ``cryptography``
package, not from the library that the relay verifies with.

Keys and identifiers are hashes of labels, Ed25519 is deterministic and the clock is a constant: always the same bytes come out.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Fields = dict[str, Any]
"""A capsule or address as vectors.json shows it: hex for bytes, decimal text for 64-bit integers, numbers for the other ones."""

# -- PROTOCOL §2, §4 and §5 as tables

CAPSULES: dict[str, tuple[int, str]] = {
    "ALLOCATE": (0x01, (
        "version u8 · role u8 · features u32 · allocation_id 16 · peer_id 32 · token 180 · client_addr address · "
        "public_key 32 · proof 64"
    )),
    "REFRESH": (0x02, "token 180"),
    "RELEASE": (0x03, ""),
    "OPEN_CHANNEL": (0x04, ""),
    "LIST_RELAYS": (0x05, ""),
    "CLOSE_CHANNEL": (0x06, ""),
    "HELLO": (0x10, "version u8 · relay_id 16 · challenge 32 · features u32"),
    "ALLOCATED": (0x11, (
        "allocation_id 16 · relay_addr address · expires_at u64 · bandwidth_limit u64 · quota_bytes u64 · "
        "bytes_transferred u64 · observed_addr address · keepalive_interval u16 · idle_timeout u16 · peer_present u8 · "
        "peer_max_payload u16"
    )),
    "REFRESHED": (0x12, "expires_at u64 · bandwidth_limit u64 · quota_bytes u64 · bytes_transferred u64"),
    "RELEASED": (0x13, ""),
    "REDIRECT": (0x14, "reason u8 · routing_byte u8 · addresses addresses"),
    "NOTICE": (0x15, "code u8"),
    "CHANNEL": (0x16, "channel_id 7"),
    "RELAYS": (0x17, "entries entries"),
    "ERROR": (0x1F, "code u16 · message text"),
}
NOTICE_BODIES = {
    1: "used u64 · quota u64",
    2: "limit u64 · dropped u64",
    3: "max_payload u16",
    4: "",
    5: "deadline u64 · addresses addresses",
    6: "reason u8",
    7: "cause u8 · packets u64",
    8: "",
    9: "max_payload u16",
}
PROOF_FIELDS = ("public_key", "proof")
"""The fields of ALLOCATE that are there only with feature bit 0."""


def varint(value: int) -> bytes:
    """RFC 9000 §16, the shortest form; ``ValueError`` past 2^62 - 1."""
    for prefix, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2):
            return (prefix << (8 * size - 2) | value).to_bytes(size, "big")
    raise ValueError(value)


def number(value: str | int, bits: int) -> bytes:
    """A big-endian integer, from a number or from decimal text."""
    return int(value).to_bytes(bits // 8, "big")


def address(fields: Fields) -> bytes:
    """``family u8 · ip · port u16``, or one zero byte."""
    if fields["family"] == 0:
        return b"\x00"
    return number(fields["family"], 8) + ipaddress.ip_address(fields["ip"]).packed + number(fields["port"], 16)


def entry(fields: Fields) -> bytes:
    """One relay of a RELAYS capsule, with its length byte."""
    region: bytes = fields["region"].encode()
    body = bytes.fromhex(fields["instance_id"]) + address(fields["address"])
    body += bytes([fields["load"], fields["flags"], len(region)]) + region
    return bytes([len(body)]) + body


def encode_field(kind: str, fields: Fields, name: str) -> bytes:
    """One field of a layout; ``kind`` is the second word of the tables' notation."""
    value = fields[name]
    if kind in ("u8", "u16", "u32", "u64"):
        return number(value, int(kind[1:]))
    if kind == "address":
        return address(value)
    if kind == "addresses":
        return bytes([len(value)]) + b"".join(address(one) for one in value)
    if kind == "entries":
        return bytes([len(value)]) + b"".join(entry(one) for one in value)
    if kind == "text":
        return number(len(value.encode()), 16) + bytes(value.encode())
    data = bytes.fromhex(value)
    if len(data) != int(kind):
        raise ValueError(name)
    return data


def encode_value(capsule: str, fields: Fields) -> bytes:
    """The value of a capsule: the fields of its layout, in order."""
    layout = CAPSULES[capsule][1]
    if capsule == "NOTICE":
        layout = " · ".join(filter(None, (layout, NOTICE_BODIES[fields["code"]])))
    parts = [part.split() for part in layout.split(" · ") if part]
    if not fields.keys() <= {name for name, _ in parts}:
        raise ValueError(capsule)
    return b"".join(encode_field(kind, fields, name) for name, kind in parts if name in fields or name not in PROOF_FIELDS)


def encode_capsule(capsule: str, fields: Fields) -> bytes:
    """The whole capsule."""
    return frame(CAPSULES[capsule][0], encode_value(capsule, fields))


def frame(capsule_type: int, value: bytes) -> bytes:
    """``type varint · length varint · value``."""
    return varint(capsule_type) + varint(len(value)) + value


def sha256(data: bytes) -> bytes:
    """The one hash of the protocol."""
    return hashlib.sha256(data).digest()


# -- the fixed world


def fixed(label: str, size: int = 32) -> bytes:
    """Bytes that look random and are always the same."""
    return sha256(b"zrc-relay test vector: " + label.encode())[:size]


class Party:
    """A key pair; ``id`` is the device or peer id that belongs to it."""

    def __init__(self, name: str) -> None:
        """Derive the pair from ``name``."""
        self.name = name
        self.seed = fixed(name)
        self.private = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public = self.private.public_key().public_bytes_raw()
        self.id = sha256(self.public)


DEVICE, PEER, STRANGER = Party("device"), Party("peer"), Party("stranger")
RELAY_ID = fixed("relay", 16)
ALLOCATION_ID = fixed("allocation", 16)
CHALLENGE = fixed("challenge")
NOW = 1_800_000_000
MAX_LIFETIME = 86_400
EXPIRES = NOW + 3_600
# A real certificate (Ed25519, self-signed, relay.example), frozen: its bytes may not change with the library that would make it.
CERTIFICATE = bytes.fromhex("""
    3081fa3081ada003020102020101300506032b657030183116301406035504030c0d72656c61792e6578616d706c65301e170d323631
    3132323030303030305a170d3336313132323030303030305a30183116301406035504030c0d72656c61792e6578616d706c65302a30
    0506032b65700321008130e623ea54902480391ea61b67754a6a037dfdc5573d7f4a6877b8f611228aa31c301a30180603551d110411
    300f820d72656c61792e6578616d706c65300506032b6570034100f8419f697df18a28abff644e50c4786b50af73295fa4252fcd4fa6
    47759ff8aae0e5c70fc0edf375d085887cb5c32b8b4909f9687bb10b3bbee26a66ffedee07
""")


@dataclass(frozen=True)
class Claims:
    """What a token says; the defaults are those of the ordinary token of the vectors."""

    relay_id: bytes = RELAY_ID
    allocation_id: bytes = ALLOCATION_ID
    device_id: bytes = DEVICE.id
    peer_id: bytes = PEER.id
    expires_at: int = EXPIRES
    bandwidth_limit: int = 1_250_000
    quota_bytes: int = 1_000_000_000

    def token(self, signer: Party = DEVICE) -> bytes:
        """The RelayTokenV1 (PROTOCOL §3): its three integers are little-endian, unlike everything else."""
        signed = self.relay_id + self.allocation_id + self.device_id + self.peer_id
        signed += self.expires_at.to_bytes(8, "little")
        signed += self.bandwidth_limit.to_bytes(4, "little") + self.quota_bytes.to_bytes(8, "little")
        return signed + signer.private.sign(sha256(signed))


@dataclass(frozen=True)
class Possession:
    """What a proof of possession is bound to (PROTOCOL §4)."""

    token: bytes
    role: int
    challenge: bytes = CHALLENGE
    certificate: bytes = CERTIFICATE
    relay_id: bytes = RELAY_ID

    def digest(self) -> bytes:
        """What the proof signs."""
        return sha256(
            b"zrc-relay/1 possession" + self.relay_id + sha256(self.certificate) + sha256(self.token) + self.challenge
            + bytes([self.role])
        )

    def proof(self, signer: Party) -> bytes:
        """The 64 bytes of the proof."""
        return signer.private.sign(self.digest())
