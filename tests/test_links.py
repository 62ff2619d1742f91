"""Links of all sizes between the relay and a client: the path's MTU is found, kept right, and told to the other end."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import OPEN_TIER, RELAY_ID, Filter, World
from tests.raw_quic import DEVICE, PEER, ScriptedClient
from tests.relay_view import (
    DATAGRAM_OVERHEAD,
    UDP_OVER_IPV4,
    UDP_OVER_IPV6,
    lossy,
    move,
    narrow_link,
    payloads,
    records,
    relay_end,
)
from zrc_relay.core.codes import DropCause, NoticeCode
from zrc_relay.core.relay import Policy
from zrc_relay.quic.pmtu import RAISE_INTERVAL, STEP
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.quic.udp import SocketAddress

BASE, MAXIMUM = 1232, 1452
IPV4: SocketAddress = ("198.51.100.77", 7777)
IPV6: SocketAddress = ("2001:db8::77", 7777, 0, 0)
ELSEWHERE: SocketAddress = ("198.51.100.78", 7778)


class Scene(World):
    """Stock QUIC clients: the peer behind a link whose ``mtu`` may be changed at any time, the device on one that carries all."""

    def __init__(
        self, mtu: int, sockaddr: SocketAddress = IPV4, *, lose: Filter | None = None, egress_queue_age: float = 0.1
    ) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, proving_roles=frozenset())
        super().__init__(policy=policy, settings=EndpointSettings(egress_queue_age=egress_queue_age))
        self.mtu = mtu
        narrow = narrow_link(sockaddr, lambda: self.mtu)
        self.network.filter = narrow
        if lose is not None:
            self.network.filter = lambda data, source, to: None if lose(data, source, to) is None else narrow(data, source, to)
        token = self.token().encode()
        self.device = ScriptedClient(self, max_datagram_size=1500)
        self.run(0.05)
        self.device.allocate(token, role=DEVICE)
        vars(vars(self.device.quic)["_loss"])["_cc"].congestion_window = 10**9  # it sends as fast as a test says
        self.peer = ScriptedClient(self, start=False)
        move(self, self.peer, sockaddr)
        self.peer.connect()
        self.run(2.5 * self.network.latency)
        self.peer.allocate(token, role=PEER)
        self.run(0.1)

    def wait(self, seconds: float) -> None:
        """Let time pass; the clients say now and then that they are there."""
        end = self.now() + seconds
        while self.now() < end:
            for client in (self.device, self.peer):
                client.quic.send_ping(0)
                client.flush()
            self.run(min(10.0, end - self.now()))

    @property
    def to_peer(self) -> int:
        """UDP payload in bytes that the relay sends to the peer."""
        return relay_end(self, self.peer).max_payload + DATAGRAM_OVERHEAD

    def told(self) -> list[int]:
        """What the device was told fits towards the peer, each time."""
        kinds = (NoticeCode.PEER_JOINED, NoticeCode.MAX_PAYLOAD)
        return [int.from_bytes(value[1:3], "big") for value in self.device.values(raw.NOTICE) if value[0] in kinds]

    def exchange(self, size: int, count: int, *, interval: float = 0.02) -> int:
        """So many payloads of one size go to the peer; returns how many arrived."""
        sent = [self.random(size) for _ in range(count)]
        for payload in sent:
            self.device.send_datagram(payload)
            self.run(interval)
        self.wait(0.5)
        return len(set(sent) & set(payloads(self.peer)))


class FoundTests(SynchronousTestCase):
    """R5.8, issue "must show": the largest UDP payload that a link carries is found, never passed, and told to the other end."""

    def check(self, scene: Scene, carries: int) -> None:
        """``carries`` is the largest UDP payload of the link."""
        scene.wait(5)
        self.assertIn(min(carries, MAXIMUM) - scene.to_peer, range(STEP))
        self.assertEqual(scene.told()[0], BASE - DATAGRAM_OVERHEAD, "it begins with what every path carries")
        fits = scene.told()[-1]
        self.assertEqual(fits, relay_end(scene, scene.peer).max_payload)
        self.assertEqual(scene.exchange(fits, 20), 20)
        self.assertEqual((len(scene.peer.datagrams), records(scene.peer)), (20, []))

    def test_an_ipv6_link_of_1280_carries_the_base_and_no_more(self) -> None:
        scene = Scene(1280, IPV6)
        self.check(scene, 1280 - UDP_OVER_IPV6)
        self.assertEqual((scene.to_peer, len(scene.told())), (BASE, 1))

    def test_an_ipv4_link_of_1280(self) -> None:
        self.check(Scene(1280), 1280 - UDP_OVER_IPV4)

    def test_a_link_of_1500_carries_the_maximum_over_ipv4_and_ipv6(self) -> None:
        for sockaddr in (IPV4, IPV6):
            scene = Scene(1500, sockaddr)
            self.check(scene, 1500 - UDP_OVER_IPV6)
            self.assertEqual(scene.to_peer, MAXIMUM)

    def test_links_in_between(self) -> None:
        for mtu in (1300, 1350, 1400, 1420, 1492):
            self.check(Scene(mtu, IPV6), mtu - UDP_OVER_IPV6)

    def test_on_a_link_that_loses_every_tenth_packet_it_is_never_passed(self) -> None:
        scene = Scene(1400, lose=lossy(0.1, seed=4))
        scene.wait(30)
        self.assertIn(1400 - UDP_OVER_IPV4 - scene.to_peer, range(STEP))

    def test_it_is_found_while_a_flood_fills_the_congestion_window(self) -> None:
        sent = 0

        def lose_each_fortieth(data: bytes, _source: SocketAddress, to: SocketAddress) -> bytes | None:
            nonlocal sent  # of the data: it keeps the window small
            sent += to == ELSEWHERE and len(data) <= BASE
            return None if sent % 40 == 39 and len(data) <= BASE else data

        scene = Scene(1500, lose=lose_each_fortieth)
        scene.wait(2)
        # Another path: the search begins anew, and from its first packet on there is more to send than the window lets out.
        move(scene, scene.peer, ELSEWHERE)
        scene.peer.send_datagram(b"from here")
        for _ in range(100):
            for _ in range(40):
                scene.device.send_datagram(bytes(1000))
            scene.run(0.01)
        self.assertGreater(scene.relay.counters.dropped_packets[DropCause.EGRESS_QUEUE], 100, "else it was no flood")
        self.assertEqual(scene.to_peer, MAXIMUM)

    def test_a_client_that_takes_less_gets_no_larger_packet(self) -> None:
        for takes in (1200, 1210, 1300):
            world = World()
            world.network.record = True
            client = ScriptedClient(world, start=False)
            stock = vars(type(client.quic))["_serialize_transport_parameters"]

            def with_limit(quic: object = client.quic, takes: int = takes, stock: object = stock) -> bytes:
                return bytes(stock(quic)) + raw.varint(3) + raw.varint(2) + raw.varint(takes)  # type: ignore[operator]

            vars(client.quic)["_serialize_transport_parameters"] = with_limit  # stock QUIC has no setting for it
            client.connect()
            world.run(2)
            self.assertTrue(client.is_established)
            sizes = [len(data) for data, _, to in world.network.sent if to == client.sockaddr]
            self.assertEqual(max(sizes), takes)


class BlackHoleTests(SynchronousTestCase):
    """R5.8, RFC 8899 §4.3: a link that silently begins to drop large packets is noticed, whatever the rate of traffic."""

    def check(self, interval: float, *, at_most: float) -> None:
        """Payloads that filled packets, one every ``interval`` s: after ``at_most`` s all of them arrive again."""
        scene = Scene(1500)
        scene.wait(60)
        self.assertEqual(scene.exchange(1400, 10, interval=interval), 10)
        self.assertEqual(records(scene.peer), [])
        told = scene.told()
        scene.mtu = 1300
        scene.exchange(1400, max(1, round(at_most / interval)), interval=interval)
        self.assertLessEqual(scene.to_peer, 1300 - UDP_OVER_IPV4)
        scene.wait(5)
        self.assertIn(1300 - UDP_OVER_IPV4 - scene.to_peer, range(STEP))
        self.assertEqual(scene.exchange(1400, 20, interval=interval), 20)
        self.assertNotEqual(records(scene.peer), [], "they go the oversize way now")
        fits = scene.told()[-1]
        self.assertEqual(scene.exchange(fits, 20, interval=interval), 20)
        self.assertGreater(len(scene.told()), len(told))
        self.assertEqual(fits, scene.to_peer - DATAGRAM_OVERHEAD)

    def test_with_much_traffic(self) -> None:
        self.check(0.002, at_most=1)

    def test_with_some_traffic(self) -> None:
        self.check(0.05, at_most=2)

    def test_with_little_traffic(self) -> None:
        self.check(1.0, at_most=15)

    def test_large_packets_that_still_arrive_do_not_hide_larger_ones_that_do_not(self) -> None:
        scene = Scene(1500)
        scene.wait(5)
        scene.mtu = 1300
        for _ in range(40):
            scene.exchange(1230, 1)  # above the base, and below the new limit
            scene.device.send_datagram(bytes(1400))
        scene.wait(5)
        self.assertIn(1300 - UDP_OVER_IPV4 - scene.to_peer, range(STEP))

    def test_what_was_found_is_kept_until_the_route_grows_again(self) -> None:
        scene = Scene(1500)
        scene.wait(60)
        scene.mtu = 1300
        scene.exchange(1400, 50)
        scene.wait(10)
        found = scene.to_peer
        self.assertIn(1300 - UDP_OVER_IPV4 - found, range(STEP))
        for _ in range(6):
            scene.wait(300)
            self.assertIn(scene.to_peer, range(found, 1300 - UDP_OVER_IPV4 + 1))
        self.assertEqual(scene.exchange(scene.to_peer - DATAGRAM_OVERHEAD, 20), 20)
        scene.mtu = 1500
        scene.wait(RAISE_INTERVAL + 10)
        self.assertEqual((scene.to_peer, scene.told()[-1]), (MAXIMUM, MAXIMUM - DATAGRAM_OVERHEAD))

    def test_small_packets_are_not_taken_for_large_ones(self) -> None:
        scene = Scene(1500)
        scene.wait(60)
        scene.mtu = 1300
        self.assertEqual(scene.exchange(1000, 200, interval=0.005), 200)
        self.assertEqual(scene.to_peer, MAXIMUM, "nobody has noticed, and nobody has suffered")

    def test_losses_of_congestion_are_no_black_hole(self) -> None:
        scene = Scene(1500)
        scene.wait(5)
        passed, large, lost = scene.network.filter, 0, 0

        def overflow(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            # A full queue on the way: of every 250 large packets, ten in a row are lost.
            nonlocal large, lost
            if to == IPV4 and len(data) > BASE:
                large += 1
                if large % 250 >= 240:
                    lost += 1
                    return None
            return passed(data, source, to)

        scene.network.filter = overflow
        told = scene.told()
        scene.exchange(1400, 1000, interval=0.003)
        self.assertGreaterEqual(lost, 30)
        self.assertEqual((scene.to_peer, scene.told(), records(scene.peer)), (MAXIMUM, told, []))


class QueuedTests(SynchronousTestCase):
    """PROTOCOL §6: payloads that were queued when less came to fit go the oversize way, and hold nothing up."""

    def test_when_the_link_shrinks_everything_that_was_still_queued_arrives(self) -> None:
        scene = Scene(1500, egress_queue_age=5.0)
        scene.wait(5)
        scene.mtu = 1300
        sent = [scene.random(100 if number % 10 == 0 else 1400) for number in range(120)]
        for payload in sent:
            scene.device.send_datagram(payload)
        scene.run(1.1 * scene.network.latency)
        queue = relay_end(scene, scene.peer).quic.egress
        queued = len(queue)
        self.assertGreater(queued, 80)
        scene.wait(10)
        self.assertEqual(len(queue), 0)
        small = [payload for payload in sent if len(payload) == 100]
        self.assertEqual([payload for payload in scene.peer.datagrams if len(payload) == 100], small)
        arrived = set(payloads(scene.peer))
        self.assertEqual([payload for payload in sent[-queued // 2 :] if payload not in arrived], [])
        self.assertGreater(len(records(scene.peer)), 20)

    def test_when_the_client_moves_what_was_queued_for_its_old_path_arrives_at_once(self) -> None:
        scene = Scene(1500, egress_queue_age=5.0)
        scene.wait(5)
        queue = relay_end(scene, scene.peer).quic.egress
        narrow = narrow_link(ELSEWHERE, lambda: 1280)
        scene.network.filter = lambda data, source, to: None if source == IPV4 else narrow(data, source, to)
        sent = [scene.random(1400) for _ in range(60)]
        for payload in sent:
            scene.device.send_datagram(payload)
        scene.run(0.01)
        queued = [queue[index] for index in range(len(queue))]
        self.assertGreater(len(queued), 20)
        move(scene, scene.peer, ELSEWHERE)
        scene.peer.send_datagram(b"here I am")
        scene.run(0.3)
        self.assertEqual(set(queued) - set(payloads(scene.peer)), set())


class WindowTests(SynchronousTestCase):
    """RFC 9000 §14.4: a probe that is lost says nothing about congestion."""

    def test_probes_lost_do_not_shrink_the_congestion_window(self) -> None:
        scene = Scene(1280, IPV6)
        end = relay_end(scene, scene.peer)
        scene.wait(5)
        before = end.quic.congestion_window
        self.assertGreaterEqual(before, 10 * BASE, "eighteen probes were lost by now")
        for _ in range(3):
            scene.wait(RAISE_INTERVAL + 1)
            self.assertGreaterEqual(end.quic.congestion_window, before)

    def test_nor_while_data_flows(self) -> None:
        scene = Scene(1280, IPV6)
        end = relay_end(scene, scene.peer)
        sizes = []
        for _ in range(400):
            scene.device.send_datagram(bytes(1000))
            scene.run(0.003)
            sizes.append(end.quic.congestion_window)
        scene.run(0.1)
        self.assertEqual(len(scene.peer.datagrams), 400)
        self.assertEqual(sizes, sorted(sizes))
