"""The codec against ``docs/vectors.json``, and the page and the file against each other.

The vectors were made by an encoder that shares no code with the package (``scripts/vector_encoder.py``), so agreement here means
that two readings of the protocol page agree.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core import codes, wire
from zrc_relay.core.authorisation import Authoriser, Challenge, Refused
from zrc_relay.core.counters import Counters
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.token import RelayToken, key_id, proof_digest, routing_byte, verify
from zrc_relay.core.varint import encode_varint, pull_varint

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "generate_vectors.py"
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
VECTORS: dict[str, Any] = json.loads((ROOT / "docs" / "vectors.json").read_text(encoding="utf-8"))

Fields = dict[str, Any]
READERS = {"relay": wire.CLIENT_CAPSULES, "client": wire.RELAY_CAPSULES}
EMPTY: dict[str, wire.Capsule] = {
    "RELEASE": wire.Release(), "OPEN_CHANNEL": wire.OpenChannel(), "LIST_RELAYS": wire.ListRelays(),
    "CLOSE_CHANNEL": wire.CloseChannel(), "RELEASED": wire.Released(),
}
NOTICE_NUMBERS = ("used", "quota", "limit", "dropped", "max_payload", "deadline", "reason", "cause", "packets")


def unhex(fields: Fields, *names: str) -> list[bytes]:
    """The named fields as bytes; absent ones are empty."""
    return [bytes.fromhex(fields.get(name, "")) for name in names]


def address_of(fields: Fields) -> wire.Address:
    """An address of the file."""
    return wire.Address.of(fields["ip"], fields["port"]) if fields["family"] else wire.NO_ADDRESS


def entry_of(fields: Fields) -> wire.RelayEntry:
    """An entry of RELAYS; only flag bit 0 has a meaning."""
    return wire.RelayEntry(
        bytes.fromhex(fields["instance_id"]), address_of(fields["address"]), fields["load"], bool(fields["flags"] & 1),
        fields["region"],
    )


def allocate_of(fields: Fields) -> wire.Allocate:
    """An ALLOCATE of the file."""
    allocation_id, peer_id, token, public_key, proof = unhex(
        fields, "allocation_id", "peer_id", "token", "public_key", "proof",
    )
    return wire.Allocate(
        fields["role"], allocation_id, peer_id, token, address_of(fields["client_addr"]), public_key, proof,
        features=fields["features"], version=fields["version"],
    )


def allocated_of(fields: Fields) -> wire.Allocated:
    """An ALLOCATED of the file."""
    return wire.Allocated(
        bytes.fromhex(fields["allocation_id"]), address_of(fields["relay_addr"]), int(fields["expires_at"]),
        int(fields["bandwidth_limit"]), int(fields["quota_bytes"]), int(fields["bytes_transferred"]),
        address_of(fields["observed_addr"]), fields["keepalive_interval"], fields["idle_timeout"],
        bool(fields["peer_present"]), fields["peer_max_payload"],
    )


def notice_of(fields: Fields) -> wire.Notice:
    """A NOTICE of the file: the numbers of its body in the order in which the page lists them."""
    numbers = [int(fields[name]) for name in NOTICE_NUMBERS if name in fields]
    first, second = [*numbers, 0, 0][:2]
    return wire.Notice(fields["code"], first, second, tuple(map(address_of, fields.get("addresses", ()))))


BUILDERS: dict[str, Callable[[Fields], wire.Capsule]] = {
    "ALLOCATE": allocate_of,
    "REFRESH": lambda fields: wire.Refresh(*unhex(fields, "token")),
    "HELLO": lambda fields: wire.Hello(
        bytes.fromhex(fields["relay_id"]), bytes.fromhex(fields["challenge"]), fields["features"], fields["version"],
    ),
    "ALLOCATED": allocated_of,
    "REFRESHED": lambda fields: wire.Refreshed(
        *(int(fields[name]) for name in ("expires_at", "bandwidth_limit", "quota_bytes", "bytes_transferred")),
    ),
    "REDIRECT": lambda fields: wire.Redirect(
        fields["reason"], fields["routing_byte"], tuple(map(address_of, fields["addresses"])),
    ),
    "NOTICE": notice_of,
    "CHANNEL": lambda fields: wire.Channel(*unhex(fields, "channel_id")),
    "RELAYS": lambda fields: wire.Relays(tuple(map(entry_of, fields["entries"]))),
    "ERROR": lambda fields: wire.Error(fields["code"], fields["message"]),
}


def capsule_of(name: str, fields: Fields) -> wire.Capsule:
    """The value of our own type that a vector describes."""
    return EMPTY[name] if name in EMPTY else BUILDERS[name](fields)


def decode(reader: str, data: bytes) -> list[wire.Capsule | wire.Unknown]:
    """What ``reader`` (relay or client) sees in ``data``."""
    decoder = wire.CapsuleDecoder(READERS[reader])
    decoder.feed(data)
    return list(decoder)


def flipped(data: bytes, bit: int) -> bytes:
    """``data`` with one bit changed."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def all_capsules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every two-way capsule vector with its reader."""
    for reader, section in (("relay", "client_to_relay"), ("client", "relay_to_client")):
        for vector in VECTORS["capsules"][section]:
            yield reader, vector


class GeneratorTests(SynchronousTestCase):
    """The file is what the script makes, and the script knows nothing of the package (PROTOCOL §3-5)."""

    def test_the_file_is_up_to_date(self) -> None:
        done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_the_generator_shares_no_code_with_the_relay(self) -> None:
        program = (
            f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import generate_vectors; generate_vectors.render(); "
            "print(sorted({name.partition('.')[0] for name in sys.modules} & {'zrc_relay', 'nacl'}))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.strip(), "[]")


class KeyVectorTests(SynchronousTestCase):
    """Ids, routing bytes, varints and addresses (PROTOCOL §1-3; RFC 9000 §16)."""

    def test_key_ids(self) -> None:
        for vector in VECTORS["keys"]:
            public_key = bytes(SigningKey(bytes.fromhex(vector["seed"])).verify_key)
            self.assertEqual((public_key.hex(), key_id(public_key).hex()), (vector["public_key"], vector["id"]), vector["name"])

    def test_routing_bytes(self) -> None:
        for vector in VECTORS["routing_bytes"]:
            self.assertEqual(routing_byte(bytes.fromhex(vector["allocation_id"])), vector["routing_byte"])

    def test_varints(self) -> None:
        for vector in VECTORS["varints"]:
            value, data = int(vector["value"]), bytes.fromhex(vector["bytes"])
            self.assertEqual(pull_varint(data, 0), (value, len(data)))
            if vector["shortest"]:
                self.assertEqual(encode_varint(value), data)

    def test_addresses(self) -> None:
        for vector in VECTORS["addresses"]:
            host = vector["host"]
            address = wire.NO_ADDRESS if host is None else wire.Address.of(host, vector["fields"]["port"])
            self.assertEqual(address, address_of(vector["fields"]), vector["name"])
            self.assertEqual(address.encode().hex(), vector["bytes"], vector["name"])


class TokenVectorTests(SynchronousTestCase):
    """Tokens and proofs made by an independent Ed25519 are ours to the byte, and accepted (R1.2, R6.8)."""

    def setUp(self) -> None:
        self.seeds = {vector["name"]: bytes.fromhex(vector["seed"]) for vector in VECTORS["keys"]}

    def test_tokens_are_signed_to_the_same_bytes(self) -> None:
        for vector in VECTORS["tokens"]:
            fields = vector["fields"]
            relay_id, allocation_id, device_id, peer_id = unhex(fields, "relay_id", "allocation_id", "device_id", "peer_id")
            unsigned = RelayToken(
                relay_id, allocation_id, device_id, peer_id, int(fields["expires_at"]), int(fields["bandwidth_limit"]),
                int(fields["quota_bytes"]),
            )
            token = unsigned.sign(SigningKey(self.seeds[vector["signed_by"]]))
            self.assertEqual(token.signed_part().hex(), vector["signed_part"], vector["name"])
            self.assertEqual(hashlib.sha256(token.signed_part()).hexdigest(), vector["digest"], vector["name"])
            self.assertEqual(token.encode().hex(), vector["bytes"], vector["name"])
            self.assertEqual(token.to_text(), vector["text"], vector["name"])
            self.assertEqual(RelayToken.parse(bytes.fromhex(vector["bytes"])), token, vector["name"])
            self.assertEqual(RelayToken.from_text(vector["text"]), token, vector["name"])

    def test_tokens_verify(self) -> None:
        public_keys = {vector["name"]: bytes.fromhex(vector["public_key"]) for vector in VECTORS["keys"]}
        for vector in VECTORS["tokens"]:
            token = RelayToken.parse(bytes.fromhex(vector["bytes"]))
            accepted = {name for name, public_key in public_keys.items() if token.is_signed_by(public_key)}
            self.assertEqual(accepted, {vector["signed_by"]}, vector["name"])

    def test_proofs(self) -> None:
        self.assertEqual([vector["role"] for vector in VECTORS["proofs"]], [codes.Role.DEVICE, codes.Role.PEER])
        for vector in VECTORS["proofs"]:
            digest = proof_digest(
                relay_id=bytes.fromhex(vector["relay_id"]),
                certificate_sha256=hashlib.sha256(bytes.fromhex(vector["certificate"])).digest(),
                token=bytes.fromhex(vector["token"]), challenge=bytes.fromhex(vector["challenge"]), role=vector["role"],
            )
            self.assertEqual(digest.hex(), vector["digest"], vector["name"])
            proof = bytes.fromhex(vector["proof"])
            self.assertTrue(verify(bytes.fromhex(vector["public_key"]), digest, proof), vector["name"])
            self.assertEqual(SigningKey(self.seeds[vector["signed_by"]]).sign(digest).signature, proof, vector["name"])

    def test_the_certificate_is_one(self) -> None:
        for vector in VECTORS["proofs"]:
            certificate = x509.load_der_x509_certificate(bytes.fromhex(vector["certificate"]))
            certificate.verify_directly_issued_by(certificate)


class CapsuleVectorTests(SynchronousTestCase):
    """Capsules both ways, and what a reader must bear or refuse (PROTOCOL §2, §4, §5)."""

    def test_capsules_encode_to_these_bytes(self) -> None:
        for _, vector in all_capsules():
            self.assertEqual(capsule_of(vector["capsule"], vector["fields"]).encode().hex(), vector["bytes"], vector["name"])

    def test_capsules_decode_from_these_bytes(self) -> None:
        for reader, vector in all_capsules():
            expected = capsule_of(vector["capsule"], vector["fields"])
            self.assertEqual(decode(reader, bytes.fromhex(vector["bytes"])), [expected], vector["name"])

    def test_every_capsule_notice_reason_and_cause_has_a_vector(self) -> None:
        vectors = [vector for _, vector in all_capsules()]
        self.assertEqual({vector["capsule"] for vector in vectors}, set(codes.CapsuleType.__members__))
        fields = [vector["fields"] for vector in vectors if vector["capsule"] == "NOTICE"]
        self.assertEqual({one["code"] for one in fields}, set(codes.NoticeCode))
        self.assertEqual({one["reason"] for one in fields if "reason" in one}, set(codes.TerminationReason))
        self.assertEqual({one["cause"] for one in fields if "cause" in one}, set(codes.DropCause) - {codes.DropCause.QUOTA})
        redirects = {vector["fields"]["reason"] for vector in vectors if vector["capsule"] == "REDIRECT"}
        self.assertEqual(redirects, set(codes.RedirectReason))

    def test_names_are_unique(self) -> None:
        names = [vector["name"] for _, vector in all_capsules()]
        self.assertEqual(len(names), len(set(names)))

    def test_what_may_grow_is_read(self) -> None:
        for vector in VECTORS["tolerated"]:
            [capsule] = decode(vector["reader"], bytes.fromhex(vector["bytes"]))
            if vector["capsule"] is None:
                self.assertIsInstance(capsule, wire.Unknown, vector["name"])
            else:
                self.assertEqual(capsule, capsule_of(vector["capsule"], vector["fields"]), vector["name"])

    def test_what_is_malformed_is_refused_with_its_code(self) -> None:
        for vector in VECTORS["malformed"]:
            with self.assertRaises(wire.WireError, msg=vector["name"]) as caught:
                decode(vector["reader"], bytes.fromhex(vector["bytes"]))
            self.assertEqual(caught.exception.code.name, vector["error"], vector["name"])


class RequestVectorTests(SynchronousTestCase):
    """ALLOCATEs made elsewhere are accepted or refused with their code, in the page's order (R1.1-R1.5, R6.8)."""

    def setUp(self) -> None:
        relay = VECTORS["requests"]["relay"]
        roles = {"device": codes.Role.DEVICE, "peer": codes.Role.PEER}
        self.now = int(relay["now"])
        self.challenge = Challenge(
            bytes.fromhex(relay["relay_id"]), hashlib.sha256(bytes.fromhex(relay["certificate"])).digest(),
            bytes.fromhex(relay["challenge"]),
        )
        self.authoriser = Authoriser(
            relay_id=self.challenge.relay_id,
            keys=DeviceKeys([Device(bytes.fromhex(public_key)) for public_key in relay["pinned_devices"]]),
            max_token_lifetime=relay["max_token_lifetime"],
            proving_roles=[roles[name] for name in relay["proof_required_of"]],
            counters=Counters(),
        )

    def judge(self, allocate: wire.Allocate) -> str:
        """The name of the close code that the relay would answer with."""
        try:
            self.authoriser.allocate(allocate, self.challenge, self.now)
        except Refused as refused:
            return refused.code.name
        return "NO_ERROR"

    def accepted(self) -> list[wire.Allocate]:
        """The requests that the vectors call right."""
        return [
            cast(wire.Allocate, decode("relay", bytes.fromhex(vector["bytes"]))[0])
            for vector in VECTORS["requests"]["cases"] if vector["error"] == "NO_ERROR"
        ]

    def test_each_request_is_answered_with_its_code(self) -> None:
        for vector in VECTORS["requests"]["cases"]:
            [allocate] = decode("relay", bytes.fromhex(vector["bytes"]))
            self.assertEqual(self.judge(cast(wire.Allocate, allocate)), vector["error"], vector["name"])

    def test_no_single_bit_of_a_token_may_differ(self) -> None:
        right = self.accepted()[0]
        survivors = [bit for bit in range(180 * 8) if self.judge(replace(right, token=flipped(right.token, bit))) == "NO_ERROR"]
        self.assertEqual((self.judge(right), survivors), ("NO_ERROR", []))

    def test_no_single_bit_of_a_proof_or_its_key_may_differ(self) -> None:
        for right in self.accepted()[:2]:
            wrong = [replace(right, proof=flipped(right.proof, bit)) for bit in range(64 * 8)]
            wrong += [replace(right, public_key=flipped(right.public_key, bit)) for bit in range(32 * 8)]
            self.assertEqual({self.judge(one) for one in wrong}, {"PROOF_INVALID"})

    def test_every_way_a_token_or_a_proof_can_be_wrong_is_there(self) -> None:
        wanted = {name for name in codes.ErrorCode.__members__ if name.startswith(("TOKEN_", "PROOF_"))}
        self.assertEqual(
            {vector["error"] for vector in VECTORS["requests"]["cases"]}, wanted | {"NO_ERROR", "VERSION", "DEVICE_UNKNOWN"},
        )


class PageTests(SynchronousTestCase):
    """docs/protocol.md has the numbers of the code and the bytes of the vectors."""

    def test_every_number_with_a_name_is_in_a_table_of_the_page(self) -> None:
        rows = {
            (int(number, 0), name)
            for number, name in re.findall(r"^\| (0x[0-9a-f]+|\d+) \| `?([A-Z_]+)`? \|", PAGE, flags=re.MULTILINE)
        }
        enums: list[type[IntEnum]] = [codes.ErrorCode, codes.CapsuleType, codes.NoticeCode]
        for enum in enums:
            for member in enum:
                self.assertIn((member.value, member.name), rows)
        for stream_error in codes.StreamError:
            self.assertIn(f"`0x{stream_error:08x}`", PAGE)

    def test_worked_examples_are_vectors(self) -> None:
        vectors = {vector["name"]: vector["bytes"] for _, vector in all_capsules()}
        vectors |= {f"token, {vector['name']}": vector["bytes"] for vector in VECTORS["tokens"]}
        examples = re.findall(r"<!-- vector: (.+?) -->\n+```text\n(.+?)```", PAGE, flags=re.DOTALL)
        self.assertGreaterEqual(len(examples), 3)
        for name, block in examples:
            # Hex comes first on each line, what it means after two blanks.
            shown = "".join(line.partition("  ")[0] for line in block.splitlines())
            self.assertEqual(bytes.fromhex(shown).hex(), vectors[name], name)

    def test_steps_on_the_way_to_a_signature_are_those_of_the_vectors(self) -> None:
        proof = VECTORS["proofs"][0]
        for step in (VECTORS["tokens"][0]["digest"], proof["certificate_sha256"], proof["token_sha256"], proof["digest"]):
            self.assertIn(f"`{step}`", PAGE)
