"""A worker as a process: started with its sockets, watched, and killed when it must be.

Theory of operation
-------------------
``WorkerProcess`` starts ``python -m zrc_relay.workers`` through Twisted's process support, with one end of a socket pair
as file descriptor 3, the shared memory as 4 and its UDP sockets from 5 on. AMP runs over the pair. What it writes to its
standard output and error, which is nothing unless something is badly wrong, goes to the log.

The worker asks the kernel to kill it when its parent dies, and ends by itself when the pair is closed: no orphan keeps the port.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from zrc_relay import __version__
from zrc_relay.workers.orders import CHANNEL_FD, FIRST_SOCKET_FD, LIMITS_FD

MODULE: Final = "zrc_relay.workers"
MAX_LINE: Final = 2000
"""Longest line of its standard error that is logged, in characters."""
MAX_LINES: Final = 200
"""Lines of it, for each life of a worker: a traceback or two."""


class WorkerProcess(ProcessProtocol):
    """One life of a worker, over ``protocol``. ``place`` and ``on_end`` come with the place that it gets; a spare has none.

    ``on_end`` is called with a sentence when the process is over.
    """

    _log = Logger()

    def __init__(self, protocol: amp.AMP, on_end: Callable[[str], None]) -> None:
        self.place: int | None = None
        self.protocol = protocol
        self.on_end = on_end
        self._unfinished = b""
        self._lines = 0
        self.pid = 0
        self.started_at = 0.0
        """Monotonic seconds."""

    def start(self, reactor: Any, limits_fd: int, sockets: Sequence[socket.socket]) -> None:
        """Start the process; ``OSError`` when that cannot be done."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
            descriptors: dict[int, int | str] = {0: "w", 1: "r", 2: "r", CHANNEL_FD: theirs.fileno(), LIMITS_FD: limits_fd}
            descriptors |= {FIRST_SOCKET_FD + number: each.fileno() for number, each in enumerate(sockets)}
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: self.protocol))
            transport = reactor.spawnProcess(
                self, sys.executable, [sys.executable, "-m", MODULE, str(os.getpid()), __version__],
                env=environment(os.environ), childFDs=descriptors,
            )
            self.pid, self.started_at = transport.pid, reactor.seconds()
            transport.closeStdin()
        finally:
            ours.close()
            theirs.close()

    def kill(self) -> None:
        """End it now; safe when it has ended."""
        transport: Any = self.transport
        if transport is not None:
            with suppress(ProcessExitedAlready):
                transport.signalProcess("KILL")

    def outReceived(self, data: bytes) -> None:
        """It wrote to its standard output."""
        self.errReceived(data)

    def errReceived(self, data: bytes) -> None:
        """It wrote to its standard error."""
        *lines, self._unfinished = (self._unfinished + data)[-64 * MAX_LINE:].split(b"\n")
        for line in lines:
            self._wrote(line)

    def _wrote(self, line: bytes) -> None:
        self._lines += 1
        if line.strip() and self._lines <= MAX_LINES:
            text = line.decode("utf-8", "replace")[:MAX_LINE]
            self._log.error("a worker wrote: {text}", event="worker.output", worker=self.place, text=text)

    def processEnded(self, reason: Failure) -> None:
        """It is over, and all that it wrote has been read."""
        if self._unfinished:
            self._wrote(self._unfinished)
        error: Any = reason.value
        if isinstance(error, ProcessDone):
            how = "it ended"
        elif error.signal is not None:
            how = f"killed by signal {error.signal}"
        else:
            how = f"exit status {error.exitCode}"
        self.on_end(how)


def environment(mine: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: it finds the same code, and has none of the relay's settings, which come over the pair."""
    kept = {name: value for name, value in mine.items() if not name.startswith("ZRC_RELAY_")}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return kept
