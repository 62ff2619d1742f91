"""The parent of workers, without processes: what it makes of what they tell, when it is ready, and kernels that do not steer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.logger import LogLevel as TwistedLevel
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fake_workers import FakeWorker, Processes
from tests.test_traffic_merged import numbered
from tests.two_workers import LOOPBACK
from zrc_relay.cli.dev_setup import DevSetup, make_dev_setup
from zrc_relay.config import load_config
from zrc_relay.core.keys import Device
from zrc_relay.core.token import key_id
from zrc_relay.engine import Surroundings
from zrc_relay.form import form
from zrc_relay.logs.levels import LogLevel
from zrc_relay.logs.observer import LogSettings, RelayLog
from zrc_relay.quic.steering import SteeringRefused
from zrc_relay.workers import parent as module
from zrc_relay.workers.berth import STOP_TIMEOUT
from zrc_relay.workers.orders import Kind, Said
from zrc_relay.workers.parent import ParentService

PINNED = Device(b"\x07" * 32, tier="", note="by an administrator")


class Lines:
    """An ``Output`` that remembers."""

    is_terminal = False

    def __init__(self) -> None:
        self.written: list[tuple[str, LogLevel]] = []

    def write(self, line: str, level: LogLevel) -> None:
        """Remember."""
        self.written.append((line, level))

    def reopen(self) -> None:
        """There is no file."""


class ParentCase(SynchronousTestCase):
    """A relay with two workers on a reactor whose processes are objects."""

    def setUp(self) -> None:
        self.processes = Processes()
        self.made: DevSetup = make_dev_setup(Path(self.mktemp()), listen=[LOOPBACK], port=0, settings={
            "workers": "2", "observe_endpoint": "off", "security_log": "security.log",
        })

    def make(self) -> ParentService:
        def load() -> Any:
            return load_config(path=self.made.config, environ={}, options={})

        service = ParentService(
            load(), Surroundings(self.processes, self.processes.seconds, self.processes.seconds, bytes), load, count=2
        )
        self.addCleanup(self.stop, service)
        return service

    def start(self) -> ParentService:
        service = self.make()
        service.startService()
        self.processes.run(2)
        return service

    def stop(self, service: ParentService) -> None:
        service.stopService()
        service.stop_draining()
        self.processes.turn()
        self.processes.advance(STOP_TIMEOUT)
        self.processes.turn()

    def worker(self, index: int) -> FakeWorker:
        return self.processes.started[index]


class SteeringTests(ParentCase):
    """Issue "all cores": where the kernel refuses the program, say so once and run one worker."""

    def test_a_kernel_that_refuses_leaves_one_worker(self) -> None:
        def refuse(host: str, port: int, count: int) -> list[Any]:
            del host, port
            if count > 1:
                msg = "Operation not permitted"
                raise SteeringRefused(msg)
            return []

        self.patch(module, "open_group", refuse)
        with capturedLogs() as logs:
            service = self.start()
        (warning,) = [event for event in logs if event.get("event") == "workers.no_steering"]
        self.assertEqual((warning["problem"], warning["log_level"]), ("Operation not permitted", TwistedLevel.warn))
        posts = [worker.post for worker in self.processes.alive if worker.post is not None]
        self.assertEqual([(post.index, post.count, len(post.sockets)) for post in posts], [(0, 1, 1)])
        self.assertTrue(service.ready)

    def test_this_one_steers(self) -> None:
        with capturedLogs() as logs:
            service = self.start()
        self.assertEqual([event for event in logs if event.get("event") == "workers.no_steering"], [])
        self.assertEqual(service.fleet.count, 2)


class ReadyTests(ParentCase):
    """R7.1: ready when every worker has listened; said once."""

    def test_it_waits_for_the_last_one(self) -> None:
        self.processes.waits = {"begin"}
        service = self.make()
        with capturedLogs() as logs:
            service.startService()
            self.processes.turn()
            self.worker(0).answer()
            self.processes.turn()
            self.assertEqual((service.ready, service.state), (False, "starting"))
            self.worker(1).answer()
            self.processes.turn()
            self.assertEqual((service.ready, service.state), (True, "ready"))
            self.processes.waits = set()
            self.worker(0).die()
            self.processes.run(1)
        self.assertEqual([event["form"] for event in logs if event.get("event") == "relay.ready"], [str(form())])

    def test_who_comes_back_while_it_drains_makes_it_not_ready_again(self) -> None:
        service = self.start()
        service.drain()
        self.worker(0).die()
        self.processes.run(1)
        self.assertEqual((service.ready, service.state), (False, "draining"))


class TellingTests(ParentCase):
    """R5.7, issue "all cores": events, security records and log lines of workers go where a single process puts its own."""

    def setUp(self) -> None:
        super().setUp()
        self.service = self.start()
        self.lines = Lines()

    def tell(self, *said: Said, lost: int = 0) -> None:
        self.worker(1).tell(*said, lost=lost)
        self.processes.turn()

    def test_events_reach_listeners_and_the_log_in_order(self) -> None:
        heard: list[tuple[str, dict[str, Any]]] = []
        self.service.hub.listen(lambda event: heard.append((event.name, json.loads(event.data))), lambda: None)
        with capturedLogs() as logs:
            self.tell(*(Said.of(Kind.EVENT, f"session.{name}", {"role": name}) for name in ("bound", "closed")))
        expected = [("session.bound", "bound"), ("session.closed", "closed")]
        self.assertEqual([(name, fields["role"]) for name, fields in heard], expected)
        self.assertEqual([event["event"] for event in logs if "role" in event], ["session.bound", "session.closed"])

    def test_records_reach_the_security_log(self) -> None:
        self.tell(Said.of(Kind.RECORD, "security.refused", {"event": "security.refused", "source": "192.0.2.1"}))
        lines = (self.made.directory / "security.log").read_text().splitlines()
        self.assertEqual([json.loads(line) for line in lines], [{"event": "security.refused", "source": "192.0.2.1"}])

    def test_lines_are_lines_of_the_log_as_they_are(self) -> None:
        self.service.log = RelayLog(self.lines, LogSettings(), self.processes.seconds)
        self.tell(Said.of(Kind.LINE, "warn", {"line": '{"worker":1}'}))
        self.assertEqual(self.lines.written, [('{"worker":1}', LogLevel.WARN)])

    def test_without_a_log_of_ones_own_they_are_told_to_twisted(self) -> None:
        with capturedLogs() as logs:
            self.tell(Said.of(Kind.LINE, "warn", {"line": "{braces}"}))
        (event,) = [event for event in logs if event.get("event") == "worker.line"]
        self.assertEqual(formatEvent(event), "{braces}")

    def test_what_was_lost_is_said(self) -> None:
        with capturedLogs() as logs:
            self.tell(lost=12)
        (event,) = [event for event in logs if event.get("event") == "worker.lost_words"]
        self.assertEqual((event["lost"], event["worker"]), (12, 1))


class LossTests(ParentCase):
    """Issue "all cores", R10: whoever keeps state from events hears that a worker took its allocations with it."""

    def setUp(self) -> None:
        super().setUp()
        self.service = self.start()
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.service.hub.listen(lambda event: self.heard.append((event.name, json.loads(event.data))), lambda: None)

    def test_the_loss_and_the_successor_are_told_once_each(self) -> None:
        lost = self.worker(1)
        lost.numbers = numbered(3)
        self.processes.run(1)
        self.assertEqual(self.heard, [])
        lost.die()
        self.assertEqual([name for name, _ in self.heard], ["worker.lost"])
        self.processes.run(3)
        fields = [fields for _, fields in self.heard]
        for each in fields:
            del each["time"]
        new_pid = self.service.crew.berths[1].pid
        self.assertEqual([name for name, _ in self.heard], ["worker.lost", "worker.replaced"])
        self.assertEqual(fields, [
            {"worker": 1, "pid": lost.pid, "allocations": 3, "connections": 3}, {"worker": 1, "pid": new_pid},
        ])
        self.assertNotEqual(new_pid, lost.pid)

    def test_one_that_has_not_reported_yet_is_told_of_too(self) -> None:
        self.worker(1).die()
        self.processes.turn()
        self.service.crew.berths[1].kill("a test")
        self.processes.turn()
        self.assertEqual([name for name, _ in self.heard], ["worker.lost"] * 2)
        self.assertEqual(self.heard[1][1]["allocations"], 0)

    def test_the_first_ones_replace_nobody(self) -> None:
        service = self.make()
        service.hub.listen(lambda event: self.heard.append((event.name, {})), lambda: None)
        service.startService()
        self.processes.run(2)
        self.assertEqual(service.fleet.running, 2)
        self.assertEqual(self.heard, [])

    def test_workers_that_end_with_the_relay_are_no_loss(self) -> None:
        self.stop(self.service)
        self.assertEqual(self.processes.alive, [])
        self.assertEqual(self.heard, [])


class KeysTests(ParentCase):
    """R1.2, R8: a key that is pinned while a reload is under way is in force after it, everywhere."""

    def test_a_key_that_is_pinned_in_the_middle_of_a_reload(self) -> None:
        service = self.start()
        self.worker(1).waits = {"prepare"}
        reloading = service.reload()
        self.processes.turn()
        self.assertNoResult(reloading)
        service.pins.pin(PINNED, service.device_keys)
        service.use_device_keys()
        self.processes.turn()
        self.worker(1).answer()
        self.processes.turn()
        self.assertTrue(self.successResultOf(reloading).is_done)
        for index in range(2):
            self.assertIn(key_id(PINNED.public_key), {key_id(device.public_key) for device in self.worker(index).keys})

    def test_otherwise_a_reload_tells_them_once(self) -> None:
        service = self.start()
        reloading = service.reload()
        self.processes.turn()
        self.assertTrue(self.successResultOf(reloading).is_done)
        self.assertEqual(self.worker(0).names(), ["begin", "prepare", "commit"])
