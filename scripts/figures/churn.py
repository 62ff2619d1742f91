"""10,000 allocations created and expired, three times: after the third time the relay holds what it held after the second (R2.5).

For real: a relay process, and for each allocation one connection with its handshake, ALLOCATE and close with EXPIRED. They come
as fast as the machine lets them and live ``LIFE`` seconds each, so thousands are there at the same time.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any, Final

from twisted.internet.task import deferLater

from figures._common import Relay, Verdict, eventually, relay_process, run
from figures._crowd import Crowd
from zrc_relay.core.codes import ErrorCode, Role

ALLOCATIONS: Final = 10_000
ROUNDS: Final = 3
LIFE: Final = 25
"""Seconds from ALLOCATE to expiry (``allocation_timeout``)."""
AT_ONCE: Final = 32
"""Handshakes in flight."""
SETTLED: Final = 3.0
"""Seconds after the last close until memory is looked at."""
MAX_GROWTH: Final = 0.03
MIN_TOLD: Final = 0.98
"""Of the clients; loopback may drop a close, which nobody asks for again."""
PATIENCE: Final = 240.0


def prove() -> Verdict:
    """Measure."""
    settings = {
        "require_proof": "never", "allocation_timeout": f"{LIFE}s", "wait_timeout": "10m", "quic_idle_timeout": "5m",
        "max_allocations": str(2 * ALLOCATIONS),
    }
    with relay_process(settings) as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Let them come and go."""
    memory = [relay.memory]
    peak = most = 0
    told = 0
    begun = time.monotonic()
    for number in range(ROUNDS):
        crowd = Crowd(reactor, relay.port, 2 * LIFE)
        socket = reactor.listenUDP(0, crowd, interface="127.0.0.1", maxPacketSize=65535)
        most = max(most, await come(reactor, relay, crowd, number))
        peak = max(peak, relay.memory)
        await eventually(reactor, crowd.is_over, PATIENCE)
        told += crowd.closed[ErrorCode.EXPIRED]
        await socket.stopListening()
        await deferLater(reactor, SETTLED)
        memory.append(relay.memory)
    growth = memory[ROUNDS] / memory[ROUNDS - 1] - 1
    held = ", ".join(f"{each / 1e6:.1f}" for each in memory[1:])
    done = told >= MIN_TOLD * ROUNDS * ALLOCATIONS
    return Verdict(done and growth <= MAX_GROWTH, (
        f"{ALLOCATIONS} allocations created and expired {ROUNDS} times in {time.monotonic() - begun:.0f} s, up to {most} of them "
        f"at once, {told} clients heard EXPIRED; resident after each time {held} MB, {growth:+.2%} from the second to the third "
        f"(at most {MAX_GROWTH:.0%}); {memory[0] / 1e6:.1f} MB before, {peak / 1e6:.0f} MB at most; load of the machine "
        f"{os.getloadavg()[0]:.1f}"
    ))


async def come(reactor: Any, relay: Relay, crowd: Crowd, number: int) -> int:
    """Let all of a round allocate; returns how many were there at once at most."""
    most = 0
    for index in range(ALLOCATIONS):
        token = replace(
            relay.token,
            allocation_id=number.to_bytes(8, "big") + index.to_bytes(8, "big"),
            expires_at=int(time.time()) + LIFE + 5,
        )
        crowd.join(token.sign(relay.keys[Role.DEVICE]).encode())
        while index - crowd.allocated >= AT_ONCE:
            await deferLater(reactor, 0.001)
        most = max(most, crowd.present)
    await eventually(reactor, lambda: crowd.allocated == ALLOCATIONS, PATIENCE)
    return most
