"""Several connections of one side on the wire: which of them carries what comes from the other end, and who hears of it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ID, Filter, TestClient, World
from tests.relay_view import cut_off, narrow_link, relay_end
from zrc_relay.client.errors import TooManyConnections
from zrc_relay.client.notices import MaxPayloadChanged, NoticeEvent, PeerJoined, PeerLeft, Superseded
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.relay import Policy
from zrc_relay.core.token import RelayToken
from zrc_relay.quic.outlet import PROBE_DELAY
from zrc_relay.quic.udp import SocketAddress

FIRST_UNIDIRECTIONAL = 7
"""The stream that the relay opens after HELLO."""


class Sides(World):
    """A device with one connection, and a peer that opens as many as a test wants."""

    def __init__(self, *, latency: float = 0.005, max_connections_per_side: int = 4) -> None:
        policy = Policy(
            relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, max_connections_per_side=max_connections_per_side
        )
        super().__init__(policy=policy, latency=latency)
        self.agreed: RelayToken = self.token()
        self.muted: list[TestClient] = []
        self.link: Filter = lambda data, _source, _to: data
        self.network.filter = self._carry
        self.device = self.another(Role.DEVICE)

    def _carry(self, data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
        return None if any(client.host.sockaddr == source for client in self.muted) else self.link(data, source, to)

    def another(self, role: Role = Role.PEER, sockaddr: SocketAddress | None = None) -> TestClient:
        """One more connection of a side, allocated."""
        client = self.client(role, self.agreed, sockaddr=sockaddr)
        self.run(0.1 + 10 * self.network.latency)
        return client

    def say(self, client: TestClient) -> None:
        """The relay hears of ``client`` now, and then nothing more: neither what it sends by itself nor what it acknowledges."""
        if client in self.muted:
            self.muted.remove(client)
        client.ping().addErrback(lambda _: None)
        self.run(1.1 * self.network.latency)
        self.muted.append(client)

    def who_gets(self, payload: bytes, *clients: TestClient) -> list[int]:
        """The device sends ``payload``: which of ``clients`` get it."""
        self.device.send(payload)
        self.run(3 * self.network.latency)
        return [number for number, client in enumerate(clients) if payload in client.got]


def superseded(client: TestClient) -> int:
    """How often ``client`` was told that another carries egress."""
    return client.notices.count(Superseded())


def presence(client: TestClient) -> list[NoticeEvent]:
    """What ``client`` was told about the other side's coming and going."""
    return [notice for notice in client.notices if isinstance(notice, PeerJoined | PeerLeft)]


class CurrentTests(SynchronousTestCase):
    """R5.2, PROTOCOL §6: the newest heard from within max(3 PTO, 1 s), else the one heard from last; all are accepted from."""

    def setUp(self) -> None:
        self.sides = Sides()
        self.old = self.sides.another()
        self.new = self.sides.another()

    def silence(self) -> None:
        """Nothing more is heard of either."""
        self.sides.muted += [self.old, self.new]

    def test_the_newest_carries_egress_and_the_one_before_hears_it_once(self) -> None:
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [1])
        self.assertEqual((superseded(self.old), superseded(self.new)), (1, 0))

    def test_what_either_sends_arrives(self) -> None:
        for number, client in enumerate((self.old, self.new, self.old, self.new)):
            client.send(b"%d" % number)
            self.sides.run(0.03)
        self.assertEqual(self.sides.device.got, [b"0", b"1", b"2", b"3"])

    def test_an_older_one_that_talks_does_not_take_egress_from_a_newer_one_that_talks(self) -> None:
        for _ in range(5):
            self.sides.say(self.old)
            self.sides.run(0.4)
            self.sides.say(self.new)
            self.sides.run(0.4)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [1])
        self.assertEqual((superseded(self.old), superseded(self.new)), (1, 0))

    def test_a_newer_one_that_is_silent_loses_egress_to_an_older_one_that_talks_and_hears_it(self) -> None:
        self.silence()
        self.sides.run(1.1)
        self.assertEqual(superseded(self.new), 0)
        self.sides.say(self.old)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [0])
        self.assertEqual((superseded(self.old), superseded(self.new)), (1, 1))

    def test_the_word_that_it_lost_egress_gives_it_back_to_a_newer_one_that_is_there(self) -> None:
        self.sides.run(PROBE_DELAY + 1.1)  # it acknowledges the relay's probe, and is silent from there
        self.old.send(b"")
        self.sides.run(0.1)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [1], "its acknowledgement was heard")
        self.assertEqual((superseded(self.old), superseded(self.new)), (2, 1))

    def test_within_a_second_it_does_not(self) -> None:
        self.silence()
        self.sides.say(self.new)
        self.sides.run(0.9)
        self.sides.say(self.old)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [1])

    def test_it_gets_egress_back_when_it_talks_again(self) -> None:
        self.silence()
        self.sides.run(1.1)
        self.sides.say(self.old)
        self.sides.say(self.new)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [1])
        self.assertEqual((superseded(self.old), superseded(self.new)), (2, 1))

    def test_when_all_are_silent_it_is_the_one_heard_from_last(self) -> None:
        self.silence()
        self.sides.say(self.new)
        self.sides.run(0.5)
        self.sides.say(self.old)
        self.assertEqual(superseded(self.new), 0, "the newest was heard half a second ago")
        self.sides.run(1.5)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [0])
        self.assertEqual(superseded(self.new), 1)

    def test_streams_that_begin_then_go_to_it_too(self) -> None:
        self.silence()
        self.sides.say(self.new)
        self.sides.run(0.5)
        self.sides.say(self.old)
        self.sides.run(1.5)
        quic = self.sides.device.quic
        stream_id = quic.open_stream(unidirectional=True)
        self.assertIsNotNone(stream_id)
        quic.send_stream_data(stream_id or 0, b"\0to whom")
        self.sides.device.ping().addErrback(lambda _: None)  # its next packet takes the stream along
        self.sides.run(3 * self.sides.network.latency)
        opened = [relay_end(self.sides, client).quic.get_next_available_stream_id(is_unidirectional=True) > FIRST_UNIDIRECTIONAL
                  for client in (self.old, self.new)]
        self.assertEqual(opened, [True, False])

    def test_the_one_heard_from_last_may_be_the_newest(self) -> None:
        self.silence()
        self.sides.say(self.old)
        self.sides.run(0.5)
        self.sides.say(self.new)
        self.sides.run(3)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [1])
        self.assertEqual(superseded(self.new), 0)

    def test_on_a_slow_path_three_ptos_are_waited_for(self) -> None:
        sides = Sides(latency=0.4)
        old, new = sides.another(), sides.another()
        patience = relay_end(sides, new).patience
        self.assertGreater(patience, 2.0)
        sides.muted += [old, new]
        sides.say(new)
        sides.run(1.0)
        sides.say(old)
        self.assertEqual(sides.who_gets(b"x", old, new), [1])
        sides.run(2 * patience)
        sides.say(old)
        self.assertEqual(sides.who_gets(b"y", old, new), [0])

    def test_of_four_the_newest_that_talks(self) -> None:
        clients = [self.old, self.new, self.sides.another(), self.sides.another()]
        self.assertEqual(self.sides.who_gets(b"3", *clients), [3])
        self.sides.muted += clients
        for talking, expected in (((0,), 0), ((0, 1), 1), ((0, 1, 2), 2), ((1, 0), 1), ((3, 0, 1), 3)):
            self.sides.run(1.1)
            for number in talking:
                self.sides.say(clients[number])
            self.assertEqual(self.sides.who_gets(b"%d%d" % (len(talking), expected), *clients), [expected], talking)

    def test_when_the_current_one_closes_the_next_takes_over_at_once(self) -> None:
        self.new.close()
        self.sides.run(0.02)
        self.assertEqual(self.sides.who_gets(b"x", self.old, self.new), [0])

    def test_one_that_vanished_costs_what_was_sent_until_the_other_was_heard(self) -> None:
        cut_off(self.sides, self.new)
        gone = self.sides.now()
        lost = 0
        while not self.sides.who_gets(b"%d" % lost, self.old):
            lost += 1
            self.sides.run(0.1)
            self.old.send(b"I am here")
            self.sides.run(0.03)
            self.assertLess(self.sides.now() - gone, 1.3)
        self.assertGreater(lost, 3)
        self.sides.run(35)
        self.assertEqual(len(presence(self.sides.device)), 1, "the side was there all the time")
        self.assertEqual(self.sides.who_gets(b"and on", self.old), [0])


class PayloadTests(SynchronousTestCase):
    """PROTOCOL §5 MAX_PAYLOAD: the other end knows what fits towards the connection that carries egress, whichever it is."""

    def told(self, client: TestClient) -> int:
        kinds = (PeerJoined, MaxPayloadChanged)
        return [notice.max_payload for notice in client.notices if isinstance(notice, kinds)][-1]

    def setUp(self) -> None:
        self.sides = Sides()
        self.wide = self.sides.another()
        narrow: SocketAddress = ("2001:db8::7", 7777, 0, 0)
        self.sides.link = narrow_link(narrow, lambda: 1280)
        self.sides.run(2)
        self.large = relay_end(self.sides, self.wide).max_payload
        self.assertEqual(self.told(self.sides.device), self.large)
        self.narrow = self.sides.another(sockaddr=narrow)
        self.sides.run(5)
        self.small = relay_end(self.sides, self.narrow).max_payload
        self.assertLess(self.small, self.large)

    def test_it_changes_with_the_connection(self) -> None:
        self.sides.say(self.narrow)
        self.sides.run(0.02)
        self.assertEqual(self.told(self.sides.device), self.small)
        self.sides.run(1.1)
        self.sides.say(self.wide)
        self.sides.run(0.02)
        self.assertEqual(self.told(self.sides.device), self.large)

    def test_it_changes_when_the_current_one_leaves(self) -> None:
        self.narrow.close()
        self.sides.run(0.1)
        self.assertEqual(self.told(self.sides.device), self.large)

    def test_one_that_leaves_without_having_been_current_changes_nothing(self) -> None:
        told = len(self.sides.device.notices)
        self.wide.close()
        self.sides.run(0.1)
        self.assertEqual(len(self.sides.device.notices), told)


class BoundTests(SynchronousTestCase):
    """R5.2, PROTOCOL §5: ``max_connections_per_side``, and who is told when a side comes and goes."""

    def test_one_too_many_is_refused_and_those_who_are_there_hear_nothing(self) -> None:
        sides = Sides(max_connections_per_side=3)
        clients = [sides.another() for _ in range(3)]
        heard = [len(client.notices) for client in clients]
        refused = sides.another()
        sides.run(0.3)
        self.assertIsInstance(refused.error, TooManyConnections)
        self.assertEqual(sides.relay.counters.refused[ErrorCode.TOO_MANY_CONNECTIONS], 1)
        self.assertEqual([len(client.notices) for client in clients], heard)
        self.assertEqual(sides.who_gets(b"x", *clients), [2])
        self.assertIsNotNone(sides.another(Role.DEVICE).allocated, "the bound is for each side alone")

    def test_there_is_room_again_when_one_has_left(self) -> None:
        for leave in ("closed", "vanished"):
            sides = Sides(max_connections_per_side=2)
            first, second = sides.another(), sides.another()
            if leave == "closed":
                first.close()
                sides.run(0.1)
            else:
                cut_off(sides, first)
                sides.run(31)
            third = sides.another()
            self.assertIsNotNone(third.allocated, leave)
            self.assertEqual(sides.who_gets(b"x", first, second, third), [2])

    def test_the_other_side_hears_of_the_first_that_comes_and_of_the_last_that_goes(self) -> None:
        sides = Sides()
        clients = [sides.another() for _ in range(3)]
        self.assertEqual([type(notice) for notice in presence(sides.device)], [PeerJoined])
        for client in clients[1:]:
            client.close()
            sides.run(0.1)
        cut_off(sides, clients[0])
        sides.run(20)
        self.assertEqual([type(notice) for notice in presence(sides.device)], [PeerJoined])
        sides.run(11)
        self.assertEqual([type(notice) for notice in presence(sides.device)], [PeerJoined, PeerLeft])

    def test_every_connection_of_the_other_side_hears_it(self) -> None:
        sides = Sides()
        devices = [sides.device, sides.another(Role.DEVICE)]
        sides.another().close()
        sides.run(0.1)
        for device in devices:
            self.assertEqual([type(notice) for notice in presence(device)], [PeerJoined, PeerLeft])

    def test_nobody_hears_of_a_connection_that_was_never_bound(self) -> None:
        sides = Sides()
        peer = sides.another()
        stranger = sides.client(Role.PEER, sides.token(allocation_id=bytes(16), expires_at=1))
        sides.run(1)
        self.assertIsNotNone(stranger.error)
        self.assertEqual((len(presence(sides.device)), superseded(peer)), (1, 0))
