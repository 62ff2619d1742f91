"""What this process costs its host: processor time and memory (R7.4).

prometheus-client tells both, too, but of the process that is scraped only; these add up over processes.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")


def cpu_seconds() -> float:
    """Processor time that the process has used since it began, in all its threads, in seconds."""
    return time.process_time()


def resident_bytes() -> int:
    """Memory of the process that is in RAM, in bytes; 0 where the host does not tell (proc(5))."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


class Cost:
    """Both, as they were at the last tick: reading them costs system calls, and nobody needs them newer than a second."""

    def __init__(self, cpu: Callable[[], float] = cpu_seconds, resident: Callable[[], int] = resident_bytes) -> None:
        self._cpu = cpu
        self._resident = resident
        self.cpu = cpu()
        self.resident = resident()

    def tick(self) -> None:
        """Read them."""
        self.cpu, self.resident = self._cpu(), self._resident()
