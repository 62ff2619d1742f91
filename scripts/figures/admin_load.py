"""At half of capacity with 1000 allocations, 5 scrapes and 5 lists a second lose no datagram and leave p99 at 5 ms at most.

Half of capacity is what keeps the relay's thread busy half of the time (R3.3): at half of the largest throughput it is busy for
three quarters, because it then has batches to work on. The load generator of the benchmark runs twice: 996 pairs send a little,
and 4 pairs as much as that, without and with somebody who asks. Scrapes of ``/metrics`` and lists of a hundred allocations
come over UNIX sockets, each on a connection of its own, as from curl. What is measured is the time of a datagram from one client
of the 4 pairs to the other, and whether it arrives. With and without take turns in one run, and what is judged is the median over
the turns: a second in which the machine was busy with something else is one turn.
"""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from statistics import median
from typing import Final

from bench import build
from bench.generator import MICROSECONDS, MeasurementFailed, measure
from bench.outcome import Sample
from bench.scenarios import BASE_PAIRS, SETTLE, Engine, Load
from bench.systems import HOST, LISTENING, SETTINGS_OF_OURS, START_PATIENCE, Running
from figures._common import Verdict, percentile
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.cli.processes import Child, child_environment, relay_command

ALLOCATIONS: Final = 1000
PER_SECOND: Final = 5
RATES: Final = (40_000, 30_000, 20_000, 15_000, 10_000, 8_000, 6_000, 5_000, 4_000, 3_000)
"""Datagrams a second."""
MAX_P99: Final = 5.0
"""Milliseconds."""
WARM_UP: Final = 1.0
SECONDS: Final = 4.0
TURNS: Final = 3
PATHS: Final = {"observe.sock": "/metrics", "admin.sock": "/admin/allocations?sort=-bytes_transferred&limit=100"}
LITTLE: Final = 50.0
"""Datagrams a second of the other pairs together."""
LONG: Final = 300.0
"""Seconds that they go on if nobody ends them."""
PATIENCE: Final = 10.0
CONNECT_PATIENCE: Final = 60.0


class Asker(threading.Thread):
    """Asks for ``path`` at the UNIX socket ``address``, ``PER_SECOND`` times a second, until it is stopped."""

    def __init__(self, address: Path, path: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._path = path
        self._stopped = threading.Event()
        self.times: list[float] = []
        """How long each answer took, in milliseconds."""
        self.refused = 0
        self.most = 0
        """The most allocations that a list has told of."""

    def run(self) -> None:
        """Ask, at even intervals whatever the answers take."""
        due = time.monotonic()
        while not self._stopped.is_set():
            begun = time.monotonic()
            self.ask()
            self.times.append(1000 * (time.monotonic() - begun))
            due += 1 / PER_SECOND
            self._stopped.wait(max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self.join(PATIENCE)

    def ask(self) -> None:
        """Ask once."""
        connection = http.client.HTTPConnection("relay", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(PATIENCE)
        connection.sock.connect(str(self._address))
        connection.request("GET", self._path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 200:
            self.refused += 1
        elif body.startswith(b"{"):
            self.most = max(self.most, json.loads(body)["total"])


def prove() -> Verdict:
    """Measure."""
    quiet: list[Sample] = []
    asked: list[Sample] = []
    askers: list[Asker] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prove-")))
        running = stack.enter_context(relay(directory))
        stack.enter_context(others(running, directory))
        wait_for_all(Asker(directory / "admin.sock", PATHS["admin.sock"]))
        paced = half_of_a_core(running)
        for _ in range(TURNS):
            quiet.append(measure(running, paced, warm_up=WARM_UP, seconds=SECONDS))
            with asking(directory) as started:
                asked.append(measure(running, paced, warm_up=WARM_UP, seconds=SECONDS))
            askers += started
    wanted = PER_SECOND * (WARM_UP + SECONDS)
    answered = all(len(asker.times) >= wanted and not asker.refused for asker in askers)
    seen = max(asker.most for asker in askers)
    kept = answered and seen >= ALLOCATIONS and not any(sample.loss for sample in asked) and p99(asked) <= MAX_P99
    took = [time for asker in askers for time in asker.times]
    return Verdict(kept, (
        f"{asked[-1].rate:,.0f} datagrams a second, {use(asked[-1]):.0%} of a core, with {seen} allocations: {told(asked)} with "
        f"{PER_SECOND} scrapes and {PER_SECOND} lists a second, {told(quiet)} without (at most {MAX_P99:g} ms, none lost); "
        f"{len(took)} answers, p50 {percentile(took, 0.5):.1f}, p99 {percentile(took, 0.99):.1f} ms"
    ))


def half_of_a_core(running: Running) -> Load:
    """The load with which the relay uses half of a core."""
    for rate in RATES:
        load = Load(engine=Engine.FAST, rate=rate)
        if use(measure(running, load, warm_up=WARM_UP, seconds=SECONDS / 2)) <= 1 / 2:
            return load
    msg = f"the relay uses more than half of a core at {RATES[-1]:,} datagrams a second"
    raise MeasurementFailed(msg)


def use(sample: Sample) -> float:
    """How much of a core the relay used."""
    return (sample.cost or inf) * (sample.rate or inf) / MICROSECONDS


@contextmanager
def asking(directory: Path) -> Iterator[list[Asker]]:
    """Somebody asks, for scrapes and for lists, as long as this lasts."""
    askers = [Asker(directory / name, path) for name, path in PATHS.items()]
    for asker in askers:
        asker.start()
    try:
        yield askers
    finally:
        for asker in askers:
            asker.stop()


def p99(samples: list[Sample]) -> float:
    """The median of what 99 in 100 datagrams of each turn took at most, in milliseconds."""
    return median(sample.p99 if sample.p99 is not None else inf for sample in samples)


def told(samples: list[Sample]) -> str:
    """Latency and loss in words."""
    turns = ", ".join(f"{sample.p99 or inf:.2f}" for sample in samples)
    lost = sum(sample.loss or 0.0 for sample in samples) / len(samples)
    return f"p99 {p99(samples):.2f} ms ({turns}) and {100 * lost:.3f} % lost"


def others(running: Running, directory: Path) -> Child:
    """The pairs that send a little, beside the busy ones."""
    load = Load(engine=Engine.FAST, pairs=ALLOCATIONS - BASE_PAIRS, rate=LITTLE)
    command = [str(build.load_generator()), *load.arguments(warm_up=0.0, seconds=LONG), *running.load_arguments]
    return Child("others", command, directory, child_environment())


def wait_for_all(asker: Asker) -> None:
    """Wait until they are there, and have done what new connections need."""
    deadline = time.monotonic() + CONNECT_PATIENCE
    while asker.most < ALLOCATIONS - BASE_PAIRS:
        if time.monotonic() > deadline:
            msg = f"only {asker.most} allocations after {CONNECT_PATIENCE:g} s"
            raise TimeoutError(msg)
        time.sleep(1 / PER_SECOND)
        asker.ask()
    time.sleep(ALLOCATIONS * SETTLE)


@contextmanager
def relay(directory: Path) -> Iterator[Running]:
    """Our relay as the benchmark has it, with both endpoints as UNIX sockets in ``directory``."""
    settings = {
        **SETTINGS_OF_OURS, "observe_endpoint": f"unix:{directory / 'observe.sock'}",
        "admin_endpoint": f"unix:{directory / 'admin.sock'}", "admin_unix_trust": "true", "audit_log": "audit.log",
    }
    made = make_dev_setup(directory / "relay", listen=[HOST], port=0, tier="unlimited", settings=settings)
    with Child("relay", relay_command(made.config), made.directory, child_environment()) as child:
        port = int(child.wait_for(LISTENING, timeout=START_PATIENCE).group(1))
        yield Running(child, port, [
            f"-cert-sha256={made.fingerprint.hex()}", f"-relay-id={made.relay_id.hex()}",
            f"-device-key={made.device_key}", f"-peer-key={made.peer_key}",
        ])
