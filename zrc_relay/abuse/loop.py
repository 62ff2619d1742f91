"""A background task that waits for something: the asynchronous brother of ``Ticker`` (ARCHITECTURE, rule 7).

A ``Loop`` runs ``step`` again and again, never two at a time. ``step`` says when it wants to run next. An exception is logged and
counted, and the next step comes all the same. ``stopService`` cancels a step that is under way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger

from zrc_relay.quic.clock import Clock, DelayedCall

CRASH_DELAY: Final = 30.0
"""Seconds until the step after one that raised: a bug that repeats must not fill the log."""


class Loop(Service, ABC):
    """Runs ``step`` between ``startService`` and ``stopService``; the first time at once."""

    _log = Logger()

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._call: DelayedCall | None = None
        self._stepping: Deferred[float | None] | None = None
        self._stopped: Deferred[None] | None = None
        self.crashes = 0
        """Steps that ended with an exception they should have handled."""
        self.setName(name)

    @abstractmethod
    async def step(self) -> float | None:
        """Do what there is to do; returns the seconds until the next step, or None to sleep until ``wake``."""

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self.wake(0)

    def stopService(self) -> Deferred[None]:
        """End; fires when no step is under way any more."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._stepping is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        self._stepping.cancel()
        return stopped

    def wake(self, delay: float) -> None:
        """Step in ``delay`` seconds, if the loop is running and asleep; otherwise there will be a step anyway."""
        if self.running and self._call is None and self._stepping is None:
            self._call = self._clock.callLater(delay, self._begin)

    def _begin(self) -> None:
        self._call = None
        self._stepping = Deferred.fromCoroutine(self._guarded())
        self._stepping.addCallback(self._ended)

    async def _guarded(self) -> float | None:
        try:
            return await self.step()
        except CancelledError:
            return None
        except Exception:
            self.crashes += 1
            self._log.failure("the background task {task} failed; it goes on", event="task.failed", task=self.name)
            return CRASH_DELAY

    def _ended(self, delay: float | None) -> Any:
        self._stepping = None
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.callback(None)
        elif delay is not None:
            self.wake(delay)
