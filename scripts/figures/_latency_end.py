"""One of the two programs between which latency is measured: ``python -m figures._latency_end DIR PORT ROLE [SINK_PORT]``.

The peer is the sink: it prints the UDP port it listens on, and at the end the delay of every datagram that came, by the relay and
directly. The device is the source: it sends one datagram each millisecond, for some seconds directly, for some by the relay, and
so on. A datagram holds its way, its block and the time it was sent; both programs read the same monotonic clock.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater, react

from zrc_relay.cli.keyfiles import read_key
from zrc_relay.client.connect import connect
from zrc_relay.client.trust import Trust

RATE: Final = 1000
"""Datagrams a second."""
BLOCK: Final = 1000
"""Datagrams that go one way before the other one has its turn."""
BLOCKS: Final = 12
"""Blocks of each way; the first of each is for warming up and not counted."""
SIZE: Final = 1100
DIRECT: Final = 0
RELAYED: Final = 1
END: Final = 2
PAUSE: Final = 0.5
_HEAD: Final = struct.Struct("!BBQ")


class Sink(DatagramProtocol):
    """Takes datagrams of both ways."""

    def __init__(self) -> None:
        self.delays: dict[int, dict[int, list[float]]] = {DIRECT: {}, RELAYED: {}}
        self.done: Deferred[None] = Deferred()

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        """A datagram that came directly."""
        del addr
        self.take(data)

    def take(self, data: bytes) -> None:
        """Note how long it took."""
        now = time.monotonic_ns()
        way, block, sent = _HEAD.unpack_from(data)
        if way != END:
            self.delays[way].setdefault(block, []).append((now - sent) / 1e6)
        elif not self.done.called:
            self.done.callback(None)


async def main(reactor: Any, directory: str, port: str, role: str, sink_port: str = "0") -> None:
    """Be the source or the sink."""
    reactor.seconds = time.monotonic
    files = Path(directory)
    sink = Sink()
    relay = await connect(
        reactor, "127.0.0.1", int(port), token=(files / "token.txt").read_text(), key=read_key(files / f"{role}.key"),
        trust=Trust(insecure=True), on_datagram=sink.take,
    )
    socket = reactor.listenUDP(0, sink, interface="127.0.0.1", maxPacketSize=65535)
    if role == "peer":
        say({"port": socket.getHost().port})
        await sink.done
        say({"direct": by_block(sink.delays[DIRECT]), "relayed": by_block(sink.delays[RELAYED])})
    else:
        while not relay.peer_present:
            await deferLater(reactor, 0.01)
        socket.connect("127.0.0.1", int(sink_port))
        for block in range(BLOCKS):
            for way, send in ((DIRECT, socket.write), (RELAYED, relay.send)):
                await send_block(reactor, way, block, send)
        socket.write(_HEAD.pack(END, 0, 0))
    relay.close()


async def send_block(reactor: Any, way: int, block: int, send: Any) -> None:
    """Send ``BLOCK`` datagrams at ``RATE``; one that is late is not waited for, and not sent in a bunch with others."""
    padding = bytes(SIZE - _HEAD.size)
    due = time.monotonic()
    for _ in range(BLOCK):
        due = max(due + 1 / RATE, time.monotonic())
        await deferLater(reactor, max(0.0, due - time.monotonic()))
        send(_HEAD.pack(way, block, time.monotonic_ns()) + padding)
    await deferLater(reactor, PAUSE)


def by_block(blocks: dict[int, list[float]]) -> list[list[float]]:
    """The delays in milliseconds of each block but the first."""
    return [[round(delay, 4) for delay in delays] for block, delays in sorted(blocks.items()) if block]


def say(line: dict[str, Any]) -> None:
    """Print a JSON line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
