"""The script behind ``make test``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/run_tests.py"

# Tests that the script is run on: samples, and none of the suite.
HEAD = "import os, signal\nfrom twisted.trial.unittest import SynchronousTestCase\n\nclass T(SynchronousTestCase):\n"
PASSES = "    def test_passes{0}(self): pass\n"
FAILS = "    def test_fails{0}(self): self.fail('x')\n"
ERRS = "    def test_errs(self): raise KeyError\n    def tearDown(self): raise RuntimeError\n"
SKIPS = "    def test_skips(self): pass\n    test_skips.skip = 'no reason'\n"
FAILS_AS_EXPECTED = "    def test_todo(self): self.fail('x')\n    test_todo.todo = 'later'\n"
PASSES_UNEXPECTEDLY = "    def test_todo(self): pass\n    test_todo.todo = 'later'\n"
DIES = "    def test_zdies(self): os.kill(os.getpid(), signal.SIGKILL)\n"
LEAVES = "    def test_zleaves(self): os._exit(0)\n"
IS_INTERRUPTED = (
    "    def test_interrupted(self):\n"
    "        with self.assertRaises(KeyboardInterrupt): os.kill(os.getpid(), signal.SIGINT)\n"
)
HANGS = "    def test_zhangs(self):\n        while True: pass\n"
ENDS_BADLY = "import atexit\natexit.register(os._exit, 7)\n"


class Runs(SynchronousTestCase):
    """Issue 2: ``make test`` ends with trial's own counts and a line "N passed, N failed", and hides nothing."""

    def run_suite(self, *pieces: str, patience: float = 300, before: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        """Exit status and printed lines for a suite with these tests; ``before`` is a command that runs the script."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        suite = directory / "test_sample.py"
        suite.write_text(HEAD + "".join(pieces))
        command: list[str | Path] = [*before, sys.executable, SCRIPT, "--no-lint", "--patience", str(patience), suite]
        done = subprocess.run(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.returncode, done.stdout.splitlines()

    def test_all_is_well(self) -> None:
        status, lines = self.run_suite(PASSES.format(1), PASSES.format(2))
        self.assertEqual((status, lines[-1]), (0, "2 passed, 0 failed"))
        self.assertEqual([line for line in lines if line.startswith("PASSED")], ["PASSED (successes=2)"])
        self.assertTrue(any(re.match(r"Ran 2 tests in ", line) for line in lines))

    def test_it_may_run_in_the_background(self) -> None:
        """Where a shell has it ignore Ctrl-C, programs under test would, too."""
        ignoring = ("sh", "-c", 'trap "" INT; exec "$0" "$@"')
        self.assertEqual(self.run_suite(IS_INTERRUPTED, before=ignoring)[1][-1], "1 passed, 0 failed")

    def test_a_failure_shows_and_counts(self) -> None:
        status, lines = self.run_suite(PASSES.format(1), FAILS.format(1), FAILS.format(2))
        self.assertEqual((status, lines[-1]), (1, "1 passed, 2 failed"))
        self.assertIn("FAILED (failures=2, successes=1)", lines)

    def test_a_test_with_two_errors_is_one_test(self) -> None:
        status, lines = self.run_suite(ERRS)
        self.assertEqual((status, lines[-1]), (1, "0 passed, 1 failed"))

    def test_skips_are_told(self) -> None:
        status, lines = self.run_suite(PASSES.format(1), SKIPS)
        self.assertEqual((status, lines[-1]), (0, "1 passed, 0 failed, 1 skipped"))

    def test_what_was_expected_to_fail_passes_by_failing(self) -> None:
        self.assertEqual(self.run_suite(FAILS_AS_EXPECTED)[0], 0)
        self.assertEqual(self.run_suite(PASSES_UNEXPECTEDLY)[0], 1)

    def test_a_module_that_cannot_be_imported_is_a_failure(self) -> None:
        status, lines = self.run_suite(PASSES.format(1), "\nimport there_is_no_such_module\n")
        self.assertEqual((status, lines[-1]), (1, "0 passed, 1 failed"))

    def test_a_test_that_kills_the_interpreter_is_a_failure(self) -> None:
        status, lines = self.run_suite(PASSES.format(1), DIES)
        self.assertEqual(status, 1)
        self.assertEqual(lines[-2:], ["the suite did not come to its end: signal 9 ended it", "0 passed, 1 failed"])
        self.assertEqual(lines[-3].strip(), "test_zdies ...")

    def test_a_test_that_leaves_with_status_0_is_a_failure(self) -> None:
        status, lines = self.run_suite(PASSES.format(1), LEAVES)
        self.assertEqual(status, 1)
        self.assertEqual(lines[-2:], ["the suite did not come to its end: exit status 0", "0 passed, 1 failed"])

    def test_a_test_that_never_returns_is_a_failure_and_shows_where_it_hangs(self) -> None:
        status, lines = self.run_suite(HANGS, patience=0.5)
        self.assertEqual(status, 1)
        self.assertEqual(lines[-2:], ["the suite did not come to its end: exit status 1", "0 passed, 1 failed"])
        self.assertTrue(any("test_sample.py" in line and line.endswith("in test_zhangs") for line in lines), lines)

    def test_a_process_that_ends_badly_after_the_last_test_is_a_failure(self) -> None:
        status, lines = self.run_suite(PASSES.format(1), ENDS_BADLY)
        self.assertEqual(status, 1)
        self.assertEqual(lines[-2:], ["the suite passed, and then its process failed: exit status 7", "1 passed, 1 failed"])

    def test_a_machine_that_cannot_compile_is_a_failure_that_says_what_to_install(self) -> None:
        empty = self.mktemp()
        Path(empty).mkdir()
        done = subprocess.run(
            [sys.executable, SCRIPT, "--compiled"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env={**os.environ, "PATH": empty},
        )
        trouble, total = done.stdout.splitlines()[-2:]
        self.assertEqual((done.returncode, total), (1, "0 passed, 1 failed"))
        self.assertRegex(trouble, r"^the compiled form was not tested: .*no C compiler.*apt install gcc libc6-dev python3-dev")

    def test_what_does_not_run_against_the_compiled_form_is_a_test_of_what_does(self) -> None:
        code = (
            "from compiled_suite import REPLACING, TESTS; from twisted.trial.runner import TestLoader; loader = TestLoader();"
            "print([each for each in REPLACING if not each.startswith(TESTS) or loader.loadByName(each).countTestCases() != 1])"
        )
        paths = os.pathsep.join(map(str, (SCRIPT.parent, SCRIPT.parent.parent)))
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
        self.assertEqual(done.stdout.strip(), "[]")

    def test_a_suite_without_tests_is_a_failure(self) -> None:
        status, lines = self.run_suite("    pass\n")
        self.assertEqual((status, lines[-2:]), (1, ["no test ran", "0 passed, 1 failed"]))
