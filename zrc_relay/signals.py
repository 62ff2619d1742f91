"""Signals: SIGTERM and SIGINT drain, and the second one stops at once; SIGHUP reloads and goes on in new log files.

Twisted's own handlers stop the reactor, which waits for ``RelayService.stopService`` and so for the drain; but they know no
second time. These handlers are installed twice: before anything listens, because whoever sees the relay listen may send a signal
that would otherwise end the process on the spot or be lost; and when the reactor runs, because Twisted has installed its own by
then. What a signal asks for is done when the reactor runs.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from zrc_relay.front import Front


class Signals(Service):
    """Handles the signals that a relay gets."""

    _log = Logger()

    def __init__(self, relay: Front, reactor: Any) -> None:
        self.setName("signals")
        self._relay = relay
        self._reactor = reactor
        self._asked = 0

    def startService(self) -> None:
        """Install the handlers when the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self.install)

    def install(self) -> None:
        """Install the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)
        signal.signal(signal.SIGHUP, self._hung_up)

    def _received(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._reactor.callFromThread(self.stop, signal.Signals(number).name)

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._reactor.callFromThread(self.hang_up)

    def hang_up(self) -> None:
        """Go on in new log files, which were rotated perhaps, and read everything again."""
        self._relay.reopen_logs()
        self._relay.audit.signal("SIGHUP")
        self._relay.reload()

    def stop(self, why: str) -> None:
        """Stop in peace; the second time at once."""
        self._asked += 1
        self._relay.audit.signal(why)
        if self._asked == 1:
            self._log.info("{signal}: draining; send it again to stop at once", event="signal.drain", signal=why)
            self._reactor.stop()
        else:
            self._log.info("{signal} again: stopping at once", event="signal.stop", signal=why)
            self._relay.stop_draining()
