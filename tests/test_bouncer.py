"""The bouncer, against a real HTTP server that serves recorded decisions, and with every way in which an engine can fail."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.abuse_support import AbuseCase, FakeBlocks
from tests.real_relay import PATIENCE, Setup, eventually, exchange, reactor
from tests.test_abuse_http import LOOPBACK
from tests.web_server import Answer, Asked, RawServer, WebServer, make_certificate
from zrc_relay.abuse import bouncer
from zrc_relay.abuse.bouncer import Bouncer, parse_duration
from zrc_relay.abuse.health import MAX_BACKOFF
from zrc_relay.abuse.http import HttpClient
from zrc_relay.config_external import Secret
from zrc_relay.core.cidr import Network

INTERVAL = 10.0

EVERYTHING = b"""\
{"deleted":null,"new":[
 {"duration":"3h59m57.1s","id":1,"origin":"CAPI","scenario":"crowdsecurity/ssh-bf","scope":"Ip","type":"ban","uuid":"a","value":"192.0.2.1"},
 {"duration":"23h59m0s","id":2,"origin":"cscli","scenario":"manual 'ban'","scope":"Range","type":"ban","value":"198.51.100.0/24"},
 {"duration":"59m59.999999999s","id":3,"origin":"lists","scenario":"x","scope":"ip","type":"ban","value":"2001:db8::7"},
 {"duration":"4h","id":4,"origin":"CAPI","scenario":"x","scope":"Ip","type":"captcha","value":"192.0.2.4"},
 {"duration":"4h","id":5,"origin":"CAPI","scenario":"x","scope":"Country","type":"ban","value":"XX"},
 {"duration":"4h","id":6,"origin":"CAPI","scenario":"x","scope":"AS","type":"ban","value":"64500"},
 {"duration":"4h","id":7,"origin":"crowdsec","scenario":"x","scope":"Ip","simulated":true,"type":"ban","value":"192.0.2.7"}
]}
"""
"""Everything that is in force, as the engine answers ``startup=true``."""

DELTA = b"""\
{"new":[
 {"duration":"1h0m0s","id":8,"origin":"crowdsec","scenario":"x","scope":"Ip","simulated":false,"type":"ban","value":"203.0.113.9"}
],"deleted":[
 {"duration":"-3m21.4s","id":1,"origin":"CAPI","scenario":"crowdsecurity/ssh-bf","scope":"Ip","type":"ban","value":"192.0.2.1"},
 {"duration":"-1s","id":4,"origin":"CAPI","scenario":"x","scope":"Range","type":"captcha","value":"198.51.100.0/24"},
 {"duration":"-1s","id":9,"origin":"CAPI","scenario":"x","scope":"Ip","type":"ban","value":"192.0.2.200"}
]}
"""
"""What changed since then."""

NOTHING = b'{"deleted":null,"new":null}'
IN_FORCE = {"192.0.2.1/32": 14397.1, "198.51.100.0/24": 86340.0, "2001:db8::7/128": 3599.999999999}


class BouncerCase(AbuseCase):
    """A bouncer that runs, with its engine under the test's control."""

    def setUp(self) -> None:
        super().setUp()
        self.logged: list[dict[str, Any]] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.bouncer = Bouncer(
            self.clock, self.client, Secret(b"the-key"), self.blocks,
            interval=INTERVAL, now=self.clock.seconds, wall=self.wall, random=lambda: 0.0,
        )
        self.bouncer.startService()
        self.settle()

    def wait(self, seconds: float = INTERVAL) -> None:
        self.clock.advance(seconds)
        self.settle()

    def answer(self, body: bytes, status: int = 200) -> None:
        self.client.answer(body, status)
        self.settle()

    def decisions(self, **lists: list[tuple[str, str]]) -> bytes:
        """An answer with these lists of values and durations."""
        return json.dumps({name: [
            {"scope": "Range" if "/" in value else "Ip", "type": "ban", "value": value, "duration": duration}
            for value, duration in entries
        ] for name, entries in lists.items()}).encode()

    @property
    def asked(self) -> list[str]:
        """The paths of the requests."""
        return [request.path for request in self.client.requests]


class FollowingTests(BouncerCase):
    """R6.6: full, then deltas; bans of addresses and ranges are on the blocklist for as long as they last."""

    def test_it_asks_for_everything_first_and_then_for_what_changed(self) -> None:
        self.answer(EVERYTHING)
        self.wait(INTERVAL - 0.1)
        self.assertFalse(self.client.is_asked)
        self.wait(0.1)
        self.answer(NOTHING)
        self.wait()
        everything, change = "/v1/decisions/stream?startup=true", "/v1/decisions/stream?startup=false"
        self.assertEqual(self.asked, [everything, change, change])
        for request in self.client.requests:
            self.assertEqual((request.method, request.headers["X-Api-Key"], request.body), ("GET", "the-key", b""))

    def test_what_is_in_force_is_blocked_for_its_duration(self) -> None:
        self.answer(EVERYTHING)
        self.assertEqual(self.blocks.entries, IN_FORCE)
        self.assertEqual((self.bouncer.decisions, self.bouncer.rejected), (3, 0))
        self.assertEqual(self.bouncer.last_success, self.wall())

    def test_a_delta_adds_and_takes_back(self) -> None:
        self.answer(EVERYTHING)
        self.wait()
        self.answer(DELTA)
        expected = {**IN_FORCE, "203.0.113.9/32": 3600.0}
        del expected["192.0.2.1/32"]
        self.assertEqual(self.blocks.entries, expected)
        self.assertEqual(self.bouncer.decisions, 3)

    def test_deleted_and_new_at_once_stays_blocked_with_the_new_duration(self) -> None:
        self.answer(EVERYTHING)
        self.wait()
        self.answer(self.decisions(new=[("192.0.2.1", "5m")], deleted=[("192.0.2.1", "-1s")]))
        self.assertEqual(self.blocks.entries["192.0.2.1/32"], 300.0)
        self.assertNotIn(("unblock", "192.0.2.1/32"), self.blocks.calls)

    def test_of_several_decisions_about_one_address_the_longest_counts(self) -> None:
        self.answer(self.decisions(new=[("192.0.2.1", "5m"), ("192.0.2.1", "2h"), ("192.0.2.1/32", "1h")]))
        self.assertEqual(self.blocks.entries, {"192.0.2.1/32": 7200.0})

    def test_decisions_that_are_over_already_block_nothing(self) -> None:
        self.answer(self.decisions(new=[("192.0.2.1", "-5m"), ("192.0.2.2", "0s")]))
        self.assertEqual((self.blocks.entries, self.bouncer.rejected), ({}, 0))

    def test_decisions_that_cannot_be_understood_are_counted_and_the_others_followed(self) -> None:
        good = {"scope": "Ip", "type": "ban", "value": "192.0.2.1", "duration": "1h"}
        bad = [
            {**good, "value": "everyone"}, {**good, "value": "0.0.0.0/0"}, {**good, "value": 5}, {**good, "duration": "soon"},
            {**good, "duration": None}, {**good, "duration": 60}, {"scope": "Ip", "type": "ban"}, "x", None, [good],
        ]
        self.answer(json.dumps({"new": [*bad, good], "deleted": ["x"]}).encode())
        self.assertEqual(self.blocks.entries, {"192.0.2.1/32": 3600.0})
        self.assertEqual((self.bouncer.rejected, self.bouncer.failures), (len(bad) + 1, 0))

    def test_after_a_failure_everything_is_asked_for_and_what_is_gone_is_taken_back(self) -> None:
        self.answer(EVERYTHING)
        self.wait()
        self.client.fail()
        self.wait()
        self.assertEqual(self.asked[-1], "/v1/decisions/stream?startup=true")
        self.assertEqual(self.blocks.entries, IN_FORCE, "a failure changes nothing")
        self.answer(self.decisions(new=[("198.51.100.0/24", "1h"), ("192.0.2.77", "1h")]))
        self.assertEqual(self.blocks.entries, {"198.51.100.0/24": 3600.0, "192.0.2.77/32": 3600.0})
        self.wait()
        self.assertEqual(self.asked[-1], "/v1/decisions/stream?startup=false")

    def test_what_an_earlier_life_blocked_is_taken_back_when_it_is_not_in_force_any_more(self) -> None:
        for value in ("192.0.2.1", "192.0.2.99"):
            self.blocks.block(Network.parse(value), 60)
        self.answer(EVERYTHING)
        self.assertEqual(self.blocks.entries, IN_FORCE)

    def test_there_is_a_bound_and_what_is_over_makes_room(self) -> None:
        self.patch(bouncer, "MAX_DECISIONS", 3)
        self.answer(self.decisions(new=[(f"192.0.2.{number}", "1m") for number in range(5)]))
        self.assertEqual((self.bouncer.decisions, self.bouncer.rejected), (3, 2))
        self.wait(30)
        self.answer(self.decisions(new=[("192.0.2.0", "1h"), ("192.0.2.9", "1h")]))
        self.assertEqual((self.bouncer.decisions, self.bouncer.rejected), (3, 3), "one that is known needs no room")
        self.wait(40)
        self.answer(self.decisions(new=[("192.0.2.10", "1h")]))
        self.assertEqual((self.bouncer.decisions, self.bouncer.rejected), (2, 3))

    def test_what_the_list_does_not_take_is_counted(self) -> None:
        self.blocks.room = 1
        self.answer(EVERYTHING)
        self.assertEqual((self.bouncer.decisions, self.bouncer.rejected), (1, 2))

    def test_a_bug_in_what_is_done_with_decisions_makes_it_ask_for_everything_again(self) -> None:
        self.patch(self.blocks, "block", lambda network, ttl: 1 // 0)
        self.answer(EVERYTHING)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.wait(1000)
        self.assertEqual(self.asked[-1], "/v1/decisions/stream?startup=true")

    def test_stopping_cancels_what_is_under_way(self) -> None:
        self.successResultOf(self.bouncer.stopService())
        self.assertEqual((self.client.cancelled, self.clock.getDelayedCalls(), self.bouncer.failures), (1, [], 0))


class TroubleTests(BouncerCase):
    """R6.6: errors, garbage and odd statuses change nothing but the numbers that tell of them."""

    def check_failures(self, *bodies: tuple[bytes, int]) -> None:
        """Each answer is a failure that changes nothing, and the next request asks for everything."""
        self.answer(EVERYTHING)
        for number, (body, status) in enumerate(bodies, 1):
            self.wait(MAX_BACKOFF + INTERVAL)
            self.answer(body, status)
            self.assertEqual(self.bouncer.failures, number, (body[:50], status))
            self.assertEqual(self.blocks.entries, IN_FORCE, body[:50])
        self.assertEqual(self.asked[2:], ["/v1/decisions/stream?startup=true"] * (len(bodies) - 1))
        self.wait(MAX_BACKOFF + INTERVAL)
        self.answer(self.decisions(new=[("192.0.2.1", "1h")]))
        self.assertEqual(self.blocks.entries, {"192.0.2.1/32": 3600.0})

    def test_statuses(self) -> None:
        self.check_failures(*((DELTA, status) for status in (204, 301, 400, 403, 404, 429, 500, 503)))

    def test_garbage(self) -> None:
        self.check_failures(*((body, 200) for body in (
            b"", b"ok", b"<html>", b"null", b"[]", b"\xff\xfe", b'{"new":"x"}', b'{"new":{}}', b'{"deleted":[],"new":[',
            DELTA[:-10], DELTA.replace(b"]}", b"}"), DELTA + b"x", b'{"new":[' + b"[" * 100_000,
            b'{"deleted":[{"scope":"Ip","type":"ban","value":"192.0.2.1","duration":"-1s"}],"new":[x]}',
        )))

    def test_an_answer_that_names_nothing_is_none_of_these(self) -> None:
        for body in (NOTHING, b"{}", b'{"new":[]}', b' {"message":"x"} '):
            self.answer(body)
            self.wait()
        self.assertEqual(self.bouncer.failures, 0)

    def test_it_is_left_alone_for_a_growing_time_but_never_asked_more_often_than_usual(self) -> None:
        for expected in (INTERVAL, INTERVAL, INTERVAL, INTERVAL, 16, 32, 64, MAX_BACKOFF, MAX_BACKOFF):
            self.client.fail()
            self.wait(expected - 0.1)
            self.assertFalse(self.client.is_asked)
            self.wait(0.1)
            self.assertTrue(self.client.is_asked, expected)

    def test_an_outage_is_logged_when_it_begins_and_when_it_ends_and_without_the_key(self) -> None:
        for _ in range(10):
            self.answer(b"", 403)
            self.wait(MAX_BACKOFF)
        self.answer(NOTHING)
        events = [event for event in self.logged if event["log_namespace"].startswith("zrc_relay")]
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error, LogLevel.info, LogLevel.info])
        self.assertEqual(events[0]["problem"], "it does not accept the API key")
        self.assertNotIn("the-key", str(events))


class DurationTests(SynchronousTestCase):
    """R6.6: durations as Go writes them."""

    def test_examples(self) -> None:
        for text, seconds in (
            ("4h59m", 17940), ("3h59m57.5s", 14397.5), ("-1h2m", -3720), ("0s", 0), ("1m0.25s", 60.25), ("1.5h", 5400),
            ("250ms", 0.25), ("8760h0m0s", 31_536_000), ("5\u00b5s", 5e-6), ("5us", 5e-6), ("10ns", 1e-8),
        ):
            self.assertAlmostEqual(parse_duration(text), seconds, places=9)

    def test_what_is_none(self) -> None:
        for value in ("", "-", "5", "h", "4h 5m", "4h-5m", "+-1h", "1d", "\u0664h", "1h" * 100, "1e5s", "infs", None, 5, b"5s"):
            with self.assertRaises(ValueError, msg=repr(value)):
                parse_duration(value)

    @given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.booleans())
    def test_what_go_writes(self, hours: int, minutes: int, seconds: int, negative: bool) -> None:  # noqa: FBT001 - generated
        value = parse_duration(f"{'-' if negative else ''}{hours}h{minutes}m{seconds}s")
        self.assertEqual(abs(value), 3600 * hours + 60 * minutes + seconds)
        self.assertEqual(value < 0, negative and bool(hours or minutes or seconds))


class ServerTests(TestCase):
    """R6.6: run against a real HTTP server on loopback that serves recorded decisions."""

    timeout = 3 * PATIENCE

    def follow(self, url: str, *, interval: float = 0.05, timeout: float = PATIENCE, max_body: int = 100_000) -> Bouncer:
        """A bouncer on the real reactor; it stops with the test."""
        self.blocks = FakeBlocks()
        client = HttpClient(reactor, url, ca_path=None, timeout=timeout, max_body=max_body)
        following = Bouncer(
            reactor, client, Secret(b"the-key"), self.blocks,
            interval=interval, now=time.monotonic, wall=time.time, random=lambda: 1.0,
        )
        following.startService()
        self.addCleanup(following.stopService)
        return following

    async def test_everything_and_then_deltas(self) -> None:
        server = WebServer(self)
        deltas = [DELTA]

        def engine(asked: Asked) -> Answer:
            if asked.headers.get("x-api-key") != "the-key":
                return Answer(b'{"message":"access forbidden"}', 403)
            if asked.uri == "/v1/decisions/stream?startup=true":
                return Answer(EVERYTHING)
            return Answer(deltas.pop() if deltas else NOTHING)

        server.answer = engine
        following = self.follow(server.url())
        await eventually(lambda: len(server.asked) > 3, "some requests")
        self.assertEqual(set(self.blocks.entries), {"198.51.100.0/24", "2001:db8::7/128", "203.0.113.9/32"})
        self.assertEqual((following.failures, following.rejected), (0, 0))
        self.assertEqual([asked.uri[-4:] for asked in server.asked[:3]], ["true", "alse", "alse"])

    async def test_a_thousand_decisions(self) -> None:
        server = WebServer(self)
        entry = '{{"scope":"Ip","type":"ban","value":"10.0.{}.{}","duration":"1h"}}'
        entries = ",".join(entry.format(number >> 8, number & 255) for number in range(1000))
        server.answer = lambda _: Answer(f'{{"new":[{entries}]}}'.encode())
        following = self.follow(server.url(), interval=60)
        await eventually(lambda: following.last_success, "the decisions")
        self.assertEqual((following.decisions, len(self.blocks.entries)), (1000, 1000))

    async def test_engines_that_hang_flood_stop_short_or_fail_are_asked_again_until_they_work(self) -> None:
        followed = []
        for bad in (Answer(hangs=True), Answer(bytes(200_000)), Answer(EVERYTHING[:-9]), Answer(status=500)):
            server = WebServer(self)
            answers = [bad]
            server.answer = lambda _, answers=answers: answers.pop() if answers else Answer(EVERYTHING)  # type: ignore[misc]
            followed.append((server, self.follow(server.url(), timeout=1 if bad.hangs else PATIENCE), self.blocks))
        await eventually(lambda: all(following.last_success for _, following, _ in followed), "the decisions")
        for server, following, blocks in followed:
            self.assertGreaterEqual(following.failures, 1)
            self.assertEqual(following.crashes, 0)
            self.assertEqual([asked.uri[-4:] for asked in server.asked[:2]], ["true", "true"])
            self.assertEqual(set(blocks.entries), set(IN_FORCE))


class RelayTests(TestCase):
    """R6.6: a relay that follows an engine; its slowness or death changes nothing for clients."""

    timeout = 3 * PATIENCE

    def prepared(self, url: str, ca: bytes | None = None) -> Setup:
        """The files of a relay with this engine."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        key = directory / "key"
        key.touch(0o600)
        key.write_text("the-key\n")
        settings = {"bouncer_url": url, "bouncer_key_path": str(key), "bouncer_interval": "1s"}
        if ca is not None:
            (directory / "ca.pem").write_bytes(ca)
            settings["bouncer_ca_path"] = str(directory / "ca.pem")
        return Setup(self, settings=settings)

    async def test_its_decisions_are_on_the_blocklist(self) -> None:
        authority = make_certificate()
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=authority))
        server.answer = lambda _: Answer(EVERYTHING)
        setup = self.prepared(server.url("/engine/"), authority.pem)
        service = setup.service()
        await eventually(lambda: service.bouncer and service.bouncer.decisions, "the decisions")
        self.assertEqual(server.asked[0].uri, "/engine/v1/decisions/stream?startup=true")
        self.assertEqual(server.asked[0].headers["x-api-key"], "the-key")
        for network in IN_FORCE:
            entry = service.relay.admission.lists.get(Network.parse(network))
            self.assertEqual(entry.note if entry else None, "bouncer")

    async def test_an_engine_that_does_not_answer(self) -> None:
        server = RawServer(self, lambda _: None)
        setup = self.prepared(server.url)
        service = setup.service()
        await eventually(lambda: server.received, "the request")
        device, peer = await setup.pair()
        await exchange(device, peer)
        await service.stopService()
        await eventually(lambda: server.lost, "the end of the request")
        self.assertIsNone(service.bouncer.last_success if service.bouncer else 0)
