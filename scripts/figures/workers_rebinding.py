"""200 connections of a relay with 4 workers get another port under load, each behind a translator of its own: all stay there.

The kernel gives a packet to a worker by its connection id, never by its address; by address, as it does by itself, three of
four would come to a worker that does not know them. Every connection must live on as the same connection, and hear its
counterpart again; no worker may see a packet that is another's, and none may send a stateless reset.
"""

from __future__ import annotations

import random
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

from figures._common import Verdict, eventually, percentile, run
from figures._workers import REPORTED, Crew, beside, crew_process, pause, steadily
from figures.channels import Translator
from zrc_relay.client import ClientConnection, connect
from zrc_relay.core.codes import Role

WORKERS: Final = 4
PAIRS: Final = 100
EACH: Final = 5.0
"""Datagrams that each connection sends in a second."""
SIZE: Final = 600
CALM: Final = 2.0
SPREAD: Final = 4.0
"""Seconds over which all of them get their new ports."""
MAX_OUTAGE: Final = 1.0
PATIENCE: Final = 20.0
_HEAD: Final = struct.Struct("!Qd")


@dataclass
class End:
    """One connection, its translator, and what came to it."""

    connection: ClientConnection = None  # type: ignore[assignment]  # set before anybody sends
    translator: Translator = None  # type: ignore[assignment]  # as above
    sent: int = 0
    got: int = 0
    rebound_at: float | None = None
    back_at: float | None = None


    def send(self) -> None:
        """Send one."""
        self.connection.send(_HEAD.pack(self.sent, time.monotonic()).ljust(SIZE, b"\0"))
        self.sent += 1

    def take(self, payload: bytes) -> None:
        """One has come. What was sent before the rebinding can still come after it."""
        self.got += 1
        _, sent_at = _HEAD.unpack_from(payload)
        if self.back_at is None and self.rebound_at is not None and sent_at > self.rebound_at:
            self.back_at = time.monotonic()

    def rebind(self) -> None:
        """Be seen at another port from now on."""
        self.translator.rebind()
        self.rebound_at = time.monotonic()

    @property
    def outage(self) -> float:
        """Seconds until something came again that had been sent since; endless if nothing did."""
        if self.rebound_at is None or self.back_at is None:
            return float("inf")
        return self.back_at - self.rebound_at


def prove() -> Verdict:
    """Measure."""
    with crew_process(WORKERS) as crew:
        return run(lambda reactor: measure(reactor, crew))


async def measure(reactor: Any, crew: Crew) -> Verdict:
    """Connect all, let them send, rebind them in any order, let them send on."""
    ends = [end for number in range(PAIRS) for end in await connected(reactor, crew, crew.allocation(number % WORKERS))]
    is_over: list[bool] = []
    load = beside(steadily(reactor, EACH * len(ends), lambda number: ends[number % len(ends)].send(), lambda: bool(is_over)))
    await pause(reactor, CALM)
    shuffled = random.Random(7).sample(ends, len(ends))  # noqa: S311 - any order
    begun = time.monotonic()
    await steadily(
        reactor, len(ends) / SPREAD, lambda number: shuffled[number].rebind() if number < len(ends) else None,
        lambda: shuffled[-1].rebound_at is not None,
    )
    took = time.monotonic() - begun
    await eventually(reactor, lambda: all(end.back_at is not None for end in ends), PATIENCE)
    await pause(reactor, CALM)
    is_over.append(True)
    await load
    await pause(reactor, REPORTED)
    closed = sum(end.connection.is_closed for end in ends)
    back = sum(end.back_at is not None for end in ends)
    outages = sorted(end.outage for end in ends)
    sent, got = sum(end.sent for end in ends), sum(end.got for end in ends)
    metrics = crew.metrics()
    strays = metrics['input_dropped_packets_total{cause="misrouted"}'], metrics["stateless_resets_total"]
    handshakes, moved = metrics["handshakes_started_total"], metrics["path_changes_total"]
    unknown = metrics['input_dropped_packets_total{cause="unknown_connection"}']
    established = metrics['connections{state="established"}']
    for end in ends:
        end.connection.close()
    kept = not closed and back == len(ends) == handshakes == established and strays == (0, 0) and not unknown
    kept = kept and moved >= len(ends) and outages[-1] <= MAX_OUTAGE
    return Verdict(kept, (
        f"{len(ends)} connections on {WORKERS} workers, {got / (sent or 1):.2%} of {sent} datagrams passed, all got another port "
        f"within {took:.1f} s: {closed} were lost, {back} heard their counterpart again, after {percentile(outages, 0.5):.3f} s "
        f"in the median and at most {outages[-1]:.3f} s (at most {MAX_OUTAGE:g}); the relay saw {moved} new paths, {handshakes} "
        f"handshakes, {strays[0]} packets at a wrong worker, {unknown} of unknown connections, and sent {strays[1]} resets"
    ))


async def connected(reactor: Any, crew: Crew, allocation_id: bytes) -> tuple[End, End]:
    """Device and peer of an allocation, each behind a translator."""
    token = crew.relay.token_for(allocation_id)
    ends = End(), End()
    for role, end in zip((Role.DEVICE, Role.PEER), ends, strict=True):
        end.translator = Translator(reactor, ("127.0.0.1", crew.relay.port))
        end.connection = await connect(
            reactor, "127.0.0.1", end.translator.port, token=token, key=crew.relay.keys[role], trust=crew.relay.trust,
            on_datagram=end.take,
        )
    return ends
