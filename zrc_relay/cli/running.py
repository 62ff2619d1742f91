"""The one place where the command line starts Twisted's reactor.

Theory of operation
-------------------
``run`` runs a coroutine in the reactor and gives back what it returned, or raises what it raised. SIGINT and SIGTERM cancel the
coroutine: it gets a ``CancelledError`` where it waits, may say goodbye in its ``finally`` and may return a result all the same;
the reactor stops when it has ended. A reactor runs once in a process, and so does ``run``.

Time is monotonic, as for the relay. Warnings of the libraries go to standard error, what is less than a warning goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, LogLevel, eventAsText, globalLogBeginner
from twisted.python.failure import Failure

from zrc_relay.cli.errors import complain
from zrc_relay.tap import use_monotonic_time

T = TypeVar("T")


def run(main: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run ``main(reactor)`` to its end; ``click.Abort`` when a signal ended it and it had nothing to return."""
    from twisted.internet import reactor as installed  # noqa: PLC0415 - importing it installs it, which must not happen earlier

    reactor: Any = installed
    use_monotonic_time(reactor)
    _log_warnings()
    outcome: list[T | Failure] = []
    running: list[Deferred[None]] = []

    def ended(result: T | Failure) -> None:
        outcome.append(result)
        if not stopping:
            reactor.stop()

    def start() -> None:
        running.append(Deferred.fromCoroutine(main(reactor)).addBoth(ended))

    stopping: list[bool] = []

    def cancel() -> Deferred[None] | None:
        stopping.append(True)
        if outcome or not running:
            return None
        running[0].cancel()
        return running[0]  # the reactor waits for it

    # One turn later, because the reactor takes charge of signals only after it has called what waits for its start.
    reactor.callWhenRunning(reactor.callLater, 0, start)
    reactor.addSystemEventTrigger("before", "shutdown", cancel)
    reactor.run()
    result = outcome[0] if outcome else Failure(CancelledError())
    if isinstance(result, Failure):
        if result.check(CancelledError):
            raise click.Abort
        result.raiseException()
    return result


def _log_warnings() -> None:
    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn:
            complain(eventAsText(event, includeTimestamp=False, includeSystem=False))

    observers: list[Any] = [observe]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)
