"""The audit log (R10.6): every request to the admin endpoint, every reload, every signal, one JSON object on each line.

Theory of operation
-------------------
A record says who did what, when, from where, and what came of it. It has the fields of ``FIELDS`` and no other, in that order;
none of them can hold a token, because none is taken from a header or a query as it stands. Records go to a file that is only ever
appended to, or without one to the program's log.

What is done with a right to do it is always written. What strangers try is written at a bounded rate (``STRANGERS``), or they
could fill the disk; what was not written is counted, and the next record of a stranger says how many those were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum, unique
from types import MappingProxyType
from typing import Final

from twisted.logger import Logger

from zrc_relay.core.limiter import TokenBucket
from zrc_relay.linefile import LineFile
from zrc_relay.moments import timestamp

STRANGERS: Final = 5.0
"""Records a second about requests of nobody that is known here."""
STRANGERS_AT_ONCE: Final = 100
MAX_TEXT: Final = 300
"""Longest text in a field, in characters."""

FIELDS: Final[Mapping[str, str]] = MappingProxyType({
    "time": "When it was answered, in UTC, ISO 8601 with milliseconds.",
    "action": "What was asked for: an `operationId` of the OpenAPI document, or `request` for what is none. What happened: "
    "`reloaded` when the configuration was read again, `signal` when the process got one that it obeys.",
    "outcome": "`done`, `refused` (not allowed, or not asked for rightly), or `failed` (it could not be done).",
    "who": "Name of the token, or `uid N` for a peer of a UNIX socket; absent for a stranger, and where nobody asked.",
    "how": "What vouches for that: `token` or `unix`.",
    "from": "Address and port, or uid and pid of the peer of a UNIX socket.",
    "method": "HTTP method.",
    "path": "Path of the request, without its query.",
    "status": "HTTP status of the answer.",
    "target": "What it was about, such as the id of an allocation or a network, as it was asked for; the name of a signal.",
    "reason": "The reason or note that was given.",
    "detail": "Why it was refused or has failed, or what it has changed.",
    "suppressed": "How many requests of strangers were not written, being too many, since the last one that was.",
})
"""Every field of a record, in the order in which they are written; ``time``, ``action`` and ``outcome`` are always there."""


@unique
class Outcome(Enum):
    """What came of it."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class AuditLog:
    """Writes records to ``file``, or to the program's log. ``now`` gives monotonic and ``wall`` Unix seconds."""

    _log = Logger()

    def __init__(self, file: LineFile | None, *, now: Callable[[], float], wall: Callable[[], float]) -> None:
        self._file = file
        self._now = now
        self._wall = wall
        self._strangers = TokenBucket(STRANGERS, STRANGERS_AT_ONCE, now())
        self._suppressed = 0
        self.written = 0

    def record(self, action: str, outcome: Outcome, fields: Mapping[str, object], *, is_stranger: bool = False) -> None:
        """Write what happened; ``fields`` that are no ``FIELDS``, or None, are left out. About a stranger: unless too many."""
        if is_stranger and not self._strangers.take(1, self._now()):
            self._suppressed += 1
            return
        record: dict[str, object] = {"time": timestamp(self._wall()), "action": action, "outcome": outcome.value}
        for name in FIELDS:
            value = fields.get(name)
            if value is not None and name not in record:
                record[name] = value[:MAX_TEXT] if isinstance(value, str) else value
        if is_stranger and self._suppressed:
            record["suppressed"], self._suppressed = self._suppressed, 0
        self.written += 1
        line = json.dumps(record, separators=(",", ":"))
        if self._file is not None:
            self._file.write(line)
        else:
            self._log.info("audit {line}", event="audit.record", line=line, record=record)

    def signal(self, name: str) -> None:
        """The process got a signal that it obeys."""
        self.record("signal", Outcome.DONE, {"target": name})

    def reload(self, changed: tuple[str, ...], problems: tuple[str, ...]) -> None:
        """The configuration was read again, by whomever: what it has changed, or why it has changed nothing."""
        outcome = Outcome.FAILED if problems else Outcome.DONE
        self.record("reloaded", outcome, {"detail": "; ".join(problems or changed) or "nothing has changed"})

    def reopen(self) -> None:
        """Go on in a new file, after the old one was renamed."""
        if self._file is not None:
            self._file.reopen()

    def close(self) -> None:
        """Close the file; nothing is written from here on."""
        if self._file is not None:
            self._file.close()
