"""Workers without processes: a reactor whose processes are objects here, joined to their parent by pairs in memory.

``Processes`` is a ``Clock`` that starts a ``FakeWorker`` where a reactor would start a process. ``run`` lets time pass in steps
of ``STEP``; in each of them every worker that is well reports, and all that was written is read. Nothing is read between two
calls of ``turn``, so tests decide what comes first.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from zrc_relay.control.sums import NOTHING
from zrc_relay.control.traffic import Numbers, WorkerReport
from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.keys import Device, DeviceKeys, KeyChanges
from zrc_relay.core.remembered import Remembered
from zrc_relay.metrics.snapshot import Snapshot
from zrc_relay.workers.commands import Report
from zrc_relay.workers.orders import (
    Begin,
    Beginning,
    ChangeKeys,
    ChangeLists,
    Commit,
    Drain,
    Keep,
    ListChange,
    Orders,
    Post,
    Prepare,
    Remember,
    Said,
    Stop,
    Tell,
    devices_of,
)
from zrc_relay.workers.pair import PairEnd

STEP = 0.25
"""Seconds of a step of ``Processes.run``; as often workers report."""


class Pipe:
    """A transport: what is written waits for ``deliver``."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closing = False

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written.append(data)

    def loseConnection(self) -> None:  # noqa: N802 - Twisted's name
        """Close it behind what is written."""
        self.is_closing = True


class FakeWorker(PairEnd):
    """A process and its end of the pair.

    It does as it is told, but for what is in ``waits``, which is answered by ``answer``, or in ``fails``.
    """

    def __init__(self, processes: Processes, pid: int, parent: PairEnd, protocol: Any) -> None:
        super().__init__()
        self.pid = pid
        self.heard: list[tuple[str, Any]] = []
        """The commands, and what came with them."""
        self.is_alive, self.stands_still = True, False
        self.kills = 0
        self.problem = ""
        self.ended = 0
        """How many allocations it says have ended."""
        self.numbers: Numbers = NOTHING
        self.snapshot = Snapshot()
        self.waits: set[str] = set()
        self.fails: set[str] = set()
        self._asked: list[Deferred[dict[str, Any]]] = []
        self._prepared: tuple[Orders, KeyChanges] | None = None
        self.orders: Orders | None = None
        self.device_keys = DeviceKeys()
        self.post: Post | None = None
        self._processes = processes
        self._parent = parent
        self._protocol = protocol
        self._up, self._down = Pipe(), Pipe()
        protocol.makeConnection(self)
        parent.makeConnection(self._down)
        self.makeConnection(self._up)

    # -- what the parent has of the process

    def signalProcess(self, name: str) -> None:  # noqa: N802 - Twisted's name
        """A signal for it; there is but one."""
        if name == "KILL":
            self.kills += 1
            self._processes.callLater(0, self.die)

    def closeStdin(self) -> None:  # noqa: N802 - Twisted's name
        """It reads nothing there."""

    # -- what can happen to it

    def die(self, *, words_last: bool = False, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Be killed. ``words_last``: the parent sees that, and does ``meanwhile``, before it has read what was written last."""
        self._end(ProcessTerminated(signal=signal.SIGKILL), words_last=words_last, meanwhile=meanwhile)

    def exit(self, status: int = 0) -> None:
        """End by itself."""
        self._end(ProcessTerminated(exitCode=status) if status else ProcessDone(0))

    def _end(self, how: Exception, *, words_last: bool = False, meanwhile: Callable[[], object] = lambda: None) -> None:
        if not self.is_alive:
            return
        self.is_alive = False
        if words_last:
            self._protocol.processEnded(Failure(how))
            meanwhile()
        self._read_by_parent()
        self._parent.connectionLost(Failure(ConnectionDone()))
        if not words_last:
            self._protocol.processEnded(Failure(how))

    def report(self) -> None:
        """Say how it is."""
        self.callRemote(Report, report=WorkerReport(self.pid, "ready", 1.0, 0.5, 0.0, (), (), self.numbers, self.snapshot))

    def tell(self, *said: Said, lost: int = 0) -> Deferred[Any]:
        """Tell that."""
        told: Deferred[Any] = self.callRemote(Tell, said=said, lost=lost)
        return told

    def keep(self, *entries: Remembered, forgotten: tuple[AllocationKey, ...] = ()) -> Deferred[Any]:
        """Say what is to be kept of allocations."""
        kept: Deferred[Any] = self.callRemote(Keep, entries=entries, forgotten=forgotten)
        return kept

    def deliver(self) -> bool:
        """Read at both ends what is there; whether there was anything."""
        if not self.is_alive:
            return False
        moved = self._read_by_parent()
        if self.stands_still:
            return moved
        data, self._down.written = b"".join(self._down.written), []
        if data:
            self.dataReceived(data)
        if self._down.is_closing and not data:
            self.exit()
        return moved or bool(data)

    def _read_by_parent(self) -> bool:
        data, self._up.written = b"".join(self._up.written), []
        if data:
            self._parent.dataReceived(data)
        return bool(data)

    # -- what it does

    def names(self) -> list[str]:
        """The commands that it heard."""
        return [name for name, _ in self.heard]

    def answer(self) -> None:
        """Answer everything that waits."""
        asked, self._asked = self._asked, []
        for each in asked:
            each.callback({})

    def _answered(self, name: str, what: Any, answer: Callable[[], dict[str, Any]]) -> Deferred[dict[str, Any]]:
        self.heard.append((name, what))
        if name in self.fails:
            raise ZeroDivisionError
        if name in self.waits:
            asked: Deferred[dict[str, Any]] = Deferred()
            self._asked.append(asked)
            return asked.addCallback(lambda _: answer())
        return succeed(answer())

    @Begin.responder
    def _begin(self, beginning: Beginning) -> Deferred[dict[str, Any]]:
        self.orders, self.device_keys, self.post = beginning.orders, DeviceKeys(beginning.keys), beginning.post
        return self._answered("begin", beginning, dict)

    @Prepare.responder
    def _prepare(self, orders: Orders, changes: KeyChanges) -> Deferred[dict[str, Any]]:
        self._prepared = orders, changes
        return self._answered("prepare", orders, lambda: {"problem": self.problem})

    @Commit.responder
    def _commit(self) -> Deferred[dict[str, Any]]:
        def follow() -> dict[str, Any]:
            if self._prepared is None:
                msg = "not prepared"
                raise ValueError(msg)
            self.orders, changes = self._prepared
            self.device_keys = self.device_keys.with_changes(changes)
            return {"ended": self.ended}

        return self._answered("commit", None, follow)

    @ChangeKeys.responder
    def _change_keys(self, changes: KeyChanges) -> Deferred[dict[str, Any]]:
        self.device_keys = self.device_keys.with_changes(changes)
        return self._answered("keys", changes, lambda: {"ended": self.ended})

    @property
    def keys(self) -> tuple[Device, ...]:
        """Those that it would go by."""
        return devices_of(self.device_keys)

    @ChangeLists.responder
    def _change_lists(self, changes: tuple[ListChange, ...]) -> Deferred[dict[str, Any]]:
        return self._answered("lists", changes, dict)

    @Remember.responder
    def _remember(self, entries: tuple[Remembered, ...]) -> Deferred[dict[str, Any]]:
        return self._answered("remember", entries, dict)

    @Drain.responder
    def _drain(self, deadline: float) -> Deferred[dict[str, Any]]:
        return self._answered("drain", deadline, dict)

    @Stop.responder
    def _stop(self) -> Deferred[dict[str, Any]]:
        return self._answered("stop", None, dict)


class Processes(Clock):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[FakeWorker] = []
        """All that there ever were, in order."""
        self.waits: set[str] = set()
        """What those that are started now do not answer."""
        self.problem: OSError | None = None
        """Why none can be started."""
        self._pids = count(1000)
        self._adopted: Any = None

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:  # noqa: N802 - Twisted's name
        """The parent's end of the next one's pair."""
        del descriptor, family
        self._adopted = factory.buildProtocol(None)

    def spawnProcess(self, protocol: Any, executable: str, arguments: Sequence[str], **options: Any) -> FakeWorker:  # noqa: N802 - Twisted's name
        """Start one."""
        del executable, arguments, options
        if self.problem is not None:
            raise self.problem
        worker = FakeWorker(self, next(self._pids), self._adopted, protocol)
        worker.waits = set(self.waits)
        self.started.append(worker)
        return worker

    def getThreadPool(self) -> Processes:  # noqa: N802 - Twisted's name
        """Threads, which are this one."""
        return self

    def callInThreadWithCallback(self, answer: Callable[[bool, Any], None], function: Callable[[], Any]) -> None:  # noqa: N802
        """Call it here and now."""
        try:
            result = function()
        except Exception:  # whatever a thread would have handed back
            answer(False, Failure())
        else:
            answer(True, result)

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:  # noqa: N802 - Twisted's name
        """Call it here and now."""
        function(*arguments)

    @property
    def alive(self) -> list[FakeWorker]:
        """Those that live."""
        return [worker for worker in self.started if worker.is_alive]

    def turn(self) -> None:
        """Read everything, and do what is due, until nothing is left to do."""
        quiet = 0
        for _ in range(50):
            self.advance(0)
            moved = [worker.deliver() for worker in self.started]
            quiet = 0 if any(moved) else quiet + 1
            if quiet == 2:
                return
        msg = "it never ends"
        raise AssertionError(msg)

    def run(self, seconds: float) -> None:
        """Let time pass, in steps."""
        self.turn()
        for _ in range(round(seconds / STEP)):
            for worker in self.alive:
                if worker.post is not None and not worker.stands_still:
                    worker.report()
            self.turn()
            self.advance(STEP)
            self.turn()
