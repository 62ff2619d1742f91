"""What administrators see and do, on the relay of a simulated network: lists, names, statistics, and the effect on sessions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ID, World
from zrc_relay.access import FILE_NAME, SAVE_INTERVAL, AccessStore
from zrc_relay.client import errors
from zrc_relay.control.answers import AllocationPage
from zrc_relay.control.local import LocalTraffic
from zrc_relay.control.management import Clocks, FrontOperations
from zrc_relay.control.operations import (
    AllocationFilter,
    AllocationName,
    AllocationState,
    Ambiguous,
    Conflict,
    NewEntry,
    NewKey,
    NotFound,
    Page,
    SortKey,
)
from zrc_relay.control.sampler import INTERVAL, Sampler
from zrc_relay.control.slices import LOOKS, ROWS
from zrc_relay.core.allocation import AllocationKey, State
from zrc_relay.core.cidr import Access, AccessLists, Network
from zrc_relay.core.codes import Role, TerminationReason
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.relay import Policy
from zrc_relay.core.token import RelayToken, key_id
from zrc_relay.pins import PinnedKeys
from zrc_relay.qlogs import QlogRefused

MAX_ALLOCATIONS = 5000


@dataclass
class Report:
    """What a reload would say."""

    changed: tuple[str, ...] = ()
    not_reloadable: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    ended: int = 0


@dataclass
class Recorder:
    """Notes which allocations it should record."""

    directory: Path | None = None
    requested: list[AllocationKey] = field(default_factory=list)

    def request(self, key: AllocationKey) -> None:
        if self.directory is None:
            msg = "qlog_dir is not set"
            raise QlogRefused(msg)
        self.requested.append(key)


class Turns(Clock):
    """Counts how often somebody lets others have their turn."""

    count = 0

    def callLater(  # noqa: N802 - Twisted's name
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object  # noqa: A002 - Twisted's name, too
    ) -> Any:
        self.count += 1
        return super().callLater(delay, callable, *args, **kw)


class WorldHost:
    """The service around the relay of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.relay = world.relay
        self.device_keys = world.keys
        self.pins = PinnedKeys(None, run=execute)
        self.ready = True
        self.drain_deadline: float | None = None
        self.qlogs = Recorder()
        self.report = Report()
        self.lists = world.relay.admission.lists
        self.relay_id, self.instance_id = world.policy.relay_id, world.policy.instance_id
        self.tiers = world.policy.tiers
        self.access = AccessStore(self.lists, None, now=world.now, wall=world.wall, run=execute)

    @property
    def state(self) -> str:
        return "draining" if self.relay.draining else "ready" if self.ready else "starting"

    def lists_in_force(self) -> Deferred[None]:
        return succeed(None)

    def use_device_keys(self, configured: DeviceKeys | None = None) -> int:
        self.device_keys = configured or self.device_keys
        ended = self.relay.replace_keys(self.pins.over(self.device_keys), self.world.now(), self.world.wall())
        self.world.endpoint.sweep()
        return ended

    def drain(self) -> Deferred[None]:
        self.ready = False
        self.drain_deadline = self.world.wall() + 30
        self.relay.drain(self.drain_deadline)
        return succeed(None)

    def reload(self) -> Deferred[Report]:
        return succeed(self.report)


class OperationsCase(SynchronousTestCase):
    """Operations on a world."""

    lists: AccessLists | None = None

    def setUp(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, max_allocations=MAX_ALLOCATIONS)
        self.world = World(policy=policy, lists=self.lists)
        self.host = WorldHost(self.world)
        self.sampler = Sampler(self.world.relay, self.world.endpoint, self.world.clock, self.world.now)
        self.sampler.startService()
        self.addCleanup(self.sampler.stopService)
        self.operations = self.operations_with(self.world.clock)

    def operations_with(self, clock: Clock) -> FrontOperations:
        """Operations on the world that let packets have their turn by ``clock``."""
        world = self.world
        clocks = Clocks(world.now, world.wall, clock)
        traffic = LocalTraffic(world.relay, world.endpoint, self.host.qlogs, self.sampler, clocks)
        return FrontOperations(self.host, traffic, clocks)

    def run_to_its_end(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """Let an operation take as many turns of the reactor as it needs."""
        deferred = Deferred.fromCoroutine(coroutine)
        while not deferred.called:
            self.world.clock.advance(0)
        return deferred

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What an operation gives."""
        return self.successResultOf(self.run_to_its_end(coroutine))

    def fails(self, kind: type[Exception], coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The error that an operation raises."""
        return self.failureResultOf(self.run_to_its_end(coroutine), kind).value

    def listed(
        self, which: AllocationFilter | None = None, *, sort: SortKey = SortKey.ID, descending: bool = False, **page: int
    ) -> AllocationPage:
        """A page of allocations."""
        found: AllocationPage = self.do(
            self.operations.allocations(which or AllocationFilter(), sort, Page(**page), descending=descending)
        )
        return found

    def token(self, number: int, **changes: Any) -> RelayToken:
        """A token for another allocation."""
        return self.world.token(allocation_id=bytes((number,)) * 16, **changes)

    def other_device(self) -> SigningKey:
        """The key of another device that is pinned."""
        key = self.world.signing_key()
        devices = [Device(bytes(self.world.device_key.verify_key)), Device(bytes(key.verify_key), "paid")]
        self.host.use_device_keys(DeviceKeys(devices))
        return key

    def token_of(self, key: SigningKey, number: int) -> RelayToken:
        """A token by another device."""
        return replace(self.token(number), device_id=key_id(bytes(key.verify_key))).sign(key)

    def name_of(self, token: RelayToken, *, full: bool = True) -> AllocationName:
        return AllocationName(token.allocation_id, token.device_id if full else None)


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


class StatsTests(OperationsCase):
    """R10.4: current, peak, average, drops, and who is busy."""

    def test_counts_and_traffic(self) -> None:
        device, peer = self.world.pair(self.token(1))
        self.world.client(Role.DEVICE, self.token(2))
        self.world.run(0.5)
        for _ in range(10):
            device.send(bytes(1000))
        self.world.run(3.0)
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.allocations.current, stats.allocations.active, stats.allocations.waiting), (2, 1, 1))
        self.assertEqual((stats.allocations.peak, stats.allocations.created, stats.allocations.maximum), (2, 2, MAX_ALLOCATIONS))
        self.assertEqual((stats.connections.current, stats.connections.peak), (3, 3))
        self.assertEqual((stats.traffic.bytes, stats.traffic.packets), (10_000, 10))
        self.assertEqual(stats.traffic.bytes_per_second, 0.0)
        self.assertAlmostEqual(stats.traffic.peak_bytes_per_second, 10_000, delta=100)
        self.assertAlmostEqual(stats.traffic.average_bytes_per_second, 10_000 / stats.uptime_seconds, delta=10)
        self.assertEqual(len(peer.got), 10)

    def test_peaks_stay_when_allocations_go(self) -> None:
        self.world.pair(self.token(1))
        self.world.run(INTERVAL + 0.1)
        self.do(self.operations.terminate(self.name_of(self.token(1)), "x"))
        self.world.run(2.0)
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.allocations.current, stats.allocations.peak, stats.connections.peak), (0, 1, 2))
        self.assertEqual(stats.allocations.ended, {"administrator": 1})

    def test_the_busiest_first(self) -> None:
        pairs = {number: self.world.pair(self.token(number))[0] for number in (1, 2, 3)}
        self.world.run(1.0)
        for _ in range(40):
            for number, device in pairs.items():
                if number != 1:
                    device.send(bytes(100 * number))
            self.world.run(0.1)
        stats = self.do(self.operations.stats())
        self.assertEqual([talker.id[-2:] for talker in stats.top_talkers], ["03", "02"])
        self.assertAlmostEqual(stats.top_talkers[0].bytes_per_second, 3000, delta=400)
        rates = {item.allocation_id[:2]: item.bytes_per_second for item in self.listed().items}
        self.assertEqual((rates["01"], rates["03"]), (0.0, stats.top_talkers[0].bytes_per_second))
        self.world.run(2.5)
        self.assertEqual(self.do(self.operations.stats()).top_talkers, ())

    def test_drops_and_refusals_by_cause(self) -> None:
        device = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        device.send(b"to nobody")
        refused = self.world.client(Role.DEVICE, replace(self.world.token(), quota_bytes=7))
        self.world.run(0.5)
        self.assertIsNotNone(refused.error)
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.dropped.packets["no_counterpart"], stats.dropped.bytes["no_counterpart"]), (1, 9))
        self.assertEqual(stats.refused, {"TOKEN_BAD_SIGNATURE": 1})

    def test_who_it_is_and_how_it_is(self) -> None:
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.relay_id, stats.state), (self.world.policy.relay_id.hex(), "ready"))
        self.world.run(10)
        self.assertAlmostEqual(self.do(self.operations.stats()).uptime_seconds, 10, delta=0.1)
        self.host.ready = False
        self.assertEqual(self.do(self.operations.stats()).state, "starting")
        self.do(self.operations.drain())
        self.assertEqual(self.do(self.operations.stats()).state, "draining")


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

    def test_pages_do_not_overlap(self) -> None:
        for number in range(5):
            self.world.client(Role.DEVICE, self.token(number))
        self.world.run(0.5)
        pages = [self.do(self.operations.connections(None, Page(offset, 2))).items for offset in (0, 2, 4)]
        self.assertEqual([len(page) for page in pages], [2, 2, 1])
        self.assertEqual(len({item.id for page in pages for item in page}), 5)


class ListsTests(OperationsCase):
    """R6.3, R10: networks are allowed and blocked at run time, with or without an end; the configuration's word stands."""

    def setUp(self) -> None:
        self.lists = AccessLists(block=[Network.parse("198.18.0.0/15")])
        super().setUp()

    def add(self, network: str, access: Access = Access.BLOCK, ttl: float | None = None, note: str = "") -> Any:
        return self.do(self.operations.add_entry(NewEntry(Network.parse(network), access, ttl, note, "ops")))

    def networks(self, access: Access | None = None) -> list[str]:
        return [item.network for item in self.do(self.operations.entries(access, Page())).items]

    def test_a_blocked_client_is_closed_and_kept_out_until_it_is_unblocked(self) -> None:
        device, _ = self.world.pair()
        self.add("198.51.100.0/24", note="floods us")
        self.world.run(0.5)
        self.assertIsInstance(device.error, errors.Blocked)
        kept_out = self.world.client(Role.DEVICE)
        self.world.run(1)
        self.assertIsNone(kept_out.allocated)
        self.do(self.operations.remove_entry(Network.parse("198.51.100.0/24")))
        again = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assertIsNotNone(again.allocated)

    def test_one_with_a_ttl_ends(self) -> None:
        entry = self.add("198.51.100.0/24", ttl=60)
        self.assertEqual(entry.until, "2027-01-15T08:01:00.000Z")
        self.world.run(60.5)
        self.assertEqual(self.networks(), ["198.18.0.0/15"])
        client = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assertIsNotNone(client.allocated)

    def test_what_is_said_of_an_entry(self) -> None:
        entry = self.add("2001:db8::/32", Access.ALLOW, note="ours")
        self.assertEqual((entry.access, entry.until, entry.note, entry.configured), ("allow", None, "admin ops: ours", False))
        self.assertEqual(self.add("2001:db8::/32").note, "admin ops")

    def test_it_is_said_whether_that_outlives_a_restart(self) -> None:
        one, other = "198.51.100.0/24", "203.0.113.0/24"
        kept = {"198.18.0.0/15": True}  # the configuration's
        self.assertFalse(self.add(one).kept)
        self.assertEqual(self.kept(), kept | {one: False})
        self.assertTrue(self.remove(one).kept, "nothing brings it back")

        directory = Path(self.mktemp()).absolute()
        self.host.access = AccessStore(
            self.host.lists, directory, now=self.world.now, wall=self.world.wall, run=execute
        )
        self.assertTrue(self.add(one).kept)
        self.assertEqual(self.kept(), kept | {one: True})
        self.assertIn(one, (directory / FILE_NAME).read_text())

        (directory / FILE_NAME).with_suffix(".new").mkdir()  # it cannot be opened for writing
        self.world.run(SAVE_INTERVAL)
        self.assertFalse(self.add(other).kept)
        self.assertEqual(self.kept(), kept | {one: False, other: False})
        self.assertFalse(self.remove(one).kept, "the file brings it back")

    def kept(self) -> dict[str, bool]:
        return {item.network: item.kept for item in self.do(self.operations.entries(None, Page())).items}

    def remove(self, network: str) -> Any:
        return self.do(self.operations.remove_entry(Network.parse(network)))

    def test_listed_by_access(self) -> None:
        self.add("2001:db8::/32", Access.ALLOW)
        self.assertEqual(self.networks(Access.ALLOW), ["2001:db8::/32"])
        self.assertEqual(self.networks(Access.BLOCK), ["198.18.0.0/15"])

    def test_a_network_of_the_configuration_is_its_own(self) -> None:
        entry = NewEntry(Network.parse("198.18.0.0/15"), Access.ALLOW, None, "", "ops")
        self.assertIn("configuration", str(self.fails(Conflict, self.operations.add_entry(entry))))
        self.assertIn("configuration", str(self.fails(Conflict, self.operations.remove_entry(entry.network))))
        self.assertEqual(self.networks(Access.BLOCK), ["198.18.0.0/15"])

    def test_what_is_not_there_cannot_be_removed(self) -> None:
        self.add("203.0.113.0/24")
        self.fails(NotFound, self.operations.remove_entry(Network.parse("203.0.113.0/25")))


class KeysTests(OperationsCase):
    """R1.2, R10: devices are pinned and unpinned at run time, over what the file says."""

    def setUp(self) -> None:
        super().setUp()
        self.newcomer = self.world.signing_key()
        self.newcomer_key = bytes(self.newcomer.verify_key)

    def pin(self, key: bytes, tier: str = "", note: str = "") -> Any:
        return self.do(self.operations.pin(NewKey(key, tier, note)))

    def join(self) -> Any:
        """A client of the newcomer."""
        client = self.world.client(Role.DEVICE, self.token_of(self.newcomer, 1), key=self.newcomer)
        self.world.run(0.5)
        return client

    def test_a_device_that_is_pinned_may_sign_and_one_that_is_not_may_not(self) -> None:
        self.assertIsInstance(self.join().error, errors.DeviceUnknown)
        change = self.pin(self.newcomer_key, note="new here")
        self.assertEqual((change.key.source, change.key.note, change.key.pinned, change.ended), ("runtime", "new here", True, 0))
        self.assertIsNotNone(self.join().allocated)

    def test_unpinning_ends_what_the_device_has(self) -> None:
        self.pin(self.newcomer_key)
        client = self.join()
        self.world.pair()
        change = self.do(self.operations.unpin(key_id(self.newcomer_key)))
        self.assertEqual((change.ended, change.key.pinned, change.key.public_key), (1, False, self.newcomer_key.hex()))
        self.world.run(0.5)
        self.assertIsInstance(client.error, errors.Terminated)
        self.assertIsInstance(self.join().error, errors.DeviceUnknown)
        self.assertEqual(self.listed().total, 1)

    def test_a_device_of_the_file_that_is_unpinned_stays_out_when_the_file_is_read_again(self) -> None:
        device_id = key_id(bytes(self.world.device_key.verify_key))
        self.do(self.operations.unpin(device_id))
        self.host.use_device_keys(self.world.keys)
        client = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assertIsInstance(client.error, errors.DeviceUnknown)
        (known,) = self.do(self.operations.keys(Page())).items
        self.assertEqual((known.device_id, known.pinned, known.source), (device_id.hex(), False, "runtime"))

    def test_what_is_pinned_stays_when_the_file_is_read_again(self) -> None:
        self.pin(self.newcomer_key)
        self.host.use_device_keys(self.world.keys)
        self.assertIsNotNone(self.join().allocated)

    def test_the_list_says_who_says_so(self) -> None:
        self.pin(self.newcomer_key)
        sources = {item.public_key: item.source for item in self.do(self.operations.keys(Page())).items}
        self.assertEqual(sources, {bytes(self.world.device_key.verify_key).hex(): "file", self.newcomer_key.hex(): "runtime"})
        page = self.do(self.operations.keys(Page(1, 1)))
        self.assertEqual((len(page.items), page.total), (1, 2))

    def test_a_tier_must_exist(self) -> None:
        self.assertIn("no tier paid", str(self.fails(Conflict, self.operations.pin(NewKey(self.newcomer_key, "paid", "")))))

    def test_who_is_not_pinned_cannot_be_unpinned(self) -> None:
        device_id = key_id(bytes(self.world.device_key.verify_key))
        self.fails(NotFound, self.operations.unpin(bytes(32)))
        self.do(self.operations.unpin(device_id))
        self.fails(NotFound, self.operations.unpin(device_id))


class ProcessTests(OperationsCase):
    """R9.4, R8: draining and reloading by an administrator."""

    def test_draining_takes_nobody_new_and_tells_those_who_are_there(self) -> None:
        device, _ = self.world.pair()
        state = self.do(self.operations.drain())
        self.assertEqual((state.state, state.allocations, state.connections), ("draining", 1, 2))
        self.assertEqual(state.deadline, "2027-01-15T08:00:30.500Z")
        self.world.run(0.2)
        self.assertEqual([type(notice).__name__ for notice in device.notices][-1], "RelayDraining")
        refused = self.world.client(Role.DEVICE, self.token(2))
        self.world.run(0.5)
        self.assertIsInstance(refused.error, errors.Draining)

    def test_a_reload_says_what_has_changed(self) -> None:
        self.host.report = Report(("idle_timeout",), ("listen_port",), (), 3)
        result = self.do(self.operations.reload())
        self.assertEqual((result.changed, result.not_reloadable, result.ended), (("idle_timeout",), ("listen_port",), 3))

    def test_a_reload_that_changes_nothing_says_why(self) -> None:
        self.host.report = Report(problems=("idle_timeout: soon", "max_allocations: many"))
        self.assertEqual(self.fails(Conflict, self.operations.reload()).problems, self.host.report.problems)
