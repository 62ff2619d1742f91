"""Asking another process over AMP: every question, every refusal, long answers, and a process that is gone."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.protocols import amp
from twisted.test.iosim import IOPump, connectedServerAndClient
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.control.answers import AllocationDetail, AllocationInfo, ConnectionInfo, QlogOrder, SideInfo, Termination
from zrc_relay.control.operations import (
    AllocationFilter,
    AllocationName,
    Ambiguous,
    Conflict,
    NotFound,
    OperationError,
    SortKey,
    Unavailable,
)
from zrc_relay.control.sums import NOTHING
from zrc_relay.control.traffic import Numbers, Ranking, WorkerReport
from zrc_relay.core.cidr import Network
from zrc_relay.metrics.snapshot import Buckets, Snapshot
from zrc_relay.workers.commands import LONGEST, Arguments, Report, Value
from zrc_relay.workers.remote import RemoteTraffic, TrafficResponder
from zrc_relay.workers.values import BadValue

SIDE = SideInfo(1, "0a0b", "192.0.2.1:5", proven=True)
ALLOCATION = AllocationInfo(
    "d:a", "d", "a", "p", "active", "paid", pinned=True, created_at="t", last_activity_at="t", expires_at=None,
    bandwidth_limit=None, quota_bytes=7, bytes_transferred=1, bytes_per_second=0.5, device=SIDE, peer=SIDE,
)
CONNECTION = ConnectionInfo("0a0b", "192.0.2.1:5", "192.0.2.2:6", "bound", "device", "d:a", True, 1200, None, 0.25)
DETAIL = AllocationDetail(
    "d:a", "d", "a", "p", "active", "paid", pinned=True, created_at="t", last_activity_at="t", expires_at=None,
    bandwidth_limit=None, quota_bytes=7, bytes_transferred=1, bytes_per_second=0.5, device=SIDE, peer=SIDE,
    members=(CONNECTION,),
)
SNAPSHOT = Snapshot({"x": {"a": 1.0}}, {"h": Buckets((1.0,), (2, 3), 4.5)}, {"f": {"version": "1"}})
NAME = AllocationName(bytes(16), bytes(32))


class Traffic:
    """Notes what it is asked, and answers or raises what a test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.answer: Any = None

    def _reply(self, *asked: object) -> Any:
        self.asked.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def rank_allocations(self, which: AllocationFilter, sort: SortKey, limit: int, *, descending: bool) -> Ranking:
        found: Ranking = self._reply(which, sort, limit, descending)
        return found

    async def describe_allocations(self, names: tuple[str, ...]) -> tuple[AllocationInfo | None, ...]:
        found: tuple[AllocationInfo | None, ...] = self._reply(names)
        return found

    async def rank_connections(self, source: Network | None, limit: int) -> Ranking:
        found: Ranking = self._reply(source, limit)
        return found

    async def describe_connections(self, names: tuple[str, ...]) -> tuple[ConnectionInfo | None, ...]:
        found: tuple[ConnectionInfo | None, ...] = self._reply(names)
        return found

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        found: AllocationDetail = self._reply(name)
        return found

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        found: Termination = self._reply(name, reason)
        return found

    async def trace(self, name: AllocationName) -> QlogOrder:
        found: QlogOrder = self._reply(name)
        return found

    async def stats(self) -> Numbers:
        found: Numbers = self._reply()
        return found

    async def snapshot(self) -> Snapshot:
        found: Snapshot = self._reply()
        return found


class Reports(amp.AMP):
    """A parent's end that takes reports."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[WorkerReport] = []

    @Report.responder
    def reported(self, report: WorkerReport) -> dict[str, Any]:
        self.reports.append(report)
        return {}


class RemoteCase(SynchronousTestCase):
    """A worker's end and a parent's, joined in memory."""

    def setUp(self) -> None:
        self.traffic = Traffic()
        self.parent = Reports()
        self.worker: amp.AMP
        self.pump: IOPump
        self.worker, _, self.pump = connectedServerAndClient(
            lambda: self.parent, lambda: amp.AMP(locator=TrafficResponder(self.traffic))
        )
        self.remote = RemoteTraffic(self.parent)

    def ask(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """Start a question, and let bytes flow."""
        asked = Deferred.fromCoroutine(coroutine)
        self.pump.flush()
        return asked


class QuestionTests(RemoteCase):
    """Issue "all cores": whatever administrators and scrapers ask of one process can be asked of another."""

    def test_every_question_gets_there_and_its_answer_comes_back(self) -> None:
        remote, which = self.remote, AllocationFilter(tier="paid", source=Network.parse("2001:db8::/32"))
        questions: tuple[tuple[Callable[[], Any], tuple[object, ...], Any], ...] = (
            (
                lambda: remote.rank_allocations(which, SortKey.TIER, 5, descending=True), (which, SortKey.TIER, 5, True),
                Ranking((("paid", "d:a"), (1, "d:b"), (1.5, "d:c")), 9),
            ),
            (lambda: remote.describe_allocations(("d:a", "d:b")), (("d:a", "d:b"),), (ALLOCATION, None)),
            (lambda: remote.rank_connections(None, 3), (None, 3), Ranking((), 0)),
            (lambda: remote.describe_connections(()), ((),), ()),
            (lambda: remote.describe_connections(("x",)), (("x",),), (CONNECTION,)),
            (lambda: remote.allocation(NAME), (NAME,), DETAIL),
            (lambda: remote.terminate(NAME, "abuse ✂"), (NAME, "abuse ✂"), Termination("d:a", "abuse ✂", 5, 2)),
            (lambda: remote.trace(NAME), (NAME,), QlogOrder("d:a", "/var/qlog")),
            (remote.stats, (), replace(NOTHING, uptime_seconds=1.5, refused={"BLOCKED": 2})),
            (remote.snapshot, (), SNAPSHOT),
        )
        for question, expected, answer in questions:
            self.traffic.answer = answer
            self.assertEqual(self.successResultOf(self.ask(question())), answer)
            self.assertEqual(self.traffic.asked.pop(), expected)

    def test_an_answer_of_a_megabyte_and_questions_as_long(self) -> None:
        names = tuple(f"{number:064x}:{number:032x}" for number in range(11_000))
        self.traffic.answer = Ranking(tuple((name, name) for name in names), len(names))
        ranking = self.successResultOf(self.ask(self.remote.rank_connections(None, len(names))))
        self.assertEqual(ranking, self.traffic.answer)
        self.traffic.answer = (None,) * len(names)
        self.assertEqual(self.successResultOf(self.ask(self.remote.describe_connections(names))), self.traffic.answer)
        self.assertEqual(self.traffic.asked[-1], (names,))
        self.assertGreater(sum(map(len, names)), 1_000_000)

    def test_a_report_comes_unasked(self) -> None:
        report = WorkerReport(7, "ready", 1.5, 0.25, 0.001, ("it fails",), (), NOTHING, SNAPSHOT)
        self.worker.callRemote(Report, report=report)
        self.pump.flush()
        self.assertEqual(self.parent.reports, [report])


class RefusalTests(RemoteCase):
    """Issue "all cores": what cannot be done is told the same way as by one process, and ends no connection."""

    def test_every_kind_of_refusal_with_what_it_says(self) -> None:
        names = tuple(f"{number:064x}:{bytes(16).hex()}" for number in range(2000))  # far more than one text of AMP
        for error, more in (
            (NotFound("there is none"), ()), (Ambiguous("two", names), names), (Conflict("no", ("a", "b")), ("a", "b")),
            (Conflict("not now"), ()), (Unavailable("later"), ()), (OperationError("not at all"), ()),
        ):
            self.traffic.answer = error
            found: Any = self.failureResultOf(self.ask(self.remote.terminate(NAME, "x"))).value
            self.assertIs(type(found), type(error))
            self.assertEqual(str(found), str(error))
            self.assertEqual(getattr(found, "candidates", ()) or getattr(found, "problems", ()), more)

    def test_a_bug_over_there_is_logged_there_and_the_next_question_is_answered(self) -> None:
        self.traffic.answer = KeyError("secret")
        error = self.failureResultOf(self.ask(self.remote.stats()), OperationError).value
        self.assertNotIn("secret", str(error))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.traffic.answer = NOTHING
        self.assertEqual(self.successResultOf(self.ask(self.remote.stats())), NOTHING)

    def test_a_process_that_is_gone_is_not_available(self) -> None:
        waiting = Deferred.fromCoroutine(self.remote.stats())
        transport: Any = self.worker.transport
        transport.loseConnection()
        self.pump.flush()
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(self.ask(self.remote.snapshot()), Unavailable)


class ValueTests(SynchronousTestCase):
    """Issue "all cores": typed arguments of AMP, of any length."""

    ARGUMENTS: ClassVar[Arguments] = [(b"text", Value(str)), (b"more", Value(int, optional=True))]

    def boxed(self, **values: Any) -> amp.AmpBox:
        box = amp.AmpBox()
        for name, argument in self.ARGUMENTS:
            argument.toBox(name, box, values, None)
        box.serialize()  # raises when a key holds too much
        return box

    def unboxed(self, box: amp.AmpBox) -> dict[str, Any]:
        objects: dict[str, Any] = {}
        for name, argument in self.ARGUMENTS:
            argument.fromBox(name, box, objects, None)
        return objects

    def test_lengths_around_what_one_key_can_hold(self) -> None:
        for length in (0, LONGEST - 3, LONGEST - 2, LONGEST - 1, 2 * LONGEST - 2, 2 * LONGEST - 1, 1_000_000):
            box = self.boxed(text="x" * length, more=3)
            self.assertEqual(len(box), 1 + -(-(length + 2) // LONGEST), length)
            self.assertEqual(self.unboxed(box), {"text": "x" * length, "more": 3})
            self.assertEqual(box, {})

    def test_an_optional_one_need_not_be_there(self) -> None:
        self.assertEqual(list(self.boxed(text="x", more=None)), [b"text"])
        self.assertEqual(self.unboxed(self.boxed(text="x")), {"text": "x", "more": None})

    def test_another_type_or_nothing_at_all_is_refused(self) -> None:
        self.assertRaises(BadValue, self.unboxed, amp.AmpBox())
        self.assertRaises(BadValue, self.unboxed, amp.AmpBox({b"text": b"5"}))
        self.assertRaises(BadValue, self.boxed, text={1, 2})
