"""What a worker tells its parent as it happens: in order, in batches, bounded, and nothing more when the parent is gone."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core.codes import Role
from zrc_relay.logs.levels import LogLevel
from zrc_relay.workers import telling
from zrc_relay.workers.orders import Kind, Said
from zrc_relay.workers.telling import MAX_TOGETHER, Outbox, RemoteEvents, RemoteLines, RemoteRecords


class OutboxCase(SynchronousTestCase):
    """An outbox whose other end is this test: ``sent`` are the batches with what was lost before each, ``heard`` answers one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[list[str], int]] = []
        self.answers: list[Deferred[None]] = []
        self.outbox = Outbox(self.send, self.clock)

    def send(self, said: tuple[Said, ...], lost: int) -> Deferred[Any]:
        self.sent.append(([one.name for one in said], lost))
        self.answers.append(Deferred())
        return self.answers[-1]

    def put(self, *names: str) -> None:
        for name in names:
            self.outbox.put(Said(Kind.EVENT, name, "{}"))

    def heard(self) -> None:
        self.answers.pop(0).callback(None)


class OrderTests(OutboxCase):
    """Issue "all cores": events arrive in order, and a flood of them is a few messages."""

    def test_what_happens_in_one_turn_goes_out_together_in_the_next(self) -> None:
        self.put("a", "b")
        self.assertEqual(self.sent, [])
        self.clock.advance(0)
        self.assertEqual(self.sent, [(["a", "b"], 0)])

    def test_what_happens_while_a_batch_is_under_way_waits_for_its_answer(self) -> None:
        self.put("a")
        self.clock.advance(0)
        self.put("b")
        self.clock.advance(1)
        self.put("c")
        self.clock.advance(1)
        self.assertEqual(len(self.sent), 1)
        self.heard()
        self.assertEqual(self.sent, [(["a"], 0), (["b", "c"], 0)])
        self.heard()
        self.put("d")
        self.clock.advance(0)
        self.assertEqual(self.sent[2:], [(["d"], 0)])

    def test_a_batch_is_bounded(self) -> None:
        names = [str(number) for number in range(MAX_TOGETHER + 3)]
        self.put(*names)
        self.clock.advance(0)
        self.heard()
        self.assertEqual(self.sent, [(names[:MAX_TOGETHER], 0), (names[MAX_TOGETHER:], 0)])


class BoundTests(OutboxCase):
    """Issue "all cores": a parent that is slow is not buried; what is lost is counted, and told once."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(telling, "MAX_WAITING", 3)

    def test_the_newest_are_lost_and_counted(self) -> None:
        self.put("a", "b", "c", "d", "e")
        self.clock.advance(0)
        self.assertEqual(self.sent, [(["a", "b", "c"], 2)])
        self.put("f")
        self.heard()
        self.assertEqual(self.sent[1:], [(["f"], 0)])

    def test_what_is_under_way_does_not_count(self) -> None:
        self.put("a", "b", "c")
        self.clock.advance(0)
        self.put("d", "e", "f", "g")
        self.heard()
        self.assertEqual(self.sent[1:], [(["d", "e", "f"], 1)])


class EndTests(OutboxCase):
    """R9: the last words of a worker that stops are heard, and nobody waits for a parent that is gone."""

    def test_it_has_finished_when_all_is_told(self) -> None:
        self.put("a")
        self.clock.advance(0)
        self.put("b")
        finished = self.outbox.finish()
        self.heard()
        self.assertNoResult(finished)
        self.heard()
        self.successResultOf(finished)

    def test_what_is_under_way_is_waited_for(self) -> None:
        self.put("a")
        self.clock.advance(0)
        finished = self.outbox.finish()
        self.assertNoResult(finished)
        self.heard()
        self.successResultOf(finished)

    def test_what_has_not_gone_out_yet_is_waited_for(self) -> None:
        self.put("a")
        finished = self.outbox.finish()
        self.assertNoResult(finished)
        self.clock.advance(0)
        self.heard()
        self.successResultOf(finished)

    def test_with_nothing_to_tell_it_has_finished(self) -> None:
        self.successResultOf(self.outbox.finish())

    def test_what_cannot_be_told_any_more_is_forgotten(self) -> None:
        self.put("a")
        self.clock.advance(0)
        self.put("b")
        finished = self.outbox.finish()
        self.answers.pop().errback(Failure(ConnectionLost()))
        self.successResultOf(finished)
        self.put("c")
        self.clock.advance(1)
        self.assertEqual(self.sent, [(["a"], 0), (["c"], 0)])


class KindTests(SynchronousTestCase):
    """R5.7: what stands for the event log, the security log's file and the log's output says what it was given."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.said: list[Said] = []
        self.outbox = Outbox(self.send, self.clock)

    def send(self, said: tuple[Said, ...], lost: int) -> Deferred[Any]:
        del lost
        self.said += said
        return Deferred()

    def only(self) -> tuple[Kind, str, dict[str, Any]]:
        """The one thing that was told."""
        self.clock.advance(0)
        (one,) = self.said
        return one.kind, one.name, one.values

    def test_events(self) -> None:
        RemoteEvents(self.outbox).event("session.bound", role=Role.PEER, bytes=7, token=b"secret", reason=None)
        self.assertEqual(self.only(), (Kind.EVENT, "session.bound", {"role": "PEER", "bytes": 7}))

    def test_records(self) -> None:
        RemoteRecords(self.outbox)({"event": "refused", "source": "192.0.2.1"})
        self.assertEqual(self.only(), (Kind.RECORD, "refused", {"event": "refused", "source": "192.0.2.1"}))

    def test_lines(self) -> None:
        lines = RemoteLines(self.outbox)
        lines.write("a line", LogLevel.WARN)
        lines.reopen()
        kind, name, values = self.only()
        self.assertEqual((kind, LogLevel(name), values), (Kind.LINE, LogLevel.WARN, {"line": "a line"}))
        self.assertFalse(lines.is_terminal)
