"""Limits of a relay with 4 workers are those of one relay, counted by its clients: none is granted once for each worker.

Clients ask all workers at the same time for more than there is: connections and allocations of one source, allocations of the
relay and of one device. Exactly as many must be granted as the setting says; and what is given back at one worker can be had at
another.

The bandwidth of all allocations together is looked at from the receivers' end. A payload says when it was sent, and is
accounted between then and its arrival; so of any run of arrivals, what was accounted from the first sending to the last arrival
is known, and may be no more than limit * t + burst. It is offered several times over, first by allocations of all workers, then
of a single one: nobody may keep a share that he does not use.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults

from figures._common import Verdict, run
from figures._workers import Crew, crew_process, pause, steadily
from zrc_relay.client import ClientConnection
from zrc_relay.client.errors import CapacityExceeded, ConnectFailed, RateLimited
from zrc_relay.core.codes import Role
from zrc_relay.core.limiter import bandwidth_burst

WORKERS: Final = 4
GRANTED: Final = 10
"""What each of the limits that are counted allows; that of a device is the one of its tier, which is the same."""
ASKED: Final = 40
GIVEN_BACK: Final = 4
LIMIT: Final = 1_000_000
"""Bytes a second of all allocations together: 8 Mbit/s."""
BURST_SECONDS: Final = 0.1
OFFERED: Final = 3.0
"""Times the limit."""
SIZE: Final = 1100
SECONDS: Final = 6.0
PAIRS_EACH: Final = 2
MIN_DELIVERED: Final = 0.9
STEP: Final = 10
"""Every so many arrivals an interval begins that is looked at; they end everywhere."""
_SENT_AT: Final = struct.Struct("!d")


WHY: Final = {
    # Who comes when the rate is used up is refused before the handshake; whose handshake had begun is told after it.
    "connection_rate": {ConnectFailed.__name__, RateLimited.__name__},
    "allocation_rate": {RateLimited.__name__},
    "max_allocations": {CapacityExceeded.__name__},
    "a device's allocations": {CapacityExceeded.__name__},
}
"""What those are told that are refused."""


@dataclass(frozen=True, slots=True)
class Count:
    """A limit that is counted: how many were granted at first, and after ``GIVEN_BACK`` were given back, if they can be."""

    name: str
    granted: int
    again: int | None
    refused: Counter[str]

    @property
    def is_kept(self) -> bool:
        """Whether it was exactly what it should be, and the rest was told so."""
        return self.granted == GRANTED and self.again in {None, GIVEN_BACK} and self.refused.keys() <= WHY[self.name]

    def __str__(self) -> str:
        again = "" if self.again is None else f", of {GIVEN_BACK} given back {self.again} again"
        others = {why: count for why, count in self.refused.items() if why not in WHY[self.name]}
        return f"{self.name} {self.granted}{again}{f', refused otherwise: {others}' if others else ''}"


@dataclass(frozen=True, slots=True)
class Passed:
    """One phase: the parts of the limit that were offered and that arrived, and the most that any interval had of its bound."""

    offered: float
    delivered: float
    highest: float

    @property
    def is_kept(self) -> bool:
        """Whether it was all that it could be, and no more."""
        return self.offered >= 0.95 * OFFERED and self.delivered >= MIN_DELIVERED and self.highest <= 1

    def __str__(self) -> str:
        return f"{self.delivered:.1%} of the limit, in no interval above {self.highest:.1%} of limit * t + burst"


def prove() -> Verdict:
    """Measure."""
    return run(measure)


async def measure(reactor: Any) -> Verdict:
    """One limit after the other, each with a relay of its own."""
    counts = []
    for name, settings, tier in (
        ("connection_rate", {"connection_rate": f"{GRANTED}/h"}, "unlimited"),
        ("allocation_rate", {"allocation_rate": f"{GRANTED}/h"}, "unlimited"),
        ("max_allocations", {"max_allocations": str(GRANTED)}, "unlimited"),
        ("a device's allocations", {}, "free"),
    ):
        with crew_process(WORKERS, settings, tier=tier) as crew:
            counts.append(await count(reactor, crew, name))
    settings = {"global_bandwidth_limit": str(LIMIT), "bandwidth_burst": f"{BURST_SECONDS}s"}
    with crew_process(WORKERS, settings) as crew:
        pairs = {worker: [await Pair().connect(reactor, crew, worker) for _ in range(PAIRS_EACH)] for worker in range(WORKERS)}
        everywhere = await flood(reactor, [pair for each in pairs.values() for pair in each])
        await pause(reactor, 1.0)
        alone = await flood(reactor, pairs[1])
    kept = all(each.is_kept for each in counts) and everywhere.is_kept and alone.is_kept
    return Verdict(kept, (
        f"{ASKED} times asked of {WORKERS} workers at once, {GRANTED} are allowed and were granted: "
        f"{'; '.join(map(str, counts))}; {8 * LIMIT / 1e6:g} Mbit/s for all together, {OFFERED:g} times that offered for "
        f"{SECONDS:g} s: of allocations of all workers there passed {everywhere}; of a single worker {alone} "
        f"(at least {MIN_DELIVERED:.0%}, at most 100 %)"
    ))


async def count(reactor: Any, crew: Crew, name: str) -> Count:
    """Ask for more allocations than there are, give some back at one worker, and ask the others again."""
    made, refused = await ask(reactor, crew, [number % WORKERS for number in range(ASKED)])
    if name.endswith("rate"):
        leave(made)
        return Count(name, len(made), None, refused)
    here = sorted(made, key=lambda each: each[0])
    given, kept = here[:GIVEN_BACK], here[GIVEN_BACK:]
    await gatherResults([connection.release() for _, connection in given])
    again, refused_again = await ask(reactor, crew, [WORKERS - 1 - number % 2 for number in range(ASKED)])
    leave(kept)
    leave(again)
    return Count(name, len(made), len(again), refused + refused_again)


async def ask(reactor: Any, crew: Crew, workers: list[int]) -> tuple[list[tuple[int, ClientConnection]], Counter[str]]:
    """Ask each of these workers for another allocation, all at once; who got one, and why the others got none."""
    made: list[tuple[int, ClientConnection]] = []
    refused: Counter[str] = Counter()

    async def one(worker: int) -> None:
        token = crew.relay.token_for(crew.allocation(worker))
        try:
            made.append((worker, await crew.relay.connect(reactor, Role.DEVICE, token=token)))
        except (ConnectFailed, RateLimited, CapacityExceeded) as error:
            refused[type(error).__name__] += 1

    await together([one(worker) for worker in workers])
    return made, refused


async def together(works: list[Coroutine[Any, Any, None]]) -> None:
    """Let them all run."""
    await gatherResults([Deferred.fromCoroutine(work) for work in works])


def leave(made: list[tuple[int, ClientConnection]]) -> None:
    """Close the connections."""
    for _, connection in made:
        connection.close()


class Pair:
    """Both ends of an allocation, and what passed."""

    device: ClientConnection

    def __init__(self) -> None:
        self.sent = 0
        self.arrived: list[tuple[float, float]] = []
        """When each came, and when it had been sent."""

    async def connect(self, reactor: Any, crew: Crew, worker: int) -> Pair:
        """Connect both to a worker."""
        token = crew.relay.token_for(crew.allocation(worker))
        self.device = await crew.relay.connect(reactor, Role.DEVICE, token=token)
        await crew.relay.connect(reactor, Role.PEER, token=token, on_datagram=self.take)
        return self

    def take(self, payload: bytes) -> None:
        """A datagram has come."""
        self.arrived.append((time.monotonic(), *_SENT_AT.unpack_from(payload)))

    def send(self) -> None:
        """Send one."""
        self.device.send(_SENT_AT.pack(time.monotonic()).ljust(SIZE, b"\0"))
        self.sent += 1


async def flood(reactor: Any, pairs: list[Pair]) -> Passed:
    """Offer more than may pass, of all pairs alike."""
    for pair in pairs:
        pair.sent = 0
        pair.arrived.clear()
    begun = time.monotonic()
    await steadily(
        reactor, OFFERED * LIMIT / SIZE, lambda number: pairs[number % len(pairs)].send(),
        lambda: time.monotonic() >= begun + SECONDS,
    )
    took = time.monotonic() - begun
    await pause(reactor, 1.0)
    arrivals = sorted(arrival for pair in pairs for arrival in pair.arrived)
    offered = SIZE * sum(pair.sent for pair in pairs) / took / LIMIT
    return Passed(offered, SIZE * len(arrivals) / took / LIMIT, highest_share(arrivals))


def highest_share(arrivals: list[tuple[float, float]]) -> float:
    """The largest part of limit * t + burst that was accounted in any interval, as far as arrivals can tell."""
    burst = bandwidth_burst(LIMIT, BURST_SECONDS)
    highest = 0.0
    for first in range(0, len(arrivals), STEP):
        began = float("inf")
        for number, (at, sent_at) in enumerate(arrivals[first:], start=1):
            began = min(began, sent_at)
            highest = max(highest, SIZE * number / (LIMIT * (at - began) + burst))
    return highest
