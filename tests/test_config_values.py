"""The kinds of value that settings have."""

from __future__ import annotations

import enum
import tomllib
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.config_endpoints import ListenOn
from zrc_relay.config_units import AUTO, ByteRate, Duration, EventRate, Integer, OrAuto, Size
from zrc_relay.config_values import (
    Boolean,
    Choice,
    FilePath,
    HexId,
    IPAddress,
    IPAddressList,
    Kind,
    NetworkList,
    OrNone,
    TierName,
    quote,
    show,
)
from zrc_relay.core.cidr import Network
from zrc_relay.core.sources import Rate

BASE = Path("/etc/zrc-relay")


class Colour(enum.Enum):
    """For ``Choice``."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"


DURATION = Duration("1ms", "3650d")
SIZE = Size("0 B", "16 EiB")
BYTE_RATE = ByteRate("0 B/s", "16 EiB/s")
INTEGER = Integer(0, 1000)


class KindTestCase(SynchronousTestCase):
    """Helpers for one kind."""

    def assert_parses(self, kind: Kind[Any], expected: object, *raws: object) -> None:
        """Every one of ``raws`` means ``expected``."""
        for raw in raws:
            value = kind.parse(raw, BASE)
            self.assertEqual((value, type(value)), (expected, type(expected)), raw)

    def assert_refuses(self, kind: Kind[Any], wrong: str, *raws: object) -> None:
        """Every one of ``raws`` is refused with a message that holds ``wrong``."""
        for raw in raws:
            self.assertIn(wrong, str(self.assertRaises(ValueError, kind.parse, raw, BASE)), raw)

    def assert_survives_writing(self, kind: Kind[Any], value: object) -> None:
        """What is written for ``value``, as text and as TOML, is read as ``value`` again."""
        self.assertEqual(kind.parse(kind.format(value), BASE), value)
        self.assertEqual(kind.parse(tomllib.loads(f"x = {kind.toml(value)}")["x"], BASE), value)


class Durations(KindTestCase):
    """R8: times "30s", "8h"; plain numbers are seconds."""

    def test_units(self) -> None:
        self.assert_parses(DURATION, 30.0, "30s", "30 s", " 30s ", "30", 30, 30.0, "0.5min", "0.5m", "30000ms")
        self.assert_parses(DURATION, 28800.0, "8h", "480min", "480m")
        self.assert_parses(DURATION, 0.1, "100ms", "0.1s", "0.1", 0.1)
        self.assert_parses(DURATION, 90.0, "1.5m", "1.5min")
        self.assert_parses(DURATION, 172800.0, "2d", "48h")

    def test_bounds_are_inclusive(self) -> None:
        kind = Duration("100ms", "1min")
        self.assert_parses(kind, 0.1, "100ms")
        self.assert_parses(kind, 60.0, "60s")
        self.assert_refuses(kind, "out of range", "99ms", "60.001s", "2h", 0, -1, float("inf"), float("nan"), 10**400)

    def test_what_is_no_duration(self) -> None:
        self.assert_refuses(DURATION, "not understood", "", "s", "-1s", "1,5s", "1.s", ".5s", "inf", "nan", "\u0663s", "5 %")
        self.assert_refuses(DURATION, "which is no unit of time", "5 fortnights", "1e3", "1h 30min", "5S", "5 ms s")
        self.assert_refuses(DURATION, "wrong type", True, [5], {"s": 5}, None)
        self.assert_refuses(DURATION, "longer than", "1" * 5000)

    def test_the_largest_unit_that_fits_is_written(self) -> None:
        texts = {28800.0: "8h", 0.1: "100ms", 90.0: "90s", 1.5: "1500ms", 3600: "1h", 0.0: "0s", 0.0001: "0.0001s"}
        for value, text in texts.items():
            self.assertEqual(DURATION.format(value), text)

    @given(st.floats(0.001, 3650 * 86400.0) | st.integers(1, 3650 * 86400).map(float))
    def test_writing_and_reading_gives_the_same(self, value: float) -> None:
        self.assert_survives_writing(DURATION, value)


class Sizes(KindTestCase):
    """R8: sizes "1 GB", "1 GiB"; plain numbers are bytes."""

    def test_units(self) -> None:
        self.assert_parses(SIZE, 10**9, "1 GB", "1GB", "1 gB", "1000 MB", "0.001 TB", 10**9, "1000000000", "1000000000 B", 1e9)
        self.assert_parses(SIZE, 2**30, "1 GiB", "1GIB", "1024 MiB", "1 giB")
        self.assert_parses(SIZE, 256 * 1024, "256 KiB", "256 kiB")
        self.assert_parses(SIZE, 2000, "2 kB", "2 KB")
        self.assert_parses(SIZE, 100_000_000, "0.1 GB")
        self.assert_parses(SIZE, 10**18, "1 EB", "1000 PB")
        self.assert_parses(SIZE, 2**60, "1 EiB", "1024 PiB", "1048576 TiB")

    def test_bits_are_no_size(self) -> None:
        self.assert_refuses(SIZE, "which is no unit of size", "1 gb", "1 Gbit", "1 G", "1 MB/s", "1 B B", "1 kkB", "1 i B")

    def test_bounds_are_inclusive(self) -> None:
        kind = Size("16 KiB", "1 MiB")
        self.assert_parses(kind, 16384, "16 KiB")
        self.assert_parses(kind, 2**20, "1024 KiB")
        self.assert_refuses(kind, "out of range", 16383, "1048577", "2 GB", 0, -5)

    def test_part_of_a_byte_is_refused(self) -> None:
        self.assert_refuses(SIZE, "not a whole number", "1.5", "0.0001 kB", 2.5)

    @given(st.integers(0, 2**63) | st.builds(lambda n, p: n * 10**p, st.integers(0, 999), st.integers(0, 16)))
    def test_writing_and_reading_gives_the_same(self, value: int) -> None:
        self.assert_survives_writing(SIZE, value)

    def test_the_largest_prefix_that_fits_is_written(self) -> None:
        texts = {10**9: "1 GB", 2**18: "256 KiB", 1500: "1500 B", 0: "0 B", 5 * 10**8: "500 MB", 1536: "1536 B", 3072: "3 KiB"}
        for value, text in texts.items():
            self.assertEqual(SIZE.format(value), text)


class ByteRates(KindTestCase):
    """R8: rates "10 Mbit/s", "1.25 MB/s"; plain numbers are bytes per second."""

    def test_bits_and_bytes(self) -> None:
        self.assert_parses(BYTE_RATE, 1_250_000, "10 Mbit/s", "10mbit/s", "1.25 MB/s", "1250 kB/s", "1250000", 1_250_000)
        self.assert_parses(BYTE_RATE, 2**20, "1 MiB/s", "8 Mibit/s", "1048576 B/s")
        self.assert_parses(BYTE_RATE, 1, "8 bit/s")

    def test_ambiguous_units_are_refused(self) -> None:
        self.assert_refuses(
            BYTE_RATE, "which is no unit of bandwidth", "10 Mb/s", "10 mb/s", "10 Mbps", "10 Mbit", "10 MB", "10 B/min")

    def test_part_of_a_byte_is_refused(self) -> None:
        self.assert_refuses(BYTE_RATE, "not a whole number", "1 bit/s", "1.5 B/s")

    def test_bounds_are_inclusive(self) -> None:
        kind = ByteRate("8 kbit/s", "1 MB/s")
        self.assert_parses(kind, 1000, "1 kB/s")
        self.assert_parses(kind, 10**6, "8 Mbit/s")
        self.assert_refuses(kind, "out of range", 0, 999, 1_000_001)

    def test_bits_are_written_where_they_are_rounder(self) -> None:
        texts = {1_250_000: "10 Mbit/s", 2**20: "1 MiB/s", 625: "5 kbit/s", 1: "1 B/s", 0: "0 B/s"}
        for value, text in texts.items():
            self.assertEqual(BYTE_RATE.format(value), text)

    @given(st.integers(0, 2**63) | st.builds(lambda n, p: n * 10**p, st.integers(0, 999), st.integers(0, 16)))
    def test_writing_and_reading_gives_the_same(self, value: int) -> None:
        self.assert_survives_writing(BYTE_RATE, value)


class EventRates(KindTestCase):
    """R8: rates of events "30/min", "10/s", and "off" where a setting allows it."""

    def test_periods(self) -> None:
        self.assert_parses(EventRate(), Rate(30, 60), "30/min", "30/m", "30 / min")
        self.assert_parses(EventRate(), Rate(10, 1), "10/s")
        self.assert_parses(EventRate(), Rate(5, 3600), "5/h")

    def test_off(self) -> None:
        self.assert_parses(OrNone(EventRate()), None, "off", "none", " OFF ")
        self.assert_parses(OrNone(EventRate()), Rate(10, 1), "10/s")

    def test_what_is_no_rate(self) -> None:
        self.assert_refuses(
            EventRate(), "not understood", "", "30", "30/", "/min", "1.5/s", "-1/s", "30/day", "9999999999/s", "off")
        self.assert_refuses(EventRate(), "out of range", "0/s")
        self.assert_refuses(EventRate(), "wrong type", 30, True)

    @given(st.builds(Rate, st.integers(1, 10**9 - 1), st.sampled_from((1, 60, 3600))))
    def test_writing_and_reading_gives_the_same(self, value: Rate) -> None:
        self.assert_survives_writing(EventRate(), value)


class Integers(KindTestCase):
    """R8: whole numbers, ports among them."""

    def test_text_and_numbers(self) -> None:
        self.assert_parses(INTEGER, 7, "7", 7, " 7 ", 7.0, "007")

    def test_bounds_are_inclusive(self) -> None:
        self.assert_parses(INTEGER, 0, 0)
        self.assert_parses(INTEGER, 1000, "1000")
        self.assert_refuses(INTEGER, "out of range", -1, "1001", 1 << 70000)

    def test_what_is_no_whole_number(self) -> None:
        self.assert_refuses(INTEGER, "not a whole number", "7.5", 7.5)
        self.assert_refuses(INTEGER, "not understood", "", "7 B", "seven", "0x10", "-1", "1_000")
        self.assert_refuses(INTEGER, "wrong type", True, [7])

    @given(st.integers(0, 1000))
    def test_writing_and_reading_gives_the_same(self, value: int) -> None:
        self.assert_survives_writing(INTEGER, value)


class Automatic(KindTestCase):
    """R8: whole numbers that the program may find out by itself."""

    KIND = OrAuto(Integer(1, 64))

    def test_a_number_or_the_word(self) -> None:
        self.assert_parses(self.KIND, AUTO, "auto", " AUTO ")
        self.assert_parses(self.KIND, 3, "3", 3)
        self.assert_refuses(self.KIND, "out of range", "0", 0, 65)
        self.assert_refuses(self.KIND, "not understood", "automatic", "none")

    def test_writing_and_reading_gives_the_same(self) -> None:
        for value in (AUTO, 1, 64):
            self.assert_survives_writing(self.KIND, value)


class Booleans(KindTestCase):
    """R8: yes or no."""

    def test_spellings(self) -> None:
        self.assert_parses(Boolean(), True, True, "true", "True", "yes", "on", "1")
        self.assert_parses(Boolean(), False, False, "false", "NO", "off", "0")

    def test_anything_else_is_refused(self) -> None:
        self.assert_refuses(Boolean(), "not understood", "", "maybe", "2")
        self.assert_refuses(Boolean(), "wrong type", 1, 0, None)

    def test_writing_and_reading_gives_the_same(self) -> None:
        for value in (True, False):
            self.assert_survives_writing(Boolean(), value)


class Choices(KindTestCase):
    """R8: one of a few words."""

    def test_values_in_any_case(self) -> None:
        self.assert_parses(Choice(Colour), Colour.RED, "red", "RED", " red ")

    def test_anything_else_is_refused_and_the_values_named(self) -> None:
        self.assert_refuses(Choice(Colour), "not understood", "", "reddish", "Colour.RED")
        self.assert_refuses(Choice(Colour), "wrong type", 1, True)
        self.assertEqual(Choice(Colour).expected, '"red", "green" or "blue"')

    def test_writing_and_reading_gives_the_same(self) -> None:
        for value in Colour:
            self.assert_survives_writing(Choice(Colour), value)


class HexIds(KindTestCase):
    """R8: relay_id is 32 hex digits."""

    def test_digits_in_any_case(self) -> None:
        self.assert_parses(HexId(2), b"\xab\xcd", "abcd", "ABCD", " abCD ")

    def test_other_lengths_and_digits_are_refused(self) -> None:
        self.assert_refuses(HexId(2), "3 characters long", "abc")
        self.assert_refuses(HexId(2), "0 characters long", "")
        self.assert_refuses(HexId(2), "not all hex digits", "abcg", "ab d", "ａbcd", "0x12")  # noqa: RUF001
        self.assert_refuses(HexId(2), "wrong type", 1234, b"\xab\xcd")

    @given(st.binary(min_size=16, max_size=16))
    def test_writing_and_reading_gives_the_same(self, value: bytes) -> None:
        self.assert_survives_writing(HexId(16), value)


class Paths(KindTestCase):
    """R8: relative paths start somewhere known."""

    def test_relative_and_absolute(self) -> None:
        self.assert_parses(FilePath(), BASE / "cert.pem", "cert.pem", "/etc/zrc-relay/cert.pem")

    def test_none_is_no_path_where_none_is_allowed(self) -> None:
        self.assert_parses(OrNone(FilePath()), None, "none")
        self.assert_parses(OrNone(FilePath()), BASE / "none", "./none")

    def test_what_is_no_path(self) -> None:
        self.assert_refuses(FilePath(), "is empty", "", "  ")
        self.assert_refuses(FilePath(), "zero byte", "a\0b")
        self.assert_refuses(FilePath(), "wrong type", 5, ["a"])

    @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip))
    def test_writing_and_reading_gives_the_same(self, name: str) -> None:
        self.assert_survives_writing(FilePath(), FilePath().parse(name, BASE))


class Addresses(KindTestCase):
    """R8, R5.1: addresses to listen on and to announce."""

    def test_canonical_forms(self) -> None:
        self.assert_parses(IPAddress(), "192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1")
        self.assert_parses(IPAddress(), "2001:db8::1", "2001:DB8:0::0001")

    def test_what_nobody_can_reach_is_not_announced(self) -> None:
        self.assert_refuses(IPAddress(), "unspecified", "0.0.0.0", "::")
        self.assert_parses(IPAddress(allow_unspecified=True), "::", "::")

    def test_what_is_no_address(self) -> None:
        self.assert_refuses(IPAddress(), "not an IP address", "", "relay.example", "192.0.2.256", "192.0.2.1:4433", "[::1]")
        self.assert_refuses(IPAddress(), "has a scope", "fe80::1%eth0")
        self.assert_refuses(IPAddress(), "multicast", "224.0.0.1", "ff02::1", "::ffff:224.0.0.1")
        self.assert_refuses(IPAddress(), "unspecified", "::ffff:0.0.0.0")
        self.assert_refuses(IPAddress(), "wrong type", 3221225985, True)

    def test_lists(self) -> None:
        self.assert_parses(IPAddressList(), ("0.0.0.0", "::"), "0.0.0.0, ::", "0.0.0.0,::", ["0.0.0.0", "::"])
        self.assert_parses(IPAddressList(), ("192.0.2.1",), "192.0.2.1", ["192.0.2.1"])

    def test_lists_are_not_empty_and_hold_nothing_twice(self) -> None:
        self.assert_refuses(IPAddressList(), "is empty", [])
        self.assert_refuses(IPAddressList(), "twice", "::1, 0::1", ["192.0.2.1", "::ffff:192.0.2.1"])

    def test_the_item_that_is_wrong_is_named(self) -> None:
        self.assert_refuses(IPAddressList(), 'holds "x", which is not an IP address', "::1, x", ["::1", "x"])
        self.assert_refuses(IPAddressList(), "holds 5, which has the wrong type", ["::1", 5])
        self.assert_refuses(IPAddressList(), "is not an IP address", "", "x", ["x"])
        self.assert_refuses(IPAddressList(), "wrong type", 5, None)

    @given(st.lists(st.ip_addresses().filter(lambda address: not _is_multicast(address)), min_size=1, max_size=4))
    def test_writing_and_reading_gives_the_same(self, addresses: list[IPv4Address | IPv6Address]) -> None:
        plain = dict.fromkeys(IPAddress(allow_unspecified=True).parse(str(address), BASE) for address in addresses)
        self.assert_survives_writing(IPAddressList(), tuple(plain))


def _is_multicast(address: IPv4Address | IPv6Address) -> bool:
    """Also of an IPv4 address that is written as an IPv6 one."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_multicast


class Networks(KindTestCase):
    """R6.3: lists of networks."""

    def test_networks_and_single_addresses(self) -> None:
        text = "192.0.2.0/24, 203.0.113.9 ,2001:db8::/32,2001:db8::1, 0.0.0.0/0"
        networks = NetworkList().parse(text, BASE)
        written = ["192.0.2.0/24", "203.0.113.9/32", "2001:db8::/32", "2001:db8::1/128", "0.0.0.0/0"]
        self.assertEqual(list(map(str, networks)), written)
        self.assert_parses(NetworkList(), networks, text.split(","), written)

    def test_ipv4_mapped_networks_are_ipv4(self) -> None:
        self.assertEqual(NetworkList().format(NetworkList().parse("::ffff:192.0.2.0/120", BASE)), "192.0.2.0/24")

    def test_none_at_all(self) -> None:
        self.assert_parses(NetworkList(), (), "none", "off", [])
        self.assertEqual((NetworkList().format(()), NetworkList().toml(())), ("none", "[]"))

    def test_what_is_no_network(self) -> None:
        self.assert_refuses(NetworkList(), "neither a network nor an IP address", "192.0.2.0/33", "192.0.2", "fe80::1%x", "x", "")
        self.assert_refuses(NetworkList(), "wrong type", 7, True, [7])

    def test_bits_behind_the_prefix_are_a_slip_and_the_network_is_named(self) -> None:
        self.assert_refuses(NetworkList(), "has bits behind its prefix: the network is 192.0.2.0/24", "192.0.2.1/24")

    def test_the_item_that_is_wrong_is_named_and_none_is_there_twice(self) -> None:
        self.assert_refuses(NetworkList(), 'holds "x", which is neither', "192.0.2.0/24, x")
        self.assert_refuses(NetworkList(), "holds 192.0.2.0/24 twice", "192.0.2.0/24, ::ffff:192.0.2.0/120")

    @given(st.lists(st.ip_addresses(), max_size=5))
    def test_writing_and_reading_gives_the_same(self, addresses: list[IPv4Address | IPv6Address]) -> None:
        networks = dict.fromkeys(Network.parse(str(address)) for address in addresses)
        self.assert_survives_writing(NetworkList(), tuple(networks))


class TierNames(KindTestCase):
    """R8: what a tier may be called."""

    def test_names(self) -> None:
        for name in ("free", "a", "0-tier_x", "a" * 32):
            self.assert_survives_writing(TierName(), name)
        self.assert_refuses(TierName(), "is not understood", "", "Free", "-x", "a" * 33, "a b")


class Quotations(SynchronousTestCase):
    """R8: complaints quote what was given, on one line and short."""

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_a_quoted_string_is_toml(self, text: str) -> None:
        self.assertEqual(tomllib.loads(f"x = {quote(text)}")["x"], text)

    @given(st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ))
    def test_every_value_can_be_shown(self, raw: object) -> None:
        text = show(raw)
        self.assertLessEqual(len(text), 60)
        self.assertTrue(text.isprintable())

    def test_they_look_like_toml(self) -> None:
        self.assertEqual([show(raw) for raw in ("a", True, 5, ["a", False])], ['"a"', "true", "5", '["a", false]'])

    def test_numbers_that_python_will_not_print_can_be_shown(self) -> None:
        self.assertEqual(show(1 << 70000), "a very large number")
        self.assertEqual(show({"a": [1 << 70000]}), "a very large number")


class NeverAnythingButValueError(SynchronousTestCase):
    """R8: whatever was given, the answer is a value or a complaint."""

    @given(
        st.sampled_from((
            DURATION, SIZE, BYTE_RATE, INTEGER, EventRate(), Boolean(), Choice(Colour), HexId(16), FilePath(), IPAddress(),
            IPAddressList(), ListenOn(), OrNone(SIZE), Automatic.KIND,
        )),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes()
            | st.from_regex(r"[0-9]{1,30}(\.[0-9]{1,5})? ?[kKMGTE]?i?(B|bit|s|h|m|ms)?(/s|/min)?", fullmatch=True),
            st.lists,
        ),
    )
    def test_every_kind_takes_every_value(self, kind: Kind[Any], raw: object) -> None:
        try:
            value = kind.parse(raw, BASE)
        except ValueError as error:
            self.assertTrue(str(error))
        else:
            self.assertEqual(kind.parse(kind.format(value), BASE), value)
