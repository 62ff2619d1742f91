"""The parts that webhook and bouncer are made of: loops, health, lists of blocks, JSON in pieces, secrets in files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.abuse_support import NOON
from tests.web_server import make_certificate
from zrc_relay.abuse.blocking import MAX_TTL, SLICE, NotedBlocks, in_slices, parse_network, parse_ttl
from zrc_relay.abuse.health import MAX_BACKOFF, Health
from zrc_relay.abuse.jsonstream import JsonError, array_items
from zrc_relay.abuse.loop import CRASH_DELAY, Loop
from zrc_relay.abuse.setup import Environment, SetupError, check_external, make_parts
from zrc_relay.config_external import HttpUrl, Secret
from zrc_relay.config_table import Config
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network

BASE = Path("/")


class Steps(Loop):
    """A loop whose steps are scripted."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, "steps")
        self.begun = 0
        self.delay: float | None = 5.0
        self.error: Exception | None = None
        self.waits: Deferred[None] | None = None

    async def step(self) -> float | None:
        self.begun += 1
        if self.error is not None:
            raise self.error
        if self.waits is not None:
            await self.waits
        return self.delay


class LoopTests(SynchronousTestCase):
    """ARCHITECTURE rule 7: background work is logged, counted and goes on."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.loop = Steps(self.clock)

    def start(self) -> None:
        self.loop.startService()
        self.clock.advance(0)

    def test_the_first_step_is_at_once_and_the_next_when_the_last_one_said(self) -> None:
        self.start()
        self.assertEqual(self.loop.begun, 1)
        self.clock.advance(4.9)
        self.assertEqual(self.loop.begun, 1)
        self.clock.advance(0.1)
        self.assertEqual(self.loop.begun, 2)

    def test_it_sleeps_until_it_is_woken(self) -> None:
        self.loop.delay = None
        self.start()
        self.clock.advance(1000)
        self.assertEqual(self.loop.begun, 1)
        self.loop.wake(2)
        self.loop.wake(1)
        self.clock.advance(2)
        self.assertEqual(self.loop.begun, 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_steps_never_overlap(self) -> None:
        self.loop.waits = Deferred()
        self.start()
        self.loop.wake(0)
        self.clock.advance(100)
        self.assertEqual(self.loop.begun, 1)
        self.loop.waits.callback(None)
        self.clock.advance(5)
        self.assertEqual(self.loop.begun, 2)

    def test_a_step_that_raises_is_logged_and_counted_and_the_loop_goes_on(self) -> None:
        self.loop.error = ZeroDivisionError()
        self.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.loop.crashes, 1)
        self.loop.error = None
        self.clock.advance(CRASH_DELAY)
        self.assertEqual(self.loop.begun, 2)

    def test_stopping_takes_the_next_step_back(self) -> None:
        self.start()
        self.successResultOf(self.loop.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.loop.wake(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_cancels_the_step_under_way_and_waits_for_it(self) -> None:
        cancelled: list[Deferred[None]] = []
        self.loop.waits = Deferred(cancelled.append)
        self.start()
        self.successResultOf(self.loop.stopService())
        self.assertEqual(len(cancelled), 1)
        self.assertEqual((self.clock.getDelayedCalls(), self.loop.crashes), ([], 0))

    def test_it_can_be_started_again(self) -> None:
        self.start()
        self.loop.stopService()
        self.start()
        self.assertEqual(self.loop.begun, 2)


class HealthTests(SynchronousTestCase):
    """R6.6: systems that fail are left alone for a growing time, with chance in it."""

    def test_the_time_doubles_to_a_limit_and_begins_anew_after_a_success(self) -> None:
        health = Health("it", wall=lambda: NOON, random=lambda: 0.0)
        delays = []
        for _ in range(10):
            health.failed("x")
            delays.append(health.backoff())
        self.assertEqual(delays, [1, 2, 4, 8, 16, 32, 64, MAX_BACKOFF, MAX_BACKOFF, MAX_BACKOFF])
        self.assertEqual((health.failures, health.last_success), (10, None))
        health.succeeded()
        health.failed("x")
        self.assertEqual((health.backoff(), health.failures, health.last_success), (1, 11, NOON))

    def test_thousands_of_failures_are_no_trouble(self) -> None:
        health = Health("it", wall=lambda: NOON, random=lambda: 0.0)
        health.failures_in_a_row = 100_000
        self.assertEqual(health.backoff(), MAX_BACKOFF)

    def test_chance_shortens_it_by_half_at_most(self) -> None:
        health = Health("it", wall=lambda: NOON, random=lambda: 1.0)
        health.failed("x")
        self.assertEqual(health.backoff(), 0.5)


class ParsingTests(SynchronousTestCase):
    """R6.3, R6.6: what external systems name is checked before it is believed."""

    def test_addresses_and_ranges(self) -> None:
        for text, expected in (
            ("192.0.2.7", "192.0.2.7/32"), ("192.0.2.7/24", "192.0.2.0/24"), (" 2001:db8::7 ", "2001:db8::7/128"),
            ("2001:db8::7/64", "2001:db8::/64"), ("::ffff:192.0.2.7", "192.0.2.7/32"), ("10.0.0.0/8", "10.0.0.0/8"),
            ("2001::/16", "2001::/16"), ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ):
            self.assertEqual(str(parse_network(text)), expected)

    def test_what_is_none_or_too_wide(self) -> None:
        for value in (
            None, 5, True, "", "x", "192.0.2.256", "192.0.2.0/33", "fe80::1%eth0", "0.0.0.0/0", "10.0.0.0/7", "::/0", "2000::/15",
            "::ffff:0.0.0.0/96", "1" * 1000, ["192.0.2.7"], b"192.0.2.7",
        ):
            with self.assertRaises(ValueError, msg=repr(value)):
                parse_network(value)

    def test_times_to_live(self) -> None:
        self.assertEqual([parse_ttl(value) for value in (1, 0.5, 10**400, 1e300)], [1.0, 0.5, MAX_TTL, MAX_TTL])
        for value in (0, -1, float("nan"), float("inf"), True, "60", None, [5]):
            with self.assertRaises(ValueError, msg=repr(value)):
                parse_ttl(value)


class Turns:
    """A clock whose calls come in turns, as a reactor's do."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def callLater(self, delay: float, function: Callable[..., object], *args: object) -> None:  # noqa: N802 - Twisted's name
        if delay:
            raise AssertionError(delay)
        self._calls.append((function, args))

    def turn(self) -> None:
        """Make the calls that wait, but not those that they ask for."""
        calls, self._calls = self._calls, []
        for function, args in calls:
            function(*args)


class SliceTests(SynchronousTestCase):
    """R6.6: long lists are off the packets' way."""

    def test_the_reactor_gets_a_turn_after_every_slice(self) -> None:
        done: list[int] = []
        turns = Turns()
        running = Deferred.fromCoroutine(in_slices(range(3 * SLICE + 1), done.append, turns))
        for slices in range(1, 4):
            self.assertEqual(len(done), slices * SLICE)
            self.assertNoResult(running)
            turns.turn()
        self.assertEqual(done, list(range(3 * SLICE + 1)))
        turns.turn()
        self.successResultOf(running)


class NotedBlocksTests(SynchronousTestCase):
    """R6.3, R6.6: what a system blocks is on the relay's list, and nobody else's word is undone by it."""

    NETWORK = Network.parse("192.0.2.0/24")

    def setUp(self) -> None:
        self.now = NOON
        self.lists = AccessLists(block=[Network.parse("198.51.100.0/24")], allow=[Network.parse("203.0.113.0/24")])
        self.blocks = NotedBlocks(self.lists, "bouncer", lambda: self.now)

    def add(self, access: Access, seconds: float) -> None:
        """An administrator's entry."""
        self.assertTrue(self.lists.add(Entry(self.NETWORK, access, self.now + seconds, "admin"), self.now))

    def until(self) -> float | None:
        """Until when the network is blocked."""
        entry = self.lists.get(self.NETWORK)
        return entry.until if entry is not None and entry.access is Access.BLOCK else None

    def test_a_block_ends_by_itself(self) -> None:
        self.assertTrue(self.blocks.block(self.NETWORK, 60))
        address = (32, 0xC0000205)
        self.assertEqual(self.lists.blocked_until(address, NOON + 59), NOON + 60)
        entry = self.lists.find(address, NOON + 60)
        self.assertIsNone(entry)

    def test_it_can_be_taken_back_shortened_and_extended(self) -> None:
        self.blocks.block(self.NETWORK, 60)
        self.blocks.block(self.NETWORK, 600)
        self.assertEqual(self.until(), NOON + 600)
        self.blocks.block(self.NETWORK, 5)
        self.assertEqual(self.until(), NOON + 5)
        self.blocks.unblock(self.NETWORK)
        self.assertIsNone(self.until())
        self.blocks.unblock(self.NETWORK)

    def test_somebody_elses_longer_block_stays(self) -> None:
        self.add(Access.BLOCK, 1000)
        self.assertTrue(self.blocks.block(self.NETWORK, 60), "it is blocked for that long")
        self.blocks.unblock(self.NETWORK)
        self.assertEqual(self.until(), NOON + 1000)

    def test_a_longer_block_replaces_somebody_elses(self) -> None:
        self.add(Access.BLOCK, 10)
        self.assertTrue(self.blocks.block(self.NETWORK, 60))
        self.assertEqual(self.until(), NOON + 60)

    def test_what_somebody_allowed_stays_allowed_while_that_is_in_force(self) -> None:
        self.add(Access.ALLOW, 100)
        self.assertFalse(self.blocks.block(self.NETWORK, 60))
        self.now += 101
        self.assertTrue(self.blocks.block(self.NETWORK, 60))

    def test_what_it_has_blocked(self) -> None:
        other = Network.parse("2001:db8::1")
        self.blocks.block(other, 60)
        self.add(Access.BLOCK, 60)
        self.assertEqual(list(self.blocks.networks()), [other])

    def test_the_configuration_wins(self) -> None:
        allowed, blocked = Network.parse("203.0.113.0/24"), Network.parse("198.51.100.0/24")
        self.assertFalse(self.blocks.block(allowed, 60))
        self.blocks.block(blocked, 60)
        self.blocks.unblock(blocked)
        self.assertIsNotNone(self.lists.get(blocked))


class JsonStreamTests(SynchronousTestCase):
    """R6.6: garbage is handled, and long answers are read in pieces."""

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda children: st.lists(children) | st.dictionaries(st.text(), children), max_leaves=10,
    )

    @given(st.dictionaries(st.sampled_from(["new", "deleted", "other", ""]), JSON), st.sampled_from([None, 2]))
    def test_it_finds_what_json_finds(self, content: dict[str, object], indent: int | None) -> None:
        text = json.dumps(content, indent=indent)
        expected = []
        for name, value in content.items():
            if name in ("new", "deleted"):
                if value is not None and not isinstance(value, list):
                    self.assertRaises(JsonError, list, array_items(text, ("new", "deleted")))
                    return
                expected += [(name, item) for item in value or ()]
        self.assertEqual(list(array_items(text, ("new", "deleted"))), expected)

    @given(st.text() | st.text(alphabet='{}[]",:new1 ') | st.builds(
        lambda content, cut: json.dumps({"new": content})[:-cut], st.lists(JSON), st.integers(1, 20)))
    def test_what_json_does_not_accept_it_does_not(self, text: str) -> None:
        try:
            accepted = isinstance(json.loads(text), dict)
        except ValueError:
            accepted = False
        try:
            list(array_items(text, ("new",)))
        except JsonError:
            return
        self.assertTrue(accepted, text)

    def test_texts_that_are_nearly_right(self) -> None:
        for text in (
            "", "[]", "{", '{"new"', '{"new":', '{"new":[', '{"new":[1', '{"new":[1,', '{"new":[1,]}', '{"new":[,]}',
            '{"new":[1 2]}', '{"new":[]', '{"new":[]}x', '{"new":[]}{}', '{"new":{}}', '{"new":"x"}', '{"new":[],}',
            '{"a":1 "new":[]}', "{new:[]}", "{1:[]}", '{"new":[' + "[" * 100_000, '{"a":' + "1" * 5000 + "}", '{"new":[x]}',
        ):
            self.assertRaises(JsonError, list, array_items(text, ("new",)))

    def test_items_come_one_by_one(self) -> None:
        items = array_items('{"new":[1,2,nonsense', ("new",))
        self.assertEqual([next(items), next(items)], [("new", 1), ("new", 2)])
        self.assertRaises(JsonError, next, items)


class UrlTests(SynchronousTestCase):
    """R6.6: HTTPS, or plain HTTP to loopback; R8: every complaint says what is wrong."""

    def test_what_is_accepted(self) -> None:
        for text in (
            "https://abuse.example", "https://abuse.example:8443/in", "https://192.0.2.1/", "https://[2001:db8::1]:8080/",
            "http://localhost/", "http://127.0.0.1:8080", "http://127.9.9.9/", "http://[::1]:80/", "HTTPS://Abuse.Example/",
        ):
            self.assertEqual(HttpUrl().parse(f" {text} ", BASE), text)
        self.assertEqual(HttpUrl(with_query=True).parse("https://abuse.example/?a=b", BASE), "https://abuse.example/?a=b")

    def test_what_is_not(self) -> None:
        for raw, wrong in (
            ("", "is empty"), ("ftp://abuse.example/", "does not begin with https://"), ("abuse.example", "does not begin with https://"),
            ("https:///path", "names no host"), ("https://a:0/", "names port 0"), ("https://a:99999/", "is no URL"),
            ("https://[::1/", "is no URL"), ("https://user:secret@a/", "holds a user name or password"),
            ("https://a/#x", "holds a fragment"), ("https://a/?x=1", "holds a query"),
            ("http://abuse.example/", "sends in the clear what others must not read"),
            ("http://localhost.example/", "sends in the clear what others must not read"),
            ("http://192.0.2.1/", "sends in the clear what others must not read"),
            ("https://a b/", "is not all printable ASCII without blanks"),
            ("https://\u00e4/", "is not all printable ASCII without blanks"),
            (5, "has the wrong type"),
        ):
            with self.assertRaises(ValueError) as caught:
                HttpUrl().parse(raw, BASE)
            self.assertEqual(str(caught.exception), wrong, raw)

    def test_a_user_name_cannot_make_a_host_look_like_loopback(self) -> None:
        for text in ("http://127.0.0.1@abuse.example/", "http://localhost:80@abuse.example/", "http://127.0.0.1\\@abuse.example/"):
            self.assertRaises(ValueError, HttpUrl().parse, text, BASE)


class SetupTests(SynchronousTestCase):
    """R6.6, R8: secrets and certificates come from files, and what is wrong with them is said before the relay starts."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.secret = self.write("secret", b"0123456789abcdef\n")
        self.key = self.write("key", b"k\n")
        nowhere = Path("/nowhere")
        self.config = Config(
            quic_cert_path=nowhere, quic_key_path=nowhere, relay_id=bytes(16), device_keys_path=nowhere,
            webhook_url="https://abuse.example/", webhook_secret_path=self.secret,
            bouncer_url="http://127.0.0.1:8080", bouncer_key_path=self.key,
        )

    def write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(0o640)
        return path

    def make(self, **changes: Any) -> tuple[object, object]:
        environment = Environment(Clock(), lambda: 0.0, lambda: NOON, lambda: 0.5)
        return make_parts(replace(self.config, **changes), environment, AccessLists(), bytes(8))

    def secrets(self, **changes: Any) -> list[Secret]:
        webhook, bouncer = self.make(**changes)
        return [vars(webhook)["_secret"], vars(bouncer)["_key"]]

    def test_only_what_is_configured_is_made(self) -> None:
        self.assertEqual([part is None for part in self.make(webhook_url=None)], [True, False])
        self.assertEqual([part is None for part in self.make(bouncer_url=None)], [False, True])
        nothing = {"webhook_secret_path": None, "bouncer_key_path": None, "webhook_url": None, "bouncer_url": None}
        self.assertEqual(self.make(**nothing), (None, None))

    def test_secrets_out_of_files_without_the_blanks_around_them(self) -> None:
        self.assertEqual(self.secrets(), [Secret(b"0123456789abcdef"), Secret(b"k")])

    def test_secrets_out_of_the_environment(self) -> None:
        paths = {"webhook_secret_path": None, "bouncer_key_path": None}
        secret, key = Secret(b"x" * 16), Secret(b"y")
        self.assertEqual(self.secrets(**paths, webhook_secret=secret, bouncer_key=key), [secret, key])

    def test_everything_that_is_wrong_is_told_at_once_and_no_secret_is_quoted(self) -> None:
        self.secret.write_bytes(b"too-short")
        self.key.unlink()
        bad = self.write("bad.pem", b"nonsense")
        with self.assertRaises(SetupError) as caught:
            self.make(webhook_ca_path=bad, bouncer_ca_path=self.directory / "none.pem")
        lines = str(caught.exception).splitlines()
        self.assertEqual(len(lines), 4, lines)
        self.assertRegex(lines[0], r"/secret holds no secret that will do: it is 9 characters long; 16 to 512 print.* would\Z")
        self.assertRegex(lines[1], r"/bad\.pem holds no PEM certificate")
        self.assertRegex(lines[2], r"\Acannot read the secret .*/key: No such file or directory\Z")
        self.assertRegex(lines[3], r"\Acannot read the certificates .*/none\.pem: No such file or directory\Z")
        self.assertNotIn("too-short", str(caught.exception))

    def test_files_that_cannot_be_secrets(self) -> None:
        for content in (b"", b"\n", b"\xff" * 20, b"two words in a row", b"x" * 10_000):
            self.secret.write_bytes(content)
            self.assertRaises(SetupError, self.make)

    def test_a_url_without_any_secret(self) -> None:
        with self.assertRaises(SetupError) as caught:
            self.make(webhook_secret_path=None)
        self.assertEqual(str(caught.exception), "there is no webhook_secret_path and no ZRC_RELAY_WEBHOOK_SECRET")

    def test_a_secret_that_everyone_can_read_is_a_warning(self) -> None:
        self.assertEqual(check_external(self.config), [])
        self.key.chmod(0o644)
        [warning] = check_external(self.config)
        self.assertRegex(warning, r"\Aeveryone on this host has access to the secret .*/key \(mode 0644\)\Z")

    def test_a_file_of_certificates(self) -> None:
        self.make(webhook_ca_path=self.write("ca.pem", make_certificate().pem))
