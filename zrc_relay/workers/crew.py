"""The workers of a relay as one thing that forwards: started, told what to do together, watched, replaced (R9, "all cores").

Theory of operation
-------------------
``Crew`` opens every UDP socket before anybody is started, and keeps them: the kernel finds a worker by the order in which the
sockets were bound, so that order, and with it a worker's index, must outlive the worker. Packets for a worker that is away wait
in its sockets' buffers.

A ``Berth`` is the place of one worker, whoever fills it.

Starting a process takes half a second, so there is always one more than workers, which has everything but a place: the *spare*
takes the place of whoever ends, in some milliseconds, and another spare is started.

A worker that ended is replaced at once, and ever later while it keeps dying (``Restarts``). One that has not reported for
``stall`` seconds stands still, and is killed. What the dead one held of the shared limits is given back first.

What is said to the workers is said to all that there are, in one order; AMP keeps it. Who starts later begins with the state as
it is then. A reload asks everyone first whether he can (``Prepare``), and nothing is changed when one says no. A worker that
cannot follow afterwards is killed: its successor begins with what is in force.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.error import ConnectionClosed
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from zrc_relay.control.fleet import Fleet
from zrc_relay.control.merged import MergedTraffic
from zrc_relay.control.traffic import Traffic
from zrc_relay.core.cidr import AccessLists, Entry, Network
from zrc_relay.core.keys import DeviceKeys, KeyChanges
from zrc_relay.core.shared import DEVICES
from zrc_relay.engine import EngineSettings, Surroundings
from zrc_relay.inputs import Inputs
from zrc_relay.logs.levels import LogFormat
from zrc_relay.reload import ReloadRefused
from zrc_relay.tasks import Ticker
from zrc_relay.workers.berth import Berth, ParentEnd, State, Told, Watchfulness
from zrc_relay.workers.keeping import ENDED, Kept
from zrc_relay.workers.memory import LimitsMemory
from zrc_relay.workers.orders import (
    Beginning,
    ChangeKeys,
    ChangeLists,
    Commit,
    Drain,
    ListChange,
    Orders,
    Post,
    Prepare,
    devices_of,
)
from zrc_relay.workers.process import WorkerProcess
from zrc_relay.workers.sockets import Sockets
from zrc_relay.workers.supervision import Restarts

WATCH_INTERVAL: Final = 0.25
"""Seconds between two looks whether a worker stands still."""
REPORT_INTERVAL: Final = 1.0
"""Seconds between two reports of a worker; less where it is to be replaced sooner than it would be missed."""
SPARE_DELAY: Final = 1.0
"""Seconds after which another spare is started: those who lost their worker connect first."""


class Crew(MultiService):
    """See the module's docstring; a ``Forwarding``.

    ``first_orders`` gives what the workers begin with, and ``lists`` are followed; ``fleet`` hears how the workers
    are. ``places`` is for how many allocations there must be room. ``form`` is that of the lines that they log.
    ``on_ready`` is called whenever the last one that was missing is there.
    """

    _log = Logger()

    def __init__(
        self,
        sockets: Sockets,
        first_orders: Callable[[], tuple[Orders, DeviceKeys]],
        fleet: Fleet,
        surroundings: Surroundings,
        *,
        secret: bytes,
        logs_security: bool,
        places: int,
        lists: AccessLists,
        form: Callable[[], LogFormat],
        watchfulness: Watchfulness,
        listener: Told,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__()
        self.setName("workers")
        self.reactor, self.now, self._wall = surroundings.reactor, surroundings.now, surroundings.wall
        self._random = surroundings.random
        self.fleet = fleet
        self.sockets = sockets
        self._first_orders = first_orders
        self._orders: Orders = None  # type: ignore[assignment]  # set when it starts
        self._keys = DeviceKeys()
        """Those in force."""
        self._secret = secret
        self._logs_security = logs_security
        self._places = places
        self._lists = lists
        lists.on_change = self._list_changed
        self._form = form
        self.watchfulness = watchfulness
        self.listener = listener
        self._on_ready = on_ready
        self.is_stopping = False
        self._deadline: float | None = None
        self._changes: list[ListChange] = []
        self._looked_at = 0.0
        self._spare: tuple[WorkerProcess, ParentEnd] | None = None
        self._spare_timer: Any = None
        self._spare_started_at = 0.0
        self._spare_restarts = Restarts()
        self.berths: list[Berth] = []
        self.memory: LimitsMemory = None  # type: ignore[assignment]  # made with the sockets, before anybody starts
        self.traffic = MergedTraffic(self._traffics, fleet, self.reactor)
        self.watching = Ticker(self.reactor, WATCH_INTERVAL, self._look, "worker-watch")
        self.addService(self.watching)

    # -- starting and stopping

    def privilegedStartService(self) -> None:
        """Bind the sockets; ``StartError`` when one cannot be had."""
        super().privilegedStartService()
        if not self.berths:
            self.sockets.open()
            self.memory = LimitsMemory.create(self.sockets.count, self._random(16), devices=max(DEVICES, self._places))
            self.berths = [Berth(self, index, Kept(self._places + ENDED)) for index in range(self.sockets.count)]

    def startService(self) -> None:
        """Start the workers."""
        self.privilegedStartService()
        super().startService()
        self._looked_at = self.now()
        self._orders, self._keys = self._first_orders()
        for berth in self.berths:
            berth.start()

    def stopService(self) -> Deferred[Any]:
        """End all workers, and close the sockets; fires when that is done."""
        self.is_stopping = True
        super().stopService()
        if self._spare_timer is not None:
            self._spare_timer.cancel()
            self._spare_timer = None
        if self._spare is not None:
            self._spare[0].kill()
        stopped = DeferredList([berth.stop() for berth in self.berths])
        return stopped.addBoth(lambda _: self._close())

    def _close(self) -> None:
        self.sockets.close()
        if self.memory is not None:
            self.memory.close()

    def someone(self) -> tuple[WorkerProcess, ParentEnd]:
        """A process for a place: the spare, or a new one (``OSError``)."""
        if self._spare is None:
            return self._someone_new()
        someone, self._spare = self._spare, None
        self._want_spare(SPARE_DELAY)
        return someone

    def _someone_new(self) -> tuple[WorkerProcess, ParentEnd]:
        protocol = ParentEnd()
        process = WorkerProcess(protocol, self._spare_ended)
        process.start(self.reactor, self.memory.fd, self.sockets.all)
        return process, protocol

    def _want_spare(self, delay: float) -> None:
        if self._spare is None and self._spare_timer is None and not self.is_stopping:
            self._spare_timer = self.reactor.callLater(delay, self._start_spare)

    def _start_spare(self) -> None:
        self._spare_timer = None
        self._spare_started_at = self.now()
        try:
            self._spare = self._someone_new()
        except OSError as error:
            self._spare_ended(f"it could not be started: {error}")

    def _spare_ended(self, how: str) -> None:
        self._spare = None
        if not self.is_stopping:
            delay = self._spare_restarts.next_delay(self.now() - self._spare_started_at)
            self._log.warn("the spare worker is gone ({reason})", event="worker.spare_gone", reason=how, delay=delay)
            self._want_spare(delay + SPARE_DELAY)

    def beginning(self, index: int) -> Beginning:
        """What a worker begins with that starts now."""
        cpus = sorted(os.sched_getaffinity(0)) if self.watchfulness.pins else []
        post = Post(
            index, len(self.berths), self.sockets.places(index), len(self.sockets.all), self._secret, self._logs_security,
            tuple(cpus[index % len(cpus) :][:1]) if cpus else (), min(REPORT_INTERVAL, self.watchfulness.stall / 4),
        )
        remembered = self.berths[index].kept.take_stock(self._wall())
        return Beginning(
            post, self._placed(self._orders), devices_of(self._keys), tuple(self._lists.runtime_entries), remembered
        )

    def _placed(self, orders: Orders) -> Orders:
        """``orders`` with the ports that lead to one worker each."""
        policy = replace(orders.settings.policy, worker_port_base=self.sockets.worker_port_base)
        return replace(orders, settings=replace(orders.settings, policy=policy))

    def became_ready(self, berth: Berth) -> None:
        """A worker listens."""
        if self._deadline is not None:
            berth.tell(Drain, deadline=self._deadline).addErrback(_is_gone)
        if all(each.state is State.READY for each in self.berths):
            self._want_spare(SPARE_DELAY)
            self._on_ready()

    # -- what they do together

    def use_keys(self, keys: DeviceKeys) -> Deferred[int]:
        """See ``Forwarding``."""
        changes = self._keys.changes_to(keys)
        self._keys = keys
        return self._all(ChangeKeys, changes=changes).addCallback(_sum_of_ended)

    def put_in_force(self, inputs: Inputs, settings: EngineSettings, keys: DeviceKeys) -> Deferred[int]:
        """See ``Forwarding``."""
        return Deferred.fromCoroutine(self._put_in_force(Orders.of(inputs, settings, self._form()), self._keys.changes_to(keys)))

    async def _put_in_force(self, orders: Orders, changes: KeyChanges) -> int:
        asked = [(berth, berth.occupant) for berth in self.berths]
        placed = self._placed(orders)
        answers: list[Any] = await gatherResults(
            [berth.tell(Prepare, orders=placed, changes=changes).addErrback(_said_no, berth) for berth in self.berths]
        )
        problems = {answer["problem"] for answer in answers if answer is not None} - {""}
        if problems:
            raise ReloadRefused("\n".join(sorted(problems)))
        self._orders, self._keys = orders, self._keys.with_changes(changes)
        followers: list[Deferred[Any]] = []
        for berth, occupant in asked:
            if berth.occupant is occupant:
                followers.append(berth.tell(Commit).addErrback(self._cannot_follow, berth))
            else:
                berth.kill("it began in the middle of a reload, with what was in force before")
        return _sum_of_ended(await gatherResults(followers))

    @staticmethod
    def _cannot_follow(failure: Failure, berth: Berth) -> None:
        if not failure.check(ConnectionClosed):
            berth.kill(f"it could not take part in a reload: {failure.getErrorMessage() or failure.type}")

    def _list_changed(self, network: Network, entry: Entry | None) -> None:
        """The workers hear of it at the end of this turn of the reactor, together with what else happens in it."""
        if not self._changes:
            self.reactor.callLater(0, self._changes_due)
        self._changes.append(ListChange(network, entry))

    def _changes_due(self) -> None:
        if self._changes:
            self.lists_in_force()

    def lists_in_force(self) -> Deferred[None]:
        """See ``Forwarding``. What was sent before is done before, so the answers to this are answers to all of it."""
        changes, self._changes = tuple(self._changes), []
        return self._all(ChangeLists, changes=changes).addCallback(lambda _: None)

    def drain(self, deadline: float) -> Deferred[None]:
        """See ``Forwarding``."""
        self._deadline = deadline
        return self._all(Drain, deadline=deadline).addCallback(lambda _: None)

    def _all(self, command: type[amp.Command], **arguments: Any) -> Deferred[list[Any]]:
        """Send a command to everybody; fires with the answers, None of who is gone."""
        return gatherResults([berth.tell(command, **arguments).addErrback(_is_gone) for berth in self.berths])

    # -- watching

    def _traffics(self) -> dict[int, Traffic]:
        return {berth.index: berth.traffic for berth in self.berths if berth.traffic is not None}

    def _look(self) -> None:
        now, before, self._looked_at = self.now(), self._looked_at, self.now()
        if now - before > 2 * WATCH_INTERVAL:  # it is this process that stood still: what they said meanwhile is not read yet
            for berth in self.berths:
                berth.heard_at = max(berth.heard_at, now)
            return
        for berth in self.berths:
            if berth.state is not State.DOWN and now - berth.heard_at > self.watchfulness.stall:
                berth.stalled()


def _sum_of_ended(answers: list[Any]) -> int:
    return sum(answer["ended"] for answer in answers if answer is not None)


def _said_no(failure: Failure, berth: Berth) -> dict[str, str] | None:
    """What a worker answered that failed while it was asked; None when it died."""
    if failure.check(ConnectionClosed):
        return None
    failure.trap(amp.AmpError)
    return {"problem": f"{berth.name} failed: {failure.getErrorMessage() or failure.type}"}


def _is_gone(failure: Failure) -> None:
    """A worker that died in the middle of a question; its successor begins with what is in force."""
    failure.trap(ConnectionClosed, amp.AmpError)
