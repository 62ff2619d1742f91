"""``zrc-relay demo``: for real, and how it ends when something goes wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import PATIENCE
from zrc_relay.cli.demo import HEADINGS, Interrupts, Phase, percentile
from zrc_relay.cli.errors import STATUS_INTERRUPTED
from zrc_relay.cli.processes import Child, ChildFailed, child_environment, cli_command

FOR_EVER = ("--requests", "1000000")


class DemoCase(SynchronousTestCase):
    """Runs the demo in a process, with a directory for temporary files that nobody else uses."""

    timeout = 4 * PATIENCE

    def setUp(self) -> None:
        self.temporary = Path(self.mktemp()).absolute()
        self.temporary.mkdir(parents=True)
        self.printed = ""

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        demo = subprocess.Popen(
            cli_command("demo", *arguments),
            env={**child_environment(), "TMPDIR": str(self.temporary), **environment},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(demo.wait)
        self.addCleanup(demo.kill)
        return demo

    def read_until(self, demo: subprocess.Popen[str], part: str) -> None:
        if demo.stdout is None:
            self.fail("no output to read")
        for line in demo.stdout:
            self.printed += line
            if part in line:
                return
        self.fail(f"the demo ended without {part!r}: {self.printed}")

    def finish(self, demo: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for its end; the status and what it wrote to standard error."""
        output, errors = demo.communicate(timeout=2 * PATIENCE)
        self.printed += output
        return demo.returncode, errors

    def children(self) -> list[int]:
        """Process ids of the relay and the tunnels, out of what was printed."""
        return [int(number) for line in re.findall(r"process(?:es)? .*", self.printed) for number in re.findall(r"\b\d+\b", line)]

    def assert_nothing_is_left(self) -> None:
        self.assertEqual(list(self.temporary.iterdir()), [])
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes()
            except OSError:
                continue  # it ended while we looked
            if str(self.temporary).encode() in command:
                found.append(command)
        self.assertEqual(found, [])


class DemoTests(DemoCase):
    """Issue 2: ``zrc-relay demo`` starts a relay, carries real traffic through it and verifies every byte."""

    def test_a_quick_run_ends_well_and_leaves_nothing(self) -> None:
        # Settings for a relay that somebody has in the environment are not for this one.
        demo = self.start("--quick", ZRC_RELAY_LISTEN_PORT="rubbish")
        status, errors = self.finish(demo)
        self.assertEqual((status, errors), (0, ""), self.printed)
        self.assertEqual(len(self.children()), 4, self.printed)  # three process ids and the relay's port
        for part in ("100 requests, each response compared", "500.0 kB transferred", "bulk: 100 %", "only ciphertext"):
            self.assertIn(part, self.printed)
        self.assertIn(" ".join(HEADINGS), " ".join(self.printed.split()))
        rows = {line.split()[0]: line.split() for line in self.printed.splitlines() if re.match(r"(requests|bulk) +[0-9]", line)}
        self.assertGreaterEqual(int(rows["requests"][1]), 200)
        self.assertGreaterEqual(int(rows["bulk"][1].replace(",", "")), 500_000 // 1200)
        for name in ("requests", "bulk"):
            self.assertGreater(int(rows[name][-1]), 0)  # microseconds of the relay's CPU
        self.assert_nothing_is_left()

    def test_ctrl_c_ends_it_at_once_and_leaves_nothing(self) -> None:
        demo = self.start(*FOR_EVER)
        self.read_until(demo, "device and peer connected")
        demo.send_signal(signal.SIGINT)
        status, errors = self.finish(demo)
        self.assertEqual(status, STATUS_INTERRUPTED, errors)
        self.assertNotIn("Traceback", errors)
        self.assert_nothing_is_left()

    def test_sigterm_while_it_starts_leaves_nothing(self) -> None:
        demo = self.start(*FOR_EVER)
        self.read_until(demo, "relay: process")
        demo.terminate()
        status, errors = self.finish(demo)
        self.assertEqual(status, STATUS_INTERRUPTED, errors)
        self.assertNotIn("Traceback", errors)
        self.assert_nothing_is_left()

    def test_a_relay_that_dies_is_status_1_with_its_last_lines(self) -> None:
        demo = self.start(*FOR_EVER)
        self.read_until(demo, "device and peer connected")
        os.kill(self.children()[0], signal.SIGKILL)
        status, errors = self.finish(demo)
        self.assertEqual(status, 1)
        self.assertTrue(errors.startswith("zrc-relay: relay was ended by signal 9\n"), errors)
        self.assertIn("the last lines of the relay:", errors)
        self.assertIn("listening on UDP", errors)
        self.assertNotIn("Traceback", errors)
        self.assert_nothing_is_left()


class ChildTests(SynchronousTestCase):
    """Issue 2: what becomes of the processes of the demo is known, and they end."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir(parents=True)

    def start(self, program: str) -> Child:
        child = Child("some child", [sys.executable, "-c", program], self.directory.absolute(), child_environment())
        self.addCleanup(child.stop)
        return child

    def test_a_line_it_prints_can_be_waited_for(self) -> None:
        child = self.start("print('port 17', flush=True); input_ = __import__('time').sleep(600)")
        self.assertEqual(child.wait_for(r"port (\d+)\n", timeout=PATIENCE)[1], "17")
        child.check()

    def test_a_child_that_ends_first_is_a_failure_that_shows_what_it_said(self) -> None:
        child = self.start("import sys; print(*range(100), sep='\\n'); sys.exit('no luck')")
        error = self.assertRaises(ChildFailed, child.wait_for, "never", timeout=PATIENCE)
        self.assertEqual(str(error), "some child exited with status 1")
        self.assertTrue(child.tail.endswith("98\n99\nno luck"), child.tail)
        self.assertLess(len(child.tail.splitlines()), 20)

    def test_a_child_that_says_nothing_is_a_failure_after_a_while(self) -> None:
        child = self.start("import time; time.sleep(600)")
        error = self.assertRaises(ChildFailed, child.wait_for, "never", timeout=0.1)
        self.assertIn("not ready within 0.1 s", str(error))

    def test_one_that_ignores_sigterm_is_killed(self) -> None:
        child = self.start(
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
        )
        child.wait_for("deaf", timeout=PATIENCE)
        child.stop(patience=0.1)
        self.assertEqual(str(self.assertRaises(ChildFailed, child.check)), "some child was ended by signal 9")

    def test_the_processor_time_it_used_is_known(self) -> None:
        child = self.start(
            "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time(), flush=True)\ntime.sleep(600)"
        )
        used = float(child.wait_for(r"^([0-9.]+)\n", timeout=PATIENCE)[1])
        self.assertTrue(used - 0.1 < child.cpu_seconds() < used + 0.1)

    def test_settings_of_the_environment_are_kept_from_it(self) -> None:
        os.environ["ZRC_RELAY_CONFIG"] = "somebody's"
        self.addCleanup(os.environ.pop, "ZRC_RELAY_CONFIG")
        self.assertNotIn("ZRC_RELAY_CONFIG", child_environment())


class InterruptTests(SynchronousTestCase):
    """Issue 2: the demo cleans up on Ctrl-C, whenever it comes."""

    def test_a_signal_interrupts(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with Interrupts():
                self.assertRaises(KeyboardInterrupt, os.kill, os.getpid(), number)

    def test_while_held_it_waits(self) -> None:
        done: list[str] = []
        with Interrupts() as interrupts, self.assertRaises(KeyboardInterrupt), interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the rest")
        self.assertEqual(done, ["the rest"])

    def test_an_error_under_way_is_not_replaced(self) -> None:
        with Interrupts() as interrupts, self.assertRaises(ZeroDivisionError), interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError

    def test_the_handlers_before_are_back_afterwards(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        with Interrupts():
            pass
        self.assertEqual([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)], before)


class FigureTests(SynchronousTestCase):
    """Issue 2: the figures of the last table."""

    def test_percentiles_are_nearest_ranks(self) -> None:
        values = [float(number) for number in range(100, 0, -1)]
        self.assertEqual([percentile(values, p) for p in (1, 50, 99, 100)], [1.0, 50.0, 99.0, 100.0])
        self.assertEqual(percentile([7.0], 50), 7.0)

    def test_a_row_has_a_figure_for_each_heading(self) -> None:
        phase = Phase("requests", datagrams=2000, bytes=1_300_000, lost=3, seconds=2.0, relay_cpu=0.4, times=[0.001] * 99 + [0.5])
        row = ("requests", "2,000", "1.3 MB", "3 (0.15%)", "1.00", "1.00", "650.0 kB/s", "200")
        self.assertEqual(phase.row(), row)
        self.assertEqual(len(row), len(HEADINGS))

    def test_where_no_times_were_taken_there_are_none(self) -> None:
        row = Phase("bulk", datagrams=10, bytes=100, lost=0, seconds=1.0, relay_cpu=0.1).row()
        self.assertEqual(row[4:6], ("-", "-"))
