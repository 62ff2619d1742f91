"""``connect`` over real sockets: names, certificates, addresses that do not answer, redirects, and giving up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from aioquic.quic.configuration import QuicConfiguration
from nacl.signing import VerifyKey
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests import raw_quic as raw
from tests.fake_relay import FakeRelay, FakeSession, allocated, fingerprint, redirect, server_configuration
from tests.real_relay import PATIENCE, Setup, eventually, exchange, reactor
from zrc_relay.client.connect import connect, connect_unbound
from zrc_relay.client.errors import ConnectFailed, ConnectionLost, RedirectLoop, TokenExpired
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import Role
from zrc_relay.core.token import TokenError
from zrc_relay.quic.udp import Path


class CertificateTests(TestCase):
    """PROTOCOL §1, issue "client": the certificate is checked unless asked otherwise; self-signed ones are pinned."""

    timeout = 2 * PATIENCE

    def setUp(self) -> None:
        self.setup = Setup(self)
        self.setup.service()

    async def refusal(self, trust: Trust) -> ConnectFailed:
        try:
            await self.setup.connect(Role.DEVICE, trust=trust)
        except ConnectFailed as error:
            return error
        msg = "the certificate should have been refused"
        raise AssertionError(msg)

    async def test_the_pinned_certificate_is_enough_under_any_name(self) -> None:
        for host in ("127.0.0.1", "localhost"):
            client = await self.setup.connect(Role.DEVICE, host=host)
            self.assertIsNotNone(client.relay.allocated)
            client.relay.close()

    async def test_another_pinned_certificate_is_refused(self) -> None:
        error = await self.refusal(Trust(fingerprint=bytes(32)))
        self.assertIn("pinned", str(error))

    async def test_a_self_signed_certificate_is_refused_without_a_word_about_trust(self) -> None:
        await self.refusal(Trust())

    async def test_an_authority_of_ones_own_and_the_right_name_are_accepted(self) -> None:
        trust = Trust(ca_file=self.setup.made.directory / "cert.pem")
        for host in ("localhost", "127.0.0.1"):
            client = await self.setup.connect(Role.DEVICE, host=host, trust=trust)
            self.assertIsNotNone(client.relay.allocated)
            client.relay.close()

    async def test_the_wrong_name_is_refused_although_the_authority_is_right(self) -> None:
        certificate = self.setup.made.directory / "cert.pem"
        await self.refusal(Trust(ca_file=certificate, server_name="elsewhere.example"))

    async def test_the_name_to_look_for_may_be_another_than_the_hosts(self) -> None:
        trust = Trust(ca_file=self.setup.made.directory / "cert.pem", server_name="localhost")
        client = await self.setup.connect(Role.DEVICE, host="127.0.0.1", trust=trust)
        self.assertIsNotNone(client.relay.allocated)

    async def test_insecure_means_insecure(self) -> None:
        client = await self.setup.connect(Role.DEVICE, trust=Trust(insecure=True))
        self.assertIsNotNone(client.relay.allocated)

    def test_a_fingerprint_of_the_wrong_length_is_no_fingerprint(self) -> None:
        with self.assertRaises(ValueError):
            Trust(fingerprint=bytes(31))

    async def test_without_a_token_a_relay_can_be_measured_and_asked_for_others(self) -> None:
        relay = await connect_unbound(reactor, "127.0.0.1", self.setup.port, trust=self.setup.trust)
        self.addCleanup(relay.close)
        self.assertGreater(await relay.ping(), 0)
        (entry,) = await relay.list_relays()
        self.assertEqual((entry.address.host, entry.address.port), ("127.0.0.1", self.setup.port))
        with self.assertRaises(ConnectionLost):
            self.assertIsNotNone(relay.allocation_id)

    async def test_what_the_relay_refuses_is_raised_by_connect(self) -> None:
        with self.assertRaises(TokenExpired):
            await self.setup.connect(Role.DEVICE, token=self.setup.another_token(expires_at=1))

    async def test_a_text_that_is_no_token_and_a_key_of_nobody_are_told_before_anything_is_sent(self) -> None:
        with self.assertRaises(TokenError):
            await connect(reactor, "127.0.0.1", 1, token="not a token", key=self.setup.keys[Role.PEER])  # noqa: S106
        with self.assertRaises(ValueError):
            await connect(reactor, "127.0.0.1", 1, token=self.setup.token, key=Setup(self).keys[Role.PEER])


class ConnectFailedTests(TestCase):
    """Who does not answer is given up, and nothing is left behind: trial fails a test that leaves a socket or a timer."""

    timeout = 2 * PATIENCE

    async def failure(self, host: str, port: int, timeout: float = 0.3) -> str:
        setup = Setup(self)
        try:
            await connect(reactor, host, port, token=setup.token, key=setup.keys[Role.DEVICE], timeout=timeout, trust=setup.trust)
        except ConnectFailed as error:
            return str(error)
        msg = "there should be no connection"
        raise AssertionError(msg)

    async def test_a_port_where_nobody_listens(self) -> None:
        self.assertIn("no answer from 127.0.0.1 within 0.3 s", await self.failure("127.0.0.1", 1))

    async def test_a_name_that_does_not_exist(self) -> None:
        self.assertIn("nowhere.invalid", await self.failure("nowhere.invalid", 4433))

    async def test_a_program_that_speaks_something_else(self) -> None:
        class Parrot(FakeRelay):
            """Sends back what it gets."""

            def datagram_received(self, data: bytes, path: Path) -> None:
                to, sender = path
                sender.send(data, to)

        parrot = Parrot(reactor, reactor.seconds, lambda *_: None)
        self.addCleanup(parrot.stop)
        await self.failure("127.0.0.1", parrot.listen(reactor))

    async def test_connecting_may_be_cancelled(self) -> None:
        setup = Setup(self)
        waiting = Deferred.fromCoroutine(
            connect(reactor, "127.0.0.1", 1, token=setup.token, key=setup.keys[Role.DEVICE], trust=setup.trust)
        )
        await deferLater(reactor, 0.05)
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting


class RedirectTests(TestCase):
    """PROTOCOL §1, §9: redirects are followed, at most three in a row, and never change whom to trust."""

    timeout = 2 * PATIENCE

    def setUp(self) -> None:
        self.setup = Setup(self)
        self.setup.trust = Trust(fingerprint=fingerprint(server_configuration()))

    def fake(self, answer: Callable[[], bytes], configuration: QuicConfiguration | None = None) -> tuple[FakeRelay, int]:
        """A relay that answers ALLOCATE with what ``answer`` says."""

        def script(session: FakeSession, kind: int, _value: bytes) -> None:
            if kind == raw.ALLOCATE:
                session.send(answer())

        fake = FakeRelay(reactor, reactor.seconds, script, configuration=configuration)
        self.addCleanup(fake.stop)
        return fake, fake.listen(reactor)

    def chain(self, redirects: int) -> tuple[list[FakeRelay], int]:
        """Relays of which each but the last one sends to the next; and the first one's port."""
        fake, port = self.fake(allocated)
        relays = [fake]
        for _ in range(redirects):
            fake, port = self.fake(lambda target=port: redirect(target))  # type: ignore[misc]
            relays.insert(0, fake)
        return relays, port

    async def test_up_to_three_redirects_in_a_row_are_followed_with_a_new_proof_each(self) -> None:
        relays, self.setup.port = self.chain(3)
        client = await self.setup.connect(Role.DEVICE)
        self.assertEqual(client.relay.allocated.expires_at if client.relay.allocated else None, 2_000_000_000)
        key = VerifyKey(bytes(self.setup.keys[Role.DEVICE].verify_key))
        for relay in relays:
            ((kind, value),) = relay.sessions[0].requests
            self.assertEqual(kind, raw.ALLOCATE)
            message = b"zrc-relay/1 possession" + bytes(range(16)) + fingerprint(server_configuration())
            message += hashlib.sha256(self.setup.token.encode()).digest() + relay.sessions[0].challenge + b"\0"
            key.verify(hashlib.sha256(message).digest(), value[-64:])

    async def test_a_fourth_redirect_is_one_too_many(self) -> None:
        relays, self.setup.port = self.chain(4)
        with self.assertRaises(RedirectLoop):
            await self.setup.connect(Role.DEVICE)
        self.assertEqual([len(relay.sessions) for relay in relays], [1, 1, 1, 1, 0])

    async def test_two_relays_that_send_to_each_other_are_left(self) -> None:
        ports: list[int] = []
        ports += self.fake(lambda: redirect(ports[1]))[1], self.fake(lambda: redirect(ports[0]))[1]
        self.setup.port = ports[0]
        with self.assertRaises(RedirectLoop):
            await self.setup.connect(Role.DEVICE)

    async def test_the_first_address_that_answers_is_taken(self) -> None:
        _, port = self.fake(allocated)
        _, self.setup.port = self.fake(lambda: redirect(1, port))
        client = await self.setup.connect(Role.DEVICE, timeout=1.0)
        self.assertIsNotNone(client.relay.allocated)

    async def test_a_redirect_to_nowhere_is_a_failure(self) -> None:
        _, self.setup.port = self.fake(redirect)
        with self.assertRaises(ConnectFailed):
            await self.setup.connect(Role.DEVICE)

    async def test_the_relay_behind_a_redirect_must_show_the_same_certificate(self) -> None:
        stranger, port = self.fake(allocated, server_configuration("elsewhere.example"))
        _, self.setup.port = self.fake(lambda: redirect(port))
        with self.assertRaises(ConnectFailed):
            await self.setup.connect(Role.DEVICE)
        self.assertEqual(stranger.sessions[0].requests, [], "it got neither token nor proof")

    async def test_a_real_relay_behind_a_redirect_serves(self) -> None:
        real = Setup(self)
        real.service()
        directory = real.made.directory
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["zrc-relay"], max_datagram_frame_size=65535)
        configuration.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        target = real.port
        _, real.port = self.fake(lambda: redirect(target), configuration)
        device, peer = await real.pair()
        await exchange(device, peer)
        device.relay.release()
        await eventually(lambda: device.relay.is_closed and peer.relay.is_closed, "the release")
