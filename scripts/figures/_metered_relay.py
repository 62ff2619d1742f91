"""A relay that keeps books on itself: ``python -m figures._metered_relay CONFIG INTERVAL``.

It is the service that ``twistd zrc-relay`` runs, in a process of its own. Every ``INTERVAL`` seconds it notes how many bytes each
allocation has been accounted. When it is stopped it prints a JSON line: the times, and by allocation the bytes at each.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall

from zrc_relay.config import load_config
from zrc_relay.engine import Surroundings
from zrc_relay.service import RelayService


class Books:
    """What was accounted, and when."""

    def __init__(self, service: RelayService) -> None:
        self._service = service
        self._times: list[float] = []
        self._bytes: dict[str, list[int]] = {}

    def note(self) -> None:
        """Look once. Nothing is accounted while this runs, so a time and the bytes of all belong together."""
        self._times.append(time.monotonic())
        for allocation in self._service.relay.table:
            seen = self._bytes.setdefault(allocation.key[1].hex(), [])
            seen += [0] * (len(self._times) - 1 - len(seen))
            seen.append(allocation.bytes_transferred)

    def say(self) -> None:
        """Print them."""
        sys.stdout.write(json.dumps({"times": self._times, "bytes": self._bytes}) + "\n")
        sys.stdout.flush()


def main(config: str, interval: str) -> None:
    """Run until SIGTERM."""
    from twisted.internet import reactor as installed  # noqa: PLC0415 - importing it installs it

    reactor: Any = installed
    reactor.seconds = time.monotonic
    service = RelayService(load_config(path=Path(config), environ={}, options={}), Surroundings(reactor))
    books = Books(service)
    service.startService()
    sys.stdout.write(json.dumps({"port": service.quic.ports[0].local.port}) + "\n")
    sys.stdout.flush()
    LoopingCall(books.note).start(float(interval))
    reactor.addSystemEventTrigger("before", "shutdown", books.say)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
