"""Control while everything else is at its worst: floods both ways that fill each packet, losses, caps, slow paths."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import RELAY_ADDRESS, RELAY_ID, TestClient, World
from tests.raw_quic import ScriptedClient
from tests.relay_view import lossy, relay_end
from zrc_relay.core.codes import DropCause
from zrc_relay.core.relay import Policy
from zrc_relay.core.tiers import Tier
from zrc_relay.quic.settings import EndpointSettings

BASE = 1232
"""UDP payload in bytes of every packet: what is sent here leaves no room beside it in which control could ride along."""
UNKNOWN_CAPSULE = 0x3F
ANSWERED_WITHIN = 0.1
"""Seconds beside a round trip (R3.10, issue "Forwarding")."""


class Flood:
    """Both ends send ``burst`` payloads every ``interval`` seconds; one of them asks for a REFRESH now and then."""

    def __init__(self, world: World, *, burst: int = 6, interval: float = 0.005, size: int = 1200) -> None:
        self.world = world
        self.device, self.peer = world.pair()
        self.burst = burst
        self.interval = interval
        self.payload = bytes(size)
        self.expires_at = int(world.wall()) + 7200
        self.waited: list[float] = []
        self.queued = 0

    def run(self, seconds: float) -> None:
        """Flood for so long."""
        end = self.world.now() + seconds
        while self.world.now() < end:
            for client in (self.device, self.peer):
                for _ in range(self.burst):
                    client.send(self.payload)
            self.world.run(self.interval)
            queues = (self.device.quic.egress, relay_end(self.world, self.device).quic.egress)
            self.queued = max(self.queued, sum(map(len, queues)))

    def refresh(self, client: TestClient) -> None:
        """Ask for a refresh with a later token, in the middle of the flood."""
        self.expires_at += 1
        asked = self.world.now()
        answer: Deferred[object] = client.refresh(self.world.token(expires_at=self.expires_at))  # type: ignore[assignment]
        answer.addCallback(lambda _: self.waited.append(self.world.now() - asked))
        self.run(max(0.15, 6 * self.world.network.latency))  # until the other end has heard of it, too


class StarvationTests(SynchronousTestCase):
    """R3.10, issue "Forwarding": a REFRESH is answered within 100 ms beside the round trip, whatever else is going on."""

    def check(self, world: World, *, rounds: int = 8) -> Flood:
        flood = Flood(world)
        flood.run(0.3)
        for number in range(rounds):
            flood.refresh((flood.device, flood.peer)[number % 2])
        self.assertEqual(len(flood.waited), rounds, "all were answered")
        self.assertLess(max(flood.waited), ANSWERED_WITHIN + 2 * world.network.latency)
        return flood

    def test_under_a_flood_both_ways(self) -> None:
        world = World(settings=EndpointSettings(max_udp_payload=BASE, egress_queue_bytes=1_000_000, egress_queue_age=5.0))
        flood = self.check(world)
        self.assertGreater(len(flood.device.got) + len(flood.peer.got), 3000)

    def test_with_every_twentieth_packet_to_the_clients_lost(self) -> None:
        world = World(settings=EndpointSettings(max_udp_payload=BASE, egress_queue_bytes=1_000_000, egress_queue_age=5.0))
        lose = lossy(0.05, seed=6)
        world.network.filter = lambda data, source, to: lose(data, source, to) if source == RELAY_ADDRESS else data
        flood = self.check(world)
        self.assertGreater(flood.queued, 300, "what was sent before stood in a queue meanwhile")

    def test_with_the_queue_of_the_defaults_and_losses_both_ways(self) -> None:
        world = World(settings=EndpointSettings(max_udp_payload=BASE))
        world.network.filter = lossy(0.05, seed=7)
        flood = self.check(world)
        dropped = world.relay.counters.dropped_packets[DropCause.EGRESS_QUEUE]
        self.assertGreater(dropped + flood.queued, 100, "else it was no flood")

    def test_while_a_cap_drops_nearly_everything(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=Tier("slow", 10_000, None, None))
        world = World(policy=policy, settings=EndpointSettings(max_udp_payload=BASE))
        world.network.filter = lossy(0.02, seed=8)
        self.check(world)
        self.assertGreater(world.relay.counters.dropped_packets[DropCause.BANDWIDTH], 1000)

    def test_all_of_it_leaves_before_the_payloads_that_were_queued_first(self) -> None:
        world = World(settings=EndpointSettings(max_udp_payload=BASE, egress_queue_bytes=1_000_000, egress_queue_age=5.0))
        client = ScriptedClient(world)
        world.run(0.2)
        client.send_control(raw.capsule(raw.LIST_RELAYS))
        world.run(0.2)
        end = relay_end(world, client)
        end.send_datagrams([bytes(end.max_payload)] * 100, world.now())
        end.send_control(raw.capsule(UNKNOWN_CAPSULE, bytes(3000)))
        while not client.values(UNKNOWN_CAPSULE) and len(client.datagrams) < 100:
            world.run(0.0005)
        self.assertLessEqual(len(client.datagrams), 15, "what the window took beside it")
        world.run(1)
        self.assertEqual(len(client.datagrams), 100)

    def test_on_a_slow_path(self) -> None:
        world = World(settings=EndpointSettings(max_udp_payload=BASE), latency=0.05)
        flood = self.check(world, rounds=4)
        self.assertGreater(min(flood.waited), 2 * world.network.latency)


