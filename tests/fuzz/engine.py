"""Feeds a target with atheris: ``python -m tests.fuzz.engine TARGET SECONDS [DIRECTORY]``.

What is found new is kept in ``DIRECTORY``, when there is one, and is where the next run begins. An input that breaks something is
shown in hexadecimal, to be put into ``seeds.REGRESSIONS``; the exit status is then not 0.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["zrc_relay", "tests.fuzz"]):
    from tests.fuzz.seeds import REGRESSIONS, SEEDS
    from tests.fuzz.targets import TARGETS, Target


def main(name: str, seconds: int, directory: Path) -> None:
    """Run the engine; it does not return."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*SEEDS[name], *REGRESSIONS[name])):
        (directory / f"seed-{number:03}").write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], str(directory), f"-max_total_time={seconds}", "-max_len=4200", "-print_final_stats=1", f"-artifact_prefix={directory}/"],
        shown(TARGETS[name]),
    )
    atheris.Fuzz()


def shown(target: Target) -> Target:
    """``target``, which shows the input that breaks it."""

    def run(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            sys.stderr.write(f"broken by {data.hex()}\n")
            raise

    return run


if __name__ == "__main__":
    chosen, duration, *where = sys.argv[1:]
    if where:
        main(chosen, int(duration), Path(where[0]))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        main(chosen, int(duration), Path(scratch))
