"""Retry tokens, and the packets that are sent without a connection."""

from __future__ import annotations

import random

from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import get_retry_integrity_tag
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.raw_quic import Initial
from zrc_relay.quic.retry import KEY_LIFETIME, MAX_TOKEN_SIZE, TOKEN_LIFETIME, RetryTokens
from zrc_relay.quic.stateless import (
    LongHeader,
    initial_close,
    parse_long_header,
    parse_token,
    retry,
    version_negotiation,
)

HOST, PORT = "192.0.2.1", 4000
ORIGINAL = b"original id"
RETRY_ID = b"retry id"
START = 1000.0


class TokenTestCase(SynchronousTestCase):
    """Helpers."""

    def setUp(self) -> None:
        self.random = random.Random(1)  # noqa: S311 - the same keys each time
        self.tokens = RetryTokens(self.random.randbytes, START)
        self.token = self.create(START)

    def create(self, now: float) -> bytes:
        """A token for the client of these tests."""
        return self.tokens.create(HOST, PORT, ORIGINAL, RETRY_ID, now)

    def check(
        self, token: bytes, now: float = START, *, host: str = HOST, port: int = PORT, retry_id: bytes = RETRY_ID
    ) -> bytes | None:
        """What the relay makes of it."""
        return self.tokens.check(token, host, port, retry_id, now)


class TokenTests(TokenTestCase):
    """R6.2, RFC 9000 §8.1.2: a Retry token shows that a client receives what is sent to its address."""

    def test_it_gives_the_first_connection_id_back(self) -> None:
        self.assertEqual(self.check(self.token), ORIGINAL)

    def test_no_two_are_alike(self) -> None:
        self.assertNotEqual(self.create(START), self.token)

    def test_it_is_bound_to_address_port_and_connection_id(self) -> None:
        self.assertIsNone(self.check(self.token, host="192.0.2.2"))
        self.assertIsNone(self.check(self.token, host="2001:db8::1"))
        self.assertIsNone(self.check(self.token, port=4001))
        self.assertIsNone(self.check(self.token, retry_id=b"another1"))
        self.assertIsNone(self.check(self.token, retry_id=ORIGINAL))

    def test_what_it_is_bound_to_cannot_be_split_in_another_way(self) -> None:
        token = self.tokens.create("192.0.2.1", 40, ORIGINAL, b"00/12345", START)
        self.assertIsNone(self.tokens.check(token, "192.0.2.1", 4000, b"/12345", START))

    def test_it_expires(self) -> None:
        self.assertEqual(self.check(self.token, START + TOKEN_LIFETIME - 0.01), ORIGINAL)
        self.assertIsNone(self.check(self.token, START + TOKEN_LIFETIME))

    def test_each_bit_matters(self) -> None:
        for bit in range(8 * len(self.token)):
            forged = bytearray(self.token)
            forged[bit // 8] ^= 1 << bit % 8
            self.assertIsNone(self.check(bytes(forged)), bit)

    def test_each_length_but_its_own_is_refused(self) -> None:
        for size in range(len(self.token)):
            self.assertIsNone(self.check(self.token[:size]))
        self.assertIsNone(self.check(self.token + b"\0"))

    def test_another_relay_does_not_take_it(self) -> None:
        other = RetryTokens(random.Random(2).randbytes, START)  # noqa: S311
        self.assertIsNone(other.check(self.token, HOST, PORT, RETRY_ID, START))

    def test_it_holds_neither_address_nor_connection_id_in_the_clear(self) -> None:
        for secret in (ORIGINAL, RETRY_ID, HOST.encode()):
            self.assertNotIn(secret, self.token)

    @given(st.binary(max_size=MAX_TOKEN_SIZE + 5))
    def test_garbage(self, garbage: bytes) -> None:
        tokens = RetryTokens(random.Random(1).randbytes, START)  # noqa: S311
        self.assertIsNone(tokens.check(garbage, HOST, PORT, RETRY_ID, START))

    @given(st.binary(min_size=0, max_size=20), st.binary(min_size=1, max_size=20), st.integers(0, 65535), st.ip_addresses())
    def test_any_client(self, original: bytes, retry_id: bytes, port: int, host: object) -> None:
        tokens = RetryTokens(random.Random(1).randbytes, START)  # noqa: S311
        token = tokens.create(str(host), port, original, retry_id, START)
        self.assertLessEqual(len(token), MAX_TOKEN_SIZE)
        self.assertEqual(tokens.check(token, str(host), port, retry_id, START + 1), original)


class KeyTests(TokenTestCase):
    """R6.2, issue "per-source limits": the key rotates, and a token is good for its whole life all the same."""

    def test_a_token_outlives_the_change_of_key(self) -> None:
        token = self.create(START + KEY_LIFETIME - 1)
        self.create(START + KEY_LIFETIME)  # with the next key
        self.assertEqual(self.check(token, START + KEY_LIFETIME + 1), ORIGINAL)
        self.assertEqual(self.check(self.create(START + KEY_LIFETIME + 2), START + KEY_LIFETIME + 2), ORIGINAL)

    def test_two_keys_are_held_and_no_more(self) -> None:
        keys = vars(self.tokens)["_keys"]
        seen = {id(keys[1])}
        kept = [keys[1]]  # so that no id is used twice
        for number in range(1, 6):
            self.create(START + number * KEY_LIFETIME)
            self.assertEqual(len(keys), 2)
            kept += keys.values()
            seen |= set(map(id, keys.values()))
        self.assertEqual(len(seen), 6)

    def test_a_key_that_is_two_lifetimes_old_opens_nothing(self) -> None:
        # Expiry would refuse the token, too; the key must be gone although nobody looked in between.
        before = dict(vars(self.tokens)["_keys"])
        self.create(START + 2 * KEY_LIFETIME)
        after = vars(self.tokens)["_keys"]
        self.assertEqual(set(map(id, before.values())) & set(map(id, after.values())), set())


class HeaderTests(SynchronousTestCase):
    """RFC 8999 §5.1, RFC 9000 §17.2.2: what is read of a packet before there is a connection."""

    def packet(self, version: int, token: bytes = b"", first: int = 0xC3) -> bytes:
        head = bytes((first,)) + version.to_bytes(4, "big") + b"\x08destinat" + b"\x06source"
        return head + encode_uint_var(len(token)) + token + b"\x44\xd0" + bytes(1200)

    def test_the_fields(self) -> None:
        packet = self.packet(raw.V1, b"a token")
        header = parse_long_header(packet)
        self.assertEqual(header, LongHeader(0xC3, raw.V1, b"destinat", b"source", 21))
        if header is not None:
            self.assertEqual(parse_token(packet, header), b"a token")

    def test_which_ones_are_initials(self) -> None:
        for version, first in ((raw.V1, 0xC0), (raw.V2, 0xD0)):
            found = []
            for kind in range(0xC0, 0x100, 0x10):
                header = parse_long_header(self.packet(version, first=kind))
                if header is not None and header.is_initial:
                    found.append(kind)
            self.assertEqual(found, [first])
        unknown = parse_long_header(self.packet(7))
        self.assertFalse(unknown is None or unknown.is_initial)

    def test_what_is_cut_off(self) -> None:
        packet = self.packet(raw.V1, bytes(70))
        for size in range(21):
            self.assertIsNone(parse_long_header(packet[:size]), size)
        header = parse_long_header(packet)
        if header is None:
            self.fail("the whole packet has a header")
        for size in range(21, 21 + 2 + 70):
            self.assertIsNone(parse_token(packet[:size], header), size)
        self.assertEqual(parse_token(packet, header), bytes(70))

    def test_connection_ids_that_are_too_long(self) -> None:
        for position in (5, 14):
            packet = bytearray(self.packet(raw.V1))
            packet[position] = 21
            self.assertIsNone(parse_long_header(bytes(packet)))

    @given(st.binary(max_size=60))
    def test_garbage(self, garbage: bytes) -> None:
        header = parse_long_header(b"\xc0" + garbage)
        if header is not None:
            token = parse_token(b"\xc0" + garbage, header)
            self.assertTrue(token is None or len(token) < len(garbage))


class PacketTests(SynchronousTestCase):
    """RFC 9000 §17.2: the packets that are made of the one that they answer, as an implementation that is not ours reads them."""

    def headers(self) -> list[tuple[Initial, LongHeader]]:
        made = []
        for version in (raw.V1, raw.V2):
            initial = Initial(b"a first id", version)
            header = parse_long_header(initial.protect(raw.crypto_frame(0, b"\x01")))
            if header is None or not header.is_initial:
                self.fail("it is an Initial")
            made.append((initial, header))
        return made

    def test_a_close(self) -> None:
        for initial, header in self.headers():
            for code in (0x02, 0x0B, 0x3F, 0x40, 0x128):
                packet = initial_close(header, code)
                self.assertEqual(raw.transport_close_code(initial.open(packet, is_client=False)), code)
                answered = parse_long_header(packet)
                if answered is None or not answered.is_initial:
                    self.fail("it is an Initial")
                self.assertEqual((answered.destination, answered.source), (header.source, header.destination))
                self.assertLess(len(packet), 100)

    def test_a_retry(self) -> None:
        for _, header in self.headers():
            packet = retry(header, RETRY_ID, b"the token")
            self.assertEqual(packet[0] & 0xF0, 0xF0 if header.version == raw.V1 else 0xC0)
            answered = parse_long_header(packet)
            if answered is None:
                self.fail("it has a long header")
            self.assertEqual((answered.destination, answered.source), (header.source, RETRY_ID))
            self.assertEqual(packet[answered.end : -16], b"the token")
            self.assertEqual(packet[-16:], get_retry_integrity_tag(packet[:-16], header.destination, version=header.version))

    def test_a_version_negotiation(self) -> None:
        header = LongHeader(0xC0, 0x1A2A3A4A, b"destination", b"source", 30)
        packet = version_negotiation(header)
        self.assertEqual(packet[0] & 0xC0, 0xC0)
        self.assertEqual(packet[1:5], bytes(4))
        versions = raw.V1.to_bytes(4, "big") + raw.V2.to_bytes(4, "big")
        self.assertEqual(packet[5:], b"\x06source\x0bdestination" + versions)
