"""Shows the figures that the project promises: ``python scripts/prove.py [NAME ...]``, all of them when none is named.

Each figure is a module of ``figures`` and runs in a process of its own, one after the other, so that none disturbs another. It
prints one line: whether the promise is kept, and the figure. The exit status is 0 when all are kept.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = "figures"
PATIENCE: Final = 600.0
"""Seconds after which a figure has failed."""
PATIENCES: Final = {"fuzz": 8 * 600.0 + 600.0, "workers_admin": 1200.0}
"""The same for figures that take longer by design."""


def main() -> int:
    """Run the figures named on the command line; returns the exit status."""
    known = figures()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(known)}")
    parser.add_argument("--here", choices=known, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        return run_here(arguments.here)
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"there is no figure {', '.join(unknown)}; there are {', '.join(known)}")
    failed = [name for name in arguments.names or known if not run(name)]
    if failed:
        print(f"not kept: {', '.join(failed)}")
    return 1 if failed else 0


def figures() -> list[str]:
    """The names of all figures: the modules of the package that have a ``prove``; helpers begin with an underscore."""
    directory = str(Path(__file__).resolve().parent / PACKAGE)
    return sorted(module.name for module in pkgutil.iter_modules([directory]) if not module.name.startswith("_"))


def run(name: str) -> bool:
    """Run one figure in a process of its own; whether the promise is kept."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    patience = PATIENCES.get(name, PATIENCE)
    try:
        done = subprocess.run([sys.executable, __file__, "--here", name], env=environment, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        print(f"FAIL {name}: not done within {patience:g} s", flush=True)
        return False
    return done.returncode == 0


def run_here(name: str) -> int:
    """Run one figure in this process and print its line; returns the exit status."""
    figure: Any = importlib.import_module(f"{PACKAGE}.{name}")
    try:
        verdict = figure.prove()
    except Exception as error:
        traceback.print_exc()
        print(f"FAIL {name}: could not be measured: {type(error).__name__}: {error}", flush=True)
        return 1
    print(f"{'ok  ' if verdict.kept else 'FAIL'} {name}: {verdict.figure}", flush=True)
    return 0 if verdict.kept else 1


if __name__ == "__main__":
    sys.exit(main())
