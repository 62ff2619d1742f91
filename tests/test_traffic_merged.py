"""Several processes that forward, seen as one: lists, single allocations, statistics, and what of it one of them can spoil."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import World
from tests.operations_support import Recorder, WorldHost
from tests.test_worker_commands import ALLOCATION, CONNECTION, DETAIL
from tests.test_worker_commands import Traffic as Canned
from zrc_relay.control.answers import AllocationInfo, ConnectionInfo, Talker, WorkerStats
from zrc_relay.control.fleet import LATE, Fleet
from zrc_relay.control.local import LocalTraffic
from zrc_relay.control.management import Clocks, FrontOperations
from zrc_relay.control.merged import PATIENCE, MergedTraffic
from zrc_relay.control.operations import AllocationFilter, AllocationName, NotFound, Page, SortKey, Unavailable
from zrc_relay.control.problems import problem_of
from zrc_relay.control.sampler import INTERVAL, Sampler
from zrc_relay.control.schema import schema_of
from zrc_relay.control.sums import NOTHING
from zrc_relay.control.traffic import Numbers, Ranking, Row, Traffic, WorkerReport, in_order
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken, routing_byte
from zrc_relay.metrics.snapshot import Snapshot


class Rows(Canned):
    """A worker with these rows, in any list, and a description that is the row's name."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__()
        self.rows = rows

    async def rank_allocations(self, which: AllocationFilter, sort: SortKey, limit: int, *, descending: bool) -> Ranking:
        del which, sort
        return Ranking(tuple(in_order(self.rows, descending=descending)[:limit]), len(self.rows))

    async def rank_connections(self, source: object, limit: int) -> Ranking:
        del source
        return Ranking(tuple(in_order(self.rows)[:limit]), len(self.rows))

    async def describe_allocations(self, names: tuple[str, ...]) -> tuple[AllocationInfo | None, ...]:
        known = {name for _, name in self.rows}
        return tuple(replace(ALLOCATION, id=name) if name in known else None for name in names)

    async def describe_connections(self, names: tuple[str, ...]) -> tuple[ConnectionInfo | None, ...]:
        known = {name for _, name in self.rows}
        return tuple(replace(CONNECTION, id=name) if name in known else None for name in names)


class Silent(Canned):
    """A worker that answers nothing."""

    def _reply(self, *asked: object) -> Any:
        raise AssertionError(asked)

    async def rank_connections(self, source: object, limit: int) -> Ranking:
        del source, limit
        return await Deferred[Ranking]()

    async def allocation(self, name: AllocationName) -> Any:
        del name
        return await Deferred[Any]()

    async def stats(self) -> Numbers:
        return await Deferred[Numbers]()


class MergedCase(SynchronousTestCase):
    """Workers that a test chooses, as one."""

    def merged(self, workers: Mapping[int, Traffic], count: int | None = None) -> MergedTraffic:
        self.clock = Clock()
        self.workers = dict(workers)
        self.fleet = Fleet(count or len(workers), self.clock.seconds)
        return MergedTraffic(lambda: self.workers, self.fleet, self.clock)

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))


def numbered(count: int) -> Numbers:
    """Numbers that are all ``count``, or say so."""
    return replace(
        NOTHING,
        allocations=replace(NOTHING.allocations, current=count, created=count, maximum=100, peak=count, ended={"expired": count}),
        connections=replace(NOTHING.connections, current=count, peak=count, handshakes={"completed": count}),
        traffic=replace(
            NOTHING.traffic, bytes=count, packets=count, bytes_per_second=float(count), packets_per_second=float(count)
        ),
        refused={"BLOCKED": count},
        top_talkers=(Talker(f"t{count}", float(count), count),),
    )


def report(numbers: Numbers, **changes: Any) -> WorkerReport:
    """What a worker with these numbers would say."""
    return replace(WorkerReport(7, "ready", 1.0, 0.5, 0.002, (), (), numbers, Snapshot()), **changes)


class ListTests(MergedCase):
    """Issue "all cores": lists page correctly over all workers, as if there were one."""

    @given(
        st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30),
        st.booleans(), st.integers(1, 5),
    )
    def test_pages_of_several_are_the_pages_of_one(self, held: dict[str, tuple[int, int]], descending: bool, limit: int) -> None:  # noqa: FBT001
        def rows_of(index: int) -> list[Row]:
            return [(value, name) for name, (worker, value) in held.items() if worker == index]

        operations = self.operations({index: Rows(rows_of(index)) for index in range(3)})
        expected = [name for _, name in in_order(((value, name) for name, (_, value) in held.items()), descending=descending)]
        found: list[str] = []
        for offset in range(0, len(held) + 1, limit):
            page = self.do(operations.allocations(AllocationFilter(), SortKey.ID, Page(offset, limit), descending=descending))
            self.assertEqual((page.total, page.offset), (len(held), offset))
            found += [item.id for item in page.items]
        self.assertEqual(found, expected)

    def operations(self, workers: Mapping[int, Traffic]) -> FrontOperations:
        traffic = self.merged(workers)
        front: Any = None  # lists need nothing of it
        return FrontOperations(front, traffic, Clocks(self.clock.seconds, self.clock.seconds, self.clock))

    def test_connections_page_the_same_way(self) -> None:
        operations = self.operations({0: Rows([("b", "b"), ("d", "d")]), 1: Rows([("a", "a"), ("c", "c")])})
        pages = [self.do(operations.connections(None, Page(offset, 3))) for offset in (0, 3)]
        self.assertEqual([[item.id for item in page.items] for page in pages], [["a", "b", "c"], ["d"]])
        self.assertEqual([page.total for page in pages], [4, 4])

    def test_a_worker_that_does_not_answer_in_time_is_left_out(self) -> None:
        operations = self.operations({0: Rows([("a", "a")]), 1: Silent()})
        asked = Deferred.fromCoroutine(operations.connections(None, Page()))
        self.clock.advance(PATIENCE - 0.1)
        self.assertFalse(asked.called)
        self.clock.advance(0.1)
        page = self.successResultOf(asked)
        self.assertEqual(([item.id for item in page.items], page.total, page.missing_workers), (["a"], 1, (1,)))

    def test_a_list_says_whose_rows_are_missing(self) -> None:
        operations = self.operations({0: Rows([("a", "a")]), 1: Rows([("b", "b")]), 2: Rows([])})

        def missing() -> list[tuple[int, ...]]:
            listed = self.do(operations.allocations(AllocationFilter(), SortKey.ID, Page(), descending=False))
            return [listed.missing_workers, self.do(operations.connections(None, Page())).missing_workers]

        self.assertEqual(missing(), [(), ()])
        del self.workers[1]  # it is being replaced
        self.assertEqual(missing(), [(1,), (1,)])
        self.workers.clear()
        self.assertEqual(missing(), [(0, 1, 2), (0, 1, 2)])

    def test_what_goes_between_the_two_questions_is_left_out(self) -> None:
        workers = {0: Rows([("a", "a")]), 1: Rows([("b", "b"), ("c", "c")]), 2: Rows([("d", "d")])}
        traffic = self.merged(workers)
        ranking = self.do(traffic.rank_connections(None, 9))
        workers[1].rows.pop(0)
        del self.workers[2]
        described = self.do(traffic.describe_connections(tuple(name for _, name in ranking.rows)))
        self.assertEqual([item.id if item else None for item in described], ["a", None, "c", None])

    def test_who_asks_and_goes_away_is_nothing_to_log(self) -> None:
        asked = Deferred.fromCoroutine(self.merged({0: Silent()}).stats())
        self.assertNoResult(asked)
        asked.cancel()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_bug_in_one_is_logged_and_the_others_are_shown(self) -> None:
        broken = Canned()
        broken.answer = KeyError("x")
        page = self.do(self.operations({0: broken, 1: Rows([("a", "a")])}).connections(None, Page()))
        self.assertEqual(page.total, 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


class OwnerTests(MergedCase):
    """Issue "all cores": an allocation is asked of the worker that its routing byte names, and of no other."""

    def test_only_the_owner_is_asked(self) -> None:
        workers = {index: Canned() for index in range(3)}
        traffic = self.merged(workers)
        for number in range(20):
            name = AllocationName(bytes((number,)) * 16)
            owner = routing_byte(name.allocation_id) % 3
            workers[owner].answer = DETAIL
            for question in (traffic.allocation(name), traffic.terminate(name, "x"), traffic.trace(name)):
                self.assertEqual(self.do(question), DETAIL)
            self.assertEqual([len(worker.asked) for worker in workers.values()], [3 * (index == owner) for index in range(3)])
            workers[owner].asked.clear()

    def test_what_the_owner_refuses_is_refused(self) -> None:
        worker = Canned()
        worker.answer = NotFound("there is none")
        traffic = self.merged({0: worker})
        self.failureResultOf(Deferred.fromCoroutine(traffic.allocation(AllocationName(bytes(16)))), NotFound)

    def test_an_owner_that_is_gone_or_silent_is_named(self) -> None:
        name = AllocationName(bytes(16))
        owner = routing_byte(name.allocation_id) % 2
        traffic = self.merged({1 - owner: Canned()}, count=2)
        gone = self.failureResultOf(Deferred.fromCoroutine(traffic.allocation(name)), Unavailable).value
        self.workers[owner] = Silent()
        asked = Deferred.fromCoroutine(traffic.allocation(name))
        self.clock.advance(PATIENCE)
        silent = self.failureResultOf(asked, Unavailable).value
        for error in (gone, silent):
            self.assertIn(f"worker {owner}", str(error))
            problem = problem_of(error)
            self.assertEqual((problem.status, problem.headers["Retry-After"]), (503, "1"))


class StatsTests(MergedCase):
    """Issue "all cores", R10.4: statistics are sums, and a worker's death takes no count back."""

    def ask(self, traffic: MergedTraffic) -> Numbers:
        found: Numbers = self.do(traffic.stats())
        return found

    def test_sums_and_limits_and_who_is_busy(self) -> None:
        workers = {index: Canned() for index in range(3)}
        for index, worker in workers.items():
            worker.answer = numbered(index + 1)
        stats = self.ask(self.merged(workers))
        self.assertEqual((stats.allocations.current, stats.allocations.created, stats.allocations.maximum), (6, 6, 100))
        self.assertEqual((stats.allocations.ended, stats.connections.handshakes, stats.refused), (
            {"expired": 6}, {"completed": 6}, {"BLOCKED": 6},
        ))
        self.assertEqual((stats.traffic.bytes, stats.traffic.bytes_per_second, stats.traffic.packets_per_second), (6, 6.0, 6.0))
        self.assertEqual([talker.id for talker in stats.top_talkers], ["t3", "t2", "t1"])

    def test_peaks_are_those_of_the_sum(self) -> None:
        traffic = self.merged({}, count=2)
        for index, count in ((0, 5), (1, 1), (0, 1), (1, 4)):
            self.fleet.reported(index, report(numbered(count)))
        stats = self.ask(traffic)
        self.assertEqual((stats.allocations.current, stats.allocations.peak, stats.connections.peak), (5, 6, 6))
        self.assertEqual(stats.traffic.peak_bytes_per_second, 6.0)

    def test_a_worker_that_dies_keeps_its_counts_and_loses_what_it_held(self) -> None:
        one, other = Canned(), Canned()
        one.answer, other.answer = numbered(3), numbered(4)
        traffic = self.merged({0: one, 1: other})
        self.fleet.reported(0, report(numbered(2)))  # older than what it says when asked
        self.ask(traffic)
        del self.workers[0]
        self.fleet.lost(0)
        stats = self.ask(traffic)
        self.assertEqual((stats.allocations.created, stats.traffic.bytes, stats.refused), (7, 7, {"BLOCKED": 7}))
        self.assertEqual((stats.allocations.current, stats.connections.current, stats.traffic.bytes_per_second), (4, 4, 4.0))
        self.assertEqual([talker.id for talker in stats.top_talkers], ["t4"])
        self.workers[0] = one
        one.answer = numbered(1)
        self.assertEqual(self.ask(traffic).allocations.created, 8)

    def test_one_that_does_not_answer_counts_as_it_was_last_known(self) -> None:
        worker = Canned()
        worker.answer = numbered(1)
        traffic = self.merged({0: worker, 1: Silent()})
        self.fleet.reported(1, report(numbered(9)))
        asked = Deferred.fromCoroutine(traffic.stats())
        self.clock.advance(PATIENCE)
        self.assertEqual(self.successResultOf(asked).allocations.current, 10)

    def test_an_answer_is_taken_when_it_comes_and_not_again_after_a_death(self) -> None:
        worker = Canned()
        worker.answer = numbered(5)
        traffic = self.merged({0: worker, 1: Silent()})
        asked = Deferred.fromCoroutine(traffic.stats())
        self.fleet.lost(0)  # after its answer, before that of the other
        self.clock.advance(PATIENCE)
        self.assertEqual(self.successResultOf(asked).allocations.created, 5)

    def test_the_average_is_over_the_life_of_all(self) -> None:
        worker = Canned()
        worker.answer = numbered(100)
        traffic = self.merged({0: worker})
        self.clock.advance(20)
        stats = self.ask(traffic)
        self.assertEqual((stats.uptime_seconds, stats.traffic.average_bytes_per_second), (20.0, 5.0))

    def test_a_row_for_each_worker(self) -> None:
        worker = Canned()
        worker.answer = numbered(3)
        traffic = self.merged({0: worker}, count=3)
        self.fleet.begun(0, 11)
        self.fleet.begun(1, 12)
        self.clock.advance(5)
        self.fleet.reported(0, report(numbered(2), cpu_share=0.41234, loop_lag_seconds=0.0123))
        self.fleet.lost(1)
        self.fleet.begun(1, 13)
        one, other, absent = self.ask(traffic).workers
        self.assertEqual((one.index, one.pid, one.state, one.uptime_seconds, one.restarts), (0, 11, "ready", 5.0, 0))
        self.assertEqual((one.allocations, one.connections, one.bytes_per_second), (3, 3, 3.0))
        self.assertEqual((one.cpu_share, one.loop_lag_seconds), (0.412, 0.0123))
        self.assertEqual((other.pid, other.state, other.uptime_seconds, other.restarts), (13, "starting", 0.0, 1))
        self.assertEqual((absent.pid, absent.state, absent.restarts), (None, "down", 0))
        self.assertEqual(self.fleet.restarts, 1)

    def test_one_that_has_said_nothing_for_long_is_silent_until_it_does(self) -> None:
        self.merged({}, count=1)
        self.fleet.begun(0, 11)

        def state() -> str:
            (row,) = self.fleet.numbers().workers
            return row.state

        self.clock.advance(LATE + 1)
        self.assertEqual(state(), "starting")
        self.fleet.reported(0, report(NOTHING, state="draining"))
        self.clock.advance(LATE)
        self.assertEqual(state(), "draining")
        self.clock.advance(0.1)
        self.assertEqual(state(), "silent")
        self.assertIn("silent", schema_of(WorkerStats)["properties"]["state"]["enum"])
        self.fleet.reported(0, report(NOTHING))
        self.assertEqual(state(), "ready")


class HealthTests(MergedCase):
    """Issue "all cores", R7.1: one that is replaced is a warning, none at all a failure, and complaints have a name."""

    def setUp(self) -> None:
        self.merged({}, count=2)
        self.fleet.begun(0, 11)
        self.fleet.begun(1, 12)

    def test_nothing_is_said_before_the_first_has_started(self) -> None:
        self.assertEqual((self.fleet.failures(), self.fleet.warnings()), ([], []))

    def test_one_that_is_down_or_starts_is_a_warning_while_another_runs(self) -> None:
        self.fleet.reported(0, report(NOTHING))
        self.assertEqual((self.fleet.failures(), self.fleet.warnings()), ([], ["worker 1 is being started"]))
        self.fleet.lost(1)
        self.assertEqual(self.fleet.warnings(), ["worker 1 is down"])

    def test_none_is_a_failure(self) -> None:
        self.fleet.reported(0, report(NOTHING))
        self.fleet.lost(0)
        self.assertEqual((self.fleet.failures(), self.fleet.warnings()), (["no worker runs"], []))

    def test_what_they_complain_of_and_silence(self) -> None:
        self.fleet.reported(0, report(NOTHING, warnings=("the event loop is late",)))
        self.fleet.reported(1, report(NOTHING, failures=("no UDP socket is open",)))
        self.assertEqual(self.fleet.failures(), ["worker 1: no UDP socket is open"])
        self.assertEqual(self.fleet.warnings(), ["worker 0: the event loop is late"])
        self.clock.advance(LATE + 1)
        self.fleet.reported(1, report(NOTHING))
        self.assertIn("worker 0 has said nothing for 4 s", self.fleet.warnings())


class WorldsTests(SynchronousTestCase):
    """Issue "all cores": two relays that forward are administered as one."""

    def setUp(self) -> None:
        self.worlds = (World(), World())
        self.clock = Clock()
        self.fleet = Fleet(2, self.clock.seconds)
        self.traffics: dict[int, Traffic] = {}
        for index, world in enumerate(self.worlds):
            sampler = Sampler(world.relay, world.endpoint, world.clock, world.now)
            sampler.startService()
            self.addCleanup(sampler.stopService)
            self.traffics[index] = LocalTraffic(
                world.relay, world.endpoint, Recorder(), sampler, Clocks(world.now, world.wall, world.clock)
            )
        self.host = WorldHost(self.worlds[0])
        merged = MergedTraffic(lambda: self.traffics, self.fleet, self.clock)
        self.operations = FrontOperations(self.host, merged, Clocks(self.clock.seconds, self.worlds[0].wall, self.clock))

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        deferred = Deferred.fromCoroutine(coroutine)
        while not deferred.called:
            for world in self.worlds:
                world.clock.advance(0)
        return self.successResultOf(deferred)

    def token(self, number: int) -> tuple[World, RelayToken]:
        allocation_id = bytes((number,)) * 16
        world = self.worlds[routing_byte(allocation_id) % 2]
        return world, world.token(allocation_id=allocation_id)

    def fill(self) -> list[str]:
        for number in range(1, 7):
            world, token = self.token(number)
            device, _ = world.pair(token)
            device.send(bytes(100 * number))
        for world in self.worlds:
            world.run(INTERVAL + 0.5)
        self.assertTrue(all(len(world.relay.table) for world in self.worlds))
        return [bytes((number,)).hex() * 16 for number in range(1, 7)]

    def test_lists_single_allocations_and_numbers(self) -> None:
        ids = self.fill()
        page = self.do(self.operations.allocations(AllocationFilter(), SortKey.BYTES_TRANSFERRED, Page(1, 4), descending=True))
        self.assertEqual(([item.allocation_id for item in page.items], page.total), (ids[::-1][1:5], 6))
        by_id = self.do(self.operations.allocations(AllocationFilter(), SortKey.ID, Page(), descending=False))
        self.assertEqual(sorted(item.id for item in by_id.items), [item.id for item in by_id.items])
        self.assertEqual(self.do(self.operations.connections(None, Page(0, 5))).total, 12)
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.allocations.current, stats.connections.current, stats.traffic.packets), (6, 12, 6))
        self.assertEqual((stats.relay_id, stats.state), (self.worlds[0].policy.relay_id.hex(), "ready"))
        name = AllocationName(bytes.fromhex(ids[3]))
        self.assertEqual(self.do(self.operations.allocation(name)).bytes_transferred, 400)
        self.assertEqual(self.do(self.operations.terminate(name, "x")).connections, 2)
        self.assertEqual(self.do(self.operations.stats()).allocations.current, 5)
        drained = self.do(self.operations.drain())
        self.assertEqual(drained.allocations, 5)

    def test_clients_that_chose_the_same_connection_id_are_all_listed(self) -> None:
        world = self.worlds[0]
        for number in (1, 2, 3):
            world.client(Role.DEVICE, world.token(allocation_id=bytes((number,)) * 16))
        world.run(0.5)
        first, *others = world.endpoint.all_connections()
        for other in others:
            other._original_id = first._original_id  # noqa: SLF001 - it takes three clients that conspire
            other.first_destination_id = first.first_destination_id
        pages = [self.do(self.operations.connections(None, Page(offset, 1))).items for offset in range(3)]
        self.assertEqual(len({item.allocation for (item,) in pages}), 3)
