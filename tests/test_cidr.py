"""The lists of networks that are served and not served."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import inf

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core import cidr
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.core.sources import Numeric, numeric

NOW = 1_800_000_000.0
ALLOW, BLOCK = Access.ALLOW, Access.BLOCK


def networks(*texts: str) -> list[Network]:
    """Parsed."""
    return [Network.parse(text) for text in texts]


def entry(text: str, access: Access = BLOCK, until: float = inf, note: str = "") -> Entry:
    """A run-time entry."""
    return Entry(Network.parse(text), access, until, note)


class NetworkTests(SynchronousTestCase):
    """R6.3: CIDR notation."""

    def test_notation(self) -> None:
        for text, written in (
            ("192.0.2.0/24", "192.0.2.0/24"), ("192.0.2.7", "192.0.2.7/32"), ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"), ("::1", "::1/128"), ("::/0", "::/0"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"), ("::ffff:192.0.2.7", "192.0.2.7/32"), ("::ffff:0:0/96", "0.0.0.0/0"),
            ("192.0.2.7/24", "192.0.2.0/24"),
        ):
            self.assertEqual(str(Network.parse(text)), written)

    def test_a_network_around_the_mapped_addresses_is_ipv6(self) -> None:
        self.assertEqual(Network.parse("::ffff:0:0/95").bits, 128)

    def test_what_is_none(self) -> None:
        for text in ("", "x", "192.0.2.0/33", "::/129", "192.0.2.0/-1", "fe80::%eth0/64", "fe80::1%1", "192.0.2"):
            self.assertRaises(ValueError, Network.parse, text)

    def test_strictly_no_bits_stand_behind_the_prefix(self) -> None:
        self.assertRaises(ValueError, Network.parse, "192.0.2.7/24", strict=True)

    def test_what_it_holds(self) -> None:
        network = Network.parse("192.0.2.0/25")
        self.assertEqual(
            [network.holds(numeric(host)) for host in ("192.0.2.0", "192.0.2.127", "192.0.2.128", "::1")],
            [True, True, False, False],
        )
        self.assertEqual(Network.of(numeric("192.0.2.7")), Network.parse("192.0.2.7"))


class DecisionTests(SynchronousTestCase):
    """R6.3: the most specific network decides, whichever list it is in."""

    def served(self, lists: AccessLists, *hosts: str) -> list[bool]:
        return [lists.blocked_until(numeric(host), NOW) is None for host in hosts]

    def test_without_lists_everybody_is_served(self) -> None:
        lists = AccessLists()
        self.assertTrue(lists.is_empty)
        self.assertEqual(self.served(lists, "192.0.2.1", "2001:db8::1"), [True, True])

    def test_a_blocklist_alone_blocks_who_is_on_it(self) -> None:
        lists = AccessLists(block=networks("192.0.2.0/24", "2001:db8::/32"))
        self.assertEqual(self.served(lists, "192.0.2.1", "192.0.3.1", "2001:db8::1", "2001:db9::1"), [False, True, False, True])

    def test_an_allowlist_admits_nobody_else(self) -> None:
        lists = AccessLists(allow=networks("192.0.2.0/24"))
        self.assertEqual(self.served(lists, "192.0.2.1", "192.0.3.1", "2001:db8::1"), [True, False, False])

    def test_the_most_specific_one_decides(self) -> None:
        lists = AccessLists(
            allow=networks("0.0.0.0/0", "10.1.0.0/16", "10.1.2.3"), block=networks("10.0.0.0/8", "10.1.2.0/24")
        )
        hosts = ("192.0.2.1", "10.2.0.1", "10.1.0.1", "10.1.2.1", "10.1.2.3")
        self.assertEqual(self.served(lists, *hosts), [True, False, True, False, True])

    def test_everything_of_a_family_can_be_blocked(self) -> None:
        lists = AccessLists(block=networks("::/0"))
        self.assertEqual(self.served(lists, "::1", "2001:db8::1", "192.0.2.1"), [False, False, True])

    def test_mapped_addresses_are_ipv4(self) -> None:
        lists = AccessLists(block=networks("192.0.2.0/24"))
        self.assertEqual(self.served(lists, "::ffff:192.0.2.9"), [False])

    def test_what_run_time_allows_closes_the_relay_to_nobody(self) -> None:
        lists = AccessLists(block=networks("10.0.0.0/8"))
        self.assertTrue(lists.add(entry("10.1.0.0/16", ALLOW), NOW))
        self.assertEqual(self.served(lists, "10.1.0.1", "10.2.0.1", "192.0.2.1"), [True, False, True])


class RunTimeTests(SynchronousTestCase):
    """R6.3: the lists change at run time, for a time; for one and the same network the configuration wins."""

    def setUp(self) -> None:
        self.lists = AccessLists(allow=networks("0.0.0.0/0", "192.0.2.7"), block=networks("203.0.113.0/24"))

    def until(self, host: str, wall: float = NOW) -> float | None:
        return self.lists.blocked_until(numeric(host), wall)

    def test_what_is_added_holds_until_its_time_is_over(self) -> None:
        self.assertTrue(self.lists.add(entry("198.51.100.0/24", until=NOW + 60), NOW))
        self.assertEqual(self.until("198.51.100.1"), NOW + 60)
        self.assertEqual(self.until("198.51.100.1", NOW + 59.9), NOW + 60)
        self.assertIsNone(self.until("198.51.100.1", NOW + 60), "without anybody sweeping")
        self.assertEqual((self.lists.sweep(NOW + 59), len(self.lists)), (0, 4))
        self.assertEqual((self.lists.sweep(NOW + 60), len(self.lists)), (1, 3))

    def test_when_the_time_of_the_most_specific_one_is_over_the_next_decides(self) -> None:
        self.lists.add(entry("203.0.113.9", ALLOW, until=NOW + 60), NOW)
        self.assertIsNone(self.until("203.0.113.9"))
        self.assertEqual(self.until("203.0.113.9", NOW + 61), inf)

    def test_without_an_end_it_holds_for_ever(self) -> None:
        self.lists.add(entry("198.51.100.1"), NOW)
        self.lists.sweep(NOW + 1e9)
        self.assertEqual(self.until("198.51.100.1", NOW + 1e9), inf)

    def test_adding_it_again_changes_its_end_both_ways(self) -> None:
        for seconds in (60, 600, 30, inf, 10):
            self.assertTrue(self.lists.add(entry("198.51.100.1", until=NOW + seconds), NOW))
            self.assertEqual(self.until("198.51.100.1"), NOW + seconds)
        self.assertEqual(len(self.lists.runtime_entries), 1)
        self.assertEqual(self.lists.sweep(NOW + 10), 1)

    def test_removing_it(self) -> None:
        self.lists.add(entry("198.51.100.1", until=NOW + 60), NOW)
        self.assertTrue(self.lists.remove(Network.parse("198.51.100.1")))
        self.assertIsNone(self.until("198.51.100.1"))
        self.assertFalse(self.lists.remove(Network.parse("198.51.100.1")))
        self.assertEqual(self.lists.sweep(NOW + 60), 0)

    def test_the_configuration_wins_for_the_same_network(self) -> None:
        self.assertFalse(self.lists.add(entry("192.0.2.7"), NOW))
        self.assertIsNone(self.until("192.0.2.7"))
        self.assertFalse(self.lists.add(entry("203.0.113.0/24", ALLOW), NOW))
        self.assertEqual(self.until("203.0.113.1"), inf)
        self.assertFalse(self.lists.remove(Network.parse("203.0.113.0/24")))
        self.assertEqual(self.until("203.0.113.1"), inf)

    def test_what_is_over_already_is_not_added(self) -> None:
        self.assertFalse(self.lists.add(entry("198.51.100.1", until=NOW), NOW))
        self.assertEqual(len(self.lists), 3)

    def test_entries_of_run_time_are_bounded(self) -> None:
        self.patch(cidr, "MAX_RUNTIME_ENTRIES", 3)
        added = [self.lists.add(entry(f"198.51.100.{number}", until=NOW + 60), NOW) for number in range(5)]
        self.assertEqual(added, [True, True, True, False, False])
        self.assertTrue(self.lists.add(entry("198.51.100.0", until=NOW + 90), NOW), "changing one needs no room")
        self.lists.sweep(NOW + 60)
        self.assertTrue(self.lists.add(entry("198.51.100.9"), NOW + 60))

    def test_notes_are_cut(self) -> None:
        self.lists.add(entry("198.51.100.1", note="x" * 5000), NOW)
        self.assertEqual([len(found.note) for found in self.lists.runtime_entries], [cidr.MAX_NOTE])

    def test_the_revision_says_when_somebody_may_have_become_blocked(self) -> None:
        steps = [
            (lambda: self.lists.add(entry("198.51.100.1", until=NOW + 60), NOW), 1),
            (lambda: self.lists.add(entry("203.0.113.9", ALLOW, until=NOW + 70), NOW), 0),
            (lambda: self.lists.add(entry("192.0.2.7"), NOW), 0),
            (lambda: self.lists.sweep(NOW + 60), 0),
            (lambda: self.lists.sweep(NOW + 70), 1),
        ]
        for number, (step, more) in enumerate(steps):
            before = self.lists.revision
            step()
            self.assertEqual(self.lists.revision - before, more, number)

    def test_nothing_is_left_when_all_is_taken_out(self) -> None:
        lists = AccessLists()
        rng = random.Random(1)  # noqa: S311 - the same networks each time
        for _ in range(2000):
            bits = rng.choice((32, 128))
            length = rng.randint(0, bits)
            lists.add(Entry(Network(bits, length, rng.getrandbits(length) if length else 0), BLOCK, NOW + 1), NOW)
        lists.sweep(NOW + 1)
        self.assertTrue(lists.is_empty)
        left = [vars(family)["_nodes"] for family in vars(lists)["_families"].values()]
        self.assertEqual(left, [{}, {}])


def brute_force(entries: list[Entry], address: Numeric) -> Entry | None:
    """The most specific of the entries that hold an address, found the slow way."""
    bits, value = address
    host = ip_address(value.to_bytes(bits // 8, "big"))
    holding = [one for one in entries if host in ip_network(str(one.network))]
    return max(holding, key=lambda one: one.network.length, default=None)


class LookUpTests(SynchronousTestCase):
    """R6.3: the look-up finds what looking at every network would find."""

    @given(st.data())
    def test_any_networks_and_addresses(self, data: st.DataObject) -> None:
        four = st.builds(lambda ip, length: IPv4Network((ip, length), strict=False), st.integers(0, 2**32 - 1), lengths(32))
        six = st.builds(lambda ip, length: IPv6Network((ip, length), strict=False), st.integers(0, 2**128 - 1), lengths(128))
        chosen = data.draw(st.lists(st.one_of(four, six, st.just(ip_network("0.0.0.0/0"))), max_size=30))
        lists = AccessLists()
        entries: dict[Network, Entry] = {}
        for number, network in enumerate(chosen):
            parsed = Network.parse(str(network))
            if number % 5 == 4 and entries:
                gone = next(iter(entries))
                del entries[gone]
                self.assertTrue(lists.remove(gone))
            entries[parsed] = Entry(parsed, BLOCK if number % 2 else ALLOW)
            self.assertTrue(lists.add(entries[parsed], NOW))
        self.assertEqual({found.network for found in lists}, set(entries))
        for network in chosen:
            for host in (network[0], network[-1], data.draw(st.ip_addresses(network=network))):
                address = numeric(str(host))
                self.assertEqual(lists.find(address, NOW), brute_force(list(entries.values()), address))

    def test_a_long_list_asks_only_a_few_tables(self) -> None:
        # 100,000 networks of the lengths that lists have. What a look-up costs is how many dicts it asks.
        rng = random.Random(1)  # noqa: S311 - the same networks each time
        lists = AccessLists()
        while len(lists) < 100_000:
            bits = rng.choice((32, 128))
            length = rng.choice((16, 20, 22, 24, 32) if bits == 32 else (32, 48, 56, 64))
            lists.add(Entry(Network(bits, length, rng.getrandbits(length)), BLOCK), NOW)
        for bits in (32, 128):
            family = vars(lists)["_families"][bits]
            levels, plans = vars(family)["_levels"], vars(family)["_plans"]
            self.assertLessEqual(len(levels) + max(map(len, plans.values())), 12)
            for _ in range(1000):
                address = (bits, rng.getrandbits(bits))
                found = lists.find(address, NOW)
                self.assertTrue(found is None or found.network.holds(address))


def lengths(bits: int) -> st.SearchStrategy[int]:
    """Prefix lengths, the ends and the borders of strides more often than others."""
    return st.one_of(st.sampled_from([0, 1, 8, 9, 15, 16, 17, bits - 1, bits]), st.integers(0, bits))
