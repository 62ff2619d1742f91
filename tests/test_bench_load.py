"""The load generator of the benchmarks against real relays: what it counts was delivered, and relays take it for a client.

The tests exist where Go and quic-go are installed; elsewhere the module says that it has none.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from twisted.trial.unittest import SynchronousTestCase

from bench import build, generator
from bench.generator import NotOffered
from bench.outcome import Sample
from bench.scenarios import Engine, Kind, Load
from bench.systems import AIOQUIC, NO_RELAY, SOURCE, SYSTEMS, Workshop
from tests import quicgo

WARM_UP = 0.2
SECONDS = 0.5
MODEST = Load(pairs=2, rate=200)
"""A load that any machine carries while it does something else."""


class LoadTests(SynchronousTestCase):
    """Issue 4: a load generator that counts what was delivered and verified, and acknowledges like a real client."""

    def setUp(self) -> None:
        self.workshop = Workshop(Path(self.mktemp()).resolve())

    def test_its_own_tests_pass(self) -> None:
        self.assertIn("ok", build.check_load_generator())

    def measure(self, system: str, *loads: Load) -> list[Sample]:
        with SYSTEMS[system].start(self.workshop) as running:
            return [generator.measure(running, load, warm_up=WARM_UP, seconds=SECONDS) for load in loads]

    def check(self, sample: Sample) -> None:
        """All that was sent arrived, and nothing else did."""
        self.assertEqual(sample.loss, 0)
        self.assertEqual({what: count for what, count in sample.remarks.items() if "in time" not in what}, {})
        self.assertGreater(sample.rate or 0, 0)

    def test_both_engines_with_this_relay(self) -> None:
        fast = Load(pairs=2, rate=200, engine=Engine.FAST)
        for sample in self.measure(SOURCE, MODEST, fast, replace(fast, both=True, train=4, size=100)):
            self.check(sample)
            self.assertGreater(sample.cost or 0, 0)
            self.assertGreater(sample.p99 or 0, 0)

    def test_both_engines_with_a_relay_that_pairs(self) -> None:
        for sample in self.measure(AIOQUIC, MODEST, Load(pairs=2, rate=200, engine=Engine.FAST)):
            self.check(sample)

    def test_the_fast_engine_without_a_relay(self) -> None:
        direct = Load(engine=Engine.FAST, pairs=2, rate=2000, train=8)
        for sample in self.measure(NO_RELAY, direct, replace(direct, kind=Kind.CHANNELS), replace(direct, rate=0)):
            self.check(sample)
            self.assertIsNone(sample.cost)

    def test_several_of_it_can_begin_together(self) -> None:
        load = Load(engine=Engine.FAST, pairs=1, rate=200)
        command = [str(build.load_generator()), *load.arguments(warm_up=WARM_UP, seconds=SECONDS), "-direct", "-hold"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            self.addCleanup(program.kill)
            said = cast("IO[str]", program.stdout)
            self.assertEqual(json.loads(said.readline()), {"ready": True})
            program.send_signal(signal.SIGUSR1)
            self.check(generator.datagrams(json.loads(said.read()), load))

    def test_streams_handshakes_and_memory(self) -> None:
        streams, handshakes, memory = self.measure(
            SOURCE, Load(kind=Kind.STREAMS, pairs=1), Load(kind=Kind.HANDSHAKES, pairs=5),
            Load(kind=Kind.MEMORY, pairs=10, rate=100),
        )
        self.assertGreater(streams.rate or 0, 0)
        self.assertEqual(streams.remarks, {})
        self.assertGreater(handshakes.cost or 0, 0)
        self.assertGreater(memory.memory or 0, 0)

    def test_channels_are_measured_or_said_not_to_be_offered(self) -> None:
        try:
            [sample] = self.measure(SOURCE, Load(kind=Kind.CHANNELS, engine=Engine.FAST, pairs=1, rate=200))
        except NotOffered as error:
            self.assertIn("offers no channels", str(error))
        else:
            self.check(sample)


if (_missing := quicgo.missing()) is not None:
    # No test is there that would be passed over in silence: there is none, and a line that says so.
    sys.stderr.write(f"tests.test_bench_load has no tests here: {_missing}\n")
    del LoadTests
