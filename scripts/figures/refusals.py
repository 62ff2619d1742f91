"""What it costs to say no: an attempt that is refused at most 50 µs, a look-up in 100,000 networks at most 2 µs.

CPU time, in this process: the whole way of an Initial through the endpoint and the door, the security events included, for each
answer that a stranger can get. The networks have the lengths that published lists have.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Final

from figures._common import Verdict
from tests import raw_quic as raw
from tests.harness import World
from tests.raw_quic import Initial
from zrc_relay.core.admission import AdmissionSettings
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.core.sources import Rate
from zrc_relay.core.wire import Address
from zrc_relay.logs.eventlog import EventLog
from zrc_relay.quic.stateless import initial_close, parse_long_header
from zrc_relay.quic.udp import Path
from zrc_relay.securitylog import SecurityLog

ATTEMPTS: Final = 4000
TURNS: Final = 5
MAX_ATTEMPT: Final = 50.0
MAX_LOOK_UP: Final = 2.0
"""Microseconds."""
NETWORKS: Final = 100_000
LENGTHS: Final = {32: (16, 19, 20, 21, 22, 23, 24, 29, 32), 128: (29, 32, 36, 40, 44, 48, 56, 64, 128)}
NOW: Final = 1_800_000_000.0


class Nowhere:
    """A way back that leads nowhere and costs nothing."""

    address = Address("192.0.2.1", 4433)

    def __init__(self) -> None:
        self.last = b""

    def send(self, data: bytes, to: object) -> None:
        """See ``Sender``."""
        del to
        self.last = data

    def send_train(self, train: bytes, size: int, to: object) -> None:
        """See ``Sender``."""
        self.send_many([train[start : start + size] for start in range(0, len(train), size)], to)

    def send_many(self, packets: list[bytes], to: object) -> None:
        """See ``Sender``."""
        del to
        self.last = packets[-1]


def prove() -> Verdict:
    """Measure."""
    lists = long_lists()
    ways: dict[str, tuple[AdmissionSettings, AccessLists, Callable[[World], list[bytes]]]] = {
        "Retry": (AdmissionSettings(handshake_pressure=0), AccessLists(), plain),
        "INVALID_TOKEN": (AdmissionSettings(), AccessLists(), with_bad_tokens),
        "CONNECTION_REFUSED": (AdmissionSettings(Rate(1, 3600), handshake_pressure=0), AccessLists(), with_tokens),
        "silence to the blocked": (AdmissionSettings(), AccessLists(block=[Network(32, 8, 127)]), plain),
        "Retry with 100,000 networks": (AdmissionSettings(handshake_pressure=0), lists, plain),
    }
    costs = {name: attempt_cost(*way) for name, way in ways.items()}
    worst = max(costs, key=lambda name: costs[name])
    look_ups = {bits: look_up_cost(lists, bits) for bits in (32, 128)}
    kept = costs[worst] <= MAX_ATTEMPT and max(look_ups.values()) <= MAX_LOOK_UP
    closing = close_cost()
    kept = kept and closing <= MAX_ATTEMPT
    each = ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
    return Verdict(kept, (
        f"a refused attempt costs at most {costs[worst]:.1f} µs (at most {MAX_ATTEMPT:g}): {each}; to make "
        f"the close of a refusal {closing:.1f}; a look-up in {len(lists)} "
        f"networks {look_ups[32]:.2f} µs for IPv4 and {look_ups[128]:.2f} for IPv6 (at most {MAX_LOOK_UP:g})"
    ))


def attempt_cost(limits: AdmissionSettings, lists: AccessLists, make: Callable[[World], list[bytes]]) -> float:
    """Microseconds for each attempt, the median over some turns."""
    costs = []
    for _ in range(TURNS):
        world = World(limits=limits, lists=lists)
        log = SecurityLog(EventLog(world.now), now=world.now, wall=world.wall)
        vars(world.relay)["_observer"] = log
        packets = make(world)
        path = Path(("127.1.2.3", 4000), Nowhere())
        began = time.process_time()
        for packet in packets:
            world.endpoint.datagram_received(packet, path)
        world.endpoint.batch_done()
        costs.append(1e6 * (time.process_time() - began) / len(packets))
        if world.endpoint.connections > 1:
            msg = "an attempt was admitted"
            raise AssertionError(msg)
    return median(costs)


def close_cost() -> float:
    """Microseconds for a close in an Initial, which has a rate of its own and so is hardly part of the other figures."""
    header = parse_long_header(Initial(b"12345678").protect(b""))
    if header is None:
        msg = "not a long header"
        raise AssertionError(msg)
    began = time.process_time()
    for _ in range(ATTEMPTS):
        initial_close(header, 2)
    return 1e6 * (time.process_time() - began) / ATTEMPTS


def plain(world: World) -> list[bytes]:
    """Initials without a token."""
    return [Initial(world.random(8)).protect(raw.crypto_frame(0, b"\x01")) for _ in range(ATTEMPTS)]


def with_bad_tokens(world: World) -> list[bytes]:
    """Initials with a token that is nobody's."""
    return [with_token(packet, b"\x72" + world.random(60)) for packet in plain(world)]


def with_tokens(world: World) -> list[bytes]:
    """Initials with a good token, of a source that has used up its rate."""
    back = Nowhere()
    path = Path(("127.1.2.3", 4000), back)
    made = []
    for packet in plain(world):
        world.endpoint.datagram_received(packet, path)
        header = parse_long_header(back.last)
        if header is None:
            msg = "not a Retry"
            raise AssertionError(msg)
        again = Initial(header.source).protect(raw.crypto_frame(0, b"\x01"))
        made.append(with_token(again, back.last[header.end : -16]))
    world.endpoint.datagram_received(made[0], path)
    world.endpoint.batch_done()
    return made[1:]


def with_token(packet: bytes, token: bytes) -> bytes:
    """An Initial with a token put in."""
    header = parse_long_header(packet)
    if header is None:
        msg = "not a long header"
        raise AssertionError(msg)
    return packet[: header.end] + raw.varint(len(token)) + token + packet[header.end + 1 :]


def long_lists() -> AccessLists:
    """``NETWORKS`` networks, two of three of them IPv4."""
    rng = random.Random(1)  # noqa: S311 - the same networks each time
    lists = AccessLists()
    while len(lists) < NETWORKS:
        bits = rng.choice((32, 32, 128))
        length = rng.choice(LENGTHS[bits])
        lists.add(Entry(Network(bits, length, rng.getrandbits(length)), Access.BLOCK), NOW)
    lists.remove(Network(32, 24, 0x7F0102))
    return lists


def look_up_cost(lists: AccessLists, bits: int) -> float:
    """Microseconds for each look-up of a random address, the median over some turns."""
    rng = random.Random(2)  # noqa: S311 - the same addresses each time
    addresses = [(bits, rng.getrandbits(bits)) for _ in range(20_000)]
    costs = []
    for _ in range(TURNS):
        began = time.process_time()
        for address in addresses:
            lists.blocked_until(address, NOW)
        costs.append(1e6 * (time.process_time() - began) / len(addresses))
    return median(costs)
