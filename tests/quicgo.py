"""The client in Go under ``tests/interop/quicgo``: built once per run where Go is installed, and run as a process."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

SOURCE: Final = Path(__file__).resolve().parent / "interop" / "quicgo"
QUIC_GO: Final = Path("/usr/share/gocode/src/github.com/lucas-clemente/quic-go")
PACKAGES: Final = "golang and golang-github-lucas-clemente-quic-go-dev"
BUILD_PATIENCE: Final = 300.0


def missing() -> str | None:
    """What keeps it from being built, with the Debian packages that bring it; None when nothing does."""
    if shutil.which("go") is None:
        return f"Go is not installed (Debian: {PACKAGES})"
    if not QUIC_GO.is_dir():
        return f"quic-go is not installed (Debian: {PACKAGES})"
    return None


@cache
def program() -> Path:
    """The program, built now if it was not; ``RuntimeError`` with what the compiler said."""
    directory = tempfile.mkdtemp(prefix="quicgo-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    done = subprocess.run(
        [str(SOURCE / "build.sh"), directory], capture_output=True, text=True, timeout=BUILD_PATIENCE, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return Path(directory, "quicgo")


def command(mode: str, **flags: object) -> list[str]:
    """A command line; ``cert_sha256="ab"`` becomes ``-cert-sha256=ab``, ``no_proof=True`` becomes ``-no-proof=true``."""
    given = [f"-{name.replace('_', '-')}={str(value).lower() if value is True else value}" for name, value in flags.items()]
    return [str(program()), "-mode", mode, *given]


def printed(output: str) -> Iterator[dict[str, Any]]:
    """The events among the lines that it printed."""
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
