"""What figures about several workers share: a relay with them, who they are, and allocations that are theirs."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater

from figures._common import Relay, relay_process
from zrc_relay.core.token import routing_byte

START_PATIENCE: Final = 60.0
REPORTED: Final = 2.5
"""Seconds after which every worker has reported what happened before."""
_OBSERVE: Final = r"observe listens on tcp:(\d+)"


class Crew:
    """The workers of a relay process, as its log and its metrics tell of them."""

    def __init__(self, relay: Relay, count: int) -> None:
        self.relay = relay
        self.count = count
        self._observe = int(relay.child.wait_for(_OBSERVE, timeout=START_PATIENCE).group(1))

    @property
    def pids(self) -> dict[int, int]:
        """The process of each worker that has been ready, the last one that was."""
        lines = [json.loads(line) for line in self.relay.child.output.splitlines() if '"worker.ready"' in line]
        return {line["worker"]: line["pid"] for line in lines}

    @property
    def processes(self) -> set[int]:
        """All processes that the parent has, the spare among them."""
        pid = self.relay.child.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))

    def metrics(self) -> Metrics:
        """What /metrics says now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._observe}/metrics", timeout=START_PATIENCE) as answer:
            return Metrics(answer.read().decode())

    def allocation(self, worker: int) -> bytes:
        """The id of a new allocation that belongs to a worker."""
        while True:
            allocation_id = os.urandom(16)
            if routing_byte(allocation_id) % self.count == worker:
                return allocation_id


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        self._values = {name.removeprefix("zrc_relay_"): float(value) for name, _, value in lines}

    def __getitem__(self, name: str) -> int:
        """A number by its name with labels, without the prefix."""
        return round(self._values[name])


@contextlib.contextmanager
def crew_process(count: int, settings: Mapping[str, str] | None = None, *, tier: str = "unlimited") -> Iterator[Crew]:
    """A relay process with ``count`` workers, all of them ready; see ``relay_process``."""
    with relay_process({"workers": str(count), **(settings or {})}, tier=tier) as relay:
        relay.child.wait_for('"relay.ready"', timeout=START_PATIENCE)
        yield Crew(relay, count)


async def steadily(reactor: Any, rate: float, action: Callable[[int], None], until: Callable[[], bool]) -> int:
    """Call ``action`` with 0, 1, 2 ... ``rate`` times a second until ``until``, what is late at once; returns how often."""
    begun, count = time.monotonic(), 0

    def some() -> None:
        nonlocal count
        due = int((time.monotonic() - begun) * rate)
        while count < due:
            action(count)
            count += 1
        if until():
            loop.stop()

    loop = LoopingCall(some)
    loop.clock = reactor
    await loop.start(0.002)
    return count


async def pause(reactor: Any, seconds: float) -> None:
    """Let time pass."""
    await deferLater(reactor, seconds)


def beside(work: Any) -> Deferred[Any]:
    """Let a coroutine run beside what else is done; fires with what it returns."""
    return Deferred.fromCoroutine(work)
