"""A client at the wrong worker: REDIRECT reason 3, what becomes of the session, and clients that follow it or never need it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakes import EPOCH, RELAY_ADDRESS, FakeClient, Scene, id_of, make_token
from tests.fakes import STRANGER as STRANGER_KEY
from tests.real_relay import PATIENCE, eventually
from tests.two_workers import LOOPBACK, PORT_BASE, RealWorkers, Visitor, Workers, allocation_of, reactor
from zrc_relay.client import Redirected, connect, connect_resilient
from zrc_relay.client.errors import ConnectionLost
from zrc_relay.client.notices import NoticeEvent, Reconnected
from zrc_relay.core.admission import AdmissionSettings
from zrc_relay.core.cidr import Network
from zrc_relay.core.codes import DropCause, ErrorCode, RedirectReason, Role
from zrc_relay.core.counters import InputDrop
from zrc_relay.core.routing import Share
from zrc_relay.core.session import LEAVE_TIMEOUT, SessionState
from zrc_relay.core.sources import Rate
from zrc_relay.core.tiers import BUILT_IN_TIERS
from zrc_relay.core.token import RelayToken, routing_byte
from zrc_relay.core.wire import Address, ListRelays, Redirect, Refresh, Relays
from zrc_relay.logs.catalog import EVENTS
from zrc_relay.quic.ids import CONNECTION_ID_SIZE
from zrc_relay.quic.udp import Path

OURS, OTHERS = allocation_of(0, 2), allocation_of(1, 2)
"""Allocation ids of the two workers, of which the scenes' relay is the first."""


def scene(**settings: object) -> Scene:
    """The first of two workers, without sockets."""
    made = Scene(**{"worker_port_base": PORT_BASE, **settings})  # type: ignore[arg-type]
    made.relay.share = Share(0, 2)
    return made


def redirects(client: FakeClient) -> list[Redirect]:
    """Every REDIRECT that came."""
    return [capsule for capsule in client.link.capsules if isinstance(capsule, Redirect)]


class AnswerTests(SynchronousTestCase):
    """PROTOCOL §5, issue "all cores": REDIRECT 3 with the worker's own address, after token and proof, before all that counts."""

    def setUp(self) -> None:
        self.scene = scene()

    def attempt(self, role: Role = Role.DEVICE, token: RelayToken | None = None, *, prove: bool = True) -> FakeClient:
        client = self.scene.connect()
        client.allocate(role, token or make_token(allocation_id=OTHERS), prove=prove)
        return client

    def test_both_roles_are_told_reason_byte_and_address(self) -> None:
        for role in Role:
            client = self.attempt(role)
            target = Address(RELAY_ADDRESS.host, PORT_BASE + 1)
            expected = Redirect(RedirectReason.OTHER_WORKER, routing_byte(OTHERS), (target,))
            self.assertEqual(client.link.capsules, [expected])
            self.assertEqual(client.link.closes, [])

    def test_the_address_is_the_one_that_is_announced(self) -> None:
        self.scene = scene(relay_addr=Address("203.0.113.5", 443))
        (answer,) = redirects(self.attempt())
        self.assertEqual(answer.addresses, (Address("203.0.113.5", PORT_BASE + 1),))

    def test_an_allocation_of_ones_own_is_granted(self) -> None:
        client = self.attempt(token=make_token(allocation_id=OURS))
        self.assertTrue(client.is_bound)
        self.assertEqual(self.scene.relay.counters.redirected, 0)

    def test_without_ports_of_their_own_or_alone_nobody_is_redirected(self) -> None:
        self.scene = scene(worker_port_base=0)
        self.assertTrue(self.attempt().is_bound)
        self.scene = scene()
        self.scene.relay.share = Share()
        self.assertTrue(self.attempt().is_bound)

    def test_what_is_wrong_with_the_token_or_the_proof_is_said_first(self) -> None:
        expired = make_token(allocation_id=OTHERS, expires_at=int(EPOCH) - 1)
        stranger = make_token(STRANGER_KEY, allocation_id=OTHERS)
        codes = {
            ErrorCode.TOKEN_EXPIRED: self.attempt(token=expired),
            ErrorCode.DEVICE_UNKNOWN: self.attempt(token=stranger),
            ErrorCode.PROOF_REQUIRED: self.attempt(prove=False),
        }
        for code, client in codes.items():
            self.assertEqual((client.close_code, redirects(client)), (code, []))
        self.scene.relay.drain(EPOCH)
        self.assertEqual(self.attempt().close_code, ErrorCode.DRAINING)

    def test_nothing_is_created_and_nothing_counts(self) -> None:
        self.scene = scene(limits=AdmissionSettings(allocation_rate=Rate(1, 60), rejoin_rate=Rate(1, 60)), max_allocations=1)
        self.assertTrue(self.attempt(token=make_token(allocation_id=OURS)).is_bound)
        for _ in range(5):  # full, and over its rate: that is for the other one to find out
            self.assertEqual(len(redirects(self.attempt())), 1)
        self.assertEqual(len(self.scene.relay.table), 1)
        counters = self.scene.relay.counters
        self.assertEqual((counters.redirected, counters.allocations_created), (5, 1))
        self.assertEqual((sum(counters.refused.values()), sum(counters.limited.values())), (0, 0))

    def test_it_is_an_event(self) -> None:
        client = self.attempt()
        (fields,) = self.scene.observer.named("session.redirected")
        self.assertEqual(fields, {
            "connection": client.link.name, "allocation": OTHERS.hex(), "remote": str(client.link.remote),
            "address": f"{RELAY_ADDRESS.host}:{PORT_BASE + 1}",
        })
        self.assertEqual(set(fields), set(EVENTS["session.redirected"].fields))

    def test_a_peer_of_a_device_that_only_the_other_worker_can_know_is_sent_there(self) -> None:
        self.scene = scene(self_certified_tier="free", tiers=BUILT_IN_TIERS)
        self.assertEqual(len(redirects(self.attempt(Role.PEER, make_token(STRANGER_KEY, allocation_id=OTHERS)))), 1)
        here = self.attempt(Role.PEER, make_token(STRANGER_KEY, allocation_id=OURS))
        self.assertEqual(here.close_code, ErrorCode.DEVICE_UNKNOWN)
        device = self.attempt(Role.DEVICE, make_token(STRANGER_KEY, allocation_id=OTHERS))
        self.assertEqual(len(redirects(device)), 1)
        remembered = vars(vars(self.scene.relay)["_authoriser"])["_remembered"]
        self.assertNotIn(id_of(STRANGER_KEY), remembered)


class AfterwardsTests(SynchronousTestCase):
    """PROTOCOL §5, ARCHITECTURE rule 4: a redirected session is over but for the client's close, and does not stay for ever."""

    def setUp(self) -> None:
        self.scene = scene()
        self.client = self.scene.connect()
        self.client.allocate(Role.DEVICE, make_token(allocation_id=OTHERS))

    def test_a_second_allocate_breaks_the_protocol_also_with_an_allocation_that_is_here(self) -> None:
        self.assertIs(self.client.session.state, SessionState.REDIRECTED)
        self.client.allocate(Role.DEVICE, make_token(allocation_id=OURS))
        self.assertEqual(self.client.close_code, ErrorCode.PROTOCOL_ERROR)
        self.assertEqual(len(self.scene.relay.table), 0)

    def test_what_needs_an_allocation_breaks_the_protocol(self) -> None:
        self.client.feed(Refresh(make_token(allocation_id=OTHERS).encode()).encode())
        self.assertEqual(self.client.close_code, ErrorCode.PROTOCOL_ERROR)

    def test_relays_can_still_be_listed(self) -> None:
        self.client.feed(ListRelays().encode())
        self.assertIsInstance(self.client.link.capsules[-1], Relays)
        self.assertIsNone(self.client.close_code)

    def test_datagrams_are_dropped_and_counted(self) -> None:
        self.client.datagram(b"too early")
        self.assertEqual(self.scene.relay.counters.dropped_packets[DropCause.NO_COUNTERPART], 1)

    def test_a_client_that_stays_is_closed_with_no_error(self) -> None:
        self.assertEqual(self.client.session.deadline, self.scene.now + LEAVE_TIMEOUT)
        self.client.session.timed_out(self.scene.now + LEAVE_TIMEOUT - 0.01, self.scene.wall)
        self.assertIsNone(self.client.close_code)
        self.client.session.timed_out(self.scene.now + LEAVE_TIMEOUT, self.scene.wall)
        self.assertEqual(self.client.close_code, ErrorCode.NO_ERROR)
        self.assertEqual(sum(self.scene.relay.counters.refused.values()), 0)

    def test_a_client_that_leaves_is_just_gone(self) -> None:
        self.client.lose()
        self.assertIs(self.client.session.state, SessionState.CLOSED)
        self.assertEqual(self.scene.observer.named("session.lost"), [])

    def test_a_source_that_becomes_blocked_is_ended_as_well(self) -> None:
        relay = self.scene.relay
        relay.admission.lists.configure((), (Network.parse("198.51.100.0/24"),))
        relay.recheck(self.client.session)
        self.scene.settle()
        self.assertEqual(self.client.close_code, ErrorCode.BLOCKED)


class WorldTestCase(SynchronousTestCase):
    """Two workers on the simulated network."""

    def setUp(self) -> None:
        self.world = Workers()

    def established(self, *clients: Visitor) -> None:
        self.world.run(0.5)
        for client in clients:
            self.assertIsNotNone(client.allocated, client.error)

    def exchange(self, device: Visitor, peer: Visitor) -> None:
        """Each hears the other."""
        for sender, receiver in ((device, peer), (peer, device)):
            sender.send(b"from %d" % id(sender))
            self.world.run(0.1)
            self.assertEqual(receiver.got[-1:], [b"from %d" % id(sender)])

    def redirected(self, client: Visitor) -> Redirect:
        self.world.run(0.5)
        self.assertIsInstance(client.error, Redirected)
        assert isinstance(client.error, Redirected)  # noqa: S101 - for the type checker
        return client.error.redirect


class MeetingTests(WorldTestCase):
    """Issue "all cores": both ends of an allocation meet in one worker because both carry the routing byte."""

    def test_the_library_never_needs_a_redirect(self) -> None:
        for number in range(6):
            for index in (0, 1):
                token = self.world.token_for(index, number)
                device, peer = self.world.visitor(Role.DEVICE, token), self.world.visitor(Role.PEER, token)
                self.established(device, peer)
                self.exchange(device, peer)
        self.assertEqual([len(relay.table) for relay in self.world.relays], [6, 6])
        self.assertEqual([relay.counters.redirected for relay in self.world.relays], [0, 0])
        self.assertEqual([relay.counters.input_dropped[InputDrop.MISROUTED] for relay in self.world.relays], [0, 0])

    def test_a_retry_keeps_a_client_with_its_worker(self) -> None:
        self.world = Workers(limits=AdmissionSettings(handshake_pressure=0))
        for index in (0, 1):
            token = self.world.token_for(index)
            self.established(self.world.visitor(Role.DEVICE, token))
        self.assertEqual([relay.counters.retries_sent for relay in self.world.relays], [1, 1])

    def test_a_client_whose_address_changes_stays_with_its_worker(self) -> None:
        token = self.world.token_for(1)
        device, peer = self.world.visitor(Role.DEVICE, token), self.world.visitor(Role.PEER, token)
        self.established(device, peer)
        for port in range(20_000, 20_010):
            self.world.network.attach(device.host.sockaddr)
            device.host.sockaddr = ("203.0.113.77", port)
            self.world.network.attach(device.host.sockaddr, device)
            self.exchange(device, peer)
        self.assertEqual(self.world.relays[1].counters.path_changes, 10)
        self.assertEqual(self.world.relays[0].counters.packets_received, 0)

    def test_channels_are_steered_to_the_worker_that_has_them(self) -> None:
        for index in (0, 1):
            token = self.world.token_for(index, 3)
            device, peer = self.world.visitor(Role.DEVICE, token), self.world.visitor(Role.PEER, token)
            self.established(device, peer)
            got: list[bytes] = []
            channel = device.open_channel()
            peer.open_channel(got.append)
            self.world.run(0.3)
            self.successResultOf(channel).send(b"beside QUIC")
            self.world.run(0.1)
            self.assertEqual(got, [b"beside QUIC"])
            self.assertEqual(self.world.relays[index].counters.channel_packets, 1)


class FollowingTests(WorldTestCase):
    """PROTOCOL §1, §9: who cannot choose the first byte is served too, perhaps after one REDIRECT."""

    def test_the_wrong_byte_is_redirected_to_the_port_where_the_allocation_is(self) -> None:
        for role in Role:
            token = self.world.token_for(1)
            lost = self.world.visitor(role, token, first_byte=0)
            answer = self.redirected(lost)
            self.assertEqual((answer.reason, answer.routing_byte), (3, routing_byte(token.allocation_id)))
            ((host, port),) = [(target.host, target.port) for target in answer.addresses]
            self.assertEqual((host, port), self.world.own_address(1))
            self.established(self.world.visitor(role, token, remote=(host, port), first_byte=0))
        self.assertEqual([len(relay.table) for relay in self.world.relays], [0, 1])
        self.world.run(2.0)
        self.assertEqual(self.world.endpoints[0].connections, 0, "nothing is left of them where they were wrong")

    def test_one_end_at_the_shared_port_and_one_at_the_workers_own_meet(self) -> None:
        token = self.world.token_for(1)
        device = self.world.visitor(Role.DEVICE, token)
        peer = self.world.visitor(Role.PEER, token, remote=self.world.own_address(1), first_byte=0)
        self.established(device, peer)
        self.exchange(device, peer)

    def test_a_client_that_neither_leaves_nor_asks_is_closed(self) -> None:
        client = self.world.visitor(Role.DEVICE, self.world.token_for(1), first_byte=0)
        self.world.network.filter = lambda data, source, to: None if source == client.host.sockaddr and client.is_closed else data
        self.redirected(client)
        self.assertEqual(self.world.endpoints[0].connections, 1)
        self.world.run(LEAVE_TIMEOUT + 3)
        self.assertEqual(self.world.endpoints[0].connections, 0)
        self.assertEqual(self.world.relays[0].counters.connections_closed[ErrorCode.NO_ERROR], 1)


class MisroutedTests(WorldTestCase):
    """RFC 9000 §10.3, issue "all cores": a worker never resets what is another worker's, by whatever way it came."""

    def setUp(self) -> None:
        super().setUp()
        token = self.world.token_for(1)
        self.device, self.peer = self.world.visitor(Role.DEVICE, token), self.world.visitor(Role.PEER, token)
        self.established(self.device, self.peer)
        self.live = vars(self.device.quic)["_peer_cid"].cid
        self.wrong, self.right = self.world.endpoints
        self.counters = self.world.relays[0].counters

    def way(self) -> Path:
        return Path(self.device.host.sockaddr, self.world.network.hosts[self.world.own_address(0)])

    def misrouted(self) -> int:
        return self.counters.input_dropped[InputDrop.MISROUTED]

    def test_a_packet_of_a_live_connection_at_another_workers_port_is_dropped_without_an_answer(self) -> None:
        self.assertEqual(self.live[0] % 2, 1)
        self.world.network.record = True
        for _ in range(5):
            self.device.host.send(b"\x41" + self.live + bytes(60), self.world.own_address(0))
        self.world.run(0.1)
        sources = {source for _, source, _ in self.world.network.sent}
        self.assertNotIn(self.world.own_address(0), sources)
        self.assertEqual((self.misrouted(), self.counters.stateless_resets_sent), (5, 0))
        self.exchange(self.device, self.peer)

    def test_a_train_of_several_connections_harms_only_its_own_packets(self) -> None:
        own = bytes(CONNECTION_ID_SIZE)
        packets = [b"\x41" + connection_id + bytes(60) for connection_id in (own, self.live, self.live)]
        self.wrong.train_received(b"".join(packets), len(packets[0]), self.way())
        self.wrong.batch_done()
        self.world.run(0.1)
        self.assertEqual(self.misrouted(), 2)
        self.assertEqual(self.counters.stateless_resets_sent, 1, "for the one that could be its own")
        self.assertFalse(self.device.is_closed)
        self.exchange(self.device, self.peer)

    def test_the_rights_of_an_unknown_id_of_ones_own_are_as_ever(self) -> None:
        self.device.host.send(b"\x41" + bytes(8) + bytes(60), self.world.own_address(0))
        self.world.run(0.1)
        self.assertEqual((self.misrouted(), self.counters.input_dropped[InputDrop.UNKNOWN_CONNECTION]), (0, 1))
        self.assertEqual(self.counters.stateless_resets_sent, 1)

    def test_handshake_packets_and_channel_data_of_others_are_counted_alike(self) -> None:
        handshake = b"\xe0\x00\x00\x00\x01\x08" + self.live + b"\x00" + bytes(1300)
        self.device.host.send(handshake, self.world.own_address(0))
        self.device.host.send(b"\x05\x01channe" + b"data", self.world.own_address(0))
        self.device.host.send(b"\x05\x02channe" + b"data", self.world.own_address(0))
        self.world.run(0.1)
        self.assertEqual((self.misrouted(), self.counters.input_dropped[InputDrop.CHANNEL]), (2, 1))

    def test_packets_without_an_id_are_nobodys(self) -> None:
        for packet in (b"\x41", b"\x05"):
            self.device.host.send(packet, self.world.own_address(0))
        self.world.run(0.1)
        self.assertEqual((self.misrouted(), self.counters.stateless_resets_sent), (0, 0))
        self.assertEqual(self.counters.input_dropped[InputDrop.UNKNOWN_CONNECTION], 1)
        self.assertEqual(self.counters.input_dropped[InputDrop.CHANNEL], 1)

    def test_an_initial_at_a_workers_own_port_may_begin_with_any_byte(self) -> None:
        token = self.world.token_for(0)
        for byte in range(4):
            self.established(self.world.visitor(Role.DEVICE, token, remote=self.world.own_address(0), first_byte=byte))


class RealTests(TestCase):
    """Issue "all cores": kernel, sockets, relay and client library together."""

    timeout = 2 * PATIENCE

    def setUp(self) -> None:
        self.workers = RealWorkers(self)

    async def test_kernel_and_library_agree_on_the_worker(self) -> None:
        for index in (0, 1, 1, 0):
            token = self.workers.token_for(index, index)
            got: list[bytes] = []
            device = await connect(
                reactor, LOOPBACK, self.workers.port, token=token, key=self.workers.device_key, trust=self.workers.trust
            )
            peer = await connect(
                reactor, LOOPBACK, self.workers.port, token=token, key=self.workers.peer_key, trust=self.workers.trust,
                on_datagram=got.append,
            )
            device.send(b"hello")
            await eventually(lambda got=got: got, "a datagram")  # type: ignore[misc]
            device.close()
            peer.close()
        self.assertEqual(self.workers.allocations(), [1, 1])
        self.assertEqual(self.workers.recorder.named("session.redirected"), [])

    async def test_a_client_at_the_wrong_port_follows_and_comes_back_by_the_address_that_it_was_given(self) -> None:
        notices: list[NoticeEvent] = []
        client = await connect_resilient(
            reactor, LOOPBACK, self.workers.base, token=self.workers.token_for(1), key=self.workers.device_key,
            trust=self.workers.trust, on_notice=notices.append,
        )
        self.addCleanup(client.close)
        self.assertEqual(self.workers.allocations(), [0, 1])
        moved = self.workers.recorder.named("session.redirected")
        self.assertEqual([fields["address"] for fields in moved], [f"{LOOPBACK}:{self.workers.base + 1}"])
        connection = client.connection
        self.assertIsNotNone(connection)
        if connection is not None:
            connection.give_up(ConnectionLost("the test says so"))
        await eventually(lambda: any(isinstance(notice, Reconnected) for notice in notices), "another connection")
        self.assertEqual(len(self.workers.recorder.named("session.redirected")), 2)

    async def test_what_a_redirected_client_releases_ends_where_it_was(self) -> None:
        device = await connect(
            reactor, LOOPBACK, self.workers.base, token=self.workers.token_for(1), key=self.workers.device_key,
            trust=self.workers.trust,
        )
        self.assertEqual(self.workers.allocations(), [0, 1])
        await device.release()
        await eventually(lambda: self.workers.allocations() == [0, 0], "the end of the allocation")
