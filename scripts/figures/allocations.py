"""1000 allocations at once in one process, each with both ends connected and exchanging data, all bytes right.

The relay is a process of its own; the 2000 clients are connections of the library, each with a UDP socket of its own, in this
one. Every client sends ``PAYLOADS`` payloads of random bytes; what did not arrive is sent again, as a program on UDP would.
"""

from __future__ import annotations

import random
import resource
import time
from typing import Any, Final

from twisted.internet.defer import DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater

from figures._common import Relay, Verdict, eventually, relay_process, run
from zrc_relay.client.connection import ClientConnection
from zrc_relay.core.codes import Role

ALLOCATIONS: Final = 1000
PAYLOADS: Final = 10
AT_ONCE: Final = 16
"""Handshakes in flight: the relay's time-out is for handshakes that do not wait for 2000 others."""
ROUNDS: Final = 20
BATCH: Final = 50
MAX_CPU: Final = 40.0
"""Seconds of the relay's CPU for the whole of it."""


class End:
    """One end of one allocation: what it sends, what it should get, and what has arrived."""

    def __init__(self, rng: random.Random) -> None:
        self.sends = [rng.randbytes(rng.randrange(16, 1100)) for _ in range(PAYLOADS)]
        self.awaits: set[bytes] = set()
        self.due: set[bytes] = set()
        self.wrong = 0
        self.relay: ClientConnection

    def face(self, other: End) -> None:
        """Expect what ``other`` sends."""
        self.due = set(other.sends)
        self.awaits = set(other.sends)

    def take(self, payload: bytes) -> None:
        """A payload arrived: one that was sent by the other end, or one that is wrong."""
        if payload in self.due:
            self.awaits.discard(payload)
        else:
            self.wrong += 1


def prove() -> Verdict:
    """Measure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * ALLOCATIONS + 200
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    settings = {"max_allocations": str(ALLOCATIONS), "wait_timeout": "10min", "quic_idle_timeout": "2min"}
    with relay_process(settings) as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Connect all, exchange all, look at everything."""
    rng = random.Random(1)  # noqa: S311 - the same bytes each time
    empty = relay.memory
    pairs = [(End(rng), End(rng)) for _ in range(ALLOCATIONS)]
    ends = [end for pair in pairs for end in pair]
    for device, peer in pairs:
        device.face(peer)
        peer.face(device)
    began = time.monotonic()
    gate = DeferredSemaphore(AT_ONCE)
    await gatherResults([gate.run(join, reactor, relay, number, pair) for number, pair in enumerate(pairs)])
    connected = time.monotonic() - began
    wanted = len(ends) * PAYLOADS
    missing = [wanted]
    while missing[-1] and len(missing) <= ROUNDS:
        for start in range(0, ALLOCATIONS, BATCH):
            for device, peer in pairs[start : start + BATCH]:
                for sender, receiver in ((device, peer), (peer, device)):
                    for payload in [payload for payload in sender.sends if payload in receiver.awaits]:
                        sender.relay.send(payload)
            await deferLater(reactor, 0.05)
        await eventually(reactor, lambda: not any(end.awaits for end in ends), 2.0)
        missing.append(sum(len(end.awaits) for end in ends))
    (entry, *_) = await pairs[0][0].relay.list_relays()
    alive = sum(not end.relay.is_closed for end in ends)
    wrong = sum(end.wrong for end in ends)
    cpu = relay.child.cpu_seconds()
    memory = (relay.memory - empty) / ALLOCATIONS
    for end in ends:
        end.relay.close()
    kept = not missing[-1] and not wrong and alive == len(ends) and entry.load == 100 and cpu <= MAX_CPU
    return Verdict(kept, (
        f"{len(pairs)} allocations at once ({alive} connections alive, the relay says it is {entry.load} % full), connected in "
        f"{connected:.1f} s; {wanted - missing[-1]} of {wanted} payloads arrived right ({missing[1]} not at the first try), "
        f"{wrong} wrong; relay: {cpu:.1f} s of CPU (at most {MAX_CPU:g}), {memory / 1000:.0f} kB an allocation"
    ))


async def join(reactor: Any, relay: Relay, number: int, pair: tuple[End, End]) -> None:
    """Connect both ends of one allocation."""
    token = relay.token_for(number.to_bytes(16, "big"))
    for end, role in zip(pair, (Role.DEVICE, Role.PEER), strict=True):
        end.relay = await relay.connect(reactor, role, token=token, on_datagram=end.take)
