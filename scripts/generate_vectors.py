"""Generate ``docs/vectors.json``: inputs and exact bytes for whoever writes another client or relay.

The bytes come from ``vector_encoder.py``, which shares no code with the package. Running this again gives the same file to the
byte, and the test suite compares; ``--check`` compares and writes nothing.

In the file, bytes are lower-case hex, integers of 64 bits are decimal strings (many JSON readers keep only 53 bits), other
integers are numbers, and an address is an object with ``family`` and, unless that is 0, ``ip`` and ``port``.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import sys
from pathlib import Path
from typing import Any

from vector_encoder import (
    ALLOCATION_ID,
    CERTIFICATE,
    CHALLENGE,
    DEVICE,
    EXPIRES,
    MAX_LIFETIME,
    NOW,
    PEER,
    PROOF_FIELDS,
    RELAY_ID,
    STRANGER,
    Claims,
    Fields,
    Possession,
    address,
    encode_capsule,
    encode_value,
    entry,
    fixed,
    frame,
    sha256,
    varint,
)

TARGET = Path(__file__).resolve().parent.parent / "docs" / "vectors.json"
U32, U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

Vector = dict[str, Any]

NONE: Fields = {"family": 0}
V4: Fields = {"family": 4, "ip": "192.0.2.7", "port": 4433}
V6: Fields = {"family": 6, "ip": "2001:db8::7", "port": 65535}
HELLO: Fields = {"version": 1, "relay_id": RELAY_ID.hex(), "challenge": CHALLENGE.hex(), "features": 5}
HERE: Fields = {"instance_id": fixed("instance", 8).hex(), "address": V4, "load": 0, "flags": 0, "region": ""}
TOKEN = Claims().token()


def allocate(role: int, token: bytes = TOKEN, **changed: str | int | Fields) -> Fields:
    """The fields of a right ALLOCATE with proof, some of them ``changed``."""
    party = PEER if role else DEVICE
    return {
        "version": 1, "role": role, "features": 1, "allocation_id": ALLOCATION_ID.hex(), "peer_id": PEER.id.hex(),
        "token": token.hex(), "client_addr": NONE, "public_key": party.public.hex(),
        "proof": Possession(token, role).proof(party).hex(), **changed,
    }


def without_proof(fields: Fields) -> Fields:
    """The same ALLOCATE with feature bit 0 clear."""
    return {name: value for name, value in {**fields, "features": 0}.items() if name not in PROOF_FIELDS}


def flip(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed, counted from the end."""
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


def keys() -> list[Vector]:
    """Key pairs and the ids that belong to them."""
    return [
        {"name": party.name, "seed": party.seed.hex(), "public_key": party.public.hex(), "id": party.id.hex()}
        for party in (DEVICE, PEER, STRANGER)
    ]


def routing_bytes() -> list[Vector]:
    """First bytes of first Destination Connection IDs (PROTOCOL §1)."""
    return [
        {"allocation_id": one.hex(), "sha256": sha256(one).hex(), "routing_byte": sha256(one)[0]}
        for one in (ALLOCATION_ID, bytes(16), b"\xff" * 16)
    ]


def varints() -> list[Vector]:
    """RFC 9000 §16: the shortest form at every boundary, and longer forms, which are valid too."""
    boundaries = [0, 63, 64, 16_383, 16_384, 2**30 - 1, 2**30, 2**62 - 1]
    shortest = [{"value": str(value), "bytes": varint(value).hex(), "shortest": True} for value in boundaries]
    return shortest + [{"value": "37", "bytes": data, "shortest": False} for data in ("4025", "80000025", "c000000000000025")]


def addresses() -> list[Vector]:
    """An address as a socket names it, and as the wire does."""
    cases: list[tuple[str, str | None, Fields]] = [
        ("none", None, NONE),
        ("IPv4", "192.0.2.7", V4),
        ("IPv6", "2001:db8::7", V6),
        ("IPv4-mapped IPv6 is written as family 4", "::ffff:192.0.2.7", V4),
        ("lowest port", "192.0.2.0", {"family": 4, "ip": "192.0.2.0", "port": 0}),
    ]
    return [{"name": name, "host": host, "fields": fields, "bytes": address(fields).hex()} for name, host, fields in cases]


def tokens() -> list[Vector]:
    """Valid tokens and everything on the way to their bytes."""
    cases = [
        ("ordinary", Claims()),
        ("zero limits", Claims(bandwidth_limit=0, quota_bytes=0)),
        ("largest integers", Claims(expires_at=U64, bandwidth_limit=U32, quota_bytes=U64)),
        ("a different byte in each place", Claims(
            expires_at=0x0102030405060708, bandwidth_limit=0x090A0B0C, quota_bytes=0x0D0E0F1011121314,
        )),
    ]
    return [
        {
            "name": name,
            "fields": {
                "relay_id": claims.relay_id.hex(), "allocation_id": claims.allocation_id.hex(),
                "device_id": claims.device_id.hex(), "peer_id": claims.peer_id.hex(), "expires_at": str(claims.expires_at),
                "bandwidth_limit": claims.bandwidth_limit, "quota_bytes": str(claims.quota_bytes),
            },
            "signed_by": DEVICE.name, "signed_part": token[:116].hex(), "digest": sha256(token[:116]).hex(),
            "signature": token[116:].hex(), "bytes": token.hex(), "text": base64.urlsafe_b64encode(token).decode().rstrip("="),
        }
        for name, claims in cases
        for token in [claims.token()]
    ]


def proofs() -> list[Vector]:
    """Proofs of possession for both roles."""
    return [
        {
            "name": party.name, "role": role, "signed_by": party.name, "public_key": party.public.hex(),
            "relay_id": RELAY_ID.hex(), "certificate": CERTIFICATE.hex(), "certificate_sha256": sha256(CERTIFICATE).hex(),
            "token": TOKEN.hex(), "token_sha256": sha256(TOKEN).hex(), "challenge": CHALLENGE.hex(),
            "digest": Possession(TOKEN, role).digest().hex(), "proof": Possession(TOKEN, role).proof(party).hex(),
        }
        for role, party in enumerate((DEVICE, PEER))
    ]


def capsule(name: str, kind: str, fields: Fields) -> Vector:
    """A capsule that encodes to, and decodes from, exactly these bytes."""
    return {"name": name, "capsule": kind, "fields": fields, "bytes": encode_capsule(kind, fields).hex()}


def client_capsules() -> list[Vector]:
    """Every capsule of PROTOCOL §4."""
    return [
        capsule("ALLOCATE, device, with proof", "ALLOCATE", allocate(0, client_addr=V4)),
        capsule("ALLOCATE, peer, with proof", "ALLOCATE", allocate(1, client_addr=V6)),
        capsule("ALLOCATE, device, without proof", "ALLOCATE", without_proof(allocate(0))),
        capsule("ALLOCATE, peer, without proof", "ALLOCATE", without_proof(allocate(1, client_addr=V4))),
        capsule("REFRESH", "REFRESH", {"token": Claims(expires_at=EXPIRES + 3_600).token().hex()}),
        *(capsule(kind, kind, {}) for kind in ("RELEASE", "OPEN_CHANNEL", "LIST_RELAYS", "CLOSE_CHANNEL")),
    ]


def relay_capsules() -> list[Vector]:
    """Every capsule of PROTOCOL §5 but NOTICE."""
    allocated = {
        "allocation_id": ALLOCATION_ID.hex(), "relay_addr": V4, "expires_at": str(EXPIRES), "bandwidth_limit": "1250000",
        "quota_bytes": "1000000000", "bytes_transferred": "0",
        "observed_addr": {"family": 4, "ip": "198.51.100.23", "port": 51820},
        "keepalive_interval": 15, "idle_timeout": 30, "peer_present": 0, "peer_max_payload": 0,
    }
    busy = {"relay_addr": V6, "observed_addr": V6, "bytes_transferred": "123456789", "peer_present": 1, "peer_max_payload": 1_173}
    extreme = {
        "relay_addr": NONE, "observed_addr": NONE, "expires_at": str(U64), "bandwidth_limit": "0", "quota_bytes": "0",
        "bytes_transferred": str(U64), "keepalive_interval": 65_535, "idle_timeout": 65_535, "peer_max_payload": 65_535,
    }
    limits = {"expires_at": str(EXPIRES + 3_600), "bandwidth_limit": "2500000", "quota_bytes": "0", "bytes_transferred": "4096"}
    there = {**HERE, "instance_id": fixed("instance 2", 8).hex(), "address": V6, "load": 100, "flags": 1, "region": "zürich-1"}
    third = {**there, "address": NONE, "load": 37, "flags": 0, "region": "r" * 32}
    return [
        capsule("HELLO, devices and peers must prove", "HELLO", HELLO),
        capsule("HELLO, channels only", "HELLO", {**HELLO, "features": 2}),
        capsule("ALLOCATED, IPv4, alone", "ALLOCATED", allocated),
        capsule("ALLOCATED, IPv6, peer present", "ALLOCATED", allocated | busy),
        capsule("ALLOCATED, no addresses, no limits", "ALLOCATED", allocated | extreme),
        capsule("REFRESHED", "REFRESHED", limits),
        capsule("RELEASED", "RELEASED", {}),
        capsule("REDIRECT, owned elsewhere", "REDIRECT", {"reason": 1, "routing_byte": 0xA7, "addresses": [V4]}),
        capsule("REDIRECT, draining, several addresses", "REDIRECT", {"reason": 2, "routing_byte": 0, "addresses": [V4, V6]}),
        capsule("REDIRECT, other worker, full", "REDIRECT", {"reason": 3, "routing_byte": 255, "addresses": [V6] * 16}),
        capsule("CHANNEL", "CHANNEL", {"channel_id": fixed("channel", 7).hex()}),
        capsule("RELAYS, one entry", "RELAYS", {"entries": [HERE]}),
        capsule("RELAYS, several entries", "RELAYS", {"entries": [HERE, there, third]}),
        capsule("ERROR, TOKEN_EXPIRED", "ERROR", {"code": 0x12, "message": "an older token changes nothing"}),
        capsule("ERROR, QUOTA_EXCEEDED, no message", "ERROR", {"code": 0x31, "message": ""}),
    ]


def notices() -> list[Vector]:
    """Every NOTICE of PROTOCOL §5, with every reason and cause."""
    cases: list[tuple[str, Fields]] = [
        ("QUOTA_WARNING", {"code": 1, "used": "900000000", "quota": "1000000000"}),
        ("RATE_LIMITED", {"code": 2, "limit": "1250000", "dropped": "17"}),
        ("PEER_JOINED", {"code": 3, "max_payload": 1_173}),
        ("PEER_LEFT", {"code": 4}),
        ("DRAINING, no alternates", {"code": 5, "deadline": str(NOW + 30), "addresses": []}),
        ("DRAINING, alternates", {"code": 5, "deadline": str(NOW + 30), "addresses": [V4, V6]}),
        *((f"TERMINATED, reason {reason}", {"code": 6, "reason": reason}) for reason in range(1, 7)),
        *((f"DROPPED, cause {cause}", {"code": 7, "cause": cause, "packets": str(cause * 1_000)}) for cause in range(1, 6)),
        ("SUPERSEDED", {"code": 8}),
        ("MAX_PAYLOAD", {"code": 9, "max_payload": 1_393}),
    ]
    return [capsule(f"NOTICE {name}", "NOTICE", fields) for name, fields in cases]


def tolerated() -> list[Vector]:
    """What must be read although nobody writes it today; ``capsule`` null means that it is skipped."""
    unknown_bits = allocate(0, features=U32)
    hello = {**HELLO, "features": U32}
    flags = {**HERE, "flags": 0xFE}
    longer = bytes([len(entry(flags)) + 1]) + entry(flags)[1:] + b"zz"
    ahead = encode_value("ALLOCATE", allocate(0)) + b"new"
    cases: list[tuple[str, str, bytes, str | None, Fields]] = [
        ("bytes after the fields of ALLOCATE", "relay", frame(0x01, ahead), "ALLOCATE", allocate(0)),
        ("unknown feature bits in ALLOCATE", "relay", encode_capsule("ALLOCATE", unknown_bits), "ALLOCATE", unknown_bits),
        ("bytes after the token of REFRESH", "relay", frame(0x02, TOKEN + b"\x00"), "REFRESH", {"token": TOKEN.hex()}),
        ("RELEASE with a value", "relay", frame(0x03, b"\x01\x02"), "RELEASE", {}),
        ("type and length in longer varints than needed", "relay", bytes.fromhex("800000034000"), "RELEASE", {}),
        ("unknown type, to a relay", "relay", frame(0x2A, b"abc"), None, {}),
        ("unknown type in an 8-byte varint", "relay", frame(2**62 - 1, b""), None, {}),
        ("unknown type with the longest value", "relay", frame(0x7F, bytes(4_096)), None, {}),
        ("a capsule of the other direction, to a relay", "relay", encode_capsule("HELLO", HELLO), None, {}),
        ("all feature bits and more in HELLO", "client", frame(0x10, encode_value("HELLO", hello) + b"\x00"), "HELLO", hello),
        ("unknown NOTICE code", "client", frame(0x15, b"\xc8whatever"), "NOTICE", {"code": 200}),
        ("bytes after the body of a NOTICE", "client", frame(0x15, b"\x04\x01"), "NOTICE", {"code": 4}),
        ("unknown flags and more in a RELAYS entry", "client", frame(0x17, b"\x01" + longer), "RELAYS", {"entries": [flags]}),
        ("unknown type, to a client", "client", frame(0x2A, b"abc"), None, {}),
        ("a capsule of the other direction, to a client", "client", frame(0x03, b""), None, {}),
    ]
    return [
        {"name": name, "reader": reader, "bytes": data.hex(), "capsule": kind, "fields": fields}
        for name, reader, data, kind, fields in cases
    ]


def malformed() -> list[Vector]:
    """Capsules whose reader must give up the connection, and the close code that says why."""
    proven, plain = encode_value("ALLOCATE", allocate(0)), encode_value("ALLOCATE", without_proof(allocate(0)))
    promised = plain[:2] + b"\x00\x00\x00\x01" + plain[6:]
    mapped = b"\x06" + ipaddress.IPv6Address("::ffff:192.0.2.7").packed + b"\x11\x51"
    too_large = [
        ("a value of 4097 bytes: refused on its length", "relay", varint(0x01) + varint(4_097)),
        ("an unknown type of 2^62 - 1 bytes: refused on its length", "relay", varint(0x2A) + varint(2**62 - 1)),
        ("a HELLO of 4097 bytes: refused on its length", "client", varint(0x10) + varint(4_097)),
    ]
    wrong = [
        ("empty ALLOCATE", "relay", frame(0x01, b"")),
        ("ALLOCATE that ends in the token", "relay", frame(0x01, plain[:233])),
        ("ALLOCATE without an address", "relay", frame(0x01, plain[:234])),
        ("ALLOCATE that ends in the proof", "relay", frame(0x01, proven[:-1])),
        ("ALLOCATE that promises a proof and has none", "relay", frame(0x01, promised)),
        ("ALLOCATE with role 2", "relay", frame(0x01, b"\x01\x02" + plain[2:])),
        ("ALLOCATE with address family 5", "relay", frame(0x01, plain[:234] + b"\x05\x00\x00")),
        ("ALLOCATE with an IPv4-mapped address in family 6", "relay", frame(0x01, plain[:234] + mapped)),
        ("REFRESH one byte short", "relay", frame(0x02, TOKEN[:-1])),
        ("empty REFRESH", "relay", frame(0x02, b"")),
        ("HELLO one byte short", "client", frame(0x10, encode_value("HELLO", HELLO)[:-1])),
        ("ALLOCATED that ends after the id", "client", frame(0x11, ALLOCATION_ID)),
        ("REFRESHED one byte short", "client", frame(0x12, bytes(31))),
        ("REDIRECT with 17 addresses", "client", frame(0x14, b"\x01\x00\x11" + address(NONE) * 17)),
        ("REDIRECT that counts more addresses than it has", "client", frame(0x14, b"\x01\x00\x02" + address(V4))),
        ("empty NOTICE", "client", frame(0x15, b"")),
        ("NOTICE QUOTA_WARNING without its quota", "client", frame(0x15, b"\x01" + bytes(8))),
        ("NOTICE DRAINING with 17 addresses", "client", frame(0x15, b"\x05" + bytes(8) + b"\x11" + address(NONE) * 17)),
        ("CHANNEL of 6 bytes", "client", frame(0x16, bytes(6))),
        ("RELAYS with 33 entries", "client", frame(0x17, b"\x21" + entry(HERE) * 33)),
        ("RELAYS with an entry that ends early", "client", frame(0x17, b"\x01" + entry(HERE)[:-1])),
        ("RELAYS with an entry too short for its fields", "client", frame(0x17, b"\x01\x04" + bytes(4))),
        ("RELAYS with a load of 101", "client", frame(0x17, b"\x01" + entry({**HERE, "load": 101}))),
        ("RELAYS with a region of 33 bytes", "client", frame(0x17, b"\x01" + entry({**HERE, "region": "r" * 33}))),
        ("RELAYS with a region that is not UTF-8", "client", frame(0x17, b"\x01\x0d" + bytes(8) + b"\x00\x00\x00\x01\xff")),
        ("ERROR with less message than it says", "client", frame(0x1F, b"\x00\x12\x00\x05abcd")),
        ("ERROR with a message that is not UTF-8", "client", frame(0x1F, b"\x00\x12\x00\x01\xff")),
    ]
    return [
        {"name": name, "reader": reader, "bytes": data.hex(), "error": error}
        for error, cases in (("CONTROL_TOO_LARGE", too_large), ("PROTOCOL_ERROR", wrong))
        for name, reader, data in cases
    ]


def requests() -> Vector:
    """ALLOCATEs judged by the relay described beside them: NO_ERROR is accepted, anything else is the close code.

    Those with two faults show the order of PROTOCOL §5: the earlier one names the code.
    """
    right = allocate(0)
    zeros16, zeros32 = bytes(16).hex(), bytes(32).hex()
    other_key = Possession(TOKEN, 0).proof(STRANGER).hex()
    other_challenge = Possession(TOKEN, 0, challenge=fixed("other challenge")).proof(DEVICE).hex()
    other_certificate = Possession(TOKEN, 0, certificate=b"another").proof(DEVICE).hex()
    other_relay = Possession(TOKEN, 0, relay_id=fixed("other relay", 16)).proof(DEVICE).hex()
    other_token = Possession(Claims(quota_bytes=1).token(), 0).proof(DEVICE).hex()
    cases: list[tuple[str, str, Fields]] = [
        ("device, proven", "NO_ERROR", right),
        ("peer, proven", "NO_ERROR", allocate(1)),
        ("the longest life allowed", "NO_ERROR", allocate(0, Claims(expires_at=NOW + MAX_LIFETIME).token())),
        ("version 2", "VERSION", {**right, "version": 2}),
        ("device id of zeros", "TOKEN_MALFORMED", allocate(0, Claims(device_id=bytes(32)).token())),
        ("peer id of zeros", "TOKEN_MALFORMED", allocate(0, Claims(peer_id=bytes(32)).token(), peer_id=zeros32)),
        ("device not known", "DEVICE_UNKNOWN", allocate(0, Claims(device_id=STRANGER.id).token(STRANGER))),
        ("signed by another key", "TOKEN_BAD_SIGNATURE", allocate(0, Claims().token(STRANGER))),
        ("signature with its last bit flipped", "TOKEN_BAD_SIGNATURE", allocate(0, flip(TOKEN, 0))),
        ("quota with its last bit flipped", "TOKEN_BAD_SIGNATURE", allocate(0, flip(TOKEN, 64 * 8))),
        ("expires now", "TOKEN_EXPIRED", allocate(0, Claims(expires_at=NOW).token())),
        ("lives one second too long", "TOKEN_TOO_LONG", allocate(0, Claims(expires_at=NOW + MAX_LIFETIME + 1).token())),
        ("for another relay", "TOKEN_WRONG_RELAY", allocate(0, Claims(relay_id=fixed("other relay", 16)).token())),
        ("for another allocation", "TOKEN_WRONG_ALLOCATION", {**right, "allocation_id": fixed("other allocation", 16).hex()}),
        ("for another peer", "TOKEN_WRONG_PEER", {**right, "peer_id": STRANGER.id.hex()}),
        ("no proof", "PROOF_REQUIRED", without_proof(right)),
        ("proof with its last bit flipped", "PROOF_INVALID", {**right, "proof": flip(bytes.fromhex(right["proof"]), 0).hex()}),
        ("proof and key of the other role", "PROOF_INVALID", {**right, "role": 1}),
        ("proof by a stranger's key", "PROOF_INVALID", {**right, "public_key": STRANGER.public.hex(), "proof": other_key}),
        ("proof for another challenge", "PROOF_INVALID", {**right, "proof": other_challenge}),
        ("proof for another certificate", "PROOF_INVALID", {**right, "proof": other_certificate}),
        ("proof for another relay", "PROOF_INVALID", {**right, "proof": other_relay}),
        ("proof for another token", "PROOF_INVALID", {**right, "proof": other_token}),
        ("version before malformed", "VERSION", allocate(0, Claims(peer_id=bytes(32)).token(), version=2)),
        ("malformed before unknown", "TOKEN_MALFORMED", allocate(0, Claims(device_id=bytes(32)).token(STRANGER))),
        ("unknown before signature", "DEVICE_UNKNOWN", allocate(0, Claims(device_id=STRANGER.id).token())),
        ("signature before expiry", "TOKEN_BAD_SIGNATURE", allocate(0, Claims(expires_at=0).token(STRANGER))),
        ("expiry before relay", "TOKEN_EXPIRED", allocate(0, Claims(expires_at=0, relay_id=bytes(16)).token())),
        ("too long before relay", "TOKEN_TOO_LONG", allocate(0, Claims(expires_at=U64, relay_id=bytes(16)).token())),
        ("relay before allocation", "TOKEN_WRONG_RELAY", allocate(0, Claims(relay_id=bytes(16)).token(), allocation_id=zeros16)),
        ("allocation before peer", "TOKEN_WRONG_ALLOCATION", {**right, "allocation_id": zeros16, "peer_id": zeros32}),
        ("peer before proof", "TOKEN_WRONG_PEER", without_proof({**right, "peer_id": zeros32})),
    ]
    return {
        "relay": {
            "relay_id": RELAY_ID.hex(), "certificate": CERTIFICATE.hex(), "challenge": CHALLENGE.hex(), "now": str(NOW),
            "max_token_lifetime": MAX_LIFETIME, "pinned_devices": [DEVICE.public.hex()], "proof_required_of": ["device", "peer"],
        },
        "cases": [
            {"name": name, "error": error, "fields": fields, "bytes": encode_capsule("ALLOCATE", fields).hex()}
            for name, error, fields in cases
        ],
    }


def render() -> str:
    """The text of the file."""
    document = {
        "about": [
            "Test vectors of the zrc-relay wire protocol, version 1; docs/protocol.md says what they mean.",
            "Generated by scripts/generate_vectors.py, which shares no code with the relay. Do not edit.",
            "Bytes are hex; 64-bit integers are decimal strings, other integers numbers.",
            "capsules: fields <-> bytes, both ways. tolerated: bytes -> fields, or skipped where capsule is null.",
            "malformed: bytes -> the close code of its reader. requests: ALLOCATE -> the close code of a relay as described.",
        ],
        "protocol_version": 1,
        "keys": keys(),
        "routing_bytes": routing_bytes(),
        "varints": varints(),
        "addresses": addresses(),
        "tokens": tokens(),
        "proofs": proofs(),
        "capsules": {"client_to_relay": client_capsules(), "relay_to_client": relay_capsules() + notices()},
        "tolerated": tolerated(),
        "malformed": malformed(),
        "requests": requests(),
    }
    return json.dumps(document, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` say whether it is up to date (exit status 1 if not)."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: generate_vectors.py [--check]\n")
        return 2
    text = render()
    if not arguments:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{TARGET} is stale: run scripts/generate_vectors.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
