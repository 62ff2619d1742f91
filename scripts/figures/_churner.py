"""Part of the clients of one time in ``churn``: ``python -m figures._churner DIR PORT TIME FIRST LAST LIFE``.

Each allocates on an allocation of its own, as fast as the machine lets them, and stays until the relay closes it. Prints a
JSON line now and then and at the end: how many have ``allocated``, are ``present``, and were ``told`` that it expired.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater, react

from figures._crowd import Crowd
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.token import RelayToken

AT_ONCE: Final = 16
"""Handshakes in flight."""
MOST: Final = 1200
"""Clients that are present at a time: as many each time, whatever else the machine does, so that memory can be compared."""
REPORT: Final = 0.5


async def main(reactor: Any, *arguments: str) -> None:
    """Let them come, and wait until they are gone."""
    reactor.seconds = time.monotonic
    files = Path(arguments[0])
    port, turn, first, last, life = map(int, arguments[1:])
    key, example = read_key(files / "device.key"), RelayToken.from_text((files / "token.txt").read_text())
    crowd = Crowd(reactor, port, 2 * life)
    reactor.listenUDP(0, crowd, interface="127.0.0.1", maxPacketSize=65535)
    reports = LoopingCall(say, crowd)
    reports.clock = reactor
    reports.start(REPORT)
    for number in range(first, last):
        allocation_id = turn.to_bytes(8, "big") + number.to_bytes(8, "big")
        token = replace(example, allocation_id=allocation_id, expires_at=int(time.time()) + life + 5)
        crowd.join(token.sign(key).encode())
        while number - first - crowd.allocated >= AT_ONCE or crowd.present >= MOST:
            await deferLater(reactor, 0.001)
    while not crowd.is_over():
        await deferLater(reactor, 0.1)
    reports.stop()
    say(crowd)


def say(crowd: Crowd) -> None:
    """Print a JSON line."""
    line = {"allocated": crowd.allocated, "present": crowd.present, "told": crowd.closed[ErrorCode.EXPIRED]}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
