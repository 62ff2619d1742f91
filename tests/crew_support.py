"""A crew of workers without processes, and what tests tell and ask it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fake_workers import FakeWorker, Processes
from tests.two_workers import LOOPBACK
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.config import load_config
from zrc_relay.control.fleet import Fleet
from zrc_relay.core.cidr import AccessLists
from zrc_relay.engine import Surroundings
from zrc_relay.inputs import Inputs, credentials_of, engine_settings_of, load_device_keys
from zrc_relay.logs.levels import LogFormat
from zrc_relay.reload import ReloadRefused
from zrc_relay.workers.berth import STOP_TIMEOUT, State, Watchfulness
from zrc_relay.workers.crew import Crew
from zrc_relay.workers.orders import Orders, Said
from zrc_relay.workers.sockets import Sockets

COUNT = 2
STALL = 5.0


class CrewCase(SynchronousTestCase):
    """A crew of two, and what it is told and asked. ``start`` starts it; then its workers are ready and a spare is there."""

    def setUp(self) -> None:
        self.processes = Processes()
        made = make_dev_setup(Path(self.mktemp()), listen=[LOOPBACK], port=0)
        self.config = load_config(path=made.config, environ={}, options={})
        self.inputs = Inputs(self.config, credentials_of(self.config), load_device_keys(self.config))
        self.lists = AccessLists()
        self.heard: list[tuple[int, str, int]] = []
        self.times_ready = 0
        self.listener_breaks = False
        self.crew = self.make()

    def make(self, *, pins: bool = False) -> Crew:
        self.fleet = Fleet(COUNT, self.processes.seconds)
        return Crew(
            Sockets((LOOPBACK,), 0, None, COUNT), lambda: (self.orders(), self.inputs.device_keys), self.fleet,
            Surroundings(self.processes, self.processes.seconds, self.processes.seconds, bytes),
            secret=bytes(32), logs_security=False, places=4, lists=self.lists, form=lambda: LogFormat.JSON,
            watchfulness=Watchfulness(STALL, pins), listener=self, on_ready=self.became_ready,
        )

    def orders(self, **changes: Any) -> Orders:
        """Those of the configuration, with ``changes`` of the policy."""
        settings = engine_settings_of(self.config, bytes(8))
        settings = replace(settings, policy=replace(settings.policy, **changes))
        return Orders.of(self.inputs, settings, LogFormat.JSON)

    def told(self, index: int, said: tuple[Said, ...], lost: int) -> None:
        """See ``berth.Told``."""
        if self.listener_breaks:
            raise ZeroDivisionError
        self.heard += [(index, one.name, lost) for one in said]

    def became_ready(self) -> None:
        self.times_ready += 1

    def start(self) -> None:
        self.crew.startService()
        self.addCleanup(self.stop)
        self.processes.run(2)
        self.first, self.second, self.spare = self.processes.started

    def stop(self) -> None:
        if not self.crew.is_stopping:
            self.crew.stopService()
        self.processes.turn()
        self.processes.advance(STOP_TIMEOUT)
        self.processes.turn()

    def at(self, index: int) -> FakeWorker | None:
        """Who has the place ``index``."""
        pid = self.crew.berths[index].pid
        return next((worker for worker in self.processes.alive if worker.pid == pid), None)

    def occupant(self, index: int) -> FakeWorker:
        found = self.at(index)
        if found is None:
            self.fail(f"nobody is at {index}")
        return found

    def states(self) -> list[State]:
        return [berth.state for berth in self.crew.berths]

    def reload(self, **changes: Any) -> Deferred[int]:
        """Put settings in force that differ by ``changes``."""
        orders = self.orders(**changes)
        return self.crew.put_in_force(self.inputs, orders.settings, self.inputs.device_keys)

    def refused(self, reloading: Deferred[int]) -> str:
        failure: Failure = self.failureResultOf(reloading, ReloadRefused)
        return str(failure.value)

    def idle_timeouts(self) -> list[float]:
        """By which of them each goes that is at a place."""
        found = [self.occupant(index).orders for index in range(COUNT)]
        return [orders.settings.policy.idle_timeout for orders in found if orders is not None]
