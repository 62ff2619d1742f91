"""The machine that is measured on, and what its kernel says about a process."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.build import DEBIANS_RUSTC

_PACKAGES: Final = {
    "quic-go": "golang-github-lucas-clemente-quic-go-dev", "quinn": "librust-quinn-dev", "coturn": "coturn",
}


def describe() -> dict[str, str]:
    """What has to be known about the machine to read the numbers."""
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    model = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    found = {
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{int(memory[1]) / 1e6:.0f} GB" if memory else "",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "aioquic": version("aioquic"),
        "Twisted": version("twisted"),
        "cryptography": version("cryptography"),
        "Go": _said(["go", "version"]).removeprefix("go version "),
        "rustc": _said([str(DEBIANS_RUSTC) if DEBIANS_RUSTC.exists() else "rustc", "--version"]).removeprefix("rustc "),
        "C compiler": _said(["cc", "--version"]).partition("\n")[0],
        "net.core.rmem_max": _text(Path("/proc/sys/net/core/rmem_max")),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }
    found |= {name: _said(["dpkg-query", "-W", "-f", "${Version}", package]) for name, package in _PACKAGES.items()}
    return {name: value for name, value in found.items() if value}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _said(command: Sequence[str]) -> str:
    """What a program says about itself; nothing where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603 - fixed names
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"bench: {command[0]}: {error}\n")
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
