"""Key updates: keys change by packet count, or when the client wants it, and no packet is lost by that."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from aioquic.quic.crypto import CryptoPair
from aioquic.tls import Epoch
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ID, World
from tests.raw_quic import DEVICE, ScriptedClient
from tests.relay_view import relay_end
from zrc_relay.core.codes import Role
from zrc_relay.core.relay import Policy
from zrc_relay.quic.connection import Connection
from zrc_relay.quic.keyphase import KeyPair
from zrc_relay.quic.paths import KEY_UPDATE_PACKETS
from zrc_relay.quic.udp import Path, SocketAddress


class Scene:
    """An allocation whose relay ends change their keys every ``packets`` packets, with payloads both ways."""

    def __init__(self, packets: int | None = None, *, latency: float = 0.005) -> None:
        self.world = World(latency=latency)
        self.device, self.peer = self.world.pair()
        self.world.run(2)
        self.ends = [relay_end(self.world, client).quic for client in (self.device, self.peer)]
        for quic in self.ends:
            if packets is not None:
                quic.key_update_packets = packets
        self.sent: tuple[list[bytes], list[bytes]] = ([], [])

    def talk(self, count: int, *, interval: float = 0.002, rest: float = 0.1) -> None:
        """Both ends send so many payloads, and are silent for ``rest`` seconds then."""
        for _ in range(count):
            for client, sent in zip((self.device, self.peer), self.sent, strict=True):
                sent.append(b"%d" % len(sent))
                client.send(sent[-1])
            self.world.run(interval)
        self.world.run(rest)

    @property
    def lost(self) -> int:
        """How many payloads did not arrive."""
        return sum(map(len, self.sent)) - len(self.device.got) - len(self.peer.got)


def phase(quic: Connection) -> int:
    """The key phase that ``quic`` seals with."""
    return int(vars(quic)["_cryptos"][Epoch.ONE_RTT].key_phase)


class ByCountTests(SynchronousTestCase):
    """R5.10: keys are changed long before AEAD limits, by the relay, however often that is."""

    def watch(self) -> list[bytes]:
        """The packets that arrive from here on and that nobody can open."""
        unopened: list[bytes] = []
        decrypt: Any = vars(KeyPair)["decrypt_packet"]

        def watched(keys: CryptoPair, packet: bytes, *rest: Any) -> Any:
            try:
                return decrypt(keys, packet, *rest)
            except Exception:
                unopened.append(packet)
                raise

        self.patch(KeyPair, "decrypt_packet", watched)
        return unopened

    def test_the_count_is_below_the_limit_of_aes_gcm(self) -> None:
        self.assertLessEqual(KEY_UPDATE_PACKETS, 2**23, "RFC 9001 §6.6")
        self.assertEqual(Scene().ends[0].key_update_packets, KEY_UPDATE_PACKETS)

    def test_below_the_count_nothing_changes(self) -> None:
        scene = Scene(10_000)
        scene.talk(500)
        self.assertEqual([quic.key_updates for quic in scene.ends], [0, 0])

    def test_dozens_of_updates_in_both_directions_lose_nothing(self) -> None:
        scene = Scene(20)
        scene.talk(700)
        self.assertEqual(scene.lost, 0)
        self.assertEqual((scene.peer.got, scene.device.got), scene.sent)
        for quic, client in zip(scene.ends, (scene.device, scene.peer), strict=True):
            self.assertGreater(quic.key_updates, 24)
            self.assertEqual(quic.key_updates, client.quic.key_updates)
            self.assertEqual(phase(quic), quic.key_updates % 2)
        self.assertEqual(scene.world.relay.counters.key_updates, sum(quic.key_updates for quic in scene.ends))

    def test_old_keys_are_forgotten_with_nothing_but_datagrams_and_the_short_way_goes_on(self) -> None:
        scene = Scene(20)
        scene.talk(30)
        for quic in scene.ends:
            quic.key_update_packets = KEY_UPDATE_PACKETS
        scene.talk(100)
        for quic in scene.ends:
            self.assertGreater(quic.key_updates, 0)
            self.assertEqual((vars(quic)["_keys"].holds_previous, quic.attention), (False, False))

    def test_no_key_seals_more_than_the_count_and_what_is_under_way(self) -> None:
        scene = Scene(40)
        sealed: dict[int, int] = {}
        quic = scene.ends[0]
        for _ in range(500):
            scene.talk(1, rest=0)
            sealed[quic.key_updates] = quic.one_rtt.packet_number
        numbers = [sealed[key] for key in sorted(sealed)]
        spans = [after - before for before, after in pairwise(numbers)]
        self.assertGreater(len(spans), 10)
        self.assertLessEqual(max(spans), 50)

    def test_keys_are_not_changed_before_the_peer_has_acknowledged_the_ones_in_use(self) -> None:
        scene = Scene(1, latency=0.05)
        before = scene.ends[0].key_updates
        scene.talk(200, interval=0.005, rest=0)
        updates = scene.ends[0].key_updates - before
        self.assertLessEqual(updates, 11, "there were ten round trips")
        self.assertGreater(updates, 4)
        scene.world.run(0.5)
        self.assertEqual(scene.lost, 0)

    def test_reordered_packets_are_not_lost_either(self) -> None:
        scene = Scene(40)
        rng = random.Random(2)  # noqa: S311 - the same delays each time
        network, arrive = scene.world.network, vars(type(scene.world.network))["_arrive"]

        def late(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            scene.world.clock.callLater(0.005 + 0.02 * rng.random() ** 4, arrive, network, data, source, to)
            return None

        network.filter = late
        unopened = self.watch()
        scene.talk(500)
        self.assertEqual((scene.lost, unopened), (0, []))
        self.assertGreater(scene.ends[0].key_updates, 10)

    def test_with_losses_only_what_the_network_lost_is_missing(self) -> None:
        scene = Scene(20)
        rng, lost = random.Random(3), 0  # noqa: S311 - the same losses each time

        def lose(data: bytes, _source: SocketAddress, _to: SocketAddress) -> bytes | None:
            nonlocal lost
            if rng.random() < 0.05:
                lost += 1
                return None
            return data

        scene.world.network.filter = lose
        unopened = self.watch()
        scene.talk(700)
        self.assertEqual(unopened, [])
        self.assertGreater(lost, 100)
        self.assertLessEqual(scene.lost, lost)
        self.assertGreater(scene.ends[0].key_updates, 20)
        scene.world.network.filter = lambda data, _source, _to: data
        scene.world.run(1)
        before = scene.lost
        scene.talk(100)
        self.assertEqual(scene.lost, before)

    def test_a_stock_client_follows(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, proving_roles=frozenset())
        world = World(policy=policy)
        token = world.token()
        client, peer = ScriptedClient(world), world.client(Role.PEER, token)
        world.run(0.2)
        client.allocate(token.encode(), role=DEVICE)
        world.run(0.2)
        end = relay_end(world, client).quic
        end.key_update_packets = 20
        for number in range(500):
            peer.send(b"%d" % number)
            world.run(0.004)
        world.run(0.1)
        self.assertEqual(client.datagrams, [b"%d" % number for number in range(500)])
        self.assertGreater(end.key_updates, 15)
        self.assertIsNone(client.closed)


class ByTheClientTests(SynchronousTestCase):
    """RFC 9001 §6: the client changes the keys, and so may both at once."""

    def test_dozens_of_updates_by_the_client_lose_nothing(self) -> None:
        scene = Scene()
        for _ in range(40):
            scene.device.quic.request_key_update()
            scene.peer.quic.request_key_update()
            scene.talk(15)
        self.assertEqual(scene.lost, 0)
        self.assertEqual([quic.key_updates for quic in scene.ends], [40, 40])

    def test_both_sides_at_the_same_moment(self) -> None:
        scene = Scene()
        for _ in range(20):
            for quic in (*scene.ends, scene.device.quic, scene.peer.quic):
                quic.request_key_update()
            scene.talk(15)
        self.assertEqual(scene.lost, 0)
        for quic, client in zip(scene.ends, (scene.device, scene.peer), strict=True):
            self.assertEqual(phase(quic), phase(client.quic))
            self.assertEqual(quic.key_updates, client.quic.key_updates)

    def test_while_the_relay_does_so_by_count(self) -> None:
        scene = Scene(15)
        for _ in range(20):
            scene.device.quic.request_key_update()
            scene.talk(20)
        self.assertEqual(scene.lost, 0)
        self.assertGreater(scene.ends[0].key_updates, 30)

    def test_after_the_clients_update_the_relay_counts_anew(self) -> None:
        scene = Scene()
        scene.talk(30)
        for quic in scene.ends:
            quic.key_update_packets = quic.one_rtt.packet_number + 60
        scene.device.quic.request_key_update()
        scene.talk(5)
        self.assertEqual([quic.key_updates for quic in scene.ends], [1, 0])
        scene.talk(65)
        self.assertEqual([quic.key_updates for quic in scene.ends], [1, 1], "the first began to count again")


class OldKeysTests(SynchronousTestCase):
    """RFC 9001 §6.5: old keys are kept for what is still on its way, and no longer than three PTOs."""

    def setUp(self) -> None:
        self.scene = Scene()
        self.held: list[tuple[bytes, SocketAddress, SocketAddress]] = []
        network = self.scene.world.network

        def hold(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            if source != self.scene.device.host.sockaddr or self.held:
                return data
            self.held.append((data, source, to))
            return None

        network.filter = hold
        self.scene.device.send(b"late")
        self.scene.world.run(0.03)
        self.scene.device.quic.request_key_update()
        self.scene.talk(5)
        self.assertEqual(self.scene.ends[0].key_updates, 1)

    def release(self) -> bool:
        """The packet of the old phase arrives; returns whether it was opened."""
        network = self.scene.world.network
        for data, source, to in self.held:
            vars(type(network))["_arrive"](network, data, source, to)
        self.scene.world.run(0.1)
        return b"late" in self.scene.peer.got

    def test_a_packet_that_is_late_is_opened(self) -> None:
        self.assertTrue(self.release())

    def test_one_that_is_much_too_late_is_not(self) -> None:
        for _ in range(10):
            self.scene.talk(1)
        self.assertGreater(2.0, 3 * self.scene.ends[0].probe_timeout)
        self.assertFalse(self.release())

    def test_old_keys_are_gone_on_both_sides_then(self) -> None:
        quics = (self.scene.ends[0], self.scene.device.quic)
        self.assertEqual([vars(quic)["_keys"].holds_previous for quic in quics], [True, True])
        for _ in range(10):
            self.scene.talk(1)
        self.assertEqual([vars(quic)["_keys"].holds_previous for quic in quics], [False, False])

    def test_garbage_is_as_little_opened_as_ever(self) -> None:
        world = self.scene.world
        before = list(self.scene.peer.got)
        (data, source, _), host = self.held[0], self.scene.device.host
        for position in range(9, len(data)):
            changed = data[:position] + bytes((data[position] ^ 0x04,)) + data[position + 1 :]
            world.endpoint.datagram_received(changed, Path(source, host))
        world.endpoint.batch_done()
        world.run(0.1)
        self.assertEqual(self.scene.peer.got, before)
        self.assertEqual(world.relay.counters.session_errors, 0)
