"""Forwards datagrams in this process, to have the instructions counted: ``python -m figures._worker_packets FORM CAP COUNT``.

FORM is ``worker`` or ``alone``, CAP ``capped`` or ``free`` (whether there is a limit for all allocations together), COUNT how
many datagrams go each way. Clients and network are simulated. What the relay does with packets, and by its timers, it does
inside the C library's ``qsort``, which calls it once, as the function that compares two elements: callgrind can be told to
collect there and nowhere else.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, World
from tests.two_workers import PORT_BASE, allocation_of
from zrc_relay.core.admission import UNLIMITED, Admission
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.limits import Limits
from zrc_relay.core.relay import Policy, Relay
from zrc_relay.core.routing import ALONE, Share
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.ids import SECRET_SIZE, ConnectionIds
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.workers.memory import LimitsMemory

MINE: Final = Share(1, 2)
CAP: Final = 1_000_000_000
"""Bytes a second: never reached, always asked."""
SIZE: Final = 1100
SETTLE: Final = 200
INTERVAL: Final = 0.002
"""Seconds between two datagrams of one direction: 500 a second."""
_COMPARE: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Scene(World):
    """A relay as a whole process has it, or as worker 1 of 2 has it, its limits in memory that is shared."""

    def __init__(self, *, is_worker: bool, cap: int | None) -> None:
        super().__init__(policy=Policy(
            relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, global_bandwidth_limit=cap,
            worker_port_base=PORT_BASE if is_worker else 0,
        ))
        share, limits = ALONE, None
        if is_worker:
            share, limits = MINE, shared_limits()
        admission = Admission(UNLIMITED, AccessLists(), now=self.now(), limits=limits)
        self.relay = Relay(
            self.policy, self.keys, self.recorder, now=self.now(), admission=admission, share=share, limits=limits
        )
        self.endpoint = Endpoint(
            self.relay, self.credentials, EndpointSettings(), ConnectionIds(self.random(SECRET_SIZE), self.random, share),
            clock=self.clock, now=self.now, wall=self.wall, random=self.random,
        )
        self.network.attach(RELAY_ADDRESS, self.endpoint)


def shared_limits() -> Limits:
    """As a worker has them: attached to what somebody else has made."""
    made = LimitsMemory.create(MINE.count, os.urandom(16))
    return LimitsMemory.attach(os.dup(made.fd)).limits(MINE)


class Counted:
    """Calls functions inside ``qsort``."""

    def __init__(self) -> None:
        self.calls = 0
        self._qsort: Any = ctypes.CDLL(None).qsort
        self._pair = ctypes.create_string_buffer(2)
        self._work: Callable[[], None] = lambda: None
        self._compare = _COMPARE(self._call)

    def of(self, function: Callable[..., None]) -> Callable[..., None]:
        """A function that does the same, counted."""
        def counted(*arguments: Any) -> None:
            self._work = lambda: function(*arguments)
            self._qsort(self._pair, ctypes.c_size_t(2), ctypes.c_size_t(1), self._compare)

        return counted

    def _call(self, one: object, other: object) -> int:
        del one, other
        self.calls += 1
        self._work()
        return 0


def main(form: str, cap: str, count: str) -> None:
    """Let both ends send, first uncounted; prints how many arrived and how often the relay did something."""
    scene = Scene(is_worker=form == "worker", cap=CAP if cap == "capped" else None)
    device, peer = scene.pair(scene.token(allocation_id=allocation_of(MINE.index, MINE.count)))

    def exchange(number: int) -> None:
        for _ in range(number):
            device.send(bytes(SIZE))
            peer.send(bytes(SIZE))
            scene.run(INTERVAL)

    exchange(SETTLE)
    scene.run(0.1)
    counted, endpoint = Counted(), scene.endpoint
    before = len(device.got) + len(peer.got)
    for name in ("datagram_received", "batch_done", "sweep", "_timed_out"):
        setattr(endpoint, name, counted.of(getattr(endpoint, name)))
    exchange(int(count))
    scene.run(0.1)
    sys.stdout.write(f"{len(device.got) + len(peer.got) - before} {counted.calls}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
