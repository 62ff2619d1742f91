"""Feeds a target for a time: ``python -m tests.fuzz.engine ENGINE TARGET SECONDS [DIRECTORY]``.

``ENGINE`` is atheris, which looks for inputs that take new ways through the code, or hypothesis, which edits whole messages. What
atheris finds new is kept in ``DIRECTORY``, when there is one, and is where its next run begins. An input that breaks something is
shown in hexadecimal, to be put into ``seeds.REGRESSIONS``; the exit status is then not 0. A JSON line at the end of a hypothesis
run says how many inputs it tried; atheris prints statistics of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Final

INSTRUMENTED: Final = ["zrc_relay", "tests.fuzz"]
MAX_INPUT: Final = 4200
"""Bytes of one input: a capsule of the largest size and its head."""
ROUND: Final = 500
"""Inputs of hypothesis between two looks at the clock."""


def main(engine: str, name: str, seconds: str, *where: str) -> None:
    """Run one engine on one target."""
    atheris: Any = import_module("atheris") if engine == "atheris" else None
    with atheris.instrument_imports(include=INSTRUMENTED) if atheris else nullcontext():
        seeds: Any = import_module("tests.fuzz.seeds")
        targets: Any = import_module("tests.fuzz.targets")
    beginnings = [*seeds.SEEDS[name], *seeds.REGRESSIONS[name]]

    def shown(data: bytes) -> None:
        try:
            targets.TARGETS[name](data)
        except BaseException:
            sys.stderr.write(f"{name} is broken by {data.hex()}\n")
            raise

    if atheris:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            run_atheris(atheris, shown, beginnings, int(seconds), Path(*where) if where else Path(scratch))
    else:
        run_hypothesis(shown, beginnings, float(seconds))


def run_atheris(atheris: Any, target: Any, beginnings: list[bytes], seconds: int, directory: Path) -> None:
    """Run atheris; it ends the process."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(beginnings):
        (directory / f"seed-{number:03}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT}", f"-artifact_prefix={directory}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(directory), *options], target)
    atheris.Fuzz()


def run_hypothesis(target: Any, beginnings: list[bytes], seconds: float) -> None:
    """Run rounds of hypothesis, each with a seed of its own."""
    from hypothesis import HealthCheck, given, seed, settings  # noqa: PLC0415 - not needed, and slow to import, for the other one

    from tests.fuzz.strategies import inputs  # noqa: PLC0415

    started = time.monotonic()
    rounds = 0
    while time.monotonic() < started + seconds:

        @seed(rounds)
        @settings(max_examples=ROUND, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(inputs(beginnings))
        def feed(data: bytes) -> None:
            target(data)

        feed()
        rounds += 1
    sys.stdout.write(json.dumps({"inputs": rounds * ROUND, "seconds": round(time.monotonic() - started, 1)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
