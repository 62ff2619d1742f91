"""The log observer of a relay process: which lines are written, in which form, how many (R5.7).

Theory of operation
-------------------
Twisted's publisher calls ``RelayLog`` with each event. It asks, the cheapest question first: is the event's level high enough for
its namespace? Has its kind budget left? Only then a line is made. Kinds are the names of the catalog; what libraries say is told
apart by namespace and sentence.

Levels and form can be replaced while it runs (``configure``), and with them nothing else. An error in here costs the line, and
is told in a line of its own that cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from twisted.logger import ILogObserver, LogLevelFilterPredicate
from twisted.logger import LogLevel as TwistedLevel
from zope.interface import implementer  # type: ignore[import-untyped]

from zrc_relay.logs.catalog import OTHER
from zrc_relay.logs.levels import LogFormat, LogLevel
from zrc_relay.logs.outputs import Output
from zrc_relay.logs.rates import Throttle
from zrc_relay.logs.render import event_name, json_line, text_line

_LEVELS: Final = {level.value: level for level in LogLevel}


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the configuration says about the log; ``levels`` are by namespace, the longest that fits an event's decides."""

    level: LogLevel = LogLevel.INFO
    levels: Mapping[str, LogLevel] = field(default_factory=dict)
    form: LogFormat = LogFormat.AUTO


@implementer(ILogObserver)
class RelayLog:
    """See the module's docstring. ``now`` gives monotonic seconds; lines of a ``worker`` say which one it is."""

    def __init__(self, output: Output, settings: LogSettings, now: Callable[[], float], *, worker: int | None = None) -> None:
        self._output = output
        self._worker = worker
        self._throttle = Throttle(now)
        self.failures = 0
        """Lines that could not be made: errors of our own."""
        self.configure(settings)

    def configure(self, settings: LogSettings) -> None:
        """Use other settings from the next line on."""
        levels = LogLevelFilterPredicate(TwistedLevel.levelWithName(settings.level.value))
        for namespace, level in settings.levels.items():
            levels.setLogLevelForNamespace(namespace, TwistedLevel.levelWithName(level.value))
        form = settings.form
        if form is LogFormat.AUTO:
            form = LogFormat.TEXT if self._output.is_terminal else LogFormat.JSON
        self.form = form
        """That of the lines: text or JSON."""
        # There are as many namespaces as modules; to look one up among the prefixes that have a level costs as much as a line.
        self._level_of: Callable[[str], Any] = lru_cache(levels.logLevelForNamespace)
        self._line = text_line if form is LogFormat.TEXT else json_line

    def write(self, line: str, level: LogLevel) -> None:
        """Write a line that was made elsewhere, by the same rules."""
        self._output.write(line, level)

    def reopen(self) -> None:
        """Go on in a new file, after the old one was renamed."""
        self._output.reopen()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write ``event``, or not."""
        try:
            level, namespace = event.get("log_level"), event.get("log_namespace")
            if level is not None and namespace and level < self._level_of(namespace):
                return
            name = event_name(event)
            kind = f"{namespace} {event.get('log_format')}" if name == OTHER else name
            suppressed = self._throttle.admit(kind, is_failure="log_failure" in event)
            if suppressed is None:
                return
            line = self._line(event, suppressed, self._worker)
            self._output.write(line, _LEVELS[level.name] if level is not None else LogLevel.INFO)
        except Exception as error:
            self.failures += 1
            lost = f'{{"level":"error","event":"other","message":"a line was lost: {type(error).__name__}"}}'
            self._output.write(lost, LogLevel.ERROR)
