"""Connections that die, and how soon that is noticed (PROTOCOL §9; R5.4, R5.9)."""

from __future__ import annotations

import random
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.dialing import cut, mend, restart
from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, World
from tests.reconnecting import pending
from zrc_relay.client import ConnectionLost
from zrc_relay.client.vigil import Advice, Vigil
from zrc_relay.core.relay import Policy
from zrc_relay.quic.udp import Path, SocketAddress


class VigilTests(SynchronousTestCase):
    """R5.4, PROTOCOL §9: when to say something, and when to take the relay for gone."""

    def test_a_ping_is_due_once_for_each_silence(self) -> None:
        vigil = Vigil(100.0)
        self.assertIsNone(vigil.deadline)
        vigil.keep_alive(15)
        self.assertEqual(vigil.deadline, 115.0)
        self.assertEqual([vigil.advise(now, 0.1) for now in (114.9, 115.0, 115.1)], [Advice.NOTHING, Advice.PING, Advice.NOTHING])
        self.assertIsNone(vigil.deadline)
        vigil.heard(116.0)
        self.assertEqual(vigil.deadline, 131.0)
        self.assertIs(vigil.advise(131.0, 0.1), Advice.PING)

    def rounds(self, probe_timeout: float) -> list[float]:
        """When a vigil probes and, last, gives up something sent at 0 that is never answered."""
        vigil = Vigil(-100.0)
        vigil.sent(0.0, probe_timeout, awaits_answer=True)
        times = []
        while vigil.deadline is not None:
            now = vigil.deadline
            self.assertIs(vigil.advise(now - 0.001, probe_timeout), Advice.NOTHING)
            times.append(now)
            if vigil.advise(now, probe_timeout) is Advice.GIVE_UP:
                break
            vigil.sent(now, probe_timeout, awaits_answer=True)
        return times

    def test_three_probes_without_an_answer_are_a_death(self) -> None:
        self.assertEqual([round(time, 3) for time in self.rounds(2.0)], [2.0, 4.0, 6.0, 8.0])

    def test_on_a_short_path_they_take_a_second(self) -> None:
        self.assertEqual([round(time, 3) for time in self.rounds(0.03)], [0.333, 0.667, 1.0, 1.03])

    def test_whatever_is_heard_brings_it_back_to_life(self) -> None:
        vigil = Vigil(100.0)
        vigil.sent(200.0, 0.1, awaits_answer=True)
        for now in (200.4, 200.8, 201.2):
            self.assertIs(vigil.advise(now, 0.1), Advice.PING)
        vigil.heard(201.25)
        self.assertIs(vigil.advise(260.0, 0.1), Advice.NOTHING, "nothing was sent since")
        vigil.sent(300.0, 0.1, awaits_answer=True)
        self.assertIs(vigil.advise(300.4, 0.1), Advice.PING)

    def test_what_asks_for_no_answer_waits_for_none(self) -> None:
        vigil = Vigil(100.0)
        vigil.sent(100.0, 0.1, awaits_answer=True)
        vigil.sent(100.2, 0.1, awaits_answer=False)
        self.assertIsNone(vigil.deadline)
        self.assertIs(vigil.advise(200.0, 0.1), Advice.NOTHING)


class LivenessTests(SynchronousTestCase):
    """R5.4, PROTOCOL §9: keepalive as ALLOCATED says, and dead connections noticed within seconds."""

    def silences(self, keepalive: float) -> tuple[World, list[float]]:
        """The times between two packets of a client that has nothing to say, over five minutes."""
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, keepalive_interval=keepalive)
        world = World(policy=policy)
        device, _ = world.pair()
        times: list[float] = []

        def note(data: bytes, source: SocketAddress, _to: SocketAddress) -> bytes:
            if source == device.host.sockaddr:
                times.append(world.now())
            return data

        world.network.filter = note
        world.run(1)
        times.append(world.now())
        times.sort()
        world.run(300 if keepalive else 25)
        self.assertFalse(device.is_closed)
        return world, [later - earlier for earlier, later in pairwise(times)]

    def test_something_is_said_in_every_interval_and_not_much_more_often(self) -> None:
        for keepalive in (5, 15):
            world, silences = self.silences(keepalive)
            self.assertLessEqual(max(silences), keepalive + 0.1)
            self.assertLessEqual(len([silence for silence in silences if silence > 1]), 300 / keepalive + 1)
            self.assertEqual(sum(world.relay.counters.connections_closed.values()), 0)

    def test_no_interval_means_no_ping(self) -> None:
        _, silences = self.silences(0)
        self.assertLess(len(silences), 10)

    def test_a_busy_connection_that_dies_is_noticed_within_two_seconds(self) -> None:
        world = World()
        device, _ = world.pair()
        cut(world)
        began = world.now()
        while not device.is_closed and world.now() < began + 10:
            device.send(b"anyone?")
            world.run(0.05)
        self.assertIsInstance(device.error, ConnectionLost)
        self.assertTrue(began + 1 <= world.now() < began + 2, world.now() - began)

    def test_a_quiet_one_when_the_keepalive_is_not_answered(self) -> None:
        world = World()
        device, _ = world.pair()
        cut(world)
        world.run(15 + 3)
        self.assertIsInstance(device.error, ConnectionLost)

    def test_a_hiccup_is_no_death(self) -> None:
        world = World()
        device, peer = world.pair()
        for _ in range(5):
            cut(world)
            device.send(b"lost")
            world.run(0.8)
            mend(world)
            world.run(2)
        self.assertFalse(device.is_closed)
        device.send(b"still there")
        world.run(0.1)
        self.assertEqual(peer.got[-1], b"still there")

    def test_nor_is_a_tenth_of_all_packets_lost(self) -> None:
        world = World(seed=4)
        device, peer = world.pair()
        rng = random.Random(5)  # noqa: S311 - the same losses each time
        world.network.filter = lambda data, _source, _to: None if rng.random() < 0.1 else data
        for _ in range(600):
            device.send(b"x")
            world.run(0.5)
        self.assertFalse(device.is_closed or peer.is_closed)

    def test_nor_is_a_process_that_was_stopped_for_a_while(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(3)
        device.send(b"before")
        world.run(0.001)
        world.clock.advance(8)  # everything that was due meanwhile is late, timers first
        world.run(1)
        self.assertFalse(device.is_closed)
        device.send(b"after")
        world.run(0.1)
        self.assertEqual(peer.got[-1], b"after")

    def test_nothing_is_scheduled_any_more_once_it_is_closed(self) -> None:
        world = World()
        device, peer = world.pair()
        device.send(b"x")
        device.open_stream()
        self.assertNotEqual(pending(world), [])
        device.close()
        peer.close()
        self.assertEqual(pending(world), [])


class StatelessResetTests(SynchronousTestCase):
    """RFC 9000 §10.3.1, R5.9: a relay that has lost its memory says so, and is believed at once."""

    def test_a_reset_ends_the_connection_at_once(self) -> None:
        world = World()
        device, _ = world.pair()
        restart(world)
        device.send(bytes(100))
        world.run(0.05)
        self.assertIsInstance(device.error, ConnectionLost)
        self.assertIn("does not know", str(device.error))

    def test_a_forged_one_does_nothing(self) -> None:
        world = World()
        device, peer = world.pair()
        rng = random.Random(1)  # noqa: S311 - any will do
        for _ in range(100):
            for packet in (b"\x41" + rng.randbytes(42), b"\x41" + device.quic.own_ids[0] + rng.randbytes(34)):
                device.datagram_received(packet, Path(RELAY_ADDRESS, device.host))
        device.batch_done()
        peer.send(b"still there")
        world.run(0.1)
        self.assertEqual(device.got, [b"still there"])

    def test_without_the_old_secret_the_silence_tells(self) -> None:
        world = World()
        device, _ = world.pair()
        restart(world, forget=True)
        device.send(bytes(100))
        world.run(0.5)
        self.assertFalse(device.is_closed)
        world.run(2)
        self.assertIsInstance(device.error, ConnectionLost)
