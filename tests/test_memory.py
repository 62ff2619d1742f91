"""Memory of connections that are over: it is free at once, without waiting for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import raw_quic as raw
from tests.harness import World
from tests.raw_quic import Initial, Raw, ScriptedClient
from tests.real_relay import Setup, reactor
from zrc_relay.config import load_config
from zrc_relay.core.codes import Role
from zrc_relay.engine import Surroundings
from zrc_relay.quic.link import RelayConnection
from zrc_relay.tap import RelayProcess

PIECES = ("tls", "_loss", "_local_max_data")
"""Of a QuicConnection: what is largest in it, what all its packets lead to, and something small."""


class OverTests(SynchronousTestCase):
    """R6.1, R10: who comes and goes leaves no pause for others, however many they are."""

    def setUp(self) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        self.world = World()

    def connections(self) -> list[RelayConnection]:
        found: set[RelayConnection] = vars(self.world.endpoint)["_connections"]
        return list(found)

    def check(self, end: Callable[[], object]) -> None:
        pieces = [weakref.ref(vars(one.quic)[name]) for one in self.connections() for name in PIECES]
        self.assertNotEqual(pieces, [])
        end()
        self.assertEqual(self.world.endpoint.connections, 0)
        self.assertEqual([piece() for piece in pieces if piece() is not None], [])

    def test_a_handshake_that_comes_to_nothing(self) -> None:
        client = ScriptedClient(self.world, start=False)
        client.quic.connect(("192.0.2.1", 4433), self.world.now())
        (first, _), *_ = client.quic.datagrams_to_send(self.world.now())
        stranger = Raw(self.world.network)
        stranger.send(first)
        self.world.run(0.1)
        self.check(lambda: self.world.run(10.0))

    def test_what_is_no_handshake(self) -> None:
        Raw(self.world.network).send(Initial(b"any id..").protect(raw.crypto_frame(0, b"\x01\x00\x01\x00")))
        self.world.run(0.006)
        self.check(lambda: self.world.run(10.0))

    def test_a_session_that_was_released(self) -> None:
        device, peer = self.world.pair()
        device.send(b"a datagram")
        peer.send(bytes(20_000))
        self.world.run(0.2)

        def release() -> None:
            device.release()
            self.world.run(10.0)

        self.check(release)

    def test_clients_that_were_never_heard_again(self) -> None:
        self.world.pair()
        self.world.network.filter = lambda *_: None
        self.check(lambda: self.world.run(120.0))

    def test_a_late_packet_for_one_that_is_over_is_dropped(self) -> None:
        device, _ = self.world.pair()
        before = len(self.world.network.hosts)
        (connection, *_) = [one for one in self.connections() if one.session.role is Role.DEVICE]
        path = vars(connection)["_first_path"]
        device.release()
        self.world.run(10.0)
        connection.receive(b"\x40" + bytes(40), path, self.world.now(), self.world.wall())
        connection.receive_batch([b"\x40" + bytes(40)], path, self.world.now(), self.world.wall())
        self.assertEqual((self.world.relay.counters.session_errors, len(self.world.network.hosts)), (0, before))

    def test_nothing_at_all_is_left_of_connections_while_others_go_on(self) -> None:
        """Also of those that end with a queue of datagrams, and though the endpoint knows others."""
        self.world.pair(self.world.token(allocation_id=b"this one remains"))
        staying = set(self.connections())
        device, peer = self.world.pair()
        ended = [weakref.ref(one) for one in self.connections() if one not in staying]
        silent = peer.host.sockaddr
        self.world.network.filter = lambda data, source, to: data if silent not in (source, to) else None
        for _ in range(300):
            device.send(bytes(1000))
        self.world.run(0.1)
        device.close()
        self.world.network.filter = lambda data, *_: data
        peer.close()
        del device, peer
        self.world.run(120.0)
        self.assertEqual([one() for one in ended], [None, None])

    def test_not_one_reference_cycle_is_left_of_a_session(self) -> None:
        device, peer = self.world.pair()
        device.send(b"a datagram")
        peer.send(bytes(20_000))
        self.world.run(0.2)
        gc.collect()
        gc.freeze()
        self.addCleanup(gc.unfreeze)
        device.close()
        peer.close()
        self.world.run(90.0)
        self.assertEqual(self.world.endpoint.connections, 0)
        self.assertEqual(gc.collect(), 0)


class HandshakeTests(SynchronousTestCase):
    """R10: what was needed for the handshake alone is not kept for the session."""

    def test_the_buffers_of_the_handshake_are_gone(self) -> None:
        world = World()
        world.pair()
        for connection in vars(world.endpoint)["_connections"]:
            self.assertEqual(vars(connection.quic)["_crypto_buffers"], {})

    def test_a_client_that_goes_on_with_the_handshake_is_closed_and_no_other(self) -> None:
        world = World()
        world.pair()
        client = ScriptedClient(world)
        world.run(0.1)
        client.send_frames(raw.crypto_frame(0, b"\x01\x00\x00\x00"))
        world.run(0.5)
        self.assertIsNotNone(client.closed)
        self.assertEqual((world.endpoint.connections, world.relay.counters.session_errors), (2, 0))


class FrozenTests(TestCase):
    """R10: the garbage collector does not look at the program itself again and again."""

    async def test_a_relay_process_freezes_what_is_there_when_it_has_started(self) -> None:
        setup = Setup(self)
        service = RelayProcess(load_config(path=setup.made.config, environ={}, options={}), Surroundings(reactor))
        self.addCleanup(gc.unfreeze)
        before = gc.get_freeze_count()
        service.startService()
        self.addCleanup(service.stopService)
        self.assertGreater(gc.get_freeze_count() - before, 10_000)
