"""STUN Binding, without packets and on the relay's port."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core import stun
from zrc_relay.core.fields import Address

MAGIC = bytes.fromhex("2112a442")
TRANSACTION = bytes(range(12))
IPV4 = Address("192.0.2.1", 32853)
IPV6 = Address("2001:db8:1234:5678:11:2233:4455:6677", 32853)


def attribute(kind: int, value: bytes = b"") -> bytes:
    """An attribute, padded."""
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def message(*attributes: bytes, kind: int = 1, magic: bytes = MAGIC, transaction: bytes = TRANSACTION) -> bytes:
    """A STUN message, byte by byte (RFC 8489 §5)."""
    body = b"".join(attributes)
    return struct.pack("!HH", kind, len(body)) + magic + transaction + body


class SuccessTests(SynchronousTestCase):
    """PROTOCOL §8: a well-formed Binding request gets XOR-MAPPED-ADDRESS and nothing else."""

    def test_ipv4(self) -> None:
        # The values of RFC 5769 §2.2 for this address, port and cookie.
        transaction = bytes.fromhex("b7e7a701bc34d686fa87dfae")
        answer = stun.answer(message(transaction=transaction), IPV4)
        self.assertEqual(answer, message(bytes.fromhex("002000080001a147e112a643"), kind=0x0101, transaction=transaction))

    def test_ipv6(self) -> None:
        # RFC 5769 §2.3.
        transaction = bytes.fromhex("b7e7a701bc34d686fa87dfae")
        answer = stun.answer(message(transaction=transaction), IPV6)
        expected = bytes.fromhex("002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9")
        self.assertEqual(answer, message(expected, kind=0x0101, transaction=transaction))

    def test_attributes_that_need_not_be_understood_change_nothing(self) -> None:
        plain = stun.answer(message(), IPV4)
        self.assertEqual(stun.answer(message(attribute(0x8022, b"a client"), attribute(0x8028, bytes(4))), IPV4), plain)

    def test_attributes_that_are_understood_and_ask_for_nothing_here_change_nothing(self) -> None:
        plain = stun.answer(message(), IPV4)
        for kind in (0x0001, 0x0006, 0x0008, 0x0009, 0x000A, 0x0014, 0x0015, 0x001C, 0x001D, 0x001E, 0x0020):
            self.assertEqual(stun.answer(message(attribute(kind, b"value")), IPV4), plain, hex(kind))


class UnknownAttributeTests(SynchronousTestCase):
    """PROTOCOL §8, RFC 8489 §6.3.1: unknown comprehension-required attributes get 420 and are listed."""

    def test_they_are_listed_once_each(self) -> None:
        answer = stun.answer(message(attribute(3, bytes(4)), attribute(0x7FFF), attribute(3), attribute(0x8001)), IPV4)
        expected = message(attribute(9, b"\0\0\x04\x14Unknown Attribute"), attribute(10, b"\0\x03\x7f\xff"), kind=0x0111)
        self.assertEqual(answer, expected)

    def test_what_follows_message_integrity_is_ignored(self) -> None:
        for integrity in (attribute(0x0008, bytes(20)), attribute(0x001C, bytes(32))):
            self.assertEqual(stun.answer(message(integrity, attribute(3)), IPV4), stun.answer(message(), IPV4))


class SilenceTests(SynchronousTestCase):
    """PROTOCOL §8: responses, indications and what is not well-formed get no answer."""

    def test_other_classes_and_methods(self) -> None:
        for kind in (0x0011, 0x0101, 0x0111, 0x0003, 0x0000, 0x0002, 0x3EEF):
            self.assertIsNone(stun.answer(message(kind=kind), IPV4), hex(kind))

    def test_its_own_answers(self) -> None:
        for request in (message(), message(attribute(3))):
            answer = stun.answer(request, IPV4)
            self.assertIsNone(stun.answer(answer or b"", IPV4))

    def test_without_the_magic_cookie(self) -> None:
        self.assertIsNone(stun.answer(message(magic=bytes(4)), IPV4))

    def test_lengths_that_are_not_right(self) -> None:
        whole = message(attribute(0x8022, b"abc"))
        for data in (b"", whole[:19], whole[:-1], whole + b"\0", whole[:3] + b"\x07" + whole[4:], whole + bytes(4)):
            self.assertIsNone(stun.answer(data, IPV4))

    def test_an_attribute_that_does_not_fit(self) -> None:
        self.assertIsNone(stun.answer(message(struct.pack("!HH", 0x8022, 5) + bytes(4)), IPV4))
        self.assertIsNone(stun.answer(message(struct.pack("!HH", 3, 0xFFFF)), IPV4))

    def test_longer_than_any_honest_request(self) -> None:
        fits = message(attribute(0x8022, bytes(stun.MAX_REQUEST - 24)))
        self.assertEqual(len(fits), stun.MAX_REQUEST)
        self.assertIsNotNone(stun.answer(fits, IPV4))
        self.assertIsNone(stun.answer(message(attribute(0x8022, bytes(stun.MAX_REQUEST - 20))), IPV4))


class AmplificationTests(SynchronousTestCase):
    """R6.4: no answer is longer than three times what it answers."""

    @given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=40), st.sampled_from([IPV4, IPV6]))
    def test_any_attributes(self, attributes: list[tuple[int, bytes]], source: Address) -> None:
        request = message(*(attribute(kind, value) for kind, value in attributes))
        answer = stun.answer(request, source)
        if len(request) <= stun.MAX_REQUEST:
            self.assertIsNotNone(answer)
        self.assertLessEqual(len(answer or b""), 3 * len(request))

    def test_the_least_request_for_the_longest_answer(self) -> None:
        for request in (message(), message(attribute(3)), message(*(attribute(0x4000 + number) for number in range(300)))):
            answer = stun.answer(request, IPV6)
            self.assertTrue(answer is not None and len(answer) <= 3 * len(request))


class ClientTests(SynchronousTestCase):
    """PROTOCOL §8, the client's side."""

    def test_it_reads_what_the_relay_answers(self) -> None:
        for source in (IPV4, IPV6):
            answer = stun.answer(stun.binding_request(TRANSACTION), source)
            self.assertEqual(stun.mapped_address(answer or b"", TRANSACTION), source)

    def test_it_finds_the_address_among_other_attributes(self) -> None:
        mapped = attribute(0x20, bytes.fromhex("0001a147e112a643"))
        found = stun.mapped_address(message(attribute(0x8022, b"abc"), mapped, kind=0x0101), TRANSACTION)
        self.assertEqual(found, IPV4)

    def test_anything_else_is_no_answer(self) -> None:
        answer = stun.answer(stun.binding_request(TRANSACTION), IPV4) or b""
        for data in (b"", answer[:-1], answer[:20], message(kind=0x0101), message(attribute(0x20, b"\0\1"), kind=0x0101),
                     message(attribute(0x20, bytes(8)), kind=0x0101), stun.binding_request(TRANSACTION)):
            self.assertIsNone(stun.mapped_address(data, TRANSACTION))
        self.assertIsNone(stun.mapped_address(answer, bytes(12)))

    @given(st.binary(max_size=80))
    def test_garbage(self, data: bytes) -> None:
        self.assertIsNone(stun.mapped_address(data, TRANSACTION))
        self.assertIsNone(stun.mapped_address(message(kind=0x0101) + data, TRANSACTION))
