"""Makes the compiled form as an operator installs it (docs/compiled.md): ``python scripts/compiled_form.py DIRECTORY``.

The wheel that ``scripts/build_backend.py`` makes of a copy of the sources is unpacked into the directory, which an interpreter
then has at the front of its path. Tests (``compiled_suite.py``) and benchmarks (``bench/build.py``) run what comes from here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from build_backend import PACKAGES, lacking_compiler

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "scripts/build_backend.py", "twisted", "zrc_relay")
"""What a wheel is made of."""
PATIENCE: Final = 600.0
"""Seconds for a build; it takes half a minute."""
_BUILD: Final = "import sys, build_backend; build_backend.build_wheel(sys.argv[1])"
_HIDDEN: Final = shutil.ignore_patterns("__pycache__", "*.so", "dropin.cache")


class NotCompiled(Exception):
    """It cannot be compiled here; the message says why, and what would change it."""


def make(package: Path) -> None:
    """Make the directory ``package`` with the compiled form; ``NotCompiled`` where it cannot be had."""
    if lack := lacking_compiler():
        msg = f"{lack}; install what is missing (Debian: apt install {PACKAGES})"
        raise NotCompiled(msg)
    with tempfile.TemporaryDirectory(prefix="compiling-") as name:
        source, wheels = Path(name, "source"), Path(name, "wheel")
        for each in SOURCES:
            copy(ROOT / each, source / each)
        shutil.unpack_archive(_build(source, wheels), package, "zip")


def _build(source: Path, into: Path) -> Path:
    into.mkdir()
    environment = {**os.environ, "ZRC_RELAY_COMPILE": "1", "PYTHONPATH": str(source / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(into)],
        cwd=source, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).splitlines()
        lines = [line for line in said if line.startswith("zrc-relay: ")]
        if not lines or "compiling failed" in lines[-1]:
            print("\n".join(said[-60:]))
        raise NotCompiled(lines[-1].removeprefix("zrc-relay: ") if lines else f"building ended with status {done.returncode}")
    [wheel] = into.glob("*.whl")
    return wheel


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory, without what running it has left there."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=_HIDDEN)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]))
    except NotCompiled as error:
        sys.exit(str(error))
