"""What a worker tells its parent as it happens: events, records of security events, lines of its log.

Theory of operation
-------------------
``Outbox`` keeps the order and lets one batch be under way at a time: what happens meanwhile waits for the next. So a flood of
events costs a message for each batch and not for each event, and a parent that is slow is not buried. What waits is bounded; past
the bound the newest are thrown away and counted, and the number goes out with the next batch.

The classes below it stand where, in a relay of one process, the event log, the security log's file and the log's output stand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred

from zrc_relay.logs.levels import LogLevel
from zrc_relay.quic.clock import Clock
from zrc_relay.workers.orders import Kind, Said

MAX_WAITING: Final = 10_000
"""Things that wait to be told: some 5 MB, and what a second of the worst flood makes after the budgets of the logs."""
MAX_TOGETHER: Final = 500
"""Things in one batch: some 10 ms of work at either end."""

Send = Callable[[tuple[Said, ...], int], "Deferred[Any]"]
"""Sends a batch, and how many things were lost before it; fires when the other end has it."""


class Outbox:
    """See the module's docstring."""

    def __init__(self, send: Send, clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self._waiting: deque[Said] = deque()
        self._lost = 0
        self._is_busy = False
        self._finished: Deferred[None] | None = None

    def put(self, said: Said) -> None:
        """Tell ``said``, soon."""
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return
        self._waiting.append(said)
        if not self._is_busy:
            self._is_busy = True
            self._clock.callLater(0, self._flush)

    def finish(self) -> Deferred[None]:
        """Fires when everything has been told, or cannot be told any more; to be asked once."""
        finished: Deferred[None] = Deferred()
        if self._is_busy:
            self._finished = finished
        else:
            finished.callback(None)
        return finished

    def _flush(self) -> None:
        batch = tuple(self._waiting.popleft() for _ in range(min(MAX_TOGETHER, len(self._waiting))))
        lost, self._lost = self._lost, 0
        self._send(batch, lost).addCallbacks(self._sent, self._ended)

    def _sent(self, _: object) -> None:
        if self._waiting:
            self._flush()
        else:
            self._is_idle()

    def _ended(self, _: object) -> None:
        """The parent is gone, and this process will be, too."""
        self._waiting.clear()
        self._is_idle()

    def _is_idle(self) -> None:
        self._is_busy = False
        finished, self._finished = self._finished, None
        if finished is not None:
            finished.callback(None)


class RemoteEvents:
    """An ``Observer`` whose events are told."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def event(self, name: str, **fields: object) -> None:
        """See ``Observer``."""
        self._outbox.put(Said.of(Kind.EVENT, name, fields))


class RemoteRecords:
    """Takes the security log's records, and tells them."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def __call__(self, record: Mapping[str, object]) -> None:
        """Tell ``record``."""
        self._outbox.put(Said.of(Kind.RECORD, str(record.get("event")), record))


class RemoteLines:
    """An ``Output`` whose lines are told."""

    is_terminal = False

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def write(self, line: str, level: LogLevel) -> None:
        """See ``Output``."""
        self._outbox.put(Said.of(Kind.LINE, level.value, {"line": line}))

    def reopen(self) -> None:
        """See ``Output``; the parent has the files."""
