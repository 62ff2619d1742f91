"""``promtool`` of Prometheus: what says whether metrics and rules are right."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

PATIENCE: Final = 60.0


def missing() -> str | None:
    """What keeps it from being used, with the Debian package that brings it; None when nothing does."""
    return None if shutil.which("promtool") else "promtool is not installed (Debian: prometheus)"


def check_metrics(text: bytes) -> list[str]:
    """What ``promtool check metrics`` says of ``text`` in Prometheus' format; nothing when it is clean."""
    done = subprocess.run(_command("metrics"), input=text, capture_output=True, timeout=PATIENCE, check=False)
    said = (done.stdout + done.stderr).decode().splitlines()
    return said or ([] if done.returncode == 0 else [f"exit status {done.returncode}"])


def check_rules(path: str) -> tuple[bool, str]:
    """Whether ``promtool check rules`` finds nothing wrong with a file of rules, and what it says."""
    done = subprocess.run([*_command("rules"), path], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def _command(what: str) -> list[str]:
    return [shutil.which("promtool") or "promtool", "check", what]
