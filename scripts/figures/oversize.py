"""A datagram too big for the way out never delays the next one.

On the simulated network, where time is exact: a device sends one that does not fit the peer's limit before each small one. The
peer takes DATAGRAM frames of 100 bytes, so the big ones must go another way or not at all.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from figures._common import Verdict
from tests import raw_quic as raw
from tests.harness import World
from tests.raw_quic import ScriptedClient

COUNT: Final = 500
FRAME_LIMIT: Final = 100
BIG: Final = 1000
STEP: Final = 0.0005
MAX_DIFFERENCE: Final = 0.001
"""Seconds: one more packet of the sender is in front of it, and the scene is looked at every ``STEP``."""


def prove() -> Verdict:
    """Measure with and without the big ones."""
    without, with_big = delays(0), delays(1)
    difference = median(with_big) - median(without)
    kept = len(with_big) == len(without) == COUNT
    kept = kept and difference <= MAX_DIFFERENCE and max(with_big) <= max(without) + MAX_DIFFERENCE
    return Verdict(kept, (
        f"{len(with_big)} of {COUNT} small datagrams, each behind one that does not fit, took "
        f"{1000 * median(with_big):.2f} ms at the median and {1000 * max(with_big):.2f} ms at most; without the others "
        f"{1000 * median(without):.2f} and {1000 * max(without):.2f} ms"
    ))


def delays(big_ones: int) -> list[float]:
    """How long each small datagram took that arrived, in seconds."""
    world = World()
    device, peer = ScriptedClient(world), ScriptedClient(world, max_datagram_frame_size=FRAME_LIMIT)
    world.run(0.1)
    token = world.token().encode()
    device.allocate(token, Ed25519PrivateKey.from_private_bytes(bytes(world.device_key)))
    peer.allocate(token, Ed25519PrivateKey.from_private_bytes(bytes(world.peer_key)), raw.PEER)
    world.run(0.1)
    found = []
    for number in range(COUNT):
        small = number.to_bytes(4, "big")
        sent = world.now()
        for _ in range(big_ones):
            device.send_datagram(bytes(BIG))
        device.send_datagram(small)
        while small not in peer.datagrams and world.now() < sent + 1:
            world.run(STEP)
        if small in peer.datagrams:
            found.append(world.now() - sent)
        world.run(0.01)
    return found
