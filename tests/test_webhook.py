"""The webhook: what is posted when, what its answers do, and that nothing depends on it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.abuse_support import NOON, AbuseCase, Request
from tests.real_relay import PATIENCE, Setup, eventually, exchange
from tests.test_abuse_http import LOOPBACK
from tests.web_server import Answer, RawServer, WebServer, make_certificate
from zrc_relay.abuse import webhook
from zrc_relay.abuse.health import MAX_BACKOFF
from zrc_relay.abuse.webhook import BATCH, BATCH_DELAY, MAX_QUEUED, MAX_REFUSALS, SIGNATURE, Webhook
from zrc_relay.cli.dev_setup import DevSetup
from zrc_relay.client.errors import TokenBadSignature
from zrc_relay.config_external import Secret
from zrc_relay.core.cidr import Network
from zrc_relay.core.codes import Role
from zrc_relay.service import StartError

SECRET = b"a secret that both sides know"
PAGE = Path(__file__).resolve().parent.parent / "docs/security-events.md"


def content(request: Request) -> dict[str, Any]:
    """What was posted."""
    return cast(dict[str, Any], json.loads(request.body))


class WebhookCase(AbuseCase):
    """A webhook that runs, with its server under the test's control."""

    def setUp(self) -> None:
        super().setUp()
        self.webhook = Webhook(
            self.clock, self.client, Secret(SECRET), self.blocks,
            sender={"relay": "aa", "instance": "bb"}, wall=self.wall, random=lambda: 0.0,
        )
        self.webhook.startService()
        self.settle()

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            self.webhook.offer({"event": "session.refused", "port": number})

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()

    def answer(self, body: bytes = b"", status: int = 200) -> None:
        self.client.answer(body, status)
        self.settle()

    def posted(self) -> list[list[int]]:
        """The numbers of the records in each request."""
        return [[record["port"] for record in content(request)["events"]] for request in self.client.requests]


class BatchTests(WebhookCase):
    """R6.6: events go out in batches, signed."""

    def test_nothing_is_posted_while_there_is_nothing(self) -> None:
        self.wait(1000)
        self.assertEqual((self.client.requests, self.clock.getDelayedCalls()), ([], []))

    def test_records_of_one_second_are_one_batch(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY - 0.1)
        self.offer(2)
        self.assertEqual(self.client.requests, [])
        self.wait(0.1)
        self.assertEqual(self.posted(), [[1, 2]])
        self.assertEqual(content(self.client.requests[0]), {
            "relay": "aa", "instance": "bb", "batch": 1, "dropped": 0,
            "events": [{"event": "session.refused", "port": 1}, {"event": "session.refused", "port": 2}],
        })

    def test_records_that_come_meanwhile_are_the_next_batch(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        self.offer(2, 3)
        self.wait(50)
        self.assertEqual(self.posted(), [[1]], "one request at a time")
        self.assertEqual(self.webhook.queued, 3)
        self.answer()
        self.wait(BATCH_DELAY)
        self.assertEqual(self.posted(), [[1], [2, 3]])
        self.assertEqual(content(self.client.requests[1])["batch"], 2)
        self.answer()
        self.assertEqual(self.webhook.queued, 0)
        self.assertEqual(self.webhook.last_success, self.wall())

    def test_a_long_queue_goes_out_without_waiting_in_batches_that_are_bounded(self) -> None:
        self.offer(*range(2 * BATCH + 5))
        self.wait(BATCH_DELAY)
        self.answer()
        self.answer()
        self.assertEqual([len(batch) for batch in self.posted()], [BATCH, BATCH])
        self.wait(BATCH_DELAY)
        self.assertEqual([len(batch) for batch in self.posted()], [BATCH, BATCH, 5])

    def test_what_came_before_the_start_is_posted(self) -> None:
        self.webhook.stopService()
        self.offer(1)
        self.webhook.startService()
        self.settle()
        self.assertEqual(self.posted(), [[1]])

    def test_the_signature_is_over_timestamp_and_body(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        [request] = self.client.requests
        self.assertEqual((request.method, request.path), ("POST", ""))
        self.assertEqual(request.headers["Content-Type"], "application/json")
        signed = f"{int(NOON + BATCH_DELAY)}.".encode() + request.body
        digest = hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
        self.assertEqual(request.headers[SIGNATURE], f"t={int(NOON + BATCH_DELAY)},v1={digest}")

    def test_the_example_of_the_page_can_be_checked_by_what_the_page_says(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        found = re.search(rf"^{SIGNATURE}: t=(\d+),v1=([0-9a-f]+)$", page, re.MULTILINE)
        timestamp, signature = found.groups() if found else ("", "")
        found = re.search(r'^\{"relay".*\}$', page, re.MULTILINE)
        body = found.group().encode() if found else b""
        found = re.search(r"the secret is\s`([^`]*)`", page)
        secret = found.group(1).encode() if found else b""
        self.assertEqual(signature, hmac.new(secret, f"{timestamp}.".encode() + body, "sha256").hexdigest())
        self.assertEqual(signature, webhook.sign(Secret(secret), timestamp, body))
        self.offer(1)
        self.wait(BATCH_DELAY)
        self.assertEqual(list(content(self.client.requests[0])), list(json.loads(body)))


class RetryTests(WebhookCase):
    """R6.6: retried with backoff; a bounded queue; what is lost is counted."""

    def setUp(self) -> None:
        super().setUp()
        self.logged: list[LogLevel] = []
        observer: Any = lambda event: self.logged.append(event["log_level"])  # noqa: E731 - typed as zope has it
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def test_a_batch_that_was_not_taken_is_posted_again_unchanged_with_a_fresh_timestamp(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        self.client.fail()
        self.offer(2)
        self.wait(1)
        first, second = self.client.requests
        self.assertEqual(first.body, second.body)
        self.assertNotEqual(first.headers[SIGNATURE], second.headers[SIGNATURE])
        self.answer()
        self.wait(BATCH_DELAY)
        self.assertEqual(self.posted()[2:], [[2]])

    def test_the_time_between_attempts_doubles(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        for expected in (1, 2, 4, 8):
            self.client.fail()
            self.wait(expected - 0.1)
            self.assertFalse(self.client.is_asked)
            self.wait(0.1)
            self.assertTrue(self.client.is_asked)

    def test_every_status_but_success_is_a_failure(self) -> None:
        for number, status in enumerate((199, 300, 302, 400, 404, 500, 503), 1):
            self.offer(1)
            self.wait(MAX_BACKOFF)
            self.answer(status=status)
            self.assertEqual(self.webhook.failures, number, status)
        self.assertIsNone(self.webhook.last_success)
        self.wait(MAX_BACKOFF)
        self.answer(status=204)
        self.assertIsNotNone(self.webhook.last_success)

    def test_a_batch_that_the_receiver_chokes_on_does_not_hold_up_the_next(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        self.offer(2)
        for _ in range(MAX_REFUSALS):
            self.answer(status=500)
            self.wait(MAX_BACKOFF)
        self.assertEqual(self.posted(), [[1]] * MAX_REFUSALS + [[2]])
        self.assertEqual(self.webhook.dropped, 1)
        self.assertEqual(content(self.client.requests[-1])["dropped"], 1)

    def test_refusals_of_one_batch_do_not_count_against_the_next(self) -> None:
        for number in (1, 2):
            self.offer(number)
            self.wait(MAX_BACKOFF)
            for _ in range(MAX_REFUSALS - 1):
                self.answer(status=500)
                self.wait(MAX_BACKOFF)
            self.answer()
        self.assertEqual((self.webhook.dropped, self.webhook.failures), (0, 2 * (MAX_REFUSALS - 1)))

    def test_a_batch_that_did_not_arrive_is_kept_however_long_it_takes(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        for _ in range(10 * MAX_REFUSALS):
            self.client.fail()
            self.wait(MAX_BACKOFF)
        self.answer()
        self.assertEqual((self.webhook.dropped, self.webhook.queued), (0, 0))

    def test_a_full_queue_drops_the_oldest_and_the_next_batch_says_how_many(self) -> None:
        self.offer(0)
        self.wait(BATCH_DELAY)
        self.offer(*range(1, MAX_QUEUED + 11))
        self.assertEqual((self.webhook.dropped, self.webhook.queued), (10, MAX_QUEUED + 1))
        self.answer()
        self.settle()
        self.assertEqual(self.posted()[1][0], 11)
        self.assertEqual(content(self.client.requests[1])["dropped"], 10)

    def test_an_outage_is_two_lines_of_log(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        for _ in range(20):
            self.client.fail()
            self.wait(MAX_BACKOFF)
        self.assertEqual(self.logged, [LogLevel.error])
        self.answer()
        self.assertEqual(self.logged, [LogLevel.error, LogLevel.info])

    def test_stopping_cancels_what_is_under_way(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        self.successResultOf(self.webhook.stopService())
        self.assertEqual(self.client.cancelled, 1)
        self.offer(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AnswerTests(WebhookCase):
    """R6.6: the answer may name sources to block, and for how long."""

    def answered(self, body: bytes | str) -> None:
        """Post a record and answer with ``body``."""
        self.offer(1)
        self.wait(BATCH_DELAY)
        self.answer(body if isinstance(body, bytes) else body.encode())

    def test_sources_are_blocked(self) -> None:
        self.answered('{"block":[{"cidr":"192.0.2.7/24","ttl":60},{"cidr":"2001:db8::1","ttl":0.5}],"more":1}')
        self.assertEqual(self.blocks.entries, {"192.0.2.0/24": 60.0, "2001:db8::1/128": 0.5})
        self.assertEqual((self.webhook.blocked, self.webhook.rejected), (2, 0))

    def test_the_example_of_the_page(self) -> None:
        found = re.search(r'^\{"block".*\}$', PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        self.answered(found.group() if found else "")
        self.assertEqual(self.blocks.entries, {"192.0.2.0/24": 3600.0, "2001:db8::7/128": 600.0})

    def test_entries_that_are_wrong_are_passed_over_and_counted(self) -> None:
        entries = [
            {"cidr": "0.0.0.0/0", "ttl": 60}, {"cidr": "nonsense", "ttl": 60}, {"cidr": "192.0.2.1", "ttl": 0}, {"ttl": 5},
            {"cidr": "192.0.2.2"}, {"cidr": "192.0.2.3", "ttl": "60"}, "192.0.2.4", None, [], {"cidr": "192.0.2.9", "ttl": 5},
        ]
        self.answered(json.dumps({"block": entries}))
        self.assertEqual(self.blocks.entries, {"192.0.2.9/32": 5.0})
        self.assertEqual((self.webhook.blocked, self.webhook.rejected), (1, 9))

    def test_answers_that_name_nothing(self) -> None:
        for body in ("", "ok", "[]", "null", "<html>", "{}", '{"block":null}', '{"block":[]}', '{"message":"thanks"}'):
            self.answered(body)
        self.assertEqual((self.blocks.calls, self.webhook.rejected, self.webhook.failures), ([], 0, 0))

    def test_garbage_blocks_nothing_and_the_batch_counts_as_taken(self) -> None:
        good = '{"cidr":"192.0.2.1","ttl":60}'
        bodies: list[str | bytes] = [
            f'{{"block":[{good},', f'{{"block":[{good}]', f'{{"block":[{good}]}}}}', '{"block":"all"}', b'{"block":["\xff"]}',
            '{"block":' + "[" * 100_000,
        ]
        for number, body in enumerate(bodies, 1):
            self.answered(body)
            self.assertEqual((self.webhook.rejected, self.webhook.failures, self.webhook.queued), (number, 0, 0))
        self.assertEqual(self.blocks.calls, [])

    def test_a_failure_is_not_obeyed(self) -> None:
        self.offer(1)
        self.wait(BATCH_DELAY)
        self.answer(b'{"block":[{"cidr":"192.0.2.1","ttl":60}]}', 500)
        self.assertEqual(self.blocks.calls, [])

    def test_what_the_list_does_not_take_is_counted(self) -> None:
        self.blocks.room = 1
        self.answered('{"block":[{"cidr":"192.0.2.1","ttl":60},{"cidr":"192.0.2.2","ttl":60}]}')
        self.assertEqual((self.webhook.blocked, self.webhook.rejected), (1, 1))

    def test_a_bug_in_what_is_done_with_it_does_not_post_the_batch_again(self) -> None:
        self.blocks.block = lambda network, ttl: 1 // 0 > 0  # type: ignore[method-assign]
        self.answered('{"block":[{"cidr":"192.0.2.1","ttl":60}]}')
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.offer(2)
        self.wait(1000)
        self.assertEqual(self.posted(), [[1], [2]])


class PageTests(WebhookCase):
    """Issue "external abuse systems": the page tells receivers the truth."""

    def test_the_numbers(self) -> None:
        text = " ".join(PAGE.read_text(encoding="utf-8").split())
        self.assertEqual((BATCH_DELAY, MAX_REFUSALS), (1.0, 8))
        for part in (
            "a second after the first record of each", f"no answer within {webhook.TIMEOUT:g} seconds",
            f"1, 2, 4 ... {MAX_BACKOFF:g} seconds", "answered eight times", f"At most {MAX_QUEUED} records wait",
        ):
            self.assertIn(part, text)


class RelayTests(TestCase):
    """R6.6, R1.5: a relay with a webhook, over TLS; its slowness or death changes nothing for clients."""

    timeout = 3 * PATIENCE

    def prepared(self, url: str, ca: bytes | None = None) -> Setup:
        """The files of a relay with this webhook."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        (directory / "secret").write_bytes(SECRET.replace(b" ", b"-") + b"\n")
        settings = {"webhook_url": url, "webhook_secret_path": str(directory / "secret")}
        if ca is not None:
            (directory / "ca.pem").write_bytes(ca)
            settings["webhook_ca_path"] = str(directory / "ca.pem")
        return Setup(self, settings=settings)

    async def refuse_one(self, setup: Setup) -> None:
        """Let a client be refused."""
        with self.assertRaises(TokenBadSignature):
            forged = setup.token.__class__.parse(setup.token.encode()[:-64] + bytes(64))
            await setup.connect(Role.DEVICE, token=forged)

    async def test_a_refusal_is_posted_and_the_answer_is_on_the_blocklist(self) -> None:
        authority = make_certificate()
        server = WebServer(self, make_certificate(LOOPBACK, signed_by=authority))
        server.answer = lambda _: Answer(b'{"block":[{"cidr":"192.0.2.0/24","ttl":60}]}')
        setup = self.prepared(server.url("/in"), authority.pem)
        service = setup.service()
        await self.refuse_one(setup)
        await eventually(lambda: service.webhook and service.webhook.blocked, "the block")
        [asked] = server.asked
        posted = json.loads(asked.body)
        self.assertEqual(posted["relay"], service.relay.policy.relay_id.hex())
        [record] = posted["events"]
        self.assertEqual((record["event"], record["code"]), ("session.refused", "TOKEN_BAD_SIGNATURE"))
        timestamp, _, signature = asked.headers[SIGNATURE.lower()].removeprefix("t=").partition(",v1=")
        expected = hmac.new(SECRET.replace(b" ", b"-"), timestamp.encode() + b"." + asked.body, "sha256").hexdigest()
        self.assertEqual(signature, expected)
        entry = service.relay.admission.lists.get(Network.parse("192.0.2.0/24"))
        self.assertEqual(entry.note if entry else None, "webhook")

    async def check_unharmed(self, setup: Setup) -> None:
        """Clients are served, refused ones too, while the webhook does not work; and stopping does not wait for it."""
        service = setup.service()
        device, peer = await setup.pair()
        await self.refuse_one(setup)
        await eventually(lambda: service.webhook and service.webhook.queued, "the record")
        await exchange(device, peer)
        await service.stopService()
        self.assertEqual(service.webhook.last_success if service.webhook else 0, None)

    async def test_a_webhook_that_does_not_answer(self) -> None:
        server = RawServer(self, lambda _: None)
        await self.check_unharmed(self.prepared(server.url))

    async def test_a_webhook_that_is_not_there(self) -> None:
        await self.check_unharmed(self.prepared("http://127.0.0.1:9/"))

    async def test_a_webhook_with_a_certificate_of_somebody_else_hears_nothing(self) -> None:
        server = WebServer(self, make_certificate(x509.DNSName("elsewhere"), signed_by=make_certificate()))
        setup = self.prepared(server.url())
        service = setup.service()
        await self.refuse_one(setup)
        await eventually(lambda: service.webhook and service.webhook.failures, "the failure")
        self.assertEqual(server.asked, [])

    async def test_a_secret_that_cannot_be_read_keeps_the_relay_from_starting(self) -> None:
        setup = self.prepared("https://abuse.example/")
        made: DevSetup = setup.made
        made.config.write_text(re.sub(r'(webhook_secret_path = ").*"', r'\1nowhere"', made.config.read_text()))
        with self.assertRaises(StartError) as caught:
            setup.service()
        self.assertRegex(str(caught.exception), r"\Acannot read the secret .*/nowhere: No such file or directory\Z")
