"""The stream of security events (R6.5): what was refused or noticed, from where, one JSON object on each line.

Theory of operation
-------------------
``SecurityLog`` is an ``Observer`` that stands in front of another one. Events of the kinds in ``EVENTS`` become records; all
others pass. A record has the fields of ``FIELDS`` and no other, in that order, which is what keeps payload, keys and tokens out
whatever an event carries, and what lets a filter anchor its pattern before the first field that holds free text.

*Is the source real?* Before its address is validated a client may claim any. ``validated`` says which it is: the event says so
itself, or its kind does. Whoever blocks by this stream must look at it, or spoofed packets would get their victim blocked (R6.2).

*How much is written.* Each pair of kind and cause has a budget for each validated source, and one for all sources together; all
sources that are not validated share one, because they cost nothing to make up. What is over budget is counted. The count goes out
as ``suppressed`` with the next record of the same kind, cause and source, or within ``SUMMARY_INTERVAL`` in a record of its own,
``security.suppressed``: no event is lost from the sum.

Records go to a file that is only ever appended to, or without one to the program's log; and to the sinks.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, ip_address
from types import MappingProxyType
from typing import Final, Protocol

from twisted.logger import Logger

from zrc_relay.core.fields import Address
from zrc_relay.core.limiter import TokenBucket
from zrc_relay.core.relay import Observer
from zrc_relay.linefile import LineFile
from zrc_relay.moments import timestamp

SOURCE_BURST: Final = 10
"""Records of one kind and cause that one source gets at once."""
SOURCE_RATE: Final = 10 / 60
"""And how many a second after that: enough for a filter that counts failures in minutes."""
CAUSE_BURST: Final = 100
CAUSE_RATE: Final = 50.0
"""Records of one kind and cause from all validated sources together, at once and a second: about 20 kB/s at worst."""
UNVALIDATED_BURST: Final = 10
UNVALIDATED_RATE: Final = 1.0
"""The same for all sources that are not validated: enough to see that it happens, and how much."""
MAX_SOURCES: Final = 8192
"""Budgets that are kept, some 4 MB of them; the source that was heard of least recently goes first."""
MAX_CAUSES: Final = 256
"""Pairs of kind and cause that have budgets of their own; the program knows fewer, further ones share that of ``other``."""
SUMMARY_INTERVAL: Final = 60.0
"""Seconds between two calls of ``summarise``."""
MAX_TEXT: Final = 200
"""Longest text in a field, in characters."""


@dataclass(frozen=True, slots=True)
class EventKind:
    """A kind of security event: what it means, and whether its source is validated when the event does not say."""

    meaning: str
    validated: bool


EVENTS: Final[Mapping[str, EventKind]] = MappingProxyType({
    "session.refused": EventKind(
        "A client with a completed handshake was refused something, or broke the protocol; `code` is what it was told.",
        validated=True),
    "security.connection_rate": EventKind("A source tried to connect more often than `connection_rate` allows.", validated=False),
    "security.allocation_rate": EventKind(
        "A source made, or failed to make, more allocations than `allocation_rate` allows.", validated=True),
    "security.rejoin_rate": EventKind("A source joined live allocations more often than `rejoin_rate` allows.", validated=True),
    "security.stun_rate": EventKind("A source sent more STUN requests than `stun_rate` allows.", validated=False),
    "security.blocked": EventKind("A source that is on the blocklist, or not on the allowlist, was refused.", validated=False),
    "security.amplification": EventKind(
        "A source leaves handshakes unanswered as a victim of reflection does; it gets a Retry for `amplification_block`.",
        validated=False),
    "security.handshake_pressure": EventKind(
        "More than `handshake_pressure` handshakes are open; every new client gets a Retry until it is fewer.", validated=False),
    "security.retry_invalid": EventKind("A Retry token was forged, too old, or came from another address.", validated=False),
    "security.suppressed": EventKind(
        "How many events of the kind `of` were over budget and not written; about no single source.", validated=False),
})
"""Every kind of record. An event that is called ``security.`` anything is written, known here or not."""

FIELDS: Final[Mapping[str, str]] = MappingProxyType({
    "time": "When, in UTC, ISO 8601 with milliseconds: `2026-11-22T20:16:07.123Z`.",
    "event": "The kind of event, from the table above.",
    "source": "IP address of the client; IPv4-mapped IPv6 is written as IPv4.",
    "port": "Its UDP port.",
    "validated": "`true` when the client has shown that it receives what is sent to `source`, `false` when anyone may have "
    "written that address into a packet.",
    "code": "Name of the error code that the client was told (protocol, section 5).",
    "cause": "What was done about it, in one word.",
    "connection": "What the log calls the connection: the first connection id that the client used, in hexadecimal.",
    "reason": "The same as `code` in a sentence, for people.",
    "of": "The kind of event that was not written.",
    "sources": "How many sources that was about, or budgets where they share one.",
    "suppressed": "How many events of this kind, cause and source were not written, being too many, since the last one "
    "that was; of sources that are not validated, all together.",
})
"""Every field that a record can have, in the order in which they are written; ``time`` and ``event`` are always there."""

_PREFIX: Final = "security."
_MADE_HERE: Final = frozenset(("time", "event", "source", "port", "validated", "of", "sources", "suppressed"))
_FROM_EVENTS: Final = tuple(name for name in FIELDS if name not in _MADE_HERE)


class Sink(Protocol):
    """Who else gets the records, at the same bounded rate."""

    def offer(self, record: Mapping[str, object]) -> None:
        """Take ``record``, or drop it; must not block and not raise."""
        ...


class _Budget:
    """What one source, or all of them, may still write about one kind and cause; ``suppressed`` counts what it did not."""

    __slots__ = ("bucket", "suppressed")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.bucket = TokenBucket(rate, burst, now)
        self.suppressed = 0


_Key = tuple[str, str, str | None]
"""Kind, cause, and the source: an IPv4 address, an IPv6 /64, or None for all that are not validated."""


class SecurityLog:
    """An ``Observer`` that keeps the stream; every event that is not written here goes to ``following``.

    With a ``file`` the security events go to ``following`` as well; without one they are in the log already. A worker keeps no
    stream of its own: its records go to ``output``, which is its parent in the end, and to no file, log or sink here; then
    ``passes_on`` says whether the events go to ``following`` as well. ``now`` gives monotonic and ``wall`` Unix seconds.
    """

    _log = Logger()

    def __init__(
        self, following: Observer, *, now: Callable[[], float], wall: Callable[[], float], file: LineFile | None = None,
        output: Callable[[Mapping[str, object]], None] | None = None, passes_on: bool = False,
    ) -> None:
        self._following = following
        self._output = output or self.keep
        self._passes_on = passes_on or file is not None
        self._now = now
        self._wall = wall
        self._file = file
        self.sinks: list[Sink] = []
        self.written = 0
        self.suppressed = 0
        self._sources: OrderedDict[_Key, _Budget] = OrderedDict()
        self._causes: dict[tuple[str, str], TokenBucket] = {}
        self._unreported: dict[tuple[str, str], tuple[int, int]] = {}

    def event(self, name: str, **fields: object) -> None:
        """See ``Observer``."""
        if name != "session.refused" and not name.startswith(_PREFIX):
            self._following.event(name, **fields)
            return
        self._take(name, fields)
        if self._passes_on:
            self._following.event(name, **fields)

    def summarise(self) -> None:
        """Write what was suppressed and has not been told yet; every ``SUMMARY_INTERVAL``, and at the end."""
        for key, budget in self._sources.items():
            self._set_aside(key, budget)
        unreported, self._unreported = self._unreported, {}
        for (name, cause), (suppressed, sources) in unreported.items():
            record: dict[str, object] = {"event": "security.suppressed"}
            if cause:
                record["cause"] = cause
            self._write({**record, "of": name, "sources": sources, "suppressed": suppressed})

    def reopen(self) -> None:
        """Go on in a new file, after the old one was renamed."""
        if self._file is not None:
            self._file.reopen()

    def close(self) -> None:
        """Tell what was suppressed and close the file."""
        self.summarise()
        if self._file is not None:
            self._file.close()

    def _take(self, name: str, fields: Mapping[str, object]) -> None:
        kind = EVENTS.get(name)
        validated = fields.get("validated", kind is not None and kind.validated) is True
        cause = self._registered(name, _text(fields.get("cause") or fields.get("code")))
        # Which address was made up does not matter to the budget, and is not looked at before there is one to spend.
        origin = _origin(fields) if validated else None
        budget = self._budget((name, cause, _network(origin) if origin is not None else None))
        if not self._spend(budget, name, cause, validated=validated):
            budget.suppressed += 1
            self.suppressed += 1
            return
        if origin is None:
            origin = _origin(fields)
        record: dict[str, object] = {"event": name}
        if origin is not None:
            record["source"] = origin.host
            if origin.port:
                record["port"] = origin.port
            record["validated"] = validated
        for field in _FROM_EVENTS:
            value = _plain(fields.get(field))
            if value is not None:
                record[field] = value
        if budget.suppressed:
            record["suppressed"], budget.suppressed = budget.suppressed, 0
        self._write(record)

    def _budget(self, key: _Key) -> _Budget:
        budget = self._sources.get(key)
        if budget is not None:
            self._sources.move_to_end(key)
            return budget
        if len(self._sources) >= MAX_SOURCES:
            self._set_aside(*self._sources.popitem(last=False))
        rate, burst = (SOURCE_RATE, SOURCE_BURST) if key[2] is not None else (UNVALIDATED_RATE, UNVALIDATED_BURST)
        budget = self._sources[key] = _Budget(rate, burst, self._now())
        return budget

    def _spend(self, budget: _Budget, name: str, cause: str, *, validated: bool) -> bool:
        now = self._now()
        if not budget.bucket.take(1, now):
            return False
        return not validated or self._causes[name, cause].take(1, now)

    def _registered(self, name: str, cause: str) -> str:
        """``cause``, or "other" when there are too many; what it returns has an entry in ``_causes``."""
        if (name, cause) not in self._causes:
            if len(self._causes) >= MAX_CAUSES:
                cause = "other"
            self._causes.setdefault((name, cause), TokenBucket(CAUSE_RATE, CAUSE_BURST, self._now()))
        return cause

    def _set_aside(self, key: _Key, budget: _Budget) -> None:
        """Remember what ``budget`` suppressed for the next summary."""
        if budget.suppressed:
            suppressed, sources = self._unreported.get(key[:2], (0, 0))
            self._unreported[key[:2]] = (suppressed + budget.suppressed, sources + 1)
            budget.suppressed = 0

    def _write(self, fields: Mapping[str, object]) -> None:
        self.written += 1
        self._output({"time": timestamp(self._wall()), **fields})

    def keep(self, record: Mapping[str, object]) -> None:
        """Write ``record`` and hand it to the sinks; its budget was seen to."""
        line = json.dumps(record, separators=(",", ":"))
        if self._file is not None:
            self._file.write(line)
        else:
            self._log.info("security {line}", event="record.security", line=line, record=record)
        for sink in self.sinks:
            sink.offer(record)


def _origin(fields: Mapping[str, object]) -> Address | None:
    """Where an event came from: its ``source`` or ``remote``, an ``Address`` or text with or without port or prefix length."""
    value = fields.get("source", fields.get("remote"))
    if isinstance(value, Address):
        return value if value.host else None
    text, port = str(value).partition("/")[0], fields.get("port")
    try:
        return Address.of(text, port if isinstance(port, int) else 0)
    except ValueError:
        pass
    host, _, digits = text.rpartition(":")
    try:
        return Address.of(host.strip("[]"), int(digits))
    except ValueError:
        return None


def _network(origin: Address) -> str:
    """What shares a budget: an IPv4 address, or an IPv6 /64 because whoever has one address there has all of them."""
    address = ip_address(origin.host)
    return f"{int(address) >> 64:x}::/64" if isinstance(address, IPv6Address) else origin.host


def _plain(value: object) -> str | int | float | None:
    """``value`` as JSON can have it and a log may show it; None when it is nothing to be shown, as bytes are."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value if isinstance(value, int) else None


def _text(value: object) -> str:
    plain = _plain(value)
    return "" if plain is None else str(plain)
