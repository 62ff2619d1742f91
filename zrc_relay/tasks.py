"""Background tasks: the one helper that starts them (ARCHITECTURE, rule 7).

A ``Ticker`` calls a function again and again as long as its service runs. An exception is logged and counted, and the next tick
comes all the same; Twisted's own ``LoopingCall`` and ``TimerService`` stop for good at the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from zrc_relay.quic.clock import Clock, DelayedCall

T = TypeVar("T")


def shielded(work: Deferred[T]) -> Deferred[T]:
    """Fires as ``work`` does. Whoever cancels it waits no longer; the work goes on, and what comes of it is nobody's."""
    waiter: Deferred[T] = Deferred()
    work.addCallbacks(waiter.callback, waiter.errback)
    return waiter


class Ticker(Service):
    """Calls ``function`` every ``interval`` seconds between ``startService`` and ``stopService``."""

    _log = Logger()

    def __init__(self, clock: Clock, interval: float, function: Callable[[], None], name: str) -> None:
        self._clock = clock
        self._interval = interval
        self._function = function
        self._call: DelayedCall | None = None
        self.failures = 0
        self.is_failing = False
        """Whether the last call of the function raised."""
        self.setName(name)

    def startService(self) -> None:
        """Begin; the first call comes after one interval."""
        super().startService()
        self._schedule()

    def stopService(self) -> None:
        """End; no call comes after this."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self) -> None:
        self._call = self._clock.callLater(self._interval, self._tick)

    def _tick(self) -> None:
        self._call = None
        try:
            self._function()
            self.is_failing = False
        except Exception:
            self.failures += 1
            self.is_failing = True
            self._log.failure("the background task {task} failed; it goes on", event="task.failed", task=self.name)
        if self.running:
            self._schedule()
