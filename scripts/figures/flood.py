"""A flood of 5,000 Initials a second from made-up sources while a session runs at 1000 datagrams a second.

After the flood's first second the session may lose less than 1 %, its p99 is at most 20 ms and the relay's memory grows by less
than 20 MB; within 5 s of its end all is as before. A client at an address that the flood names as its source, too, still
connects meanwhile. The relay has its default limits.
"""

from __future__ import annotations

import gc
import os
import struct
import time
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from figures._common import Program, Relay, Verdict, eventually, percentile, python_program, relay_process, run
from zrc_relay.client.connection import ClientConnection
from zrc_relay.core.codes import Role

INITIALS: Final = 5000
"""Initials a second."""
RATE: Final = 1000
"""Datagrams of the session a second."""
SIZE: Final = 1000
CALM: Final = 4.0
"""Seconds before the flood that tell how it was before."""
FLOOD: Final = 12.0
AFTER: Final = 5.0
"""Seconds after the flood within which everything must be as before."""
MAX_LOSS: Final = 0.01
MAX_P99: Final = 20.0
MAX_GROWTH: Final = 20_000_000
PATIENCE: Final = 30.0
VICTIM: Final = "127.0.0.1"
"""The address of the session's clients and of the late one."""
_HEAD: Final = struct.Struct("!Q")


class Session:
    """Two clients, one sending to the other at ``RATE``; remembers when each datagram left and how long it took."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.delays: dict[int, float] = {}
        self.running = True

    def take(self, payload: bytes) -> None:
        """A datagram arrived."""
        (number,) = _HEAD.unpack_from(payload)
        self.delays[number] = 1000 * (time.monotonic() - self.sent[number])

    async def send(self, reactor: Any, relay: ClientConnection) -> None:
        """Send until told otherwise; one that is late is not waited for, and not sent in a bunch with others."""
        padding = bytes(SIZE - _HEAD.size)
        due = time.monotonic()
        while self.running:
            due = max(due + 1 / RATE, time.monotonic())
            await deferLater(reactor, max(0.0, due - time.monotonic()))
            self.sent.append(time.monotonic())
            relay.send(_HEAD.pack(len(self.sent) - 1) + padding)

    def between(self, begin: float, end: float) -> tuple[float, float]:
        """Loss, and p99 of the delay in milliseconds, of what was sent between two moments."""
        numbers = [number for number, at in enumerate(self.sent) if begin <= at < end]
        delays = [self.delays[number] for number in numbers if number in self.delays]
        return 1 - len(delays) / max(1, len(numbers)), percentile(delays or [float("inf")], 0.99)


def prove() -> Verdict:
    """Measure."""
    scripts = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (scripts, os.environ.get("PYTHONPATH"))))
    settings = {
        "default_quota": "none", "default_bandwidth_limit": "none", "connection_rate": "30/min", "allocation_rate": "10/min",
        "rejoin_rate": "100/min",
    }
    with relay_process(settings) as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Run the session, begin the flood, look."""
    gc.collect()
    gc.freeze()  # a look at all of this program would keep the session's own clients waiting for some 60 ms
    session = Session()
    peer = await relay.connect(reactor, Role.PEER, on_datagram=session.take)
    device = await relay.connect(reactor, Role.DEVICE)
    sending = session.send(reactor, device)
    reactor.callLater(0, lambda: Deferred.fromCoroutine(sending))
    await deferLater(reactor, CALM)
    calm_from, calm_to = time.monotonic() - CALM / 2, time.monotonic()
    memory = [relay.memory]
    flooder = Program(
        "flood", python_program("figures._flooder", relay.port, INITIALS, FLOOD, VICTIM), relay.made.directory
    )
    with flooder.child:
        await eventually(reactor, flooder.lines, PATIENCE)
        flood_from = time.monotonic()
        await deferLater(reactor, FLOOD / 2)
        asked = time.monotonic()
        late = await relay.connect(reactor, Role.DEVICE, token=relay.token_for(b"a late one......"))
        late_after = time.monotonic() - asked
        late_had_token = vars(late.quic)["_retry_source_connection_id"] is not None
        memory.append(relay.memory)
        await eventually(reactor, lambda: len(flooder.lines()) > 1, PATIENCE)
        flood_to = time.monotonic()
        memory.append(relay.memory)
    sent = flooder.lines()[-1]["sent"]
    await deferLater(reactor, AFTER)
    again = await relay.connect(reactor, Role.PEER, token=relay.token_for(b"a late one......"))
    is_open_again = vars(again.quic)["_retry_source_connection_id"] is None
    await deferLater(reactor, CALM / 2)
    session.running = False
    memory.append(relay.memory)
    await deferLater(reactor, 0.5)
    loss, p99 = session.between(flood_from + 1, flood_to)
    calm, after = session.between(calm_from, calm_to), session.between(flood_to + AFTER, time.monotonic() - 0.5)
    growth = max(memory) - memory[0]
    for client in (late, again, device, peer):
        client.close()
    rate = sent / (flood_to - flood_from)
    kept = loss < MAX_LOSS and p99 <= MAX_P99 and growth < MAX_GROWTH and rate >= 0.95 * INITIALS
    kept = kept and late_had_token and is_open_again and after[0] < MAX_LOSS and after[1] <= max(MAX_P99 / 2, 2 * calm[1])
    return Verdict(kept, (
        f"under {rate:.0f} Initials a second from made-up sources the session lost {loss:.2%} (less than {MAX_LOSS:.0%}), p99 "
        f"{p99:.1f} ms (at most {MAX_P99:g}), memory grew by {growth / 1e6:.1f} MB (less than {MAX_GROWTH / 1e6:g}); before p99 "
        f"{calm[1]:.1f} ms, {AFTER:g} s after it {after[1]:.1f} ms and {after[0]:.2%} lost, no Retry asked for: {is_open_again}; "
        f"a client at an address that was named as source connected with a Retry after {late_after:.2f} s; load of the machine "
        f"{os.getloadavg()[0]:.1f}"
    ))
