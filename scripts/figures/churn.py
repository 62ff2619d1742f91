"""10,000 allocations created and expired, three times: after the third time the relay holds what it held after the second (R2.5).

For real: a relay process, and for each allocation one connection with its handshake, ALLOCATE and close with EXPIRED. They come
as fast as the machine lets them and live ``LIFE`` seconds each, so some thousand are there at the same time. The clients are
processes of their own (``_churner``), new ones each time, because a stock client costs twice what it costs the relay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from figures._common import Program, Relay, Verdict, python_program, relay_process

ALLOCATIONS: Final = 10_000
ROUNDS: Final = 3
CLIENTS: Final = 2
"""Processes that share the clients of a round."""
LIFE: Final = 12
"""Seconds from ALLOCATE to expiry (``allocation_timeout``)."""
SETTLED: Final = 3.0
"""Seconds after the last close until memory is looked at."""
MAX_GROWTH: Final = 0.03
MIN_TOLD: Final = 0.98
"""Of the clients; loopback may drop a close, which nobody asks for again."""
PATIENCE: Final = 180.0
"""Seconds that a round may take: some 60 on a machine that has nothing else to do."""
LOOK: Final = 0.2


def prove() -> Verdict:
    """Measure."""
    scripts = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (scripts, os.environ.get("PYTHONPATH"))))
    settings = {
        "require_proof": "never", "allocation_timeout": f"{LIFE}s", "wait_timeout": "10m", "quic_idle_timeout": "5m",
        "max_allocations": str(2 * ALLOCATIONS),
    }
    with relay_process(settings) as relay:
        return measure(relay)


def measure(relay: Relay) -> Verdict:
    """Let them come and go."""
    memory = [relay.memory]
    peak = most = told = 0
    begun = time.monotonic()
    for number in range(ROUNDS):
        with ExitStack() as running:
            programs = list(churners(relay, number))
            for program in programs:
                running.enter_context(program.child)
            deadline = time.monotonic() + PATIENCE
            while not all(map(is_over, programs)) and time.monotonic() < deadline:
                time.sleep(LOOK)
                peak = max(peak, relay.memory)
                most = max(most, sum(latest(program, "present") for program in programs))
            told += sum(latest(program, "told") for program in programs)
        time.sleep(SETTLED)
        memory.append(relay.memory)
    growth = memory[ROUNDS] / memory[ROUNDS - 1] - 1
    held = ", ".join(f"{each / 1e6:.1f}" for each in memory[1:])
    done = told >= MIN_TOLD * ROUNDS * ALLOCATIONS
    return Verdict(done and growth <= MAX_GROWTH, (
        f"{ALLOCATIONS} allocations created and expired {ROUNDS} times in {time.monotonic() - begun:.0f} s, up to {most} of them "
        f"at once, {told} clients heard EXPIRED; resident after each time {held} MB, {growth:+.2%} from the second to the third "
        f"(at most {MAX_GROWTH:.0%}); {memory[0] / 1e6:.1f} MB before, {peak / 1e6:.0f} MB at most; relay: "
        f"{relay.child.cpu_seconds():.0f} s of CPU; load of the machine {os.getloadavg()[0]:.1f}"
    ))


def churners(relay: Relay, number: int) -> Iterator[Program]:
    """The programs that are the clients of a round."""
    share = ALLOCATIONS // CLIENTS
    for part in range(CLIENTS):
        command = python_program(
            "figures._churner", relay.made.directory, relay.port, number, part * share, (part + 1) * share, LIFE
        )
        yield Program(f"clients {number}-{part}", command, relay.made.directory)


def latest(program: Program, name: str) -> int:
    """The last number of that name that a program has told."""
    lines = program.lines()
    return int(lines[-1][name]) if lines else 0


def is_over(program: Program) -> bool:
    """Whether all of its clients have come and gone."""
    return latest(program, "allocated") == ALLOCATIONS // CLIENTS and not latest(program, "present")
