"""One connection's control protocol: greeting, capsules, their rate, the backlog, the time-out, and how it ends."""

from __future__ import annotations

from itertools import product

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import EPOCH, RELAY_ADDRESS, RELAY_ID, FakeClient, Scene, make_token
from zrc_relay.core.codes import DropCause, ErrorCode, HelloFeature, NoticeCode, Role
from zrc_relay.core.session import (
    ALLOCATE_TIMEOUT,
    MAX_CONTROL_OUTPUT,
    READ_TIMEOUT,
    SESSION_TRANSITIONS,
    SessionChange,
    SessionState,
)
from zrc_relay.core.varint import encode_varint
from zrc_relay.core.wire import (
    MAX_VALUE,
    Address,
    Allocate,
    Allocated,
    CloseChannel,
    Hello,
    ListRelays,
    Notice,
    OpenChannel,
    Refresh,
    Refreshed,
    RelayEntry,
    Relays,
    Release,
    Released,
    WireError,
    encode_capsule,
)

UNKNOWN = encode_capsule(0x2BAD, b"from a later version")
EXPIRY = int(EPOCH) + 3600


class SessionTestCase(SynchronousTestCase):
    """A scene and an unbound connection."""

    def setUp(self) -> None:
        self.scene = Scene()
        self.counters = self.scene.relay.counters
        self.client = self.scene.connect()

    def closed_with(self, data: bytes) -> ErrorCode | None:
        """The code that a new connection is closed with for saying ``data``."""
        client = self.scene.connect()
        client.feed(data)
        return client.close_code


class StateTests(SynchronousTestCase):
    """greeting → choosing → bound (or redirected) → closed, and nothing else (ARCHITECTURE rule 4)."""

    def test_the_ways_are_these(self) -> None:
        state, change = SessionState, SessionChange
        self.assertEqual(dict(SESSION_TRANSITIONS), {
            (state.GREETING, change.HANDSHAKE): state.CHOOSING,
            (state.CHOOSING, change.GRANTED): state.BOUND,
            (state.CHOOSING, change.REDIRECT): state.REDIRECTED,
            (state.GREETING, change.CLOSE): state.CLOSED,
            (state.CHOOSING, change.CLOSE): state.CLOSED,
            (state.BOUND, change.CLOSE): state.CLOSED,
            (state.REDIRECTED, change.CLOSE): state.CLOSED,
        })

    def test_a_session_goes_through_them(self) -> None:
        client = Scene().connect(handshake=False)
        seen = [client.session.state]
        client.session.handshake_completed(client.scene.now)
        seen.append(client.session.state)
        client.allocate(Role.DEVICE)
        seen.append(client.session.state)
        client.lose()
        state = SessionState
        self.assertEqual([*seen, client.session.state], [state.GREETING, state.CHOOSING, state.BOUND, state.CLOSED])

    def test_any_other_change_raises_and_changes_nothing(self) -> None:
        for state, change in product(SessionState, SessionChange):
            if (state, change) not in SESSION_TRANSITIONS:
                session = Scene().connect().session
                session.state = state
                with self.assertRaises(Exception):  # noqa: B017 - which one is nobody's business: it is a bug
                    session._change(change)  # noqa: SLF001 - no caller does this
                self.assertIs(session.state, state)


class HelloTests(SynchronousTestCase):
    """HELLO is the relay's first word: who it is, a challenge, who must prove (PROTOCOL §5)."""

    def test_it_carries_relay_challenge_and_who_must_prove(self) -> None:
        for roles, features in (
            (frozenset(Role), HelloFeature.DEVICES_PROVE | HelloFeature.PEERS_PROVE),
            (frozenset({Role.DEVICE}), HelloFeature.DEVICES_PROVE),
            (frozenset({Role.PEER}), HelloFeature.PEERS_PROVE),
            (frozenset[Role](), HelloFeature(0)),
        ):
            client = Scene(proving_roles=roles, channels=False).connect(handshake=False)
            self.assertEqual(client.hello, Hello(RELAY_ID, client.nonce, features))

    def test_it_says_whether_there_are_channels(self) -> None:
        client = Scene(proving_roles=frozenset()).connect(handshake=False)
        self.assertEqual(client.hello.features, HelloFeature.CHANNELS)

    def test_it_is_said_once(self) -> None:
        client = Scene().bind(Role.DEVICE)
        self.assertEqual(len(client.link.hellos), 1)


class CapsuleTests(SessionTestCase):
    """What a client may say, when, and what it is told otherwise (PROTOCOL §2, §4)."""

    def test_capsules_may_arrive_byte_by_byte(self) -> None:
        for byte in ListRelays().encode() + self.client.request(Role.DEVICE, make_token()).encode():
            self.client.feed(bytes((byte,)))
        self.assertEqual(len(self.client.link.capsules), 2)
        self.assertTrue(self.client.is_bound)

    def test_several_may_arrive_at_once(self) -> None:
        refresh = Refresh(make_token(expires_at=EXPIRY + 1).encode())
        self.client.feed(self.client.request(Role.DEVICE, make_token()).encode() + refresh.encode() + Release().encode())
        self.assertEqual([type(one) for one in self.client.link.capsules], [Allocated, Refreshed, Released])
        self.assertIs(self.client.close_code, ErrorCode.NO_ERROR)

    def test_allocate_twice_is_an_error_of_the_protocol(self) -> None:
        self.client.allocate(Role.DEVICE)
        self.client.allocate(Role.DEVICE)
        self.assertIs(self.client.close_code, ErrorCode.PROTOCOL_ERROR)
        self.assertEqual(list(self.scene.allocation().members), [])

    def test_allocate_again_after_a_refusal_is_not_heard(self) -> None:
        self.client.allocate(Role.DEVICE, allocation_id=bytes(16))
        self.client.allocate(Role.DEVICE)
        self.assertEqual((self.client.close_code, self.client.link.capsules), (ErrorCode.TOKEN_WRONG_ALLOCATION, []))
        self.assertEqual(len(self.scene.relay.table), 0)

    def test_what_needs_an_allocation_is_an_error_before_it(self) -> None:
        self.scene.pair()
        for capsule in (Refresh(make_token().encode()), Release(), OpenChannel(), CloseChannel()):
            self.assertIs(self.closed_with(capsule.encode()), ErrorCode.PROTOCOL_ERROR, capsule)
        self.assertEqual(len(self.scene.relay.table), 1)

    def test_list_relays_is_answered_with_this_relay_before_and_after(self) -> None:
        answer = Relays((RelayEntry(b"instance", RELAY_ADDRESS, 0, draining=False),))
        self.client.feed(ListRelays().encode())
        self.client.allocate(Role.DEVICE)
        self.client.feed(ListRelays().encode())
        self.assertEqual([one for one in self.client.link.capsules if isinstance(one, Relays)], [answer, answer])

    def test_list_relays_tells_load_and_draining(self) -> None:
        scene = Scene(max_allocations=4)
        client = scene.bind(Role.DEVICE)
        scene.relay.drain(scene.wall)
        client.forget()
        client.feed(ListRelays().encode())
        self.assertEqual(client.link.capsules, [Relays((RelayEntry(b"instance", RELAY_ADDRESS, 25, draining=True),))])

    def test_where_channels_are_not_offered_the_session_goes_on(self) -> None:
        self.scene = Scene(channels=False)
        device, peer = self.scene.pair()
        for capsule in (OpenChannel(), CloseChannel()):
            device.feed(capsule.encode())
        self.assertEqual(device.errors, [ErrorCode.PROTOCOL_ERROR])
        device.datagram(b"x")
        self.assertEqual(peer.link.datagrams, [b"x"])

    def test_unknown_capsules_are_ignored_and_counted(self) -> None:
        relay_s_own = encode_capsule(0x11, b"x")
        self.client.feed(UNKNOWN + relay_s_own)
        self.client.allocate(Role.DEVICE)
        self.client.feed(UNKNOWN)
        self.assertTrue(self.client.is_bound)
        self.assertEqual(len(self.client.link.capsules), 1)
        self.assertEqual((self.counters.capsules_received, self.counters.capsules_unknown), (4, 3))

    def test_a_malformed_capsule_is_an_error_of_the_protocol(self) -> None:
        request = self.client.request(Role.DEVICE, make_token()).encode()
        short = encode_capsule(Allocate.TYPE, request[3:-1])
        self.assertIs(self.closed_with(short), ErrorCode.PROTOCOL_ERROR)
        self.assertIs(self.closed_with(encode_capsule(Refresh.TYPE, bytes(179))), ErrorCode.PROTOCOL_ERROR)
        self.assertEqual(len(self.scene.relay.table), 0)

    def test_a_role_that_does_not_exist_is_an_error_of_the_protocol(self) -> None:
        data = bytearray(self.client.request(Role.DEVICE, make_token()).encode())
        self.assertEqual(data[3:5], b"\x01\x00")
        data[4] = 2
        self.assertIs(self.closed_with(bytes(data)), ErrorCode.PROTOCOL_ERROR)

    def test_a_value_that_is_too_long_is_refused_before_it_comes(self) -> None:
        for capsule_type in (int(Allocate.TYPE), 0x2BAD):
            head = encode_varint(capsule_type) + encode_varint(MAX_VALUE + 1)
            self.assertIs(self.closed_with(head), ErrorCode.CONTROL_TOO_LARGE)
        self.assertIsNone(self.closed_with(encode_capsule(0x2BAD, bytes(MAX_VALUE))))

    def test_an_error_elsewhere_in_the_protocol_closes_with_its_code(self) -> None:
        device, peer = self.scene.pair()
        device.session.broken(WireError(ErrorCode.CONTROL_TOO_LARGE, "elsewhere"), self.scene.now, self.scene.wall)
        self.assertIs(device.close_code, ErrorCode.CONTROL_TOO_LARGE)
        self.assertEqual(self.counters.refused[ErrorCode.CONTROL_TOO_LARGE], 1)
        self.assertEqual(peer.notices(), [Notice(NoticeCode.PEER_LEFT)])

    def test_nothing_is_heard_after_the_close(self) -> None:
        self.client.feed(Release().encode())
        received = self.counters.capsules_received
        self.client.feed(UNKNOWN)
        self.client.session.control_ended(self.scene.now, self.scene.wall)
        self.client.session.timed_out(self.scene.now + 100, self.scene.wall)
        self.client.session.broken(WireError(ErrorCode.CONTROL_TOO_LARGE, "too late"), self.scene.now, self.scene.wall)
        self.assertEqual((self.counters.capsules_received, len(self.client.link.closes)), (received, 1))
        self.assertEqual((self.client.session.control_pending, self.counters.refused[ErrorCode.CONTROL_TOO_LARGE]), (0, 0))


class CapsuleRateTests(SessionTestCase):
    """More than 50 capsules a second is RATE_LIMITED (PROTOCOL §2)."""

    def test_fifty_at_once_are_heard_and_one_more_is_not(self) -> None:
        self.client.feed(UNKNOWN * 50)
        self.assertIsNone(self.client.close_code)
        self.client.feed(UNKNOWN)
        self.assertIs(self.client.close_code, ErrorCode.RATE_LIMITED)
        self.assertTrue(self.client.link.closes[0][1].startswith("retry_after="))
        self.assertEqual(self.counters.refused[ErrorCode.RATE_LIMITED], 1)

    def test_fifty_every_second_are_heard(self) -> None:
        for _ in range(5):
            self.client.feed(UNKNOWN * 50)
            self.scene.advance(1.0)
        self.assertIsNone(self.client.close_code)

    def test_more_than_fifty_every_second_are_not(self) -> None:
        for _ in range(60):
            self.client.feed(UNKNOWN * 51)
            self.scene.advance(1.0)
        self.assertIs(self.client.close_code, ErrorCode.RATE_LIMITED)

    def test_what_came_behind_is_not_acted_on(self) -> None:
        self.client.feed(UNKNOWN * 51 + self.client.request(Role.DEVICE, make_token()).encode())
        self.assertEqual((self.client.close_code, len(self.scene.relay.table)), (ErrorCode.RATE_LIMITED, 0))

    def test_a_bound_one_is_taken_out_and_the_other_side_told(self) -> None:
        device, peer = self.scene.pair()
        device.feed(UNKNOWN * 51)
        self.assertEqual((device.close_code, peer.notices()), (ErrorCode.RATE_LIMITED, [Notice(NoticeCode.PEER_LEFT)]))


class BacklogTests(SessionTestCase):
    """No further control input is read while 16 KiB of output wait (PROTOCOL §2, R6.9)."""

    def setUp(self) -> None:
        super().setUp()
        self.device, self.peer = self.scene.pair()
        self.device.link.stalled = True

    def test_input_waits_while_output_does_and_is_read_afterwards(self) -> None:
        self.device.link.control_backlog = MAX_CONTROL_OUTPUT + 1
        self.device.refresh(make_token())
        self.assertEqual(self.device.link.capsules, [])
        self.assertEqual(self.device.session.control_pending, len(Refresh(make_token().encode()).encode()))
        self.device.session.resume_control(self.scene.now, self.scene.wall)
        self.assertEqual(self.device.link.capsules, [])
        self.device.link.drain()
        self.device.session.resume_control(self.scene.now, self.scene.wall)
        self.assertEqual(self.device.refreshed, [Refreshed(EXPIRY, 0, 0, 0)])
        self.assertEqual(self.device.session.control_pending, 0)

    def test_exactly_16_kib_do_not_stop_it(self) -> None:
        self.device.link.control_backlog = 16 * 1024
        self.device.refresh(make_token())
        self.assertEqual(len(self.device.refreshed), 1)

    def test_it_stops_in_the_middle_of_what_came_at_once(self) -> None:
        capsule = ListRelays().encode()
        self.device.link.control_backlog = MAX_CONTROL_OUTPUT - 30
        self.device.feed(capsule * 10)
        answered = len(self.device.link.capsules)
        self.assertTrue(0 < answered < 10)
        self.assertEqual(self.device.session.control_pending, (10 - answered) * len(capsule))

    def test_requests_wait_for_ten_seconds_and_then_the_client_is_closed(self) -> None:
        session = self.device.session
        self.device.link.control_backlog = MAX_CONTROL_OUTPUT + 1
        self.assertIsNone(session.deadline)
        self.device.feed(ListRelays().encode())
        self.assertEqual((READ_TIMEOUT, session.deadline), (10.0, self.scene.now + 10.0))
        self.scene.advance(9)
        self.device.feed(ListRelays().encode())
        session.timed_out(self.scene.now, self.scene.wall)
        self.assertIsNone(self.device.close_code)
        self.scene.advance(1)
        session.timed_out(self.scene.now, self.scene.wall)
        self.assertIs(self.device.close_code, ErrorCode.RATE_LIMITED)
        self.assertIsNone(session.deadline)

    def test_a_client_that_reads_in_time_is_not_closed(self) -> None:
        session = self.device.session
        self.device.link.control_backlog = MAX_CONTROL_OUTPUT + 1
        self.device.feed(ListRelays().encode())
        self.scene.advance(9)
        self.device.link.drain()
        session.resume_control(self.scene.now, self.scene.wall)
        self.assertIsNone(session.deadline)
        self.device.link.control_backlog = MAX_CONTROL_OUTPUT + 1
        self.device.feed(ListRelays().encode())
        self.assertEqual(session.deadline, self.scene.now + READ_TIMEOUT, "it begins anew")

    def test_a_client_that_reads_nothing_is_closed_when_notices_pile_up(self) -> None:
        self.device.link.control_backlog = 2 * MAX_CONTROL_OUTPUT - 1000
        turns = 0
        while self.device.close_code is None:
            turns += 1
            self.peer.lose()
            self.peer = self.scene.bind(Role.PEER)
            self.scene.settle()
        self.assertGreater(turns, 50)
        self.assertIs(self.device.close_code, ErrorCode.RATE_LIMITED)
        self.assertLess(self.device.link.control_backlog, 2 * MAX_CONTROL_OUTPUT + MAX_VALUE)
        self.assertEqual(list(self.scene.allocation().members), [self.peer.session])

    def test_one_that_is_lost_meanwhile_is_not_closed_again(self) -> None:
        self.device.link.control_backlog = 2 * MAX_CONTROL_OUTPUT + 1
        for number in (1, 2):
            self.peer.refresh(make_token(expires_at=EXPIRY + number))
        self.device.lose()
        self.scene.settle()
        self.assertIsNone(self.device.close_code)
        self.assertEqual(self.peer.notices(), [Notice(NoticeCode.PEER_LEFT)])

    def test_the_other_side_hears_that_it_is_gone(self) -> None:
        self.device.link.control_backlog = 2 * MAX_CONTROL_OUTPUT + 1
        self.peer.refresh(make_token(expires_at=EXPIRY + 1))
        self.assertEqual((self.device.close_code, self.device.link.capsules), (None, []))
        self.peer.forget()
        self.scene.settle()
        self.assertEqual((self.device.close_code, self.peer.notices()), (ErrorCode.RATE_LIMITED, [Notice(NoticeCode.PEER_LEFT)]))


class AllocateTimeoutTests(SessionTestCase):
    """ALLOCATE comes within 10 s of the handshake, else ALLOCATE_TIMEOUT (PROTOCOL §4)."""

    def wait(self, client: FakeClient, seconds: float) -> None:
        """Time passes and the shell reports it."""
        self.scene.now += seconds
        client.session.timed_out(self.scene.now, self.scene.wall)

    def test_it_comes_ten_seconds_after_the_handshake_and_not_before(self) -> None:
        self.assertEqual((ALLOCATE_TIMEOUT, self.client.session.deadline), (10.0, self.scene.now + 10.0))
        self.wait(self.client, 9.999)
        self.assertIsNone(self.client.close_code)
        self.wait(self.client, 0.001)
        self.assertIs(self.client.close_code, ErrorCode.ALLOCATE_TIMEOUT)
        self.assertIsNone(self.client.session.deadline)
        self.assertEqual(self.counters.refused[ErrorCode.ALLOCATE_TIMEOUT], 1)

    def test_before_the_handshake_it_does_not_run(self) -> None:
        client = self.scene.connect(handshake=False)
        self.assertIsNone(client.session.deadline)
        self.wait(client, 100.0)
        client.session.handshake_completed(self.scene.now)
        self.assertEqual(client.session.deadline, self.scene.now + 10.0)

    def test_only_allocate_stops_it(self) -> None:
        for data in (ListRelays().encode(), UNKNOWN, self.client.request(Role.DEVICE, make_token()).encode()[:-1]):
            client = self.scene.connect()
            client.feed(data)
            self.wait(client, 10.0)
            self.assertIs(client.close_code, ErrorCode.ALLOCATE_TIMEOUT)

    def test_who_is_bound_has_no_deadline(self) -> None:
        self.client.allocate(Role.DEVICE)
        self.assertIsNone(self.client.session.deadline)
        self.wait(self.client, 100.0)
        self.assertTrue(self.client.is_bound)


class EndTests(SessionTestCase):
    """Closing the control stream is an error; a lost connection leaves its allocation (PROTOCOL §2, R5.6)."""

    def test_closing_the_control_stream_is_an_error_of_the_protocol(self) -> None:
        self.client.session.control_ended(self.scene.now, self.scene.wall)
        self.assertIs(self.client.close_code, ErrorCode.PROTOCOL_ERROR)
        device, peer = self.scene.pair()
        device.session.control_ended(self.scene.now, self.scene.wall)
        self.assertEqual((device.close_code, peer.notices()), (ErrorCode.PROTOCOL_ERROR, [Notice(NoticeCode.PEER_LEFT)]))

    def test_also_in_the_middle_of_a_capsule(self) -> None:
        self.client.feed(self.client.request(Role.DEVICE, make_token()).encode()[:100])
        self.client.session.control_ended(self.scene.now, self.scene.wall)
        self.assertIs(self.client.close_code, ErrorCode.PROTOCOL_ERROR)

    def test_after_released_it_is_not(self) -> None:
        device, _ = self.scene.pair()
        device.release()
        device.session.control_ended(self.scene.now, self.scene.wall)
        self.assertIs(device.close_code, ErrorCode.NO_ERROR)

    def test_a_lost_connection_is_unbound_once(self) -> None:
        device, peer = self.scene.pair()
        device.lose()
        device.lose()
        self.assertEqual(peer.notices(), [Notice(NoticeCode.PEER_LEFT)])
        self.assertEqual((len(self.scene.observer.named("session.lost")), device.close_code), (1, None))

    def test_losing_one_that_was_never_bound_concerns_nobody(self) -> None:
        _, peer = self.scene.pair()
        self.client.lose()
        self.assertEqual((peer.notices(), self.scene.observer.named("session.lost")), ([], []))

    def test_another_address_is_told(self) -> None:
        device, _ = self.scene.pair()
        device.link.remote = Address("203.0.113.9", 999)
        device.session.moved()
        self.assertEqual(
            self.scene.observer.named("session.moved"), [{**device.session.ids, "remote": "203.0.113.9:999"}],
        )

    def test_closes_are_counted_by_code(self) -> None:
        self.client.feed(Release().encode())
        device, _ = self.scene.pair()
        device.release()
        counted = {code: count for code, count in self.counters.connections_closed.items() if count}
        self.assertEqual(counted, {ErrorCode.PROTOCOL_ERROR: 1, ErrorCode.NO_ERROR: 2})


class UnboundDatagramTests(SessionTestCase):
    """Before ALLOCATED a payload is dropped and counted (PROTOCOL §6)."""

    def test_before_allocated_and_after_the_close(self) -> None:
        device, peer = self.scene.pair()
        peer.release()
        for number, client in enumerate((self.client, device), start=1):
            client.datagram(b"abc")
            self.assertEqual(self.counters.dropped_packets[DropCause.NO_COUNTERPART], number)
            self.assertEqual(self.counters.dropped_bytes[DropCause.NO_COUNTERPART], 3 * number)
        self.assertEqual((self.client.notices(), self.counters.packets_forwarded), ([], 0))

    def test_what_was_queued_for_one_that_is_over_is_counted(self) -> None:
        device, peer = self.scene.pair()
        device.lose()
        device.session.drop_egress(DropCause.EGRESS_QUEUE, 7, self.scene.now)
        self.assertEqual(self.counters.dropped_bytes[DropCause.EGRESS_QUEUE], 7)
        self.assertEqual(peer.notices(NoticeCode.DROPPED), [])
