"""P2 on the wire: an allocation of 1 Mbit/s that is fed 20 Mbit/s for 10 s (R4.1).

In no interval are more than limit * t + burst bytes accounted, at least 95 % of the limit is delivered, and a neighbour that uses
all of its own cap is not disturbed: it loses nothing, before the flood as during it.

The relay runs as a process of its own and keeps books on itself (``_metered_relay``); all intervals between its notes are looked
at. Ends are clients of the library, in this process.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater

from figures._common import NO_RATES, Program, Relay, Verdict, eventually, percentile, python_program, run
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.client.connection import ClientConnection
from zrc_relay.core.codes import Role
from zrc_relay.core.limiter import bandwidth_burst

LIMIT: Final = 125_000
"""1 Mbit/s in bytes a second, of either allocation."""
OFFERED: Final = 2_500_000
"""20 Mbit/s, of the one that is fed too much."""
SIZE: Final = 1100
CALM: Final = 5.0
FLOOD: Final = 10.0
NOTES: Final = 0.002
"""Seconds between the relay's notes."""
MIN_DELIVERED: Final = 0.95
MAX_LOSS: Final = 0.001
"""Of the neighbour's datagrams: loopback may drop one."""
PATIENCE: Final = 30.0
BURST_SECONDS: Final = 0.1
"""The default of ``bandwidth_burst``."""
_HEAD: Final = struct.Struct("!QQ")


@dataclass
class Feed:
    """One allocation's traffic: datagrams of ``SIZE`` bytes at ``rate`` bytes a second, and what became of them."""

    rate: int
    sent: int = 0
    arrived: list[tuple[float, float]] = field(default_factory=list)
    """When each arrived, and after how many milliseconds."""

    def take(self, payload: bytes) -> None:
        """A datagram has arrived."""
        _, sent_at = _HEAD.unpack_from(payload)
        now = time.monotonic_ns()
        if len(payload) == SIZE:
            self.arrived.append((now / 1e9, (now - sent_at) / 1e6))

    async def send(self, reactor: Any, relay: ClientConnection, seconds: float) -> None:
        """Send for so long. What is late is sent at once, so that the rate is kept."""
        padding = bytes(SIZE - _HEAD.size)
        begun, count = time.monotonic(), 0
        wanted = int(self.rate * seconds / SIZE)

        def some() -> None:
            nonlocal count
            due = min(wanted, int((time.monotonic() - begun) * self.rate / SIZE))
            while count < due:
                relay.send(_HEAD.pack(self.sent, time.monotonic_ns()) + padding)
                self.sent += 1
                count += 1

        loop = LoopingCall(some)
        ended = loop.start(0.002)
        await deferLater(reactor, seconds)
        some()
        loop.stop()
        await ended

    def between(self, begin: float, end: float) -> list[float]:
        """The delays in milliseconds of what arrived between two moments."""
        return [delay for at, delay in self.arrived if begin <= at < end]


def prove() -> Verdict:
    """Measure."""
    scripts = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (scripts, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="prove-") as directory:
        settings = {"drain_timeout": "0s", "bandwidth_burst": f"{BURST_SECONDS}s", **NO_RATES}
        made = make_dev_setup(Path(directory, "setup"), listen=["127.0.0.1"], port=0, tier="unlimited", settings=settings)
        program = Program("relay", python_program("figures._metered_relay", made.config, NOTES), made.directory)
        with program.child:
            port = int(program.child.wait_for(r'"port": (\d+)', timeout=PATIENCE).group(1))
            seen = run(lambda reactor: measure(reactor, Relay(made, program.child, port)))
        books = program.lines()[-1]
    return judge(seen, books)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the clients saw of both allocations."""

    flooded: Feed
    neighbour: Feed
    names: tuple[str, str]
    flood: tuple[float, float]


async def measure(reactor: Any, relay: Relay) -> Seen:
    """Let the neighbour have its way alone, then beside the flood."""
    flooded, neighbour = Feed(OFFERED), Feed(LIMIT)
    names = b"fed too much....", b"the neighbour..."
    clients = []
    for feed, name in zip((flooded, neighbour), names, strict=True):
        token = replace(relay.token, allocation_id=name, bandwidth_limit=LIMIT).sign(relay.keys[Role.DEVICE])
        clients.append([
            await relay.connect(reactor, Role.DEVICE, token=token),
            await relay.connect(reactor, Role.PEER, token=token, on_datagram=feed.take),
        ])
    (loud, _), (quiet, _) = clients
    await neighbour.send(reactor, quiet, CALM)
    begin = time.monotonic()
    beside = Deferred.fromCoroutine(neighbour.send(reactor, quiet, FLOOD))
    await flooded.send(reactor, loud, FLOOD)
    await beside
    end = time.monotonic()
    await eventually(reactor, lambda: len(neighbour.arrived) >= neighbour.sent, 1.0)
    for client in (each for pair in clients for each in pair):
        client.close()
    await deferLater(reactor, 0.2)
    return Seen(flooded, neighbour, (names[0].hex(), names[1].hex()), (begin, end))


def judge(seen: Seen, books: dict[str, Any]) -> Verdict:
    """Compare what was accounted with R4.1, and what arrived with what was wanted."""
    begin, end = seen.flood
    burst = bandwidth_burst(LIMIT, BURST_SECONDS)
    highest = {name: most(books["times"], books["bytes"][name], burst) for name in seen.names}
    delivered = SIZE * len(seen.flooded.between(begin, end))
    share = delivered / (LIMIT * FLOOD)
    offered = SIZE * seen.flooded.sent / FLOOD
    arrived = len(seen.neighbour.arrived)
    lost = 1 - arrived / seen.neighbour.sent
    calm, beside = (percentile(seen.neighbour.between(*times), 0.99) for times in ((0.0, begin), (begin, end)))
    kept = max(highest.values()) <= 1 and share >= MIN_DELIVERED and lost <= MAX_LOSS and offered >= 0.95 * OFFERED
    return Verdict(kept, (
        f"fed {8 * offered / 1e6:.1f} Mbit/s for {FLOOD:g} s, {8 * delivered / FLOOD / 1e6:.3f} Mbit/s were delivered, "
        f"{share:.1%} of the limit (at least {MIN_DELIVERED:.0%}); of {len(books['times'])} notes of the relay no two lie more "
        f"than {highest[seen.names[0]]:.2%} of limit * t + {burst:,.0f} bytes apart (at most 100 %; the neighbour's "
        f"{highest[seen.names[1]]:.2%}); the neighbour lost {lost:.2%} of {seen.neighbour.sent}, p99 {calm:.1f} ms before and "
        f"{beside:.1f} ms beside the flood; load of the machine {os.getloadavg()[0]:.1f}"
    ))


def most(times: list[float], counted: list[int], burst: float) -> float:
    """The largest part of its bound that was accounted in any interval between two notes.

    Notes at which nothing was accounted since the one before, nor until the next, begin and end no interval that matters.
    """
    points = [
        (time, count)
        for index, (time, count) in enumerate(zip(times, counted, strict=False))
        if index == 0 or count != counted[index - 1] or index + 1 == len(counted) or count != counted[index + 1]
    ]
    highest = 0.0
    for index, (begun, before) in enumerate(points):
        for until, after in points[index + 1 :]:
            highest = max(highest, (after - before) / (LIMIT * (until - begun) + burst))
    return highest
