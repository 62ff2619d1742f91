"""The relay can be compiled, and what is compiled does the same: the tests of the way of a packet, on the compiled modules.

It is built as ``ZRC_RELAY_COMPILE=1 pip install .`` does, and put in front of the sources. What runs is the differential test of
the short way, which compares it with the general machinery byte by byte, forwarding, channels, key updates, and what they use.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.build import ROOT, Missing, compiled_relay
from figures._common import Verdict

TESTS: Final = (
    "test_fastpath", "test_forwarding", "test_channels", "test_egress", "test_key_updates", "test_links", "test_session",
    "test_streams", "test_paths", "test_allocation", "test_limiter", "test_deadlines",
)
HOT: Final = ("core.allocation", "core.session", "quic.endpoint", "quic.fastpath", "quic.link", "quic.udp")
"""Modules that must have come compiled."""
PATIENCE: Final = 300.0
_RAN: Final = re.compile(r"^Ran (\d+) tests", re.MULTILINE)


def prove() -> Verdict:
    """Build and run."""
    try:
        package = compiled_relay()
    except Missing as missing:
        return Verdict(kept=False, figure=str(missing))
    with tempfile.TemporaryDirectory(prefix="prove-") as directory:
        for name in ("tests", "docs"):
            shutil.copytree(ROOT / name, Path(directory, name), ignore=shutil.ignore_patterns("__pycache__"))
        environment = {**os.environ, "PYTHONPATH": str(package)}
        looking = f"import importlib\nfor name in {HOT!r}: print(importlib.import_module('zrc_relay.' + name).__file__)"
        files = run(directory, environment, "-c", looking).stdout.split()
        plain = [file for file in files if not (file.endswith(".so") and Path(file).is_relative_to(package))]
        if len(files) != len(HOT) or plain:
            return Verdict(kept=False, figure=f"not compiled: {', '.join(plain) or 'what could not be imported'}")
        done = run(directory, environment, "-m", "twisted.trial", *(f"tests.{name}" for name in TESTS))
    ran = _RAN.search(done.stdout)
    count = int(ran.group(1)) if ran else 0
    kept = done.returncode == 0 and count > 0
    if not kept:
        print(done.stdout[-4000:] + done.stderr[-4000:])
    return Verdict(kept, f"{count} tests of the way of a packet {'pass' if kept else 'do not all pass'} on compiled modules")


def run(directory: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with ``arguments``."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )
