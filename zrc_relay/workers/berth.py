"""The place of one worker: whoever fills it changes, and the place knows what to do about that (R9).

Theory of operation
-------------------
::

    down -- start --> starting -- Begin answered --> ready
       <-- the process ended, for whatever reason --

When the process has ended, what it held of the shared limits is given back, what it had counted stays counted, what it knew of
allocations is ``Kept``, and another one is started at once, or ever later while they keep dying (``Restarts``). Where processes
come from, and what one begins with, is the business of the ``House`` that the place is in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionClosed
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from zrc_relay.control.fleet import Fleet
from zrc_relay.control.traffic import Traffic, WorkerReport
from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.remembered import Remembered
from zrc_relay.workers.commands import Report
from zrc_relay.workers.keeping import Kept
from zrc_relay.workers.memory import LimitsMemory
from zrc_relay.workers.orders import Begin, Beginning, Keep, Remember, Said, Stop, Tell
from zrc_relay.workers.pair import PairEnd
from zrc_relay.workers.process import WorkerProcess
from zrc_relay.workers.remote import RemoteTraffic
from zrc_relay.workers.supervision import Restarts

START_TIMEOUT: Final = 30.0
"""Seconds within which a worker must listen."""
STOP_TIMEOUT: Final = 5.0
"""Seconds that a worker has to close its connections and end."""


@unique
class State(Enum):
    """Whether somebody is there."""

    DOWN = "down"
    STARTING = "starting"
    READY = "ready"


class Told(Protocol):
    """Who hears what workers tell."""

    def told(self, index: int, said: tuple[Said, ...], lost: int) -> None:
        """Worker ``index`` told that, in this order; ``lost`` things before it could not be told."""
        ...


@dataclass(frozen=True, slots=True)
class Watchfulness:
    """``stall``: seconds without a word after which a worker stands still. ``pins``: each worker gets a CPU of its own."""

    stall: float
    pins: bool


class House(Protocol):
    """What has places for workers, and what they need from it. ``now`` gives monotonic seconds."""

    reactor: Any
    now: Callable[[], float]
    memory: LimitsMemory
    fleet: Fleet
    watchfulness: Watchfulness
    listener: Told
    is_stopping: bool

    def someone(self) -> tuple[WorkerProcess, ParentEnd]:
        """A process for a place; ``OSError`` when none can be had."""
        ...

    def beginning(self, index: int) -> Beginning:
        """What a worker begins with that starts now."""
        ...

    def became_ready(self, berth: Berth) -> None:
        """A worker listens."""
        ...


class ParentEnd(PairEnd):
    """The parent's end of the pair with one process. A spare says nothing.

    A process may be known to be over before all that it said has been read. Its last words are for the log and for whoever comes
    after it; its numbers come too late: what it counted was added up when it ended.
    """

    _log = Logger()

    berth: Berth
    """The place that it has, once it has one."""
    is_over = False
    """Whether the process has ended."""

    def ampBoxReceived(self, box: amp.Box) -> None:  # noqa: N802 - Twisted's name
        """See ``IBoxReceiver``."""
        if not self.is_over or box.get(amp.COMMAND) in (Tell.commandName, Keep.commandName):
            super().ampBoxReceived(box)

    @Report.responder
    def reported(self, report: WorkerReport) -> dict[str, Any]:
        """See ``Report``."""
        self.berth.reported(report)
        return {}

    @Tell.responder
    def told(self, said: tuple[Said, ...], lost: int) -> dict[str, Any]:
        """See ``Tell``."""
        try:
            self.berth.house.listener.told(self.berth.index, said, lost)
        except Exception:  # an answer that is an error would end the connection, and with it the worker
            self._log.failure("what worker {worker} told could not be kept", event="worker.untold", worker=self.berth.index)
        return {}

    @Keep.responder
    def kept(self, entries: tuple[Remembered, ...], forgotten: tuple[AllocationKey, ...]) -> dict[str, Any]:
        """See ``Keep``."""
        self.berth.keep(entries, forgotten, is_late=self.is_over)
        return {}


class Berth:
    """The place of the worker ``index`` in ``house``; see the module's docstring."""

    _log = Logger()

    def __init__(self, house: House, index: int, kept: Kept) -> None:
        self.house = house
        self.index = index
        self.kept = kept
        self.state = State.DOWN
        self.restarts = Restarts()
        self.traffic: Traffic | None = None
        self.heard_at = 0.0
        self._process: WorkerProcess | None = None
        self._protocol: ParentEnd | None = None
        self._started_at = 0.0
        self._timer: Any = None
        self._ended: Deferred[None] | None = None

    @property
    def name(self) -> str:
        """What logs call the worker."""
        return f"worker {self.index}"

    @property
    def occupant(self) -> object:
        """Whoever is there, to be compared; None while nobody is."""
        return self._process

    @property
    def pid(self) -> int | None:
        """The process that is there."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Put a new process here."""
        house = self.house
        self._timer = None
        self.state, self._started_at = State.STARTING, house.now()
        self._ended = Deferred()
        try:
            process, protocol = house.someone()
        except OSError as error:
            self._process_ended(f"it could not be started: {error}")
            return
        process.place, process.on_end, protocol.berth = self.index, self._process_ended, self
        # One that has just been started may take its time; one that has waited here as a spare has loaded all that there is.
        allowance = 0.0 if self._started_at - process.started_at > START_TIMEOUT else START_TIMEOUT - house.watchfulness.stall
        self.heard_at = self._started_at + max(0.0, allowance)
        self._process, self._protocol = process, protocol
        house.fleet.begun(self.index, process.pid)
        self.tell(Begin, beginning=house.beginning(self.index)).addCallbacks(self._begun, self._not_begun, (protocol,))

    def tell(self, command: type[amp.Command], **arguments: Any) -> Deferred[Any]:
        """Send a command to whoever is there; fires with the answer, or fails."""
        if self._protocol is None:
            return succeed(None)
        told: Deferred[Any] = self._protocol.callRemote(command, **arguments)
        return told

    def stalled(self) -> None:
        """Nothing was heard for too long: end whoever is there."""
        self.heard_at = self.house.now()  # killed once
        if self.state is State.STARTING:
            self.kill("it did not begin in time")
        else:
            self.kill(f"it stood still for more than {self.house.watchfulness.stall:g} s")

    def kill(self, why: str) -> None:
        """End whoever is there, who will be replaced."""
        if self._process is not None:
            self._log.error(
                "worker {worker} is killed: {problem}", event="worker.killed", worker=self.index, pid=self.pid, problem=why
            )
            self._process.kill()

    def stop(self) -> Deferred[None]:
        """End in peace whoever is there, and put nobody here; fires when the process is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is None or self._ended is None:
            return succeed(None)
        process, ended = self._process, self._ended
        patience = self.house.reactor.callLater(STOP_TIMEOUT, process.kill)

        def over(result: Any) -> Any:
            if patience.active():
                patience.cancel()
            return result

        self.tell(Stop).addErrback(lambda _: None).addCallback(lambda _: self._hang_up())
        return ended.addBoth(over)

    def reported(self, report: WorkerReport) -> None:
        """The worker is well enough to say how it is."""
        self.heard_at = self.house.now()
        self.house.fleet.reported(self.index, report)

    def keep(self, entries: tuple[Remembered, ...], forgotten: tuple[AllocationKey, ...], *, is_late: bool) -> None:
        """The worker knows that of allocations. ``is_late``: it is over, and its successor may have begun without it."""
        self.kept.keep(entries, forgotten)
        if is_late:
            self.tell(Remember, entries=entries).addErrback(lambda _: None)  # who dies now leaves what is kept to the next one

    def _hang_up(self) -> None:
        transport: Any = self._protocol.transport if self._protocol is not None else None
        if transport is not None:
            transport.loseConnection()

    def _begun(self, _: object, protocol: ParentEnd) -> None:
        if protocol is not self._protocol:
            return
        self.state, self.heard_at = State.READY, self.house.now()
        self.traffic = RemoteTraffic(protocol)
        self._log.info(
            "worker {worker} is ready", event="worker.ready", worker=self.index, pid=self.pid,
            seconds=round(self.heard_at - self._started_at, 3),
        )
        self.house.became_ready(self)

    def _not_begun(self, failure: Failure) -> None:
        if not failure.check(ConnectionClosed):  # otherwise it has ended by itself
            self.kill(f"it could not begin: {failure.getErrorMessage() or failure.type}")

    def _process_ended(self, how: str) -> None:
        house = self.house
        lived = house.now() - self._started_at
        if self._protocol is not None:
            self._protocol.is_over = True
        pid, self._process, self._protocol, self.traffic = self.pid, None, None, None
        self.state = State.DOWN
        house.memory.forget(self.index)
        house.fleet.lost(self.index)
        if not house.is_stopping:
            delay = self.restarts.next_delay(lived)
            self._log.error(
                "worker {worker} is gone ({reason}); it is replaced in {delay} s", event="worker.gone",
                worker=self.index, pid=pid, reason=how, seconds=round(lived, 3), delay=delay,
            )
            self._timer = house.reactor.callLater(delay, self.start)
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.callback(None)
