"""The capsule codec: bytes in any portions, limits before memory, and nothing but ``WireError`` for what is wrong."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address
from typing import cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core import wire
from zrc_relay.core.codes import AllocateFeature, CapsuleType, ErrorCode, NoticeCode, TerminationReason
from zrc_relay.core.varint import MAX_VARINT, encode_varint, pull_varint

# No deadline and no complaint about slow generation: both would judge the machine, not the code.
property_test = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def uints(bits: int) -> st.SearchStrategy[int]:
    """Unsigned integers of ``bits`` bits."""
    return st.integers(0, (1 << bits) - 1)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    """``size`` bytes."""
    return st.binary(min_size=size, max_size=size)


ADDRESSES = st.just(wire.NO_ADDRESS) | st.builds(
    wire.Address.of, (st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(str), uints(16),
)
ADDRESS_LISTS = st.lists(ADDRESSES, max_size=wire.MAX_ADDRESSES).map(tuple)
UNPROVEN = st.builds(
    wire.Allocate, st.integers(0, 1), exactly(16), exactly(32), exactly(180), ADDRESSES,
    features=uints(32).map(lambda bits: bits & ~AllocateFeature.PROOF),
)
PROVEN = st.builds(
    wire.Allocate, st.integers(0, 1), exactly(16), exactly(32), exactly(180), ADDRESSES, exactly(32), exactly(64),
    uints(32).map(lambda bits: bits | AllocateFeature.PROOF),
)
CLIENT_CAPSULES: st.SearchStrategy[wire.ClientCapsule] = st.one_of(
    UNPROVEN, PROVEN, st.builds(wire.Refresh, exactly(180)),
    st.builds(wire.Release), st.builds(wire.OpenChannel), st.builds(wire.ListRelays), st.builds(wire.CloseChannel),
)

NOTICES = st.one_of(
    st.builds(wire.Notice, st.sampled_from([NoticeCode.QUOTA_WARNING, NoticeCode.RATE_LIMITED]), uints(64), uints(64)),
    st.builds(wire.Notice, st.sampled_from([NoticeCode.PEER_JOINED, NoticeCode.MAX_PAYLOAD]), uints(16)),
    st.builds(wire.Notice, st.sampled_from([NoticeCode.PEER_LEFT, NoticeCode.SUPERSEDED])),
    st.builds(wire.Notice, st.just(NoticeCode.DRAINING), uints(64), addresses=ADDRESS_LISTS),
    st.builds(wire.Notice, st.just(NoticeCode.TERMINATED), uints(8)),
    st.builds(wire.Notice, st.just(NoticeCode.DROPPED), uints(8), uints(64)),
)
# Eight characters are 32 bytes of UTF-8 at most.
ENTRIES = st.builds(wire.RelayEntry, exactly(8), ADDRESSES, st.integers(0, 100), st.booleans(), st.text(max_size=8))
RELAY_CAPSULES: st.SearchStrategy[wire.RelayCapsule] = st.one_of(
    st.builds(wire.Hello, exactly(16), exactly(32), uints(32)),
    st.builds(
        wire.Allocated, exactly(16), ADDRESSES, uints(64), uints(64), uints(64), uints(64), ADDRESSES, uints(16), uints(16),
        st.booleans(), uints(16),
    ),
    st.builds(wire.Refreshed, uints(64), uints(64), uints(64), uints(64)),
    st.just(wire.Released()),
    st.builds(wire.Redirect, uints(8), uints(8), ADDRESS_LISTS),
    NOTICES,
    st.builds(wire.Channel, exactly(7)),
    st.builds(wire.Relays, st.lists(ENTRIES, max_size=wire.MAX_RELAYS).map(tuple)),
    st.builds(wire.Error, uints(16), st.text(max_size=200)),
)
CAPSULES: st.SearchStrategy[wire.Capsule] = CLIENT_CAPSULES | RELAY_CAPSULES
KNOWN = {**wire.CLIENT_CAPSULES, **wire.RELAY_CAPSULES}


def decode(data: bytes) -> list[wire.Capsule | wire.Unknown]:
    """All whole capsules in ``data``, of both directions."""
    decoder = wire.CapsuleDecoder(KNOWN)
    decoder.feed(data)
    return list(decoder)


def value_of(capsule: wire.Capsule) -> bytes:
    """The value of an encoded capsule: what follows its type, one byte for those we know, and its length, one or two."""
    data = capsule.encode()
    return data[2:] if data[1] < 0x40 else data[3:]


class VarintTests(SynchronousTestCase):
    """Variable-length integers (RFC 9000 §16)."""

    @property_test
    @given(uints(62), st.binary(max_size=4), st.binary(max_size=4))
    def test_any_value_comes_back_from_between_other_bytes(self, value: int, before: bytes, after: bytes) -> None:
        data = encode_varint(value)
        self.assertEqual(pull_varint(before + data + after, len(before)), (value, len(before) + len(data)))

    @property_test
    @given(uints(62))
    def test_the_encoding_is_the_shortest_that_holds_the_value(self, value: int) -> None:
        size = len(encode_varint(value))
        self.assertIn(size, (1, 2, 4, 8))
        self.assertLess(value, 1 << (8 * size - 2))
        if size > 1:
            self.assertGreaterEqual(value, 1 << (4 * size - 2))

    @property_test
    @given(uints(62))
    def test_every_cut_leaves_it_pending(self, value: int) -> None:
        data = encode_varint(value)
        self.assertEqual({pull_varint(data[:cut], 0) for cut in range(len(data))}, {None})

    def test_values_out_of_range_are_refused(self) -> None:
        for value in (-1, MAX_VARINT + 1):
            self.assertRaises(ValueError, encode_varint, value)


class AddressTests(SynchronousTestCase):
    """Addresses on the wire (PROTOCOL §2)."""

    @property_test
    @given(ADDRESSES)
    def test_any_address_comes_back(self, address: wire.Address) -> None:
        self.assertEqual(decode(wire.Redirect(1, 0, (address,)).encode()), [wire.Redirect(1, 0, (address,))])

    @property_test
    @given(st.ip_addresses(v=4), uints(16))
    def test_mapped_is_the_same_as_plain_ipv4(self, host: object, port: int) -> None:
        self.assertEqual(wire.Address.of(f"::ffff:{host}", port), wire.Address.of(str(host), port))

    def test_a_mapped_address_never_leaves_as_family_6(self) -> None:
        for address in (wire.Address.of("::ffff:192.0.2.1", 53), wire.Address("::ffff:192.0.2.1", 53)):
            self.assertEqual(address.encode(), bytes.fromhex("04c00002010035"))

    def test_a_mapped_address_in_family_6_is_malformed(self) -> None:
        value = b"\x01\x00\x01\x06" + IPv6Address("::ffff:192.0.2.1").packed + b"\x00\x35"
        with self.assertRaises(wire.WireError) as caught:
            decode(wire.encode_capsule(CapsuleType.REDIRECT, value))
        self.assertEqual(caught.exception.code, ErrorCode.PROTOCOL_ERROR)

    def test_scope_ids_are_dropped(self) -> None:
        self.assertEqual(wire.Address.of("fe80::1%eth0", 1), wire.Address.of("fe80::1", 1))

    def test_what_is_no_address_or_port_is_refused(self) -> None:
        for host, port in (("relay.example", 1), ("", 1), ("192.0.2.256", 1), ("192.0.2.1", -1), ("192.0.2.1", 65536)):
            self.assertRaises(ValueError, wire.Address.of, host, port)

    def test_people_see_host_and_port(self) -> None:
        shown = [str(wire.Address.of("192.0.2.1", 53)), str(wire.Address.of("2001:db8::1", 53)), str(wire.NO_ADDRESS)]
        self.assertEqual(shown, ["192.0.2.1:53", "[2001:db8::1]:53", "none"])


class RoundTripTests(SynchronousTestCase):
    """Every capsule comes back as it was (PROTOCOL §4, §5), through the table of whoever reads it."""

    @property_test
    @given(CLIENT_CAPSULES)
    def test_client_capsules(self, capsule: wire.ClientCapsule) -> None:
        decoder = wire.CapsuleDecoder(wire.CLIENT_CAPSULES)
        decoder.feed(capsule.encode())
        self.assertEqual(list(decoder), [capsule])

    @property_test
    @given(RELAY_CAPSULES)
    def test_relay_capsules(self, capsule: wire.RelayCapsule) -> None:
        decoder = wire.CapsuleDecoder(wire.RELAY_CAPSULES)
        decoder.feed(capsule.encode())
        self.assertEqual(list(decoder), [capsule])

    @property_test
    @given(PROVEN)
    def test_a_proof_sets_its_feature_bit(self, capsule: wire.Allocate) -> None:
        bare = wire.Allocate(
            capsule.role, capsule.allocation_id, capsule.peer_id, capsule.token, capsule.client_addr, capsule.public_key,
            capsule.proof,
        )
        self.assertEqual(decode(bare.encode()), [replace(bare, features=AllocateFeature.PROOF)])


class StreamTests(SynchronousTestCase):
    """A byte stream cut anywhere gives the same capsules (PROTOCOL §2)."""

    @property_test
    @given(st.lists(CAPSULES, min_size=1, max_size=4))
    def test_byte_at_a_time_is_the_same_as_at_once(self, capsules: list[wire.Capsule]) -> None:
        decoder = wire.CapsuleDecoder(KNOWN)
        seen: list[wire.Capsule | wire.Unknown] = []
        for byte in b"".join(capsule.encode() for capsule in capsules):
            decoder.feed(bytes((byte,)))
            seen += decoder
        self.assertEqual(seen, capsules)
        self.assertEqual(decoder.pending, 0)

    @property_test
    @given(st.lists(CAPSULES, min_size=1, max_size=6), st.data())
    def test_any_two_cuts_are_the_same_as_at_once(self, capsules: list[wire.Capsule], data: st.DataObject) -> None:
        stream = b"".join(capsule.encode() for capsule in capsules)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), min_size=2, max_size=2)))
        decoder = wire.CapsuleDecoder(KNOWN)
        seen: list[wire.Capsule | wire.Unknown] = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            decoder.feed(stream[start:end])
            seen += decoder
        self.assertEqual(seen, capsules)

    def test_a_capsule_that_has_not_arrived_whole_is_pending(self) -> None:
        data = wire.Refresh(bytes(180)).encode()
        decoder = wire.CapsuleDecoder(wire.CLIENT_CAPSULES)
        decoder.feed(data[:-1])
        self.assertIsNone(decoder.next())
        self.assertEqual(decoder.pending, len(data) - 1)
        decoder.feed(data[-1:])
        self.assertEqual(decoder.next(), wire.Refresh(bytes(180)))

    def test_unknown_types_are_skipped_between_known_ones(self) -> None:
        unknown = wire.encode_capsule(0x2A, b"abc") + wire.encode_capsule(MAX_VARINT, b"")
        seen = decode(wire.Release().encode() + unknown + wire.Release().encode())
        self.assertEqual(seen, [wire.Release(), wire.Unknown(0x2A), wire.Unknown(MAX_VARINT), wire.Release()])

    def test_a_reader_does_not_know_what_only_it_may_send(self) -> None:
        self.assertEqual(set(wire.CLIENT_CAPSULES) | set(wire.RELAY_CAPSULES), set(CapsuleType))
        decoder = wire.CapsuleDecoder(wire.CLIENT_CAPSULES)
        decoder.feed(wire.Released().encode())
        self.assertEqual(decoder.next(), wire.Unknown(CapsuleType.RELEASED))
        decoder = wire.CapsuleDecoder(wire.RELAY_CAPSULES)
        decoder.feed(wire.Release().encode())
        self.assertEqual(decoder.next(), wire.Unknown(CapsuleType.RELEASE))


class SizeTests(SynchronousTestCase):
    """The cap of 4096 bytes a value (PROTOCOL §2, R6.9)."""

    def test_the_longest_value_passes(self) -> None:
        self.assertEqual(decode(wire.encode_capsule(0x2A, bytes(4096))), [wire.Unknown(0x2A)])
        longest = wire.encode_capsule(CapsuleType.REFRESH, bytes(180) + b"\xff" * (4096 - 180))
        self.assertEqual(decode(longest), [wire.Refresh(bytes(180))])

    @property_test
    @given(st.sampled_from([*CapsuleType, 0x2A, MAX_VARINT]), st.integers(4097, MAX_VARINT))
    def test_a_longer_one_is_refused_before_it_arrives(self, capsule_type: int, length: int) -> None:
        decoder = wire.CapsuleDecoder(KNOWN)
        decoder.feed(encode_varint(capsule_type) + encode_varint(length))
        with self.assertRaises(wire.WireError) as caught:
            decoder.next()
        self.assertEqual(caught.exception.code, ErrorCode.CONTROL_TOO_LARGE)

    def test_what_precedes_the_longer_one_is_still_read(self) -> None:
        decoder = wire.CapsuleDecoder(wire.CLIENT_CAPSULES)
        decoder.feed(wire.Release().encode() + encode_varint(0x2A) + encode_varint(4097))
        self.assertEqual(decoder.next(), wire.Release())
        self.assertRaises(wire.WireError, decoder.next)

    def test_nothing_too_big_for_the_other_side_is_written(self) -> None:
        too_big: list[wire.Capsule] = [
            wire.Redirect(1, 0, (wire.NO_ADDRESS,) * 17),
            wire.Notice(NoticeCode.DRAINING, 0, addresses=(wire.NO_ADDRESS,) * 17),
            wire.Relays((wire.RelayEntry(bytes(8), wire.NO_ADDRESS, 0, draining=False),) * 33),
            wire.Relays((wire.RelayEntry(bytes(8), wire.NO_ADDRESS, 0, draining=False, region="r" * 33),)),
            wire.Relays((wire.RelayEntry(bytes(8), wire.NO_ADDRESS, 0, draining=False, region="é" * 17),)),
            wire.Error(ErrorCode.INTERNAL, "x" * 4093),
        ]
        for capsule in too_big:
            self.assertRaises(ValueError, capsule.encode)
        self.assertRaises(ValueError, wire.encode_capsule, 0x2A, bytes(4097))


class GrowthTests(SynchronousTestCase):
    """Bytes behind the known fields are ignored, missing ones are not (PROTOCOL, opening; §2)."""

    @property_test
    @given(CAPSULES, st.binary(min_size=1, max_size=40))
    def test_trailing_bytes_change_nothing(self, capsule: wire.Capsule, more: bytes) -> None:
        self.assertEqual(decode(wire.encode_capsule(capsule.TYPE, value_of(capsule) + more)), [capsule])

    @property_test
    @given(CAPSULES.filter(lambda capsule: len(value_of(capsule)) > 0), st.data())
    def test_a_value_that_ends_early_is_a_protocol_error(self, capsule: wire.Capsule, data: st.DataObject) -> None:
        value = value_of(capsule)
        kept = data.draw(st.integers(0, len(value) - 1))
        with self.assertRaises(wire.WireError) as caught:
            decode(wire.encode_capsule(capsule.TYPE, value[:kept]))
        self.assertEqual(caught.exception.code, ErrorCode.PROTOCOL_ERROR)

    @property_test
    @given(ENTRIES, st.binary(max_size=20))
    def test_a_relays_entry_may_grow_too(self, entry: wire.RelayEntry, more: bytes) -> None:
        body = entry.encode()[1:] + more
        value = b"\x01" + bytes((len(body),)) + body
        self.assertEqual(decode(wire.encode_capsule(CapsuleType.RELAYS, value)), [wire.Relays((entry,))])

    def test_an_unknown_notice_code_is_left_to_the_caller(self) -> None:
        self.assertEqual(decode(wire.encode_capsule(CapsuleType.NOTICE, b"\xc8\x00\x01")), [wire.Notice(200)])

    @property_test
    @given(st.integers(0, 255).filter(lambda version: version != wire.PROTOCOL_VERSION), st.binary(max_size=300))
    def test_allocate_of_another_version_tells_its_version_whatever_follows(self, version: int, rest: bytes) -> None:
        [capsule] = decode(wire.encode_capsule(CapsuleType.ALLOCATE, bytes((version,)) + rest))
        self.assertEqual(cast(wire.Allocate, capsule).version, version)


class HostileTests(SynchronousTestCase):
    """Nothing that can arrive raises anything but ``WireError`` (R5.6)."""

    def swallow(self, data: bytes) -> None:
        try:
            decode(data)
        except wire.WireError as error:
            self.assertIn(error.code, (ErrorCode.PROTOCOL_ERROR, ErrorCode.CONTROL_TOO_LARGE))

    @property_test
    @given(st.binary(max_size=300))
    def test_arbitrary_bytes(self, data: bytes) -> None:
        self.swallow(data)

    @property_test
    @given(st.sampled_from(list(CapsuleType)), st.binary(max_size=400))
    def test_arbitrary_values_of_known_capsules(self, capsule_type: CapsuleType, value: bytes) -> None:
        self.swallow(wire.encode_capsule(capsule_type, value))

    @property_test
    @given(CAPSULES, st.data())
    def test_right_capsules_with_one_byte_changed(self, capsule: wire.Capsule, data: st.DataObject) -> None:
        stream = bytearray(capsule.encode())
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(uints(8))
        self.swallow(bytes(stream))


class CloseCodeTests(SynchronousTestCase):
    """The close code that goes with each TERMINATED reason (PROTOCOL §5)."""

    def test_each_reason_has_its_code(self) -> None:
        names = {reason.value: reason.close_code.name for reason in TerminationReason}
        self.assertEqual(
            names, {1: "EXPIRED", 2: "IDLE", 3: "QUOTA_EXCEEDED", 4: "NO_ERROR", 5: "TERMINATED", 6: "INTERNAL"},
        )
