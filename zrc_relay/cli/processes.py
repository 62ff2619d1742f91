"""``Child``: a process of ours that the demo starts, listens to, and is sure to end.

What a child prints goes to a file, which is read for the lines that say where it listens, and shown when it fails. A child has a
session of its own, so that Ctrl-C reaches the demo alone, which then ends its children in an order that makes sense.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import zrc_relay
from zrc_relay.config_table import ENVIRONMENT_PREFIX

POLL_INTERVAL: Final = 0.02
"""Seconds between two looks at a child's output."""
STOP_PATIENCE: Final = 3.0
"""Seconds that a child gets to end after SIGTERM; then it is killed."""
TAIL_LINES: Final = 15
_CPU_FIELDS: Final = slice(11, 13)
"""utime and stime among the fields of /proc/PID/stat that follow the name (proc_pid_stat(5), fields 14 and 15)."""


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, user and system: to the nanosecond where the kernel says, else in hundredths."""
    precise = sum(_on_cpu(path) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    if precise:
        return precise / 1e9
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The name, in parentheses, may itself hold blanks and parentheses.
    return sum(map(int, stat.rpartition(")")[2].split()[_CPU_FIELDS])) / os.sysconf("SC_CLK_TCK")


def _on_cpu(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii").split()[0])
    except (OSError, IndexError, ValueError):
        return 0  # a thread that has just ended, or a kernel that keeps no account


class ChildFailed(Exception):
    """A child ended, or did not say what it should in time."""

    def __init__(self, child: Child, what: str) -> None:
        super().__init__(f"{child.name} {what}")
        self.child = child


class Child:
    """A running process; a context manager that ends it."""

    def __init__(self, name: str, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = directory / f"{name.replace(' ', '-')}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - programs of ours, with arguments of our making
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def tail(self) -> str:
        """The last lines of it."""
        return "\n".join(self.output.splitlines()[-TAIL_LINES:])

    def check(self) -> None:
        """``ChildFailed`` if it has ended."""
        status = self._process.poll()
        if status is not None:
            how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
            raise ChildFailed(self, how)

    def wait_for(self, pattern: str, *, timeout: float) -> re.Match[str]:
        """The first match of ``pattern`` in what it prints; ``ChildFailed`` after ``timeout`` seconds, or when it ends before."""
        expression = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout
        while (found := expression.search(self.output)) is None:
            self.check()
            if time.monotonic() > deadline:
                raise ChildFailed(self, f"was not ready within {timeout:g} s")
            time.sleep(POLL_INTERVAL)
        return found

    def cpu_seconds(self) -> float:
        """Processor time it has used, user and system."""
        return cpu_seconds(self.pid)

    def stop(self, patience: float = STOP_PATIENCE) -> None:
        """End it: SIGTERM, and SIGKILL if that does not help within ``patience`` seconds. Returns when it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def child_environment() -> dict[str, str]:
    """Our own environment, for children that must find this very package and nobody's settings for a relay."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    package = str(Path(zrc_relay.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def relay_command(config: Path) -> list[str]:
    """``twistd -n zrc-relay --config CONFIG``, with this interpreter, wherever twistd is installed."""
    start = "from twisted.scripts.twistd import run; run()"
    return [sys.executable, "-c", start, "--nodaemon", "--pidfile=", "zrc-relay", "--config", str(config)]


def cli_command(*arguments: str) -> list[str]:
    """``zrc-relay ARGUMENTS`` with this interpreter."""
    return [sys.executable, "-m", "zrc_relay.cli", *arguments]
