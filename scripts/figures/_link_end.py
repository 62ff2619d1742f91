"""Both ends of an allocation behind one link: ``python -m figures._link_end DIR ADDRESS PORT SIGNAL``.

They search the path's MTU, and when that has settled send each other datagrams of the largest size that they and the relay think
fits. When the file ``SIGNAL`` appears, the link is about to change: then they do it all again. Prints a JSON line each time: the
sizes on the four ways (in bytes of UDP payload), and how many of the datagrams arrived as DATAGRAM frames.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from tests.relay_view import DATAGRAM_OVERHEAD
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.client.connect import connect
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.trust import Trust

COUNT: Final = 200
"""Datagrams of each end."""
INTERVAL: Final = 0.01
SETTLED: Final = 4.0
"""Seconds without a change after which the search is taken to be over."""
PATIENCE: Final = 60.0
FULL: Final = 1400
"""A payload that fitted before: who does not send such ones does not notice that they do not fit any more, and need not."""


async def main(reactor: Any, directory: str, address: str, port: str, signal: str) -> None:
    """Be both ends."""
    reactor.seconds = time.monotonic
    files = Path(directory)
    got: list[list[bytes]] = [[], []]
    ends = [
        await connect(
            reactor, address, int(port), token=(files / "token.txt").read_text(), key=read_key(files / name),
            trust=Trust(insecure=True), on_datagram=heard.append,
        )
        for name, heard in zip(("device.key", "peer.key"), got, strict=True)
    ]
    await look(reactor, ends, got, busy=False)
    while not Path(signal).exists():  # noqa: ASYNC240 - a look at a local file
        await deferLater(reactor, 0.1)
    await look(reactor, ends, got, busy=True)
    for end in ends:
        end.close()


async def look(reactor: Any, ends: list[ClientConnection], got: list[list[bytes]], *, busy: bool) -> None:
    """Wait until the sizes do not change any more, with traffic of full size meanwhile if ``busy``; then try them."""
    begun = changed = time.monotonic()
    found = sizes(ends)
    while time.monotonic() < min(changed + SETTLED, begun + PATIENCE):
        if busy:
            for end in ends:
                end.send(bytes(FULL))
        await deferLater(reactor, INTERVAL)
        if sizes(ends) != found:
            found, changed = sizes(ends), time.monotonic()
    await deferLater(reactor, 0.5)
    for heard in got:
        heard.clear()
    for _ in range(COUNT):
        for end in ends:
            end.send(bytes(largest(end)))
        await deferLater(reactor, INTERVAL)
    await deferLater(reactor, 1.0)
    line = {"sizes": found, "arrived": [len(heard) for heard in got], "seconds": round(changed - begun, 1)}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def largest(end: ClientConnection) -> int:
    """The longest payload that fits a DATAGRAM on the whole way."""
    return min(end.max_payload, end.peer_max_payload)


def sizes(ends: list[ClientConnection]) -> list[int]:
    """UDP payload to the relay from either end, and from the relay to either."""
    fits = [end.max_payload for end in ends] + [end.peer_max_payload for end in ends]
    return [size + DATAGRAM_OVERHEAD for size in fits]


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
