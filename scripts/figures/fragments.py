"""10,000 Initials of one-byte CRYPTO fragments cost at most 1 ms of CPU each, and leave nothing behind.

Several ways to be hostile with them share the 10,000: each Initial from a connection of its own, more gaps than are allowed or as
many as are just allowed; and all for one connection, with gaps, on the same few gaps again and again, or with numbers missing in
between. The relay's limits on sources are off: what is measured is what QUIC itself costs, when somebody gets that far. The
sixth way is the same with the default limits. Everything runs in this process on a simulated network; CPU time is real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import fmean
from typing import Final

from figures._common import Verdict
from tests import raw_quic as raw
from tests.harness import RELAY_ADDRESS, World
from tests.raw_quic import Initial, Raw, leftovers
from zrc_relay.core.admission import UNLIMITED, AdmissionSettings
from zrc_relay.core.sources import Rate
from zrc_relay.quic.udp import Path

INITIALS: Final = 10_000
MAX_EACH: Final = 1.0
MAX_WORST: Final = 1.5
"""Milliseconds of CPU, on average and in the worst way, where most of it is what any connection costs."""
FRAGMENTS: Final = 270
"""One-byte fragments that fit an Initial."""
ALLOWED: Final = 62
"""Gaps that are just allowed."""
AT_ONCE: Final = 100
"""Initials between two looks at the clock of the scene, so that fewer handshakes are open than the relay would take."""
PAUSE: Final = 0.6
AFTER: Final = 10.0


def prove() -> Verdict:
    """Measure each way."""
    ways = {
        "own connections, too many gaps": (UNLIMITED, own(range(1, 2 * FRAGMENTS, 2))),
        "own connections, allowed gaps": (UNLIMITED, own(range(1, 2 * ALLOWED, 2))),
        "one connection, too many gaps": (UNLIMITED, one(range(1, 2 * FRAGMENTS, 2))),
        "one connection, the same gaps": (UNLIMITED, one([2 * (number % ALLOWED + 1) for number in range(FRAGMENTS)])),
        "one connection, missing numbers": (UNLIMITED, one([2 * ALLOWED] * FRAGMENTS, step=2)),
        "own connections, default limits": (AdmissionSettings(connection_rate=Rate(30, 60)), own(range(1, 2 * FRAGMENTS, 2))),
    }
    count = INITIALS // len(ways) + 1
    each: dict[str, float] = {}
    left: dict[str, int] = {}
    for name, (limits, packets) in ways.items():
        each[name], remaining = cost(limits, [next(packets) for _ in range(count)])
        left.update(remaining)
    limited = each.pop("own connections, default limits")
    worst = max(each, key=lambda name: each[name])
    mean = fmean(each.values())
    kept = mean <= MAX_EACH and each[worst] <= MAX_WORST and not left
    return Verdict(kept, (
        f"{count * len(ways)} Initials of one-byte fragments cost {mean:.3f} ms of CPU each without limits on sources (at most "
        f"{MAX_EACH:g}), {each[worst]:.3f} ms in the worst of five ways ({worst}; at most {MAX_WORST:g}), {limited:.3f} ms with "
        f"the default limits; left behind: {left or 'nothing'}"
    ))


def cost(limits: AdmissionSettings, packets: list[bytes]) -> tuple[float, dict[str, int]]:
    """Milliseconds of CPU for each of the packets, all that follows from them included, and what is left of them."""
    world = World(limits=limits)
    stranger = Raw(world.network)
    path = Path(("203.0.113.9", 999), world.network.hosts[RELAY_ADDRESS])
    began = time.process_time()
    for number, packet in enumerate(packets, start=1):
        world.endpoint.datagram_received(packet, path)
        world.endpoint.batch_done()
        if number % AT_ONCE == 0:
            world.run(PAUSE)
    world.run(AFTER)
    spent = time.process_time() - began
    del stranger
    return 1000 * spent / len(packets), leftovers(world)


def frames(offsets: Iterator[int] | range | list[int]) -> bytes:
    """One-byte CRYPTO fragments at these offsets, as many as fit."""
    return b"".join(raw.crypto_frame(offset, b"x") for offset in offsets)[:1120]


def own(offsets: range) -> Iterator[bytes]:
    """Initials, each of a connection of its own."""
    content = frames(offsets)
    number = 0
    while True:
        number += 1
        yield Initial(number.to_bytes(8, "big")).protect(content)


def one(offsets: range | list[int], step: int = 1) -> Iterator[bytes]:
    """Initials of one connection, the first with as many gaps as are allowed."""
    initial = Initial(b"hostile!")
    yield initial.protect(frames(range(2, 2 * ALLOWED, 2)))
    content = frames(offsets)
    number = 0
    while True:
        number += step
        yield initial.protect(content, packet_number=number)
