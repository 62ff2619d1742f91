"""10,000 allocations at once in one process, 20,000 QUIC connections, and datagrams through all of them: nothing is lost.

The relay is a process of its own, with its default settings but for the time-outs: the first connections are silent until the
last has been opened. The clients are those of the benchmarks' load generator (``bench/load``, which needs Go): real handshakes
and ALLOCATE with proof, a socket for each connection, acknowledgements as RFC 9000 §13.2 wants. Then the pairs send in turn, one
packet at a time, evenly spread over time, each ``RATE / ALLOCATIONS`` a second, and every byte that arrives is checked.

There are several processes of clients, because in many places a process may not have 20,000 files open. They begin together.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from bench import build
from bench.scenarios import Engine, Load
from figures._common import Program, Relay, Verdict, relay_process

ALLOCATIONS: Final = 10_000
GENERATORS: Final = 2
RATE: Final = 2_000
"""Datagrams a second over all pairs: each sends one every five seconds, and nearly none finds another to share work with."""
SETTLE: Final = 10.0
"""Seconds in which the relay probes the paths of the last connections and hands out connection ids."""
WARM_UP: Final = 2.0
SECONDS: Final = 20.0
"""Of the measurement: each pair sends four times."""
MAX_MEMORY: Final = 200.0
"""Kilobytes of resident memory for each allocation."""
OPEN_PATIENCE: Final = 300.0
PATIENCE: Final = 60.0
"""Seconds beyond those of the measurement."""
AMISS: Final = ("lost", "wrong", "twice", "silent", "faults", "skipped")
"""What the load generator counts of what must not be."""


def prove() -> Verdict:
    """Measure."""
    settings = {
        "max_allocations": str(ALLOCATIONS), "wait_timeout": "10min", "idle_timeout": "10min", "quic_idle_timeout": "10min",
        "handshake_pressure": "1000",
    }
    with relay_process(settings) as relay, ExitStack() as running:
        programs = [generator(relay, number) for number in range(GENERATORS)]
        for program in programs:
            running.enter_context(program.child)
        for program in programs:
            program.child.wait_for('"ready"', timeout=OPEN_PATIENCE)
        time.sleep(SETTLE)
        for program in programs:
            os.kill(program.child.pid, signal.SIGUSR1)
        for program in programs:
            if program.wait(WARM_UP + SECONDS + PATIENCE) != 0:
                return Verdict(kept=False, figure=f"a load generator failed: {program.child.tail}")
        return judge([program.lines()[-1] for program in programs])


def generator(relay: Relay, number: int) -> Program:
    """One process of clients, with its share of the allocations."""
    made = relay.made
    load = Load(engine=Engine.FAST, pairs=ALLOCATIONS // GENERATORS, rate=RATE / GENERATORS)
    command = [
        str(build.load_generator()), *load.arguments(warm_up=WARM_UP, seconds=SECONDS), "-settle=0s", "-hold",
        f"-addr=127.0.0.1:{relay.port}", f"-relay-pid={relay.child.pid}", f"-cert-sha256={made.fingerprint.hex()}",
        f"-relay-id={made.relay_id.hex()}", f"-device-key={made.device_key}", f"-peer-key={made.peer_key}",
    ]
    return Program(f"load {number}", command, made.directory)


def judge(found: Sequence[dict[str, Any]]) -> Verdict:
    """What was promised: all of it through every allocation, right, once, and in so much memory.

    Each generator looks at all that the relay uses, over the same seconds.
    """
    delivered = sum(each["delivered"] for each in found)
    amiss = {name: count for name in AMISS if (count := sum(each[name] for each in found))}
    ended = sorted({why for each in found for why in each["ended"]})
    grown = max(each["memory_after"] for each in found) - min(each["memory_before"] for each in found)
    memory = grown / 1000 / ALLOCATIONS
    opened, open_cpu, cpu, seconds, p50, p99 = (
        max(each[name] for each in found)
        for name in ("open_seconds", "open_cpu", "relay_cpu", "seconds", "latency_p50_us", "latency_p99_us")
    )
    kept = delivered > 0 and not amiss and not ended and memory <= MAX_MEMORY
    return Verdict(kept, (
        f"{ALLOCATIONS:,} allocations at once, {2 * ALLOCATIONS:,} connections, opened in {opened:.0f} s with {open_cpu:.0f} s "
        f"of the relay's CPU; {sum(each['sent'] for each in found):,} datagrams through all of them in {seconds:.0f} s, "
        f"{delivered / seconds:,.0f} a second; amiss: {amiss or 'nothing'}, ended: {ended or 'none'}; "
        f"{1e6 * cpu / max(1, delivered):.0f} µs of its CPU a datagram, p50 {p50 / 1000:.2f} ms, p99 {p99 / 1000:.1f} ms; "
        f"{memory:.0f} kB of memory an allocation (at most {MAX_MEMORY:.0f}), {grown / 1e9:.2f} GB in all; load of the machine "
        f"{os.getloadavg()[0]:.1f}"
    ))
