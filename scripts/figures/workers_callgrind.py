"""What it costs in instructions to be a worker: the same packets through a relay that is alone, and through worker 1 of 2.

A worker's connection ids are constrained, its limits are counted in memory that it shares, under the kernel's locks, and it has
to look whether an allocation is its own. Callgrind counts the instructions of the relay alone, from the arrival of a packet to
the sending of what follows, timers included (``_worker_packets``), once with and once without a limit for all allocations
together, which is asked for every datagram. The same run is repeated with as many datagrams again, and the difference is what
counts: nothing that is done once is in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from figures._common import Verdict

COUNTS: Final = (200, 800)
"""Datagrams each way in the shorter and in the longer run; their difference is what is counted."""
FORMS: Final = ("alone", "worker")
CAPS: Final = ("free", "capped")
INSIDE: Final = "qsort_r"
"""The function of the C library inside which instructions are counted: ``qsort`` is called, and leaves the work to it."""
MAX_OVERHEAD: Final = 0.05
AT_ONCE: Final = 2
"""Runs at a time: they only count, so they may disturb each other."""
PATIENCE: Final = 550.0
PACKAGE: Final = "valgrind"
_COLLECTED: Final = re.compile(r"Collected : (\d+)")
Run = tuple[str, str, int]
"""Form, cap and count, see ``_worker_packets``."""


def prove() -> Verdict:
    """Measure."""
    if shutil.which(PACKAGE) is None:
        return Verdict(kept=False, figure=f"valgrind is not installed (Debian: {PACKAGE})")
    runs = [(form, cap, count) for cap in CAPS for form in FORMS for count in COUNTS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(runs, pool.map(instructions, runs), strict=True))
    costs = {(form, cap): cost(found, form, cap) for form in FORMS for cap in CAPS}
    overheads = {cap: costs["worker", cap] / costs["alone", cap] - 1 for cap in CAPS}
    words = {"free": "without a limit for all", "capped": "with one"}
    each = ", ".join(
        f"{words[cap]} {costs['worker', cap]:,.0f} after {costs['alone', cap]:,.0f} ({overheads[cap]:+.2%})" for cap in CAPS
    )
    return Verdict(max(overheads.values()) <= MAX_OVERHEAD, (
        f"instructions for each datagram of 1100 bytes, as worker 1 of 2 and alone: {each}; at most {MAX_OVERHEAD:+.0%}; counted "
        f"over {2 * (COUNTS[1] - COUNTS[0])} datagrams of a steady exchange"
    ))


def cost(found: dict[Run, tuple[int, int]], form: str, cap: str) -> float:
    """Instructions for each datagram."""
    (few, less), (many, more) = (found[form, cap, count] for count in COUNTS)
    if more <= less:
        msg = f"callgrind has not seen what the relay does: {less} instructions for {few} datagrams, {more} for {many}"
        raise RuntimeError(msg)
    return (more - less) / (many - few)


def instructions(run: Run) -> tuple[int, int]:
    """How many datagrams arrived in a run, and how many instructions the relay took."""
    command = [
        PACKAGE, "--tool=callgrind", "--collect-atstart=no", f"--toggle-collect={INSIDE}", "--callgrind-out-file=/dev/null",
        sys.executable, "-m", "figures._worker_packets", *map(str, run),
    ]
    scripts = str(Path(__file__).resolve().parent.parent)
    paths = filter(None, (scripts, os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    collected = _COLLECTED.search(done.stderr)
    if done.returncode != 0 or collected is None or not int(collected.group(1)):
        msg = f"callgrind ended with status {done.returncode}: {done.stderr[-1000:]}"
        raise RuntimeError(msg)
    return int(done.stdout.split()[0]), int(collected.group(1))
