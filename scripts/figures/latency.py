"""How much later a datagram arrives by the relay than directly, at 1000 datagrams a second: p50 at most 1 ms.

The same two programs send by plain UDP and by the relay in turns, in one run (``_latency_end``), so the difference is all that
the relay's way costs: the relay itself, QUIC at both ends, and two more packets through the kernel. What is judged is the median
over the turns of the difference between their medians: one second in which the machine was busy with something else is one turn.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from typing import Final

from figures._common import Program, Relay, Verdict, percentile, python_program, relay_process
from figures._latency_end import BLOCK, BLOCKS, RATE

MAX_ADDED: Final = 1.0
"""Milliseconds that the relay's way may add at the median."""
PATIENCE: Final = 120.0
MIN_ARRIVED: Final = 0.99


def prove() -> Verdict:
    """Measure."""
    scripts = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (scripts, os.environ.get("PYTHONPATH"))))
    settings = {"default_quota": "none", "default_bandwidth_limit": "none"}
    with relay_process(settings) as relay:
        sink = end(relay, "peer")
        with sink.child:
            port = sink.child.wait_for(r'"port": (\d+)', timeout=PATIENCE).group(1)
            source = end(relay, "device", port)
            with source.child:
                source.wait(PATIENCE)
            sink.wait(PATIENCE)
            found = sink.lines()[-1]
    turns = list(zip(found["direct"], found["relayed"], strict=True))
    added = sorted(median(relayed) - median(direct) for direct, relayed in turns)
    direct, relayed = ([delay for turn in turns for delay in turn[way]] for way in (0, 1))
    wanted = (BLOCKS - 1) * BLOCK
    kept = len(turns) == BLOCKS - 1 and median(added) <= MAX_ADDED and len(relayed) >= MIN_ARRIVED * wanted
    return Verdict(kept, (
        f"{median(added):.3f} ms added at the median (at most {MAX_ADDED:g}; {added[0]:.3f} to {added[-1]:.3f} in {len(turns)} "
        f"turns); by the relay p50 {percentile(relayed, 0.5):.3f}, p99 {percentile(relayed, 0.99):.3f} ms, directly "
        f"p50 {percentile(direct, 0.5):.3f}, p99 {percentile(direct, 0.99):.3f} ms; {len(relayed)} and {len(direct)} of {wanted} "
        f"datagrams arrived, {RATE} a second; load of the machine {os.getloadavg()[0]:.1f}"
    ))


def end(relay: Relay, role: str, *arguments: object) -> Program:
    """One of the two programs."""
    command = python_program("figures._latency_end", relay.made.directory, relay.port, role, *arguments)
    return Program(role, command, relay.made.directory)
