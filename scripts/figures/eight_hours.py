"""8 hours of virtual time on one session: nothing expires that should not, nothing is lost, no state grows.

On the simulated network, where 8 hours take a minute. Both ends send a datagram a second, some of them too large for a DATAGRAM,
now and then a stream, and are silent for a third of each hour. Tokens live an hour and are refreshed every half hour, by the two
ends in turns. Every few minutes an end moves to another port or address, from IPv4 to IPv6 and back. Keys are updated by packet
count, which is lowered so that it happens dozens of times, and once an hour by a client. The wall clock runs a little fast and is
set forth and back besides.

At the end of each hour, when all is quiet, every container of the relay, of the clients and of aioquic below them is counted
(``_census``). Whatever holds more than after the second hour has grown, but for the few that are full later than that.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final

from aioquic.quic.recovery import MAX_ACK_RANGES

from figures._census import census
from figures._common import Verdict
from tests.harness import EPOCH, TestClient, World
from tests.relay_view import move, relay_end
from zrc_relay.client.streams import RelayStream
from zrc_relay.core.authorisation import TOKEN_CACHE_SIZE
from zrc_relay.core.session import CAPSULES_PER_SECOND

HOURS: Final = 8
INTERVAL: Final = 1.0
"""Seconds between datagrams of each end."""
SIZES: Final = (100, 1000, 100, 3000)
"""Of the datagrams, in turns; the largest goes as an oversize record."""
STREAMS: Final = 300.0
"""Seconds between streams of each end."""
REFRESH: Final = 1800.0
TOKEN_LIFE: Final = 3600
BUSY: Final = 2400.0
"""Seconds of each hour in which something is sent."""
MOVE: Final = 200.0
"""Seconds between moves, of the two ends in turns."""
KEY_UPDATE_PACKETS: Final = 500
MIN_KEY_UPDATES: Final = 48
DRIFT: Final = 1.00005
"""How fast the wall clock runs: 50 ppm, as cheap crystals do."""
STEPS: Final = (0.4, -0.7, 30.0, -45.0, 5.0, -2.0, 90.0, -60.0)
"""Seconds by which the wall clock is set, one in each hour."""
HOSTS: Final = (("198.51.100.7", ()), ("203.0.113.5", ()), ("2001:db8::5", (0, 0)), ("2001:db8:1::6", (0, 0)))
"""Where the ends move to."""
SLACK: Final = 8
"""Items by which a container may differ from one quiet moment to another: timers, a packet or two not yet acknowledged."""
BOUNDS: Final = {
    "Authoriser._verified": TOKEN_CACHE_SIZE,
    "Session._capsules": 2 * CAPSULES_PER_SECOND,
    "QuicPacketNumberWindow._received": 4 * (4 * MAX_ACK_RANGES + 1),
}
"""What may go on growing after the second hour, or goes up and down, and what it may hold in all (of two or four connections)."""
FOREIGN: Final = frozenset(("Relay._observer", "Host.network", "TestClient.world", "TestClient.host", "TestClient.notices"))
"""The simulated world, and what a test keeps on purpose."""


class Day(World):
    """A world whose wall clock drifts, and is set."""

    def __init__(self) -> None:
        self.set_by = 0.0
        super().__init__()

    def wall(self) -> float:
        """Unix seconds."""
        return EPOCH + self.clock.seconds() * DRIFT + self.set_by


class End:
    """One client, what it has sent and what the other should have got."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.sent = 0
        self.got = 0
        self.lost = 0
        self.streams_sent: list[bytes] = []
        self.streams_got: list[bytes] = []
        client.on_stream = self._opened

    def _opened(self, stream: RelayStream) -> None:
        stream.attach(_Collector(self.streams_got))

    def send(self) -> None:
        """One datagram."""
        self.sent += 1
        self.client.send(self.sent.to_bytes(8, "big").ljust(SIZES[self.sent % len(SIZES)], b"."))

    def send_stream(self) -> None:
        """One stream, of some kilobytes."""
        data = len(self.streams_sent).to_bytes(4, "big") * 1000
        self.streams_sent.append(data)
        stream = self.client.open_stream(unidirectional=True)
        stream.write(data)
        stream.loseWriteConnection()

    def take(self, other: End) -> None:
        """All that ``other`` has sent must be here by now, in order."""
        arrived = [int.from_bytes(payload[:8], "big") for payload in self.client.got]
        self.client.got.clear()
        self.lost += arrived != list(range(self.got + 1, other.sent + 1))
        self.got = other.sent


class _Collector:
    """Takes a whole stream."""

    def __init__(self, finished: list[bytes]) -> None:
        self._data = bytearray()
        self._finished = finished

    def makeConnection(self, transport: Any) -> None:
        """It begins."""

    def dataReceived(self, data: bytes) -> None:
        """Some of it."""
        self._data += data

    def connectionLost(self, reason: Any) -> None:
        """It is whole."""
        del reason
        self._finished.append(bytes(self._data))


def prove() -> Verdict:
    """Live through the day."""
    begun = time.process_time()
    world = Day()
    device, peer = world.pair(world.token(expires_at=int(world.wall()) + TOKEN_LIFE - 1))
    ends = (End(device), End(peer))
    connections = [relay_end(world, client) for client in (device, peer)]
    for connection in connections:
        connection.quic.key_update_packets = KEY_UPDATE_PACKETS
    counts = []
    for hour in range(HOURS):
        live_an_hour(world, ends, hour)
        counts.append(census([world.relay, world.endpoint, device, peer], FOREIGN))
    names = Counter(world.recorder.names())
    alive = not (device.is_closed or peer.is_closed) and connections == [relay_end(world, client) for client in (device, peer)]
    alive = alive and names["session.bound"] == 2 and not names["session.lost"] and not names["allocation.ended"]
    lost = ends[0].lost + ends[1].lost + sum(world.relay.counters.dropped_packets.values())
    right = all(Counter(other.streams_got) == Counter(end.streams_sent) for end, other in (ends, ends[::-1]))
    updates = sum(connection.quic.key_updates for connection in connections)
    refreshes = world.relay.counters.tokens_refreshed
    grown = growth(counts)
    kept = alive and right and not lost and not grown and updates >= MIN_KEY_UPDATES
    kept = kept and names["session.moved"] == HOURS * BUSY / MOVE and refreshes == 2 * HOURS
    return Verdict(kept, (
        f"{HOURS} hours: the session {'lives' if alive else 'IS LOST'}, {lost} of {ends[0].sent + ends[1].sent} datagrams lost, "
        f"{sum(len(end.streams_sent) for end in ends)} streams {'right' if right else 'WRONG'}, {refreshes} refreshes, "
        f"{names['session.moved']} moves, {updates} key updates, wall clock set {len(STEPS)} times; after the second hour "
        f"{sum(counts[1].values())} items in {len(counts[1])} kinds of containers, "
        f"after the last {sum(counts[-1].values())}; grown: "
        f"{grown or 'none'}; {time.process_time() - begun:.0f} s of CPU"
    ))


def live_an_hour(world: Day, ends: tuple[End, End], hour: int) -> None:
    """Traffic, refreshes, moves, a clock that is set; then silence."""
    begun = world.now()
    for second in range(int(BUSY / INTERVAL)):
        if second % MOVE == MOVE / 2:
            wander(world, ends, int(second // MOVE) + hour)
        if second % REFRESH == 0:
            refresh(world, ends[hour % 2].client)
        if second == BUSY // 3:
            world.set_by += STEPS[hour]
        if second == BUSY // 2:
            ends[hour % 2].client.quic.request_key_update()
        for end in ends:
            end.send()
            if second % STREAMS == 0:
                end.send_stream()
        world.run(begun + (second + 1) * INTERVAL - world.now())
        ends[0].take(ends[1])
        ends[1].take(ends[0])
    world.run(begun + 3600 - world.now())


def wander(world: Day, ends: tuple[End, End], number: int) -> None:
    """An end is somewhere else, and is heard from there before the other one sends it something: nothing is in flight."""
    client = ends[number % 2].client
    host, rest = HOSTS[number * 7 // 2 % len(HOSTS)]
    world.next_port += 1
    move(world, client, (host, world.next_port, *rest))
    client.ping().addErrback(lambda _: None)
    world.run(INTERVAL / 2)


def refresh(world: Day, client: TestClient) -> None:
    """Another token for another hour."""
    client.refresh(world.token(expires_at=int(world.wall()) + TOKEN_LIFE))


def growth(counts: list[Counter[str]]) -> str:
    """The containers that hold more after the last hour, and after the one before it, than after the second."""
    second, before, last = counts[1], counts[-2], counts[-1]
    return ", ".join(
        f"{name} {second[name]} to {last[name]}"
        for name in sorted(last)
        if last[name] > BOUNDS.get(name, 0) and min(before[name], last[name]) > second[name] + SLACK
    )
