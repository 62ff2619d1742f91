"""What administrators see and do about allocations and connections, on the relay of a simulated network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.operations_support import OperationsCase, Turns
from zrc_relay.client import errors
from zrc_relay.control import local
from zrc_relay.control.answers import AllocationPage
from zrc_relay.control.local import LocalTraffic
from zrc_relay.control.management import Clocks
from zrc_relay.control.operations import (
    AllocationFilter,
    AllocationName,
    AllocationState,
    Ambiguous,
    Conflict,
    NotFound,
    Page,
    SortKey,
)
from zrc_relay.control.slices import LOOKS, ROWS
from zrc_relay.core.allocation import State
from zrc_relay.core.cidr import Network
from zrc_relay.core.codes import Role, TerminationReason


class ListTests(OperationsCase):
    """R10.2, R7.6: live allocations, filtered, sorted and by pages."""

    def ids(self, which: AllocationFilter | None = None, **more: Any) -> list[str]:
        return [item.allocation_id[:2] for item in self.listed(which, **more).items]

    def test_what_is_said_of_one(self) -> None:
        token = self.world.token(bandwidth_limit=5_000_000, quota_bytes=10_000)
        device, peer = self.world.pair(token)
        device.send(b"x" * 1000)
        self.world.run(2.5)
        (item,) = self.listed().items
        self.assertEqual(item.id, f"{token.device_id.hex()}:{token.allocation_id.hex()}")
        self.assertEqual(item.device_id, token.device_id.hex())
        self.assertEqual((item.peer_id, item.state, item.pinned), (token.peer_id.hex(), "active", True))
        self.assertEqual((item.bandwidth_limit, item.quota_bytes, item.bytes_transferred), (5_000_000, 10_000, 1000))
        self.assertEqual(item.created_at[:17], "2027-01-15T08:00:")
        self.assertEqual(item.expires_at, "2027-01-15T09:00:00.000Z")
        self.assertTrue(item.created_at < item.last_activity_at)
        self.assertEqual((item.device.connections, item.device.proven), (1, True))
        self.assertEqual(item.device.address, str(device.host.address))
        self.assertEqual(item.peer.address, str(peer.host.address))

    def test_by_state(self) -> None:
        self.world.pair(self.token(1))
        self.world.client(Role.DEVICE, self.token(2))
        self.world.run(0.5)
        self.assertEqual(self.ids(AllocationFilter(state=AllocationState.ACTIVE)), ["01"])
        self.assertEqual(self.ids(AllocationFilter(state=AllocationState.WAITING)), ["02"])
        (waiting,) = self.listed(AllocationFilter(state=AllocationState.WAITING)).items
        self.assertEqual((waiting.peer.connections, waiting.peer.connection, waiting.peer.address), (0, None, None))

    def test_by_device_peer_and_tier(self) -> None:
        other = self.other_device()
        self.world.pair(self.token(1))
        token = self.token_of(other, 2)
        self.world.client(Role.DEVICE, token, key=other)
        self.world.run(0.5)
        self.assertEqual(self.ids(AllocationFilter(device_id=token.device_id)), ["02"])
        self.assertEqual(self.ids(AllocationFilter(peer_id=token.peer_id)), ["01", "02"])
        self.assertEqual(self.ids(AllocationFilter(peer_id=bytes(32))), [])
        self.assertEqual(self.ids(AllocationFilter(tier="")), ["01", "02"])
        self.assertEqual(self.ids(AllocationFilter(tier="paid")), [])
        self.assertEqual((self.ids(AllocationFilter(pinned=False)), len(self.ids(AllocationFilter(pinned=True)))), ([], 2))

    def test_by_where_a_side_comes_from(self) -> None:
        self.world.client(Role.DEVICE, self.token(1), sockaddr=("203.0.113.5", 5000))
        self.world.client(Role.DEVICE, self.token(2), sockaddr=("203.0.113.99", 5000))
        self.world.client(Role.DEVICE, self.token(3))
        self.world.run(0.5)
        for network, expected in (
            ("203.0.113.0/24", ["01", "02"]), ("203.0.113.5", ["01"]), ("2001:db8::/32", []), ("0.0.0.0/0", ["01", "02", "03"]),
        ):
            self.assertEqual(self.ids(AllocationFilter(source=Network.parse(network))), expected, network)

    def test_sorted_both_ways_with_ties_by_name(self) -> None:
        for number, size in ((1, 300), (2, 900), (3, 300), (4, 500)):
            device, _ = self.world.pair(self.token(number))
            device.send(bytes(size))
            self.world.run(0.2)
        by_bytes = SortKey.BYTES_TRANSFERRED
        self.assertEqual(self.ids(sort=by_bytes), ["01", "03", "04", "02"])
        self.assertEqual(self.ids(sort=by_bytes, descending=True), ["02", "04", "01", "03"])
        self.assertEqual(self.ids(sort=SortKey.CREATED_AT), ["01", "02", "03", "04"])
        self.assertEqual(self.ids(sort=SortKey.LAST_ACTIVITY_AT, descending=True), ["04", "03", "02", "01"])

    def test_every_sort_key_sorts_by_what_it_is_called(self) -> None:
        for number in (1, 2, 3):
            device, _ = self.world.pair(self.token(number, expires_at=int(self.world.wall()) + 4000 - number))
            device.send(bytes(100 * (4 - number)))
        self.world.run(1.2)
        for key in SortKey:
            for descending in (False, True):
                values = [getattr(item, key.value) for item in self.listed(sort=key, descending=descending).items]
                self.assertEqual(values, sorted(values, reverse=descending), key)

    def test_by_pages(self) -> None:
        for number in range(1, 6):
            self.world.client(Role.DEVICE, self.token(number))
        self.world.run(0.5)
        page = self.listed(offset=1, limit=2)
        self.assertEqual((self.ids(offset=1, limit=2), page.total, page.offset), (["02", "03"], 5, 1))
        self.assertEqual((self.ids(offset=4, limit=2), self.ids(offset=5)), (["05"], []))

    def test_a_long_list_lets_packets_have_their_turn(self) -> None:
        self.fill(2 * LOOKS + 1)
        turns = Turns()
        self.operations = self.operations_with(turns)
        deferred = self.long_list()
        self.assertFalse(deferred.called)
        turns.advance(0)
        page = self.successResultOf(deferred)
        self.assertEqual((page.total, len(page.items)), (2 * LOOKS + 1, 1000))
        self.assertEqual(turns.count, 2 + 1000 // ROWS - 1)

    def test_what_ends_in_between_is_left_out(self) -> None:
        self.fill(LOOKS + 1)
        deferred = self.long_list()
        relay = self.world.relay
        for allocation in list(relay.table):
            relay.table.remove(allocation, TerminationReason.RELEASED, self.world.wall())
            allocation.state = State.TERMINATED
        while not deferred.called:
            self.world.clock.advance(0)
        self.assertEqual(self.successResultOf(deferred).items, ())

    def long_list(self) -> Deferred[AllocationPage]:
        """Ask for a thousand."""
        return Deferred.fromCoroutine(
            self.operations.allocations(AllocationFilter(), SortKey.ID, Page(0, 1000), descending=False)
        )

    def fill(self, count: int) -> None:
        """Allocations that nobody is bound to."""
        world = self.world
        for number in range(count):
            token = replace(world.token(), allocation_id=number.to_bytes(16, "big"))
            world.relay.table.create(token, world.policy.default_tier, now=world.now(), wall=world.wall()).state = State.WAITING


class NameTests(OperationsCase):
    """R10, issue "run it": an allocation by its id; where two devices share it, the full names."""

    def test_by_its_id_and_by_its_full_name(self) -> None:
        token = self.token(1)
        device, _ = self.world.pair(token)
        found, by_full_name = (self.do(self.operations.allocation(self.name_of(token, full=full))) for full in (False, True))
        self.assertEqual((found.id, found.allocation_id), (by_full_name.id, token.allocation_id.hex()))
        self.assertEqual([member.role for member in found.members], ["device", "peer"])
        (connection, _) = found.members
        self.assertEqual((connection.address, connection.state, connection.current), (str(device.host.address), "bound", True))
        self.assertEqual(connection.allocation, found.id)
        self.assertGreater(connection.round_trip_seconds, 0.009)

    def test_one_that_is_not_there(self) -> None:
        self.world.pair(self.token(1))
        for name in (AllocationName(bytes(16)), AllocationName(bytes((1,)) * 16, bytes(32))):
            for operation in (self.operations.allocation, self.operations.trace):
                self.fails(NotFound, operation(name))
            self.fails(NotFound, self.operations.terminate(name, "x"))

    def test_an_id_that_two_devices_use(self) -> None:
        other = self.other_device()
        token, twin = self.token(1), self.token_of(other, 1)
        self.world.pair(token)
        self.world.client(Role.DEVICE, twin, key=other)
        self.world.run(0.5)
        error = self.fails(Ambiguous, self.operations.terminate(self.name_of(token, full=False), "x"))
        names = sorted(f"{one.device_id.hex()}:{one.allocation_id.hex()}" for one in (token, twin))
        self.assertEqual(list(error.candidates), names)
        self.assertEqual(len(self.world.relay.table), 2)
        self.do(self.operations.terminate(self.name_of(twin), "x"))
        self.assertEqual([item.device_id for item in self.listed().items], [token.device_id.hex()])


class TerminateTests(OperationsCase):
    """R10.3, R2.8: what an administrator ends is told to both ends, and stays ended until its token expires."""

    def test_both_ends_hear_that_it_was_an_administrator(self) -> None:
        device, peer = self.world.pair()
        device.send(b"hello")
        self.world.run(0.1)
        ended = self.do(self.operations.terminate(self.name_of(self.world.token()), "abuse"))
        self.assertEqual((ended.reason, ended.connections, ended.bytes_transferred), ("abuse", 2, 5))
        self.world.run(0.5)
        for client in (device, peer):
            self.assertIsInstance(client.error, errors.Terminated)
        self.assertEqual(self.listed().total, 0)

    def test_it_stays_ended(self) -> None:
        self.world.pair()
        self.do(self.operations.terminate(self.name_of(self.world.token()), "abuse"))
        again = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assertIsInstance(again.error, errors.Terminated)

    def test_other_allocations_do_not_notice(self) -> None:
        device, peer = self.world.pair(self.token(1))
        self.world.pair(self.token(2))
        self.do(self.operations.terminate(self.name_of(self.token(2)), "abuse"))
        device.send(b"still here")
        self.world.run(0.2)
        self.assertEqual(peer.got, [b"still here"])


class TraceTests(OperationsCase):
    """Issue "run it": qlog on demand, for an allocation's next connection."""

    def test_it_is_asked_for_by_full_key(self) -> None:
        token = self.token(1)
        self.world.pair(token)
        self.host.qlogs.directory = Path("/var/qlog")
        order = self.do(self.operations.trace(self.name_of(token, full=False)))
        self.assertEqual(order.directory, "/var/qlog")
        self.assertEqual(self.host.qlogs.requested, [(token.device_id, token.allocation_id)])

    def test_without_a_directory_it_is_refused(self) -> None:
        self.world.pair(self.token(1))
        self.assertIn("qlog_dir", str(self.fails(Conflict, self.operations.trace(self.name_of(self.token(1))))))


class ConnectionTests(OperationsCase):
    """R10, issue "run it": the QUIC connections, bound or not."""

    def test_all_of_them_and_by_where_they_come_from(self) -> None:
        self.world.pair()
        self.world.client(Role.DEVICE, self.token(2), sockaddr=("203.0.113.5", 5000))
        self.world.run(0.5)
        page = self.do(self.operations.connections(None, Page()))
        self.assertEqual(page.total, 3)
        self.assertEqual(len({item.id for item in page.items}), 3)
        (one,) = self.do(self.operations.connections(Network.parse("203.0.113.0/24"), Page())).items
        self.assertEqual((one.address, one.role, one.local_address), ("203.0.113.5:5000", "device", "192.0.2.1:4433"))
        self.assertEqual(one.allocation, f"{self.token(2).device_id.hex()}:{'02' * 16}")

    def test_one_in_its_handshake_is_bound_to_nothing(self) -> None:
        self.world.client(Role.DEVICE)
        self.world.run(0.006)
        (one,) = self.do(self.operations.connections(None, Page())).items
        self.assertEqual((one.state, one.role, one.allocation, one.current), ("greeting", None, None, False))

    def test_those_that_end_while_others_have_their_turn_are_left_out(self) -> None:
        self.patch(local, "ADDRESSES", 1)
        self.patch(local, "ROWS", 1)
        clients = [self.world.client(Role.DEVICE, self.token(number)) for number in range(4)]
        self.world.run(0.5)
        turns = Clock()
        traffic = LocalTraffic(
            self.world.relay, self.world.endpoint, self.host.qlogs, self.sampler, Clocks(self.world.now, self.world.wall, turns)
        )
        everyone = Deferred.fromCoroutine(traffic.rank_connections(None, 9))
        turns.advance(0)
        names = tuple(name for _, name in self.successResultOf(everyone).rows)
        ranked = Deferred.fromCoroutine(traffic.rank_connections(None, 9))
        described = Deferred.fromCoroutine(traffic.describe_connections(names))
        for client in clients:
            client.close()
        self.world.run(0.1)
        while not (ranked.called and described.called):
            turns.advance(0)
        self.assertEqual(self.successResultOf(ranked).total, 1)
        self.assertEqual([item is None for item in self.successResultOf(described)], [False, True, True, True])

    def test_pages_do_not_overlap(self) -> None:
        for number in range(5):
            self.world.client(Role.DEVICE, self.token(number))
        self.world.run(0.5)
        pages = [self.do(self.operations.connections(None, Page(offset, 2))).items for offset in (0, 2, 4)]
        self.assertEqual([len(page) for page in pages], [2, 2, 1])
        self.assertEqual(len({item.id for page in pages for item in page}), 5)
