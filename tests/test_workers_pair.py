"""Issue "all cores": the pair between a parent and a worker outlives whoever waits for an answer."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.protocols import amp
from twisted.test.iosim import connectedServerAndClient
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.workers.commands import Arguments, Value
from zrc_relay.workers.pair import PairEnd


class Ask(amp.Command):
    """Something that takes a while."""

    response: ClassVar[Arguments] = [(b"value", Value(int))]


class Slow(PairEnd):
    """Answers when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Deferred[dict[str, Any]]] = []

    @Ask.responder
    def ask(self) -> Deferred[dict[str, Any]]:
        """See ``Ask``."""
        self.asked.append(Deferred())
        return self.asked[-1]


class PairTests(SynchronousTestCase):
    """Two ends in memory."""

    def setUp(self) -> None:
        self.parent, self.worker, self.pump = connectedServerAndClient(Slow, PairEnd)

    def test_an_answer_that_nobody_waits_for_any_more_does_no_harm(self) -> None:
        waits = self.parent.callRemote(Ask)
        self.pump.flush()
        waits.cancel()
        self.failureResultOf(waits)
        again = self.parent.callRemote(Ask)
        self.pump.flush()
        for number, asked in enumerate(self.worker.asked):
            asked.callback({"value": number})
        self.pump.flush()
        self.assertEqual(self.successResultOf(again), {"value": 1})

    def test_an_end_that_is_gone_fails_what_waits(self) -> None:
        waits = self.parent.callRemote(Ask)
        self.pump.flush()
        transport: Any = self.worker.transport
        transport.loseConnection()
        self.pump.flush()
        self.failureResultOf(waits)
