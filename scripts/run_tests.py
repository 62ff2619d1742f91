"""Runs ruff, mypy and the suite, all of them even when one fails, and ends with a line ``N passed, N failed``.

After the suite, the tests of the way of a packet run once more against the compiled form (``scripts/compiled_suite.py``), and
count with the others; a machine that cannot compile is a failure that says what to install. Who names tests gets those, on the
sources.

The suite runs in a child process, so that a test that takes the interpreter down is a failure with a name and not a run that
ends early. A test that never returns is ended too, and where it hung is shown: trial's own timeouts need a reactor that runs. The
counts come from trial's own result, not from what it printed. The exit status is 0 when nothing failed and at least one test
passed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from compiled_form import NotCompiled
from compiled_suite import REPLACING, TESTS, Prepared, prepared
from twisted.trial.reporter import TreeReporter
from twisted.trial.runner import TestLoader, TrialRunner
from twisted.trial.unittest import TestSuite

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300.0
"""Seconds after which a test is taken to hang: many times what any needs, because speed must not decide whether one passes."""
LINTERS = {"ruff": ["ruff", "check", "."], "mypy": ["mypy"]}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tests ended in which way."""

    passed: int
    failed: int
    skipped: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


def main() -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="tests to run, as trial takes them; all when none is given")
    parser.add_argument("--no-lint", action="store_true", help="run the suite only")
    parser.add_argument("--compiled", action="store_true", help="run only what runs against the compiled form, on it")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds after which a test is taken to hang")
    parser.add_argument("--write-counts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.add_argument("--without", action="append", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.names or ["tests"]
    if arguments.write_counts:
        return run_suite(names, arguments.write_counts, arguments.patience, arguments.root, arguments.without)
    is_linting = not (arguments.no_lint or arguments.compiled)
    unclean = [name for name, command in LINTERS.items() if not is_clean(name, command)] if is_linting else []
    counts, trouble = Counts(0, 0, 0), list[str]()
    if not arguments.compiled:
        counts, trouble = run_in_child(names, arguments.patience)
    if arguments.compiled or not arguments.names:
        more, further = run_compiled(arguments.names or TESTS, arguments.patience)
        counts, trouble = counts + more, trouble + further
    for line in [*(f"{name} found problems, see above" for name in unclean), *trouble]:
        print(line)
    # What makes the run fail is among the failures, so that the last line alone tells.
    total = Counts(counts.passed, counts.failed + len(unclean) + len(trouble), counts.skipped)
    print(total)
    return 1 if total.failed else 0


def is_clean(name: str, command: list[str]) -> bool:
    """Whether a linter finds nothing; what it finds is printed."""
    print(f"{name}:", flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode == 0


def run_compiled(names: Iterable[str], patience: float) -> tuple[Counts, list[str]]:
    """Run tests against the compiled form; returns what ``run_in_child`` does."""
    print("compiling, half a minute:", flush=True)
    try:
        with prepared() as compiled:
            return run_in_child(names, patience, compiled)
    except NotCompiled as error:
        return Counts(0, 0, 0), [f"the compiled form was not tested: {error}"]


def run_in_child(names: Iterable[str], patience: float, compiled: Prepared | None = None) -> tuple[Counts, list[str]]:
    """Run tests in a child process; also returns a line for each thing that is wrong beside failed tests."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "counts.json")
        command = [sys.executable, __file__, "--write-counts", str(path), "--patience", str(patience), *names]
        if compiled is not None:
            command += ["--root", str(compiled.directory), *(f"--without={each}" for each in REPLACING)]
        where, environment = (compiled.directory, compiled.environment) if compiled is not None else (None, None)
        status = subprocess.run(command, cwd=where, env=environment, check=False).returncode
        if not path.exists():
            print()  # trial was in the middle of a line, the one that names the test
            how = f"signal {-status} ended it" if status < 0 else f"exit status {status}"
            return Counts(0, 0, 0), [f"the suite did not come to its end: {how}"]
        counts = Counts(**json.loads(path.read_text()))
    if counts.passed == 0 and counts.failed == 0:
        return counts, ["no test ran"]
    if status != 0 and counts.failed == 0:
        return counts, [f"the suite passed, and then its process failed: exit status {status}"]
    return counts, []


def run_suite(names: list[str], path: Path, patience: float, root: Path, without: list[str]) -> int:
    """Run the tests below ``root`` in this process and write the counts to ``path``; returns the exit status."""
    sys.path.insert(0, str(root))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what is in the background like that, and programs under test would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    class Reporter(TreeReporter):
        def startTest(self, method: Any) -> None:
            faulthandler.dump_traceback_later(patience, exit=True)
            super().startTest(method)  # type: ignore[no-untyped-call]  # trial is typed in part

    suite = TestLoader().loadByNames(names, recurse=True)
    if without:
        suite = TestSuite(each for each in _tests_of(suite) if each.id() not in without)
    # The casts say what zope.interface knows and mypy does not: a TreeReporter provides IReporter.
    runner = TrialRunner(cast(Any, Reporter))
    result = cast(TreeReporter, runner.run(suite))
    faulthandler.cancel_dump_traceback_later()
    # A test can have several errors, for instance one of its own and one of its clean-up.
    failed = _ids(result.failures) | _ids(result.errors) | _ids(result.unexpectedSuccesses)
    passed = result.successes + len(_ids(result.expectedFailures))
    path.write_text(json.dumps(asdict(Counts(passed, len(failed), len(result.skips)))))
    return 1 if failed else 0


def _tests_of(suite: Any) -> Iterator[Any]:
    """The single tests of a suite of suites."""
    if isinstance(suite, Iterable):
        for each in suite:
            yield from _tests_of(each)
    else:
        yield suite


def _ids(entries: Iterable[tuple[object, ...]]) -> set[str]:
    return {str(test.id()) if hasattr(test, "id") else repr(test) for test, *_ in entries}


if __name__ == "__main__":
    sys.exit(main())
