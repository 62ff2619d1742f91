"""Ten minutes of hypothesis and ten of atheris on each thing that reads bytes of strangers, without a finding.

That is the wire codec, the token parser, STUN and the first-byte demultiplexer (``tests/fuzz``), as many at a time as there are
cores. FUZZ_SECONDS says another time. What atheris has found in earlier runs is where it begins, if FUZZ_CORPUS names a directory
to keep it in.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from figures._common import Verdict
from tests.fuzz.targets import TARGETS

SECONDS: Final = 600
ENGINES: Final = ("hypothesis", "atheris")
START: Final = 120.0
"""Seconds that an engine may take beyond its time, to begin and to end."""
ROOT: Final = Path(__file__).resolve().parent.parent.parent
_EXECUTED: Final = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Run:
    """One engine on one target: how many inputs it tried, and what it found."""

    engine: str
    target: str
    inputs: int
    finding: str


def prove() -> Verdict:
    """Run them all."""
    seconds = int(os.environ.get("FUZZ_SECONDS", SECONDS))
    jobs = [(engine, target) for engine in ENGINES for target in TARGETS]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        runs = list(pool.map(lambda job: feed(job[0], job[1], seconds), jobs))
    found = [f"{run.engine} on {run.target}: {run.finding}" for run in runs if run.finding]
    tried = ", ".join(f"{run.target} {run.inputs:,}" for run in runs if run.engine == "atheris")
    edited = ", ".join(f"{run.target} {run.inputs:,}" for run in runs if run.engine == "hypothesis")
    kept = not found and seconds >= SECONDS
    return Verdict(kept, (
        f"{seconds} s each (at least {SECONDS}); atheris tried {tried}; hypothesis {edited}; found: "
        f"{'; '.join(found) or 'nothing'}"
    ))


def feed(engine: str, target: str, seconds: int) -> Run:
    """Run one engine on one target, in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzz.engine", engine, target, str(seconds)]
    corpus = os.environ.get("FUZZ_CORPUS")
    if corpus and engine == "atheris":
        command.append(str(Path(corpus).absolute() / target))
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=seconds + START,
        )
    except subprocess.TimeoutExpired:
        return Run(engine, target, 0, "it did not end")
    if engine == "atheris":
        inputs = sum(map(int, _EXECUTED.findall(done.stderr)))
    else:
        inputs = json.loads(done.stdout)["inputs"] if done.returncode == 0 else 0
    broken = [line for line in done.stderr.splitlines() if "is broken by" in line]
    finding = (broken or [done.stderr[-500:]])[-1] if done.returncode != 0 else ""
    return Run(engine, target, inputs, finding)
