"""4 workers under load, one after the other killed (SIGKILL), ten times: others' clients lose nothing, its own are back in 2 s.

Clients are those of the library that connect again by themselves. Every datagram carries its number and when it was sent. One
that is lost counts against the others unless its own worker was killed shortly before or after it was sent; a run of the same
length in which nobody is killed says what this machine loses anyway.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from figures._common import Verdict, eventually, percentile, run
from figures._workers import Crew, beside, crew_process, pause, steadily
from zrc_relay.client import connect_resilient
from zrc_relay.client.notices import NoticeEvent, Reconnecting
from zrc_relay.client.reconnect import ResilientConnection
from zrc_relay.core.codes import Role

WORKERS: Final = 4
PAIRS_EACH: Final = 4
KILLS: Final = 10
EACH: Final = 25.0
"""Datagrams that each end sends in a second."""
SIZE: Final = 600
MAX_OUTAGE: Final = 2.0
INTERVAL: Final = 4.0
"""Seconds between two kills."""
UNDER_WAY: Final = 0.1
"""Seconds before a kill in which what was sent may still be under way, and after the return until all is as before."""
MAX_LOST: Final = 0.0001
PATIENCE: Final = 30.0
RESET: Final = "the relay does not know the connection any more"
"""What the library says when it has recognised a stateless reset."""
_HEAD: Final = struct.Struct("!Qd")


@dataclass
class End:
    """One end of an allocation of ``worker``: when it sent what, and when what came from the other end."""

    worker: int
    connection: ResilientConnection = None  # type: ignore[assignment]  # set before anybody sends
    sent: list[float] = field(default_factory=list)
    got: set[int] = field(default_factory=set)
    """The numbers of what has come from the other end."""
    resets: int = 0
    """Connections that a stateless reset has ended."""
    killed_at: float | None = None
    back_at: float | None = None

    def send(self) -> None:
        """Send one."""
        now = time.monotonic()
        self.connection.send(_HEAD.pack(len(self.sent), now).ljust(SIZE, b"\0"))
        self.sent.append(now)

    def take(self, payload: bytes) -> None:
        """One has come."""
        number, sent_at = _HEAD.unpack_from(payload)
        self.got.add(number)
        if self.back_at is None and self.killed_at is not None and sent_at > self.killed_at:
            self.back_at = time.monotonic()


    def hear(self, event: NoticeEvent) -> None:
        """Something happened to the connection."""
        if isinstance(event, Reconnecting) and RESET in str(event.error):
            self.resets += 1


@dataclass(frozen=True, slots=True)
class Outage:
    """A worker was killed at ``begin``, and at ``end`` its last client had heard the other end again."""

    worker: int
    begin: float
    end: float
    each: tuple[float, ...]
    """Seconds, of each of its connections."""

    def excuses(self, worker: int, sent_at: float) -> bool:
        """Whether this is why a datagram was lost."""
        return worker == self.worker and self.begin - UNDER_WAY <= sent_at <= self.end + UNDER_WAY


def prove() -> Verdict:
    """Measure."""
    with crew_process(WORKERS) as crew:
        return run(lambda reactor: measure(reactor, crew))


async def measure(reactor: Any, crew: Crew) -> Verdict:
    """Connect all, let them send in peace, then kill one worker after the other."""
    pairs = [await connected(reactor, crew, number % WORKERS) for number in range(WORKERS * PAIRS_EACH)]
    ends = [end for pair in pairs for end in pair]
    is_over: list[bool] = []
    load = beside(steadily(reactor, EACH * len(ends), lambda number: ends[number % len(ends)].send(), lambda: bool(is_over)))
    await pause(reactor, KILLS * INTERVAL / 2)
    begun = time.monotonic()
    outages = [await kill(reactor, crew, ends, number % WORKERS) for number in range(KILLS)]
    is_over.append(True)
    await load
    await pause(reactor, 1.0)
    calm = lost(pairs, 0.0, begun, ())
    beside_kills = lost(pairs, begun, float("inf"), outages)
    reconnections = sum(end.connection.reconnections for end in ends), sum(end.resets for end in ends)
    for end in ends:
        end.connection.close()
    return judge(outages, calm, beside_kills, reconnections, crew)


def judge(
    outages: list[Outage], calm: tuple[int, int], others: tuple[int, int], reconnections: tuple[int, int], crew: Crew
) -> Verdict:
    """Compare with what was promised; ``reconnections`` are how many there were, and how many followed a stateless reset."""
    seconds = [each for outage in outages for each in outage.each]
    worst = max(seconds, default=float("inf"))
    restarts = crew.metrics()["worker_restarts_total"]
    allowed = (calm[0] / calm[1] + MAX_LOST) * others[1]
    wanted = KILLS * 2 * PAIRS_EACH
    kept = worst <= MAX_OUTAGE and others[0] <= allowed and restarts == KILLS
    kept = kept and reconnections == (wanted, wanted) and wanted == len(seconds)
    each = ", ".join(f"{max(outage.each):.2f}" for outage in outages)
    return Verdict(kept, (
        f"{KILLS} times one of {WORKERS} workers was killed under load, in turn: the others' sessions lost {others[0]} of "
        f"{others[1]} datagrams, and {calm[0]} of {calm[1]} were lost before anybody was killed; each victim's {2 * PAIRS_EACH} "
        f"connections were back, both ends hearing each other, after {percentile(seconds, 0.5):.2f} s in the median, at most "
        f"{worst:.2f} s (at most {MAX_OUTAGE:g}; the last one of each kill: {each}); {restarts} restarts, {reconnections[0]} "
        f"of {wanted} reconnections, {reconnections[1]} after a stateless reset"
    ))


async def connected(reactor: Any, crew: Crew, worker: int) -> tuple[End, End]:
    """Device and peer of an allocation of that worker."""
    relay, ends = crew.relay, (End(worker), End(worker))
    token = relay.token_for(crew.allocation(worker))
    for role, end in zip((Role.DEVICE, Role.PEER), ends, strict=True):
        end.connection = await connect_resilient(
            reactor, "127.0.0.1", relay.port, token=token, key=relay.keys[role], trust=relay.trust, on_datagram=end.take,
            on_notice=end.hear,
        )
    return ends


async def kill(reactor: Any, crew: Crew, ends: list[End], worker: int) -> Outage:
    """Kill a worker, wait until all that it served hear each other again, and then for what is left of the interval."""
    victims = [end for end in ends if end.worker == worker]
    begin = time.monotonic()
    for end in victims:
        end.killed_at, end.back_at = begin, None
    os.kill(crew.pids[worker], signal.SIGKILL)
    await eventually(reactor, lambda: all(end.back_at is not None for end in victims), PATIENCE)
    each = tuple((end.back_at or float("inf")) - begin for end in victims)
    await pause(reactor, max(0.0, begin + INTERVAL - time.monotonic()))
    return Outage(worker, begin, begin + max(each), each)


def lost(pairs: list[tuple[End, End]], begin: float, end: float, outages: Iterable[Outage]) -> tuple[int, int]:
    """How many datagrams sent between two moments were lost for no reason, and how many were sent that had none to be lost."""
    missing = total = 0
    for pair in pairs:
        for sender, receiver in (pair, pair[::-1]):
            for number, sent_at in enumerate(sender.sent):
                if begin <= sent_at < end and not any(outage.excuses(sender.worker, sent_at) for outage in outages):
                    total += 1
                    missing += number not in receiver.got
    return missing, total
