"""Signals: SIGTERM and SIGINT drain, and the second one stops at once; SIGHUP reads keys again and goes on in new log files.

Twisted's own handlers stop the reactor, which waits for ``RelayService.stopService`` and so for the drain; but they know no
second time. These handlers are installed when the reactor runs, after Twisted's.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from zrc_relay.service import RelayService


class Signals(Service):
    """Handles the signals that a relay gets."""

    _log = Logger()

    def __init__(self, relay: RelayService, reactor: Any) -> None:
        self.setName("signals")
        self._relay = relay
        self._reactor = reactor
        self._asked = 0

    def startService(self) -> None:
        """Install the handlers as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def _install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)
        signal.signal(signal.SIGHUP, self._hung_up)

    def _received(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._reactor.callFromThread(self.stop, signal.Signals(number).name)

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._reactor.callFromThread(self._relay.reload_keys)
        self._reactor.callFromThread(self._relay.reopen_logs)

    def stop(self, why: str) -> None:
        """Stop in peace; the second time at once."""
        self._asked += 1
        if self._asked == 1:
            self._log.info("{signal}: draining; send it again to stop at once", signal=why)
            self._reactor.stop()
        else:
            self._log.info("{signal} again: stopping at once", signal=why)
            self._relay.stop_draining()
