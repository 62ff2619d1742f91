"""Errors of our own: each ends the session or allocation it belongs to, is logged with its name and counted; no other notices.

An error is made by putting a function that raises ``ZeroDivisionError`` in the place of one of the relay's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import raw_quic as raw
from tests.fakes import FakeClient, Scene, make_token
from tests.harness import World
from tests.raw_quic import DEVICE, ScriptedClient, leftovers
from tests.real_relay import PATIENCE, eventually, reactor
from tests.relay_view import relay_end
from tests.test_hostile import device_key, good_token, peer_key
from tests.test_udp import Collector
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.quic import endpoint as endpoint_module
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.udp import MAX_ORIGINS, Path, UdpPort


def explode(*_: Any, **__: Any) -> Any:
    """What stands in for a function with a bug."""
    raise ZeroDivisionError


class IsolationCase(SynchronousTestCase):
    """A pair of raw clients to whom something happens, and a pair of the library's that must not notice."""

    def setUp(self) -> None:
        self.world = World()
        token = good_token(self.world)
        self.device, self.peer = ScriptedClient(self.world), ScriptedClient(self.world)
        self.world.run(0.1)
        self.device.allocate(token, device_key(self.world))
        self.peer.allocate(token, peer_key(self.world), raw.PEER)
        self.world.run(2)
        self.others = self.world.pair(self.world.token(allocation_id=b"another one, yes"))
        self.world.run(2)
        self.connection = relay_end(self.world, self.device)
        self.logged = self.enterContext(capturedLogs())

    def open_stream(self, client: ScriptedClient) -> None:
        """The client opens a stream to the other end."""
        stream_id = client.quic.get_next_available_stream_id()
        client.quic.send_stream_data(stream_id, b"\0stream data")
        client.flush()

    def check(self, *, closed: ScriptedClient, unharmed: ScriptedClient | None, errors: int = 1) -> None:
        """Only ``closed`` was closed, with INTERNAL; the error was logged with its name, counted, and nothing is left."""
        others = [len(client.notices) for client in self.others]
        self.world.run(1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), errors)
        self.assertEqual(self.world.relay.counters.session_errors, errors)
        name = closed.quic.original_destination_connection_id.hex()
        self.assertEqual([event["connection"] for event in self.logged if "log_failure" in event], [name])
        self.assertEqual(closed.close_code, ErrorCode.INTERNAL)
        self.assertIsNone(self.find(closed))
        if unharmed is not None:
            self.assertIsNone(unharmed.closed)
            self.assertEqual(unharmed.notices()[-1:], [b"\x04"], "PEER_LEFT")
        left, right = self.others
        left.send(b"untouched")
        right.send(b"likewise")
        self.world.run(0.1)
        self.assertEqual((left.got[-1], right.got[-1]), (b"likewise", b"untouched"))
        self.assertEqual([len(client.notices) for client in self.others], others)

    def find(self, client: ScriptedClient) -> RelayConnection | None:
        """The relay's end of a connection, if there still is one."""
        wanted = client.quic.original_destination_connection_id
        found: list[RelayConnection] = [
            connection for connection in self.world.endpoint.all_connections() if connection.first_destination_id == wanted
        ]
        return found[0] if found else None


class OwnErrorTests(IsolationCase):
    """R5.6: an exception while the relay deals with what a client did ends that client's session."""

    def test_when_a_capsule_is_handled(self) -> None:
        self.patch(self.connection.session, "control_received", explode)
        self.device.send_control(raw.capsule(raw.LIST_RELAYS))
        self.check(closed=self.device, unharmed=self.peer)

    def test_when_stream_data_is_forwarded(self) -> None:
        self.patch(self.connection.streams, "data", explode)
        self.open_stream(self.device)
        self.check(closed=self.device, unharmed=self.peer)

    def test_when_streams_are_moved_on(self) -> None:
        self.patch(self.connection.streams, "pump", explode)
        self.open_stream(self.device)
        self.check(closed=self.device, unharmed=self.peer)

    def test_when_a_datagram_is_forwarded(self) -> None:
        self.patch(type(self.allocation), "forward", self.only_for(self.allocation, "forward"))
        self.device.send_datagram(b"x")
        self.check(closed=self.device, unharmed=self.peer)

    def test_when_packets_are_made(self) -> None:
        self.patch(self.connection.quic, "datagrams_to_send", explode)
        self.device.send_control(raw.capsule(raw.LIST_RELAYS))
        self.world.run(0.1)
        # What cannot make packets cannot say goodbye either. The client finds out by what it sends next.
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.world.relay.counters.session_errors, 1)
        self.assertIsNone(self.find(self.device))
        self.assertEqual((self.peer.closed, self.peer.notices()[-1:]), (None, [b"\x04"]))
        before = self.world.relay.counters.stateless_resets_sent
        self.device.send_datagram(bytes(100))
        self.world.run(0.1)
        self.assertGreater(self.world.relay.counters.stateless_resets_sent, before)

    def test_when_the_path_is_looked_at(self) -> None:
        self.patch(self.connection.quic, "_probe_path", explode)
        self.device.send_control(raw.capsule(raw.LIST_RELAYS))
        self.world.run(0.1)
        self.flushLoggedErrors(ZeroDivisionError)
        self.assertIsNone(self.find(self.device))
        self.assertIsNone(self.peer.closed)

    def test_even_when_the_session_cannot_be_ended_in_order(self) -> None:
        sides = self.allocation.sides
        self.patch(self.connection.streams, "lost", explode)
        self.patch(self.connection.session, "control_received", explode)
        self.device.send_control(raw.capsule(raw.LIST_RELAYS))
        self.world.run(1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual((self.device.close_code, self.find(self.device)), (ErrorCode.INTERNAL, None))
        self.assertEqual(sides[DEVICE].members, [], "no ghost is left that egress would go to")
        self.assertEqual(self.peer.notices()[-1:], [b"\x04"])

    def test_the_client_is_told_even_when_the_session_itself_cannot_end(self) -> None:
        self.patch(self.connection.session, "lost", explode)
        self.patch(self.connection.session, "control_received", explode)
        self.device.send_control(raw.capsule(raw.LIST_RELAYS))
        self.world.run(1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual((self.device.close_code, self.find(self.device)), (ErrorCode.INTERNAL, None))

    def test_when_a_connection_begins(self) -> None:
        self.patch(endpoint_module, "RelayConnection", explode)
        client = ScriptedClient(self.world)
        self.world.run(0.1)
        client.silence()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.world.relay.counters.session_errors, 1)
        self.device.send_datagram(b"still forwarded")
        self.world.run(0.1)
        self.assertEqual(self.peer.datagrams, [b"still forwarded"])

    @property
    def allocation(self) -> Any:
        return self.connection.allocation

    def only_for(self, wanted: object, name: str) -> Callable[..., Any]:
        """The method ``name``, that raises for one object."""
        method = vars(type(wanted))[name]

        def maybe(each: object, *arguments: Any, **keywords: Any) -> Any:
            return explode() if each is wanted else method(each, *arguments, **keywords)

        return maybe


class OthersErrorTests(IsolationCase):
    """R5.6: an exception in what one client's packet makes the relay do to *another* connection ends that other one."""

    def test_when_a_payload_is_queued_for_it(self) -> None:
        self.patch(self.connection.quic.egress, "extend", explode)
        self.peer.send_datagram(b"for the device")
        self.check(closed=self.device, unharmed=self.peer)

    def test_when_a_payload_is_queued_for_it_that_does_not_fit(self) -> None:
        self.patch(vars(self.connection)["_oversize"], "push", explode)
        self.patch(self.connection, "_max_payload", 0)
        self.patch(self.connection.quic, "send_payloads", lambda payloads, _: payloads)
        self.peer.send_datagram(b"for the device")
        self.check(closed=self.device, unharmed=self.peer)

    def test_when_it_is_told_something(self) -> None:
        self.patch(self.connection.quic, "reset_code", explode)
        self.peer.quic.close()
        self.peer.flush()
        self.check(closed=self.device, unharmed=None)

    def test_when_it_is_closed(self) -> None:
        self.patch(self.connection.streams, "lost", explode)
        self.peer.send_control(raw.capsule(raw.RELEASE))
        self.world.run(1)
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.peer.close_code, ErrorCode.NO_ERROR)
        self.assertEqual(len(self.world.relay.table), 1, "the other pair's")
        self.assertIsNone(self.find(self.device))


class SweepTests(SynchronousTestCase):
    """R5.6, R2.5: an allocation that cannot be ended in order does not keep the sweeper from the others."""

    def setUp(self) -> None:
        self.scene = Scene(max_allocations=100)
        self.clients: list[FakeClient] = []
        for number in range(10):
            token = make_token(allocation_id=bytes((number,)) * 16, expires_at=int(self.scene.wall) + 60)
            self.clients += [self.scene.bind(Role.DEVICE, token), self.scene.bind(Role.PEER, token)]

    def poison(self, number: int, name: str) -> None:
        """The allocation ``number`` raises in its method ``name``."""
        allocation = self.scene.allocation(bytes((number,)) * 16)
        method = vars(type(allocation))[name]
        self.patch(type(allocation), name, lambda each, *rest: explode() if each is allocation else method(each, *rest))

    def check(self, numbers: set[int]) -> None:
        """All ended; only those of ``numbers`` are reported as failed, with their sessions to be closed."""
        self.assertEqual(len(self.scene.relay.table), 0)
        failed = self.scene.relay.failures
        names = {f"allocation {(bytes((number,)) * 16).hex()}" for number in numbers}
        self.assertEqual({failure.name for failure in failed}, names)
        self.assertEqual({type(failure.error) for failure in failed}, {ZeroDivisionError})
        closed = {session for failure in failed for session in failure.sessions}
        for number, client in enumerate(self.clients):
            if number // 2 not in numbers:
                self.assertEqual(client.close_code, ErrorCode.EXPIRED)
                self.assertNotIn(client.session, closed)
            elif client.close_code is None:
                self.assertIn(client.session, closed)
            self.assertIsNone(client.session.allocation)

    def test_in_whatever_it_fails(self) -> None:
        for number, name in enumerate(("change", "unbind")):
            self.poison(number, name)
        self.scene.advance(61)
        self.check({0, 1})

    def test_in_one_of_its_sessions(self) -> None:
        self.patch(self.clients[4].session, "terminate", explode)
        self.scene.advance(61)
        self.check({2})

    def test_when_its_quota_is_used_up(self) -> None:
        token = make_token(allocation_id=b"with a quota....", quota_bytes=100)
        device, _ = self.scene.bind(Role.DEVICE, token), self.scene.bind(Role.PEER, token)
        self.patch(device.session, "terminate", explode)
        device.datagram(bytes(101))
        self.scene.settle()
        self.assertEqual(len(self.scene.relay.table), 10)
        (failed,) = self.scene.relay.failures
        self.assertEqual(failed.sessions[0], device.session)

    def test_one_that_cannot_be_told_of_its_drops_does_not_keep_others_from_being_told(self) -> None:
        lonely = [self.scene.bind(Role.DEVICE, make_token(allocation_id=bytes((number,)) * 16)) for number in range(50, 55)]
        for client in lonely:
            client.datagram(b"x")
            client.datagram(b"x")
            client.forget()
        self.patch(lonely[0].session, "report_drops", explode)
        self.scene.advance(1.1)
        self.assertEqual([len(client.notices()) for client in lonely], [0, 1, 1, 1, 1])
        self.assertEqual([failure.sessions for failure in self.scene.relay.failures], [(lonely[0].session,)])
        self.scene.advance(1.1)
        self.assertEqual(len(self.scene.relay.failures), 1, "once")

    def test_on_the_wire_its_clients_are_closed_and_the_others_expire_as_they_should(self) -> None:
        world = World()
        ids = [bytes((number,)) * 16 for number in range(3)]
        pairs = [world.pair(world.token(allocation_id=each, expires_at=int(world.wall()) + 30)) for each in ids]
        poisoned = relay_end(world, pairs[1][0]).allocation
        method = vars(type(poisoned))["change"]
        self.patch(type(poisoned), "change", lambda each, *rest: explode() if each is poisoned else method(each, *rest))
        world.run(33)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(world.relay.counters.session_errors, 1)
        errors = [[type(client.error).__name__ for client in pair] for pair in pairs]
        self.assertEqual(errors, [["AllocationExpired"] * 2, ["InternalError"] * 2, ["AllocationExpired"] * 2])
        world.run(5)
        self.assertEqual(leftovers(world), {})
        self.assertEqual(len(world.relay.table), 0)


class SocketTests(TestCase):
    """R5.6: whatever the receiver of a socket raises, the socket goes on."""

    timeout = 2 * PATIENCE

    async def test_an_exception_costs_one_datagram_or_one_end_of_a_batch(self) -> None:
        class Failing(Collector):
            """Raises for what it is told to."""

            def datagram_received(self, data: bytes, path: Path) -> None:
                super().datagram_received(data, path)
                if data == b"bad":
                    raise ZeroDivisionError

            def batch_done(self) -> None:
                super().batch_done()
                if self.got[-1][0] == b"bad end":
                    raise ZeroDivisionError

        receiver = Failing()
        port = UdpPort("127.0.0.1", 0, receiver, reactor)
        port.startListening()
        self.addCleanup(port.stopListening)
        plain = UdpPort("127.0.0.1", 0, Collector(), reactor)
        plain.startListening()
        self.addCleanup(plain.stopListening)
        for number, data in enumerate((b"bad", b"good", b"bad", b"bad end", b"good")):
            plain.default_origin.send(data, ("127.0.0.1", port.local.port))
            await eventually(lambda number=number: len(receiver.got) == number + 1, "the datagram")  # type: ignore[misc]
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_forgetting_the_addresses_it_was_reached_at_is_no_migration(self) -> None:
        port = UdpPort("127.0.0.1", 0, Collector(), reactor)
        port.startListening()
        self.addCleanup(port.stopListening)
        origin: Callable[[bytes], object] = port._origin  # noqa: SLF001 - as if so many local addresses had been reached
        first = origin(bytes(4))
        for number in range(1, MAX_ORIGINS + 2):
            origin(number.to_bytes(4, "big"))
        again = origin(bytes(4))
        self.assertIsNot(again, first)
        self.assertEqual((("192.0.2.9", 1), again), (("192.0.2.9", 1), first))
        self.assertEqual(hash(again), hash(first))
        self.assertNotEqual(again, origin(b"\1\0\0\0"))


