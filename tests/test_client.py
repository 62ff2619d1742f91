"""The client library against a relay that keeps the protocol, and against one that does not."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.fake_relay import FakeRelay, FakeSession, allocated, fingerprint, redirect, server_configuration
from tests.harness import RELAY_ADDRESS, World
from zrc_relay.client import notices
from zrc_relay.client.connection import MAX_RECEIVED, ClientConnection, Identity, Redirected
from zrc_relay.client.errors import (
    ConnectFailed,
    ConnectionLost,
    QuotaExceeded,
    RateLimited,
    RelayError,
    Terminated,
    TokenExpired,
    UnknownCode,
    error_for,
)
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import DropCause, ErrorCode, Role, TerminationReason
from zrc_relay.core.wire import Address


class Scene(World):
    """A world in which a scripted relay has taken the real one's place."""

    def __init__(self, *answers: bytes, features: int = 5) -> None:
        super().__init__()
        self.fake = FakeRelay(self.clock, self.now, self.answer, features=features)
        self.answers = list(answers)
        self.network.attach(RELAY_ADDRESS, self.fake)

    def answer(self, session: FakeSession, kind: int, _value: bytes) -> None:
        """ALLOCATE is answered with what the scene was made with."""
        if kind == raw.ALLOCATE:
            session.send(*self.answers)

    def connect(self, *, trust: Trust | None = None, keyless: bool = False) -> ClientConnection:
        """A client that has had the time to be allocated."""
        client = FakedClient(self, trust or Trust(fingerprint=fingerprint(server_configuration())), keyless=keyless)
        self.run(0.3)
        return client

    def established(self) -> tuple[FakedClient, FakeSession]:
        """A client that is allocated, and the other end of its connection."""
        client = self.connect()
        if not isinstance(client, FakedClient) or client.allocated is None:
            msg = f"not allocated: {client.error}"
            raise AssertionError(msg)
        return client, self.fake.sessions[0]


class FakedClient(ClientConnection):
    """A client of a scripted relay."""

    def __init__(self, scene: Scene, trust: Trust, *, keyless: bool) -> None:
        scene.next_port += 1
        self.notices: list[notices.NoticeEvent] = []
        identity = Identity(scene.token(), Role.DEVICE, None if keyless else scene.device_key)
        super().__init__(
            identity, trust, "relay.test",
            sender=scene.network.attach(("198.51.100.7", scene.next_port), self), remote=RELAY_ADDRESS,
            clock=scene.clock, now=scene.now, random=scene.random, on_notice=self.notices.append,
        )
        self.established.addErrback(lambda _: None)
        self.start()

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class CloseCodeTests(SynchronousTestCase):
    """PROTOCOL §5, issue "client": a typed error for every close code."""

    def test_every_code_is_a_class_of_its_own(self) -> None:
        seen = set()
        for code in ErrorCode:
            if code is ErrorCode.NO_ERROR:
                continue
            error = error_for(code, "why")
            if not isinstance(error, RelayError):
                self.fail(f"{code!r} has no class")
            self.assertIs(error.code, code)
            self.assertEqual(str(error), f"{code.name}: why")
            seen.add(type(error))
        self.assertEqual(len(seen), len(ErrorCode) - 1)

    def test_each_code_before_and_after_allocated_reaches_the_user(self) -> None:
        for code in ErrorCode:
            if code is ErrorCode.NO_ERROR:
                continue
            scene = Scene(allocated())
            client, session = scene.established()
            session.close(code, "because")
            scene.run(1)
            expected = type(error_for(code, ""))
            self.assertIs(type(client.error), expected)
            with self.assertRaises(expected):
                client.send(b"x")

    def test_a_code_from_the_future_keeps_its_number_and_reason(self) -> None:
        scene = Scene(allocated())
        client, session = scene.established()
        session.close(0x2A2A, "from the future")
        scene.run(1)
        error = client.error
        if not isinstance(error, UnknownCode):
            self.fail(repr(error))
        self.assertEqual((error.code, error.reason), (0x2A2A, "from the future"))

    def test_retry_after_is_taken_out_of_the_reason(self) -> None:
        error = RateLimited("retry_after=17;too many requests")
        self.assertEqual((error.retry_after, error.reason), (17, "too many requests"))
        for text in ("too many", "retry_after=x;", "retry_after=5", "see retry_after=5;"):
            error = RateLimited(text)
            self.assertEqual((error.retry_after, error.reason), (0, text))

    def test_no_error_is_an_end_in_peace(self) -> None:
        scene = Scene(allocated())
        client, session = scene.established()
        session.close(0)
        scene.run(1)
        self.assertTrue(client.is_closed)
        self.assertIsNone(client.error)
        self.assertIsNone(self.successResultOf(client.closed))

    def test_quic_errors_are_told_apart_from_the_relays_own(self) -> None:
        scene = Scene(allocated())
        client, session = scene.established()
        session.quic.close(error_code=0x0A, frame_type=0, reason_phrase="quic is unhappy")
        session.flush()
        scene.run(1)
        self.assertIsInstance(client.error, ConnectionLost)

    def test_a_relay_that_falls_silent_is_lost_after_the_idle_timeout(self) -> None:
        scene = Scene(allocated())
        client, _ = scene.established()
        scene.network.filter = lambda _data, _source, _to: None
        scene.run(29)
        self.assertFalse(client.is_closed)
        scene.run(3)
        self.assertIsInstance(client.error, ConnectionLost)


class RudeRelayTests(SynchronousTestCase):
    """A relay that breaks the protocol costs its client the connection and nothing else."""

    def refused(self, *answers: bytes) -> ClientConnection:
        scene = Scene(*answers)
        client = scene.connect()
        scene.run(1)
        return client

    def test_nonsense_on_the_control_stream(self) -> None:
        for answer in (
            raw.varint(raw.ALLOCATED) + raw.varint(5000),
            raw.capsule(raw.ALLOCATED, b"short"),
            raw.capsule(raw.NOTICE, b""),
            raw.capsule(raw.RELAYS, b"\xff"),
            raw.capsule(raw.ERROR, b"\x00\x12\x00\x02\xff\xfe"),
        ):
            client = self.refused(answer)
            self.assertIsInstance(client.error, ConnectionLost, answer)
            self.assertIn("protocol", str(client.error))

    def test_answers_that_nobody_asked_for_are_ignored(self) -> None:
        scene = Scene(allocated(), raw.capsule(raw.REFRESHED, bytes(32)), raw.capsule(raw.RELAYS, b"\0"), allocated())
        client, _ = scene.established()
        self.assertFalse(client.is_closed)
        first = client.allocated
        self.assertEqual(first.expires_at if first else None, 2_000_000_000)

    def test_unknown_capsules_notices_and_trailing_bytes_are_ignored(self) -> None:
        future = raw.capsule(raw.ALLOCATED, raw.split_capsules(allocated())[0][1] + b"more than version 1 says")
        odd = raw.capsule(0x4242, b"?"), raw.capsule(raw.NOTICE, b"\xc8body"), raw.capsule(raw.NOTICE, b"\x04more")
        scene = Scene(future, *odd)
        client, _ = scene.established()
        self.assertEqual(client.notices, [notices.PeerLeft()])
        self.assertFalse(client.is_closed)

    def test_a_certificate_that_is_not_the_pinned_one_gets_no_allocate(self) -> None:
        scene = Scene(allocated())
        client = scene.connect(trust=Trust(fingerprint=bytes(32)))
        self.assertIsInstance(client.error, ConnectFailed)
        self.assertEqual(scene.fake.sessions[0].requests, [], "neither token nor proof were shown to a stranger")

    def test_a_relay_that_wants_a_proof_gets_no_token_from_a_client_without_a_key(self) -> None:
        scene = Scene(allocated())
        client = scene.connect(keyless=True)
        self.assertIsInstance(client.error, ConnectFailed)
        self.assertEqual(scene.fake.sessions[0].requests, [])

    def test_a_relay_that_wants_none_of_this_role_gets_none(self) -> None:
        scene = Scene(allocated(), features=0b100)
        client = scene.connect(keyless=True)
        self.assertIsNotNone(client.allocated)
        ((_, value),) = scene.fake.sessions[0].requests
        self.assertEqual(value[2:6], bytes(4), "no feature, no proof")

    def test_the_proof_covers_the_challenge_of_this_connection(self) -> None:
        scene = Scene(allocated())
        scene.established()
        self.assertIsNotNone(scene.connect(trust=Trust(insecure=True)).allocated)
        proofs = {session.challenge: session.requests[0][1][-64:] for session in scene.fake.sessions}
        self.assertEqual(len(set(proofs.values())), 2)

    def test_a_redirect_ends_this_connection_with_where_to_go(self) -> None:
        client = self.refused(redirect(5, 6), allocated())
        error = client.error
        if not isinstance(error, Redirected):
            self.fail(repr(error))
        self.assertEqual(error.redirect.addresses, (Address("127.0.0.1", 5), Address("127.0.0.1", 6)))
        self.assertIsNone(client.allocated)


class NoticeTests(SynchronousTestCase):
    """PROTOCOL §5: every notice is a typed event, and the ones about the peer are remembered."""

    def test_each_notice_as_a_typed_event(self) -> None:
        number = (7).to_bytes(8, "big")
        bodies = (
            b"\x01" + number + number, b"\x02" + number + number, b"\x03\x04\xb0", b"\x09\x04\xb1", b"\x04",
            b"\x05" + number + b"\x01\x04\x7f\x00\x00\x01\x00\x09", b"\x06\x05", b"\x06\x63", b"\x07\x04" + number,
            b"\x07\x63" + number, b"\x08",
        )
        scene = Scene(allocated())
        client, session = scene.established()
        for body in bodies:
            session.send(raw.capsule(raw.NOTICE, body))
            scene.run(0.02)
        self.assertEqual(
            client.notices,
            [
                notices.QuotaWarning(7, 7), notices.RateLimitedNotice(7, 7), notices.PeerJoined(1200),
                notices.MaxPayloadChanged(1201), notices.PeerLeft(), notices.RelayDraining(7, (Address("127.0.0.1", 9),)),
                notices.AllocationTerminated(TerminationReason.ADMINISTRATOR), notices.AllocationTerminated(None),
                notices.DatagramsDropped(DropCause.EGRESS_QUEUE, 7), notices.DatagramsDropped(None, 7), notices.Superseded(),
            ],
        )

    def test_who_is_there_and_what_fits_is_remembered(self) -> None:
        scene = Scene(allocated(peer_present=True))
        client, session = scene.established()
        seen = [(client.peer_present, client.peer_max_payload)]
        for body in (b"\x04", b"\x03\x04\xb0", b"\x09\x04\xb1"):
            session.send(raw.capsule(raw.NOTICE, body))
            scene.run(0.02)
            seen.append((client.peer_present, client.peer_max_payload))
        self.assertEqual(seen, [(True, 1100), (False, 0), (True, 1200), (True, 1201)])

    def test_a_callback_that_raises_is_logged_and_the_connection_goes_on(self) -> None:
        world = World()
        device, peer = world.pair()

        def explode(_: object) -> None:
            raise ZeroDivisionError

        peer.on_datagram = peer.on_notice = explode
        device.send(b"one")
        world.run(0.1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        peer.on_datagram = peer.got.append
        device.send(b"two")
        world.run(0.1)
        self.assertEqual(peer.got, [b"two"])


class ReceivingTests(SynchronousTestCase):
    """Issue "client": payloads through a callback or an async iterator; what nobody takes is bounded."""

    def setUp(self) -> None:
        self.world = World()
        self.device, self.peer = self.world.pair()
        self.peer.on_datagram = None

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.device.send(payload)
            self.world.run(0.002)
        self.world.run(0.05)

    def iterate(self) -> list[bytes]:
        taken: list[bytes] = []

        async def take() -> None:
            async for payload in self.peer.datagrams():
                taken.append(payload)  # noqa: PERF401 - one by one, as they come
            taken.append(b"the end")

        Deferred.fromCoroutine(take())
        return taken

    def test_the_iterator_gives_what_waited_then_what_comes_and_ends_with_the_connection(self) -> None:
        self.send(b"early")
        taken = self.iterate()
        self.send(b"", b"late")
        self.assertEqual(taken, [b"early", b"", b"late"])
        self.peer.close()
        self.assertEqual(taken[-1], b"the end")

    def test_what_waited_is_still_given_after_the_connection_is_closed(self) -> None:
        self.send(b"a", b"b")
        self.peer.close()
        self.assertEqual(self.iterate(), [b"a", b"b", b"the end"])

    def test_waiters_are_served_in_their_order_and_one_that_gave_up_takes_nothing(self) -> None:
        first, second, third = (self.peer.receive() for _ in range(3))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.send(b"1", b"2")
        self.assertEqual((self.successResultOf(first), self.successResultOf(third)), (b"1", b"2"))

    def test_what_nobody_takes_is_bounded_and_the_oldest_goes(self) -> None:
        self.send(*(b"%d" % number for number in range(MAX_RECEIVED + 10)))
        self.peer.close()
        taken = self.iterate()
        self.assertEqual(len(taken), MAX_RECEIVED + 1)
        self.assertEqual(taken[0], b"10")
        self.assertEqual(self.peer.dropped, 10)


class ControlTests(SynchronousTestCase):
    """Issue "client": refresh, release, listing, ping, and what becomes of them when the connection ends."""

    def test_refresh_reaches_both_sides_and_a_refusal_is_a_typed_error_while_the_session_goes_on(self) -> None:
        world = World()
        device, peer = world.pair()
        longer = world.token(expires_at=int(world.wall()) + 7200, bandwidth_limit=5000)
        refreshed = device.refresh(longer)
        world.run(0.1)
        answer = self.successResultOf(refreshed)
        self.assertEqual((answer.expires_at, answer.bandwidth_limit), (longer.expires_at, 5000))
        older = peer.refresh(world.token(expires_at=int(world.wall()) + 60))
        other = peer.refresh(world.token(allocation_id=bytes(16), expires_at=int(world.wall()) + 9000))
        world.run(0.1)
        self.failureResultOf(older, TokenExpired)
        self.assertEqual(self.failureResultOf(other).value.code, ErrorCode.TOKEN_WRONG_ALLOCATION)
        device.send(b"goes on")
        world.run(0.1)
        self.assertEqual(peer.got, [b"goes on"])

    def test_release_ends_it_for_both_and_says_so(self) -> None:
        world = World()
        device, peer = world.pair()
        released = device.release()
        again = device.release()
        self.assertNoResult(released)
        world.run(1)
        self.assertIsNone(self.successResultOf(released))
        self.assertIsNone(self.successResultOf(again))
        self.assertIsNone(self.successResultOf(device.release()), "once more, and it is true already")
        self.assertIn(notices.AllocationTerminated(TerminationReason.RELEASED), peer.notices)
        self.assertTrue(peer.is_closed)
        self.assertIsNone(peer.error)
        self.assertEqual(len(world.relay.table), 0)

    def test_released_is_enough_when_the_close_behind_it_is_lost(self) -> None:
        scene = Scene(allocated())
        client, session = scene.established()
        released = client.release()
        scene.run(0.1)
        self.assertEqual([kind for kind, _ in session.requests], [raw.ALLOCATE, raw.RELEASE])
        session.send(raw.capsule(raw.RELEASED))
        scene.run(0.1)
        self.assertIsNone(self.successResultOf(released))
        self.assertEqual(session.closed, None)

    def test_released_comes_before_the_close(self) -> None:
        world = World()
        client = raw.ScriptedClient(world)
        world.run(0.1)
        device = Ed25519PrivateKey.from_private_bytes(bytes(world.device_key))
        client.allocate(world.token().encode(), device)
        world.run(0.1)
        client.send_control(raw.capsule(raw.RELEASE))
        world.run(1)
        self.assertEqual(len(client.values(raw.RELEASED)), 1)
        self.assertEqual(client.close_code, ErrorCode.NO_ERROR)

    def test_what_was_asked_for_fails_when_the_connection_ends(self) -> None:
        scene = Scene(allocated())
        client, session = scene.established()
        pending = [client.refresh(scene.token()), client.list_relays(), client.release()]
        scene.run(0.05)
        session.close(ErrorCode.TERMINATED, "by hand")
        scene.run(1)
        for waiter in pending:
            self.failureResultOf(waiter, Terminated)
        for ask in (client.list_relays, client.ping, lambda: client.refresh(scene.token()), lambda: client.send(b"x")):
            with self.assertRaises(Terminated):
                ask()
        self.failureResultOf(client.release(), Terminated)

    def test_an_error_capsule_belongs_to_the_oldest_refresh(self) -> None:
        scene = Scene(allocated())
        client, session = scene.established()
        first, second = client.refresh(scene.token()), client.refresh(scene.token())
        session.send(raw.capsule(raw.ERROR, b"\x00\x31\x00\x04used"), raw.capsule(raw.REFRESHED, bytes(32)))
        scene.run(0.1)
        self.failureResultOf(first, QuotaExceeded)
        self.assertEqual(self.successResultOf(second).expires_at, 0)

    def test_ping_measures_the_round_trip_to_the_relay(self) -> None:
        world = World(latency=0.02)
        device, _ = world.pair()
        measured = [device.ping(), device.ping()]
        world.run(0.2)
        for waiter in measured:
            seconds = self.successResultOf(waiter)
            self.assertGreaterEqual(seconds, 0.04)
            self.assertLess(seconds, 0.04 + 0.03, "the relay may delay an acknowledgement by 25 ms")

    def test_relays_are_listed(self) -> None:
        world = World()
        device, _ = world.pair()
        listed = device.list_relays()
        world.run(0.1)
        (entry,) = self.successResultOf(listed)
        self.assertEqual((entry.address, entry.draining, entry.region), (Address.of(*RELAY_ADDRESS), False, ""))

    def test_a_quiet_connection_is_kept_alive(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(200)
        self.assertFalse(device.is_closed or peer.is_closed)
        device.send(b"still there")
        world.run(0.1)
        self.assertEqual(peer.got, [b"still there"])

    def test_a_connection_without_keepalive_is_let_go(self) -> None:
        scene = Scene(allocated(keepalive=0))
        client, _ = scene.established()
        scene.run(65)
        self.assertIsInstance(client.error, ConnectionLost)

    def test_nothing_is_scheduled_any_more_once_it_is_closed(self) -> None:
        scene = Scene(allocated(keepalive=15))
        client, session = scene.established()
        client.close()
        session.stop()
        owners = [getattr(call.func, "__self__", None) for call in scene.clock.getDelayedCalls()]
        self.assertNotIn(client, owners)
