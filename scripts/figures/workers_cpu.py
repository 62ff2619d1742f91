"""Two workers at about half a core each, against a relay of one process with half of that load: CPU time for each datagram.

Each process is offered the same rate, so what a worker pays more is what being a worker costs: less of its packets come
together, it shares limits, it reports, and another process runs beside it. The relays take turns, A, B, A, B, all of them
running all the time, and the first pair is dropped. The load generator is a process of its own that is several times as cheap
as a relay (bench/load, engine fast); it takes connections over after the handshake and checks every byte. A third turn has two
relays of one process beside each other under the load of the two workers: what they pay more than one is this machine's doing,
not that of the workers.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from bench import build
from figures._common import Relay, Verdict, relay_process
from figures._workers import crew_process
from zrc_relay.cli.processes import cpu_seconds

WORKERS: Final = 2
FIRST_RATE: Final = 5000
"""Datagrams a second that each process is offered in the turn that is dropped. What a worker pays there gives the rate of the
others: half a core of it."""
PAIRS: Final = 8
"""For each process, about: the workers of a pair are chosen by chance."""
SIZE: Final = 1100
TURNS: Final = 4
"""Beside the first one, which is dropped."""
SECONDS: Final = 5.0
WARM_UP: Final = 1.5
SETTINGS: Final = {"idle_timeout": "2s", "handshake_pressure": "1000", "gather_time": "0s"}
"""Packets do not gather: half a core would be three times as many of them, more than this and its load have room for on two
cores, and the batches would hide what is compared here."""
MAX_RATIO: Final = 1.15
HALF: Final = 0.5
LOAD: Final = (0.4, 0.6)
"""Of a core, of each worker."""
MAX_LOSS: Final = 0.001
PATIENCE: Final = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: microseconds for each datagram, the part of a core that each process used, and what was lost."""

    cost: float
    busy: float
    lost: float


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: one load for each relay, on all of its processes that forward."""

    loads: Sequence[Load]

    def measure(self, rate: int) -> Sample:
        """Run all loads at once, with ``rate`` datagrams a second for each process."""
        running = [load.start(rate) for load in self.loads]
        found = [json.loads(finished(process)) for process in running]
        delivered, sent = (sum(each[name] for each in found) for name in ("delivered", "sent"))
        cpu = sum(each["relay_cpu"] for each in found)
        processes = sum(len(load.pids) for load in self.loads)
        return Sample(1e6 * cpu / delivered, cpu / processes / found[0]["seconds"], 1 - delivered / sent)


@dataclass(frozen=True, slots=True)
class Load:
    """A load generator for one relay, whose processes ``pids`` forward."""

    relay: Relay
    pids: Sequence[int]

    def start(self, rate: int) -> subprocess.Popen[bytes]:
        """Begin, with ``rate`` datagrams a second for each process."""
        made, count = self.relay.made, len(self.pids)
        command = [
            str(build.load_generator()), "-mode=datagrams", "-engine=fast", f"-pairs={PAIRS * count}", f"-size={SIZE}",
            f"-rate={rate * count}", "-settle=1s", f"-warm-up={WARM_UP}s", f"-seconds={SECONDS}s",
            f"-addr=127.0.0.1:{self.relay.port}", f"-relay-pid={','.join(map(str, self.pids))}",
            f"-cert-sha256={made.fingerprint.hex()}", f"-relay-id={made.relay_id.hex()}",
            f"-device-key={made.device_key}", f"-peer-key={made.peer_key}",
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> bytes:
    """What a load generator printed."""
    try:
        printed, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    if process.returncode != 0:
        msg = f"the load generator ended with status {process.returncode}"
        raise RuntimeError(msg)
    return printed


def prove() -> Verdict:
    """Measure."""
    try:
        build.load_generator()
    except build.Missing as missing:
        return Verdict(kept=False, figure=f"the load generator cannot be built: {missing}")
    samples: dict[str, list[Sample]] = {"one": [], "workers": [], "two": []}
    with relays() as (subjects, parent):
        before, begun = cpu_seconds(parent), time.monotonic()
        first = {name: subject.measure(FIRST_RATE) for name, subject in subjects.items()}
        rate = 100 * round(1e4 * HALF / first["workers"].cost)
        for _ in range(TURNS):
            for name, subject in subjects.items():
                samples[name].append(subject.measure(rate))
        parents = (cpu_seconds(parent) - before) / (time.monotonic() - begun)
    return judge(samples, parents, rate)


@contextlib.contextmanager
def relays() -> Iterator[tuple[Mapping[str, Subject], int]]:
    """All relays that are compared, and the process of the one parent."""
    with contextlib.ExitStack() as stack:
        alone = [stack.enter_context(relay_process(SETTINGS)) for _ in range(WORKERS)]
        crew = stack.enter_context(crew_process(WORKERS, SETTINGS))
        one, *_ = each = [Load(relay, [relay.child.pid]) for relay in alone]
        workers = Load(crew.relay, list(crew.pids.values()))
        yield {"one": Subject([one]), "workers": Subject([workers]), "two": Subject(each)}, crew.relay.child.pid


def judge(samples: Mapping[str, Sequence[Sample]], parent: float, rate: int) -> Verdict:
    """Compare with what was promised."""
    pairs: Any = zip(samples["one"], samples["workers"], strict=True)
    ratios = sorted(workers.cost / one.cost for one, workers in pairs)
    ratio = median(ratios)
    cost = {name: median(sample.cost for sample in of) for name, of in samples.items()}
    busy = {name: median(sample.busy for sample in of) for name, of in samples.items()}
    lost = max(sample.lost for of in samples.values() for sample in of)
    kept = ratio <= MAX_RATIO and LOAD[0] <= busy["workers"] <= LOAD[1] and lost <= MAX_LOSS
    return Verdict(kept, (
        f"{WORKERS} workers at {busy['workers']:.0%} of a core each pay {cost['workers']:.1f} µs for a datagram of {SIZE} bytes, "
        f"one process at {busy['one']:.0%} pays {cost['one']:.1f}: {ratio:.3f} times as much in the median of {len(ratios)} "
        f"pairs of turns (at most {MAX_RATIO:g}; {ratios[0]:.3f} to {ratios[-1]:.3f}); two relays of one process each under the "
        f"load of both workers pay {cost['two']:.1f}; the parent used {parent:.2%} of a core; {rate} datagrams a second for each "
        f"process, from {PAIRS} pairs, sent singly; at most {lost:.3%} were lost in a turn"
    ))
