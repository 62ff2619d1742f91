"""The memory that workers count limits in, with real processes and the kernel's locks."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, cast

from twisted.trial.unittest import SynchronousTestCase

from tests import limits_process as task
from zrc_relay.core.limits import Lack
from zrc_relay.core.routing import Share
from zrc_relay.core.shared import DEVICE_SLOTS, SOURCE_SLOTS
from zrc_relay.core.sharedbuckets import lease_of
from zrc_relay.workers.memory import LimitsMemory, NotLimits

ROOT = Path(__file__).parent.parent
KEY = bytes(range(16))
WORKERS = 4


class Worker:
    """One of the processes, ready to begin."""

    def __init__(self, memory: LimitsMemory, index: int, what: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.limits_process", str(memory.fd), str(index), str(WORKERS), what],
            cwd=ROOT, pass_fds=(memory.fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self._input = cast(IO[str], self._process.stdin)
        self._output = cast(IO[str], self._process.stdout)

    def hear(self) -> str:
        """The next line that it prints; empty when it has ended."""
        return self._output.readline().strip()

    def begin(self) -> None:
        """Let it begin, or go on."""
        self._input.write("\n")
        self._input.flush()

    def kill(self) -> int:
        """Kill it, whatever it is doing, and wait until it is dead; returns what it ended with."""
        self._process.kill()
        self._process.communicate()
        return self._process.returncode


class ProcessesTestCase(SynchronousTestCase):
    """Memory, and processes that share it."""

    def setUp(self) -> None:
        self.memory = LimitsMemory.create(WORKERS, KEY)
        self.addCleanup(self.memory.close)

    def worker(self, index: int, what: str) -> Worker:
        """A process that has begun as soon as others have that were started with it."""
        worker = Worker(self.memory, index, what)
        self.addCleanup(worker.kill)
        return worker

    def together(self, what: str, indexes: range = range(WORKERS)) -> list[str]:
        """What so many processes print that do the same at the same time."""
        workers = [self.worker(index, what) for index in indexes]
        for worker in workers:
            self.assertEqual(worker.hear(), "ready")
        for worker in workers:
            worker.begin()
        return [worker.hear() for worker in workers]


class ExactnessTests(ProcessesTestCase):
    """R4.1, R4.4, R6.1: four processes at once are granted exactly the limit, however they come between each other."""

    def test_a_source(self) -> None:
        self.assertEqual(sum(map(int, self.together("source"))), task.RATE.events)
        self.assertEqual(len(self.memory.limits(Share(0, WORKERS)).sources("stun", task.RATE, task.NOW)), 1)

    def test_tokens(self) -> None:
        self.assertEqual(sum(map(int, self.together("tokens"))), task.TOKENS)

    def test_places(self) -> None:
        answers = [list(map(int, line.split())) for line in self.together("places")]
        devices = len(task.DEVICES)
        held = sum(sum(answer[:devices]) for answer in answers)
        self.assertEqual(len(self.memory.limits(Share(0, WORKERS)).places), held)
        self.assertEqual(max(answer[devices] for answer in answers), task.PLACES, "not one more at any time")
        self.assertLessEqual(max(answer[devices + 1] for answer in answers), task.PLACES_OF_DEVICE)

    def test_bandwidth(self) -> None:
        taken = sum(map(int, self.together("bandwidth")))
        lease = lease_of(task.LIMIT, task.BURST, WORKERS)
        self.assertLessEqual(taken, task.BURST)
        self.assertGreater(taken, task.BURST - WORKERS * (lease + task.TAKEN_AT_ONCE))


class KilledTests(ProcessesTestCase):
    """A worker that is killed blocks nobody, and what it held is given back."""

    def test_in_the_middle_of_everything(self) -> None:
        for _ in range(3):
            victim = self.worker(3, "forever")
            self.assertEqual(victim.hear(), "ready")
            victim.begin()
            self.assertEqual(victim.hear(), "alive")
            others = [self.worker(index, "places") for index in range(3)]
            for other in others:
                self.assertEqual(other.hear(), "ready")
                other.begin()
            self.assertEqual(victim.hear(), "alive")
            self.assertEqual(victim.kill(), -signal.SIGKILL)
            held = sum(self.held(other) for other in others)
            self.memory.forget(3)
            successor = self.memory.limits(Share(3, WORKERS)).places
            self.assertEqual(len(successor), held)
            free = task.PLACES - held
            self.assertEqual({successor.take(b"successor", task.PLACES, None) for _ in range(free)} - {None}, set())
            self.assertEqual(successor.take(b"successor", task.PLACES, None), Lack(is_of_device=False, held=task.PLACES))
            for index in range(WORKERS):
                self.memory.forget(index)
            self.assertEqual(len(successor), 0)

    def test_while_it_holds_a_guard(self) -> None:
        victim, other = self.worker(0, "hold"), self.worker(1, "places")
        for worker in (victim, other):
            self.assertEqual(worker.hear(), "ready")
        victim.begin()
        self.assertEqual(victim.hear(), "held")
        other.begin()
        self.assertEqual(victim.kill(), -signal.SIGKILL)
        self.assertEqual(self.held(other), len(self.memory.limits(Share(1, WORKERS)).places))

    @staticmethod
    def held(worker: Worker) -> int:
        """How many places a worker says that it holds at the end."""
        return sum(map(int, worker.hear().split()[: len(task.DEVICES)]))

    def test_a_guard_keeps_others_out_as_long_as_it_is_held(self) -> None:
        holder = self.worker(0, "hold")
        self.assertEqual(holder.hear(), "ready")
        self.assertTrue(self.is_free())
        holder.begin()
        self.assertEqual(holder.hear(), "held")
        self.assertFalse(self.is_free())
        holder.begin()
        self.assertEqual(holder.hear(), "")
        self.assertTrue(self.is_free())

    def is_free(self) -> bool:
        """Whether nobody else is in the guard of the places."""
        offset = self.memory.layout.places
        try:
            fcntl.lockf(self.memory.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except BlockingIOError:
            return False
        fcntl.lockf(self.memory.fd, fcntl.LOCK_UN, 1, offset)
        return True


class MemoryTests(SynchronousTestCase):
    """Memory is what it was made as, wherever it is attached."""

    def create(self, workers: int = 2, *, devices: int = 100) -> LimitsMemory:
        memory = LimitsMemory.create(workers, KEY, devices=devices, source_slots=64)
        self.addCleanup(memory.close)
        return memory

    def test_who_attaches_it_has_the_same_layout_and_counts(self) -> None:
        memory = self.create()
        attached = LimitsMemory.attach(os.dup(memory.fd))
        self.addCleanup(attached.close)
        self.assertEqual(attached.layout, memory.layout)
        memory.limits(Share(0, 2)).places.take(b"device", 10, None)
        self.assertEqual(len(attached.limits(Share(1, 2)).places), 1)
        self.assertEqual(attached.limits(Share(1, 2)).places.take(b"device", 10, 1), Lack(is_of_device=True, held=1))

    def test_its_size_is_what_was_asked_for_and_stays(self) -> None:
        self.assertEqual(self.create(devices=100).layout.device_slots, 512)
        self.assertEqual(os.fstat(self.create().fd).st_size, self.create().layout.size)
        for size in (0, 1 << 30):
            self.assertRaises(PermissionError, os.ftruncate, self.create().fd, size)
        memory = LimitsMemory.create(2, KEY)
        self.addCleanup(memory.close)
        self.assertEqual((memory.layout.source_slots, memory.layout.device_slots), (SOURCE_SLOTS, DEVICE_SLOTS))

    def test_programs_that_are_started_do_not_get_it_unasked(self) -> None:
        self.assertFalse(os.get_inheritable(self.create().fd))

    def test_something_else_is_not_attached(self) -> None:
        for content in (b"", b"zrclimit", bytes(100_000)):
            with tempfile.TemporaryFile() as file:
                file.write(content)
                file.flush()
                self.assertRaises(NotLimits, LimitsMemory.attach, file.fileno())

    def test_closing_it_again_closes_nobody_elses_file(self) -> None:
        memory = LimitsMemory.create(2, bytes(16))
        memory.close()
        other = os.open(os.devnull, os.O_RDONLY)  # gets the number that has become free
        self.addCleanup(os.close, other)
        memory.close()
        self.assertTrue(os.fstat(other))

    def test_keys_and_workers_that_cannot_be_are_refused(self) -> None:
        for workers, key in ((0, KEY), (65, KEY), (2, b""), (2, bytes(17))):
            self.assertRaises(ValueError, LimitsMemory.create, workers, key)
        self.assertRaises(ValueError, self.create(2).limits, Share(0, 3))
