"""Everything that reads bytes of strangers takes any bytes (R5.6, R6.9)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, given, settings
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.seeds import REGRESSIONS, SEEDS
from tests.fuzz.strategies import inputs
from tests.fuzz.targets import TARGETS, Broken, check

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SECONDS: Final = 20
"""Each engine feeds each target for so long, all of them at once."""
PATIENCE: Final = 120.0
HAS_ATHERIS: Final = importlib.util.find_spec("atheris") is not None
ENGINES: Final = ("hypothesis", *(("atheris",) if HAS_ATHERIS else ()))
QUICK: Final = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


class SeedTests(SynchronousTestCase):
    """Issue "must show": seeds are kept as regression cases."""

    def test_each_seed_and_each_input_that_once_broke_something(self) -> None:
        self.assertEqual(set(SEEDS), set(TARGETS))
        self.assertEqual(set(REGRESSIONS), set(TARGETS))
        for name, target in TARGETS.items():
            for data in (*SEEDS[name], *REGRESSIONS[name]):
                target(data)

    def test_a_target_tells_of_a_promise_that_is_broken(self) -> None:
        self.assertRaises(Broken, check, 0, "never")


class HypothesisTests(SynchronousTestCase):
    """R5.6, R6.9: a few hundred inputs for each target, the same ones in each run."""

    @QUICK
    @given(inputs(SEEDS["wire"]))
    def test_wire(self, data: bytes) -> None:
        TARGETS["wire"](data)

    @QUICK
    @given(inputs(SEEDS["token"]))
    def test_token(self, data: bytes) -> None:
        TARGETS["token"](data)

    @QUICK
    @given(inputs(SEEDS["stun"]))
    def test_stun(self, data: bytes) -> None:
        TARGETS["stun"](data)

    @QUICK
    @given(inputs(SEEDS["demultiplexer"]))
    def test_demultiplexer(self, data: bytes) -> None:
        TARGETS["demultiplexer"](data)


class EngineTests(SynchronousTestCase):
    """Issue "must show": hypothesis and, where it is installed, atheris, on each target for 20 s."""

    def test_all_engines_on_all_targets_at_once(self) -> None:
        running = {
            (engine, name): subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.engine", engine, name, str(SECONDS)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for engine in ENGINES
            for name in TARGETS
        }
        try:
            for what, process in running.items():
                output, _ = process.communicate(timeout=PATIENCE)
                self.assertEqual(process.returncode, 0, f"{what}: {output[-4000:]}")
        finally:
            for process in running.values():
                process.kill()
                process.communicate()
