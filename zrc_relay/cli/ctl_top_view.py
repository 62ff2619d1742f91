"""What ``zrc-relay ctl top`` shows: a relay and its allocations as lines of a screen of any size (R10).

Nothing here knows a terminal. ``frame`` gives as many lines as there is room for; a screen that is narrow has fewer columns, and
what is still too long is cut at its edge by whoever draws it. How long something has been, or will be, is by the relay's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any, Final, Self

from rich.text import Text

from zrc_relay.cli.console import printable, size, span
from zrc_relay.cli.ctl_views import NOTHING, missing, rate, worker_cells
from zrc_relay.control.operations import SortKey

HEAD_LINES: Final = 5
"""Lines above the rows: three of totals, one that says what is listed, the titles."""
FOOT_LINES: Final = 1
GAP: Final = 2
SHORT_ID: Final = 8
"""Digits of an id where there is no room for all 32."""
KEYS: Final = (
    "q quit  b rate  t total  r reverse  a activity  e expiry  s state  n tier  c creation  i id  d device  arrows PgUp PgDn Home"
)
_WORDS: Final[Mapping[SortKey, tuple[str, str, str]]] = {
    SortKey.ID: ("id", "lowest", "highest"),
    SortKey.DEVICE_ID: ("device id", "lowest", "highest"),
    SortKey.STATE: ("state", "active", "waiting"),
    SortKey.TIER: ("tier", "a", "z"),
    SortKey.CREATED_AT: ("creation", "oldest", "newest"),
    SortKey.LAST_ACTIVITY_AT: ("last activity", "longest idle", "latest"),
    SortKey.EXPIRES_AT: ("expiry", "soonest", "latest"),
    SortKey.BYTES_TRANSFERRED: ("total carried", "smallest", "largest"),
    SortKey.BYTES_PER_SECOND: ("bandwidth", "smallest", "largest"),
}
"""What to call each order: by what, and what is first, ascending and descending."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the rows are sorted by."""

    key: SortKey
    descending: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """From how the relay writes it: a key, with ``-`` in front for the largest first."""
        return cls(SortKey(text.removeprefix("-")), text.startswith("-"))

    def reversed(self) -> Order:
        """The other way round."""
        return Order(self.key, not self.descending)

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.key.value}"

    @property
    def words(self) -> str:
        """For people."""
        name, ascending, descending = _WORDS[self.key]
        return f"by {name}, {descending if self.descending else ascending} first"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the relay answered: its statistics, and a page of allocations."""

    stats: Mapping[str, Any]
    page: Mapping[str, Any]

    @property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        """The processes that forward, where there are several; a relay of an earlier version says nothing of them."""
        found: Sequence[Mapping[str, Any]] = self.stats.get("workers", ())
        return found


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its width in characters, and what it shows of an allocation at ``now`` (Unix seconds)."""

    title: str
    width: int
    key: SortKey | None
    text: Callable[[Mapping[str, Any], float], str]
    is_number: bool = False


def _unix(moment: str | None) -> float:
    return inf if moment is None else datetime.fromisoformat(moment).timestamp()


def _until(moment: str | None, now: float) -> str:
    return "never" if moment is None else span(max(0.0, _unix(moment) - now))


_SHORT: Final = Column("ID", SHORT_ID, SortKey.ID, lambda item, _: item["allocation_id"][:SHORT_ID])
_FULL: Final = Column("ALLOCATION", 32, SortKey.ID, lambda item, _: item["allocation_id"])
_RATE: Final = Column("RATE", 11, SortKey.BYTES_PER_SECOND, lambda item, _: rate(item["bytes_per_second"]), is_number=True)
_TOTAL: Final = Column("CARRIED", 9, SortKey.BYTES_TRANSFERRED, lambda item, _: size(item["bytes_transferred"]), is_number=True)
_STATE: Final = Column("STATE", 7, SortKey.STATE, lambda item, _: item["state"])
_IDLE: Final = Column(
    "IDLE", 12, SortKey.LAST_ACTIVITY_AT, lambda item, now: span(max(0.0, now - _unix(item["last_activity_at"]))), is_number=True)
_EXPIRES: Final = Column("EXPIRES", 12, SortKey.EXPIRES_AT, lambda item, now: _until(item["expires_at"], now), is_number=True)
_TIER: Final = Column("TIER", 10, SortKey.TIER, lambda item, _: item["tier"] or NOTHING)
_DEVICE: Final = Column("DEVICE", 21, SortKey.DEVICE_ID, lambda item, _: item["device"]["address"] or NOTHING)
_PEER: Final = Column("PEER", 21, None, lambda item, _: item["peer"]["address"] or NOTHING)

_WORKER_COLUMNS: Final = (
    ("WORKER", 6), ("STATE", 8), ("PID", 7), ("UP", 12), ("ALLOCS", 6), ("CONNS", 6), ("RATE", 11), ("PACKETS/S", 9), ("CPU", 4),
    ("LAG", 9), ("RESTARTS", 8),
)
"""Title and width in characters of what is shown of a worker (``worker_cells``)."""

_AS_SHOWN: Final = (_SHORT, _FULL, _STATE, _TIER, _RATE, _TOTAL, _IDLE, _EXPIRES, _DEVICE, _PEER)
_AS_WANTED: Final = (_RATE, _TOTAL, _STATE, _FULL, _IDLE, _EXPIRES, _TIER, _DEVICE, _PEER)
"""By how much they are missed; the short id is always there, and makes way for the whole one."""


def columns(width: int) -> list[Column]:
    """The columns that a screen of ``width`` characters has room for, from left to right."""
    chosen: list[Column] = [_SHORT]
    for column in _AS_WANTED:
        candidate = [*chosen, column]
        if column is _FULL:
            candidate.remove(_SHORT)
        if sum(each.width + GAP for each in candidate) - GAP > width:
            break
        chosen = candidate
    return [column for column in _AS_SHOWN if column in chosen]


def room(height: int, workers: int = 0) -> int:
    """How many rows fit a screen of ``height`` lines below its workers; at least one, so that there is something to ask for."""
    left = height - HEAD_LINES - FOOT_LINES
    return max(1, left - _worker_lines(left, workers))


def _worker_lines(left: int, workers: int) -> int:
    """Lines for workers, titles included, of ``left``: none for one alone, and never more than half."""
    lines = min(workers + 1, left // 2) if workers > 1 else 0
    return lines if lines > 1 else 0


def frame(snapshot: Snapshot, order: Order, width: int, height: int, *, place: str, problem: str = "") -> list[Text]:
    """The lines of a screen. ``problem`` says what is wrong with what is shown; it is old then."""
    page, now = snapshot.page, _unix(snapshot.stats["time"])
    shown, workers = columns(width), snapshot.workers
    below = _worker_lines(height - HEAD_LINES - FOOT_LINES, len(workers))
    lines = [*_totals(snapshot.stats, place), *_workers(workers, below)]
    lines += [_listed(page, order, problem), _titles(shown, order, width)]
    lines += [_row(item, shown, now) for item in page["items"][:room(height, len(workers))]]
    lines += [Text("")] * (height - FOOT_LINES - len(lines))
    lines = lines[:max(0, height - FOOT_LINES)]
    return [*lines, Text(KEYS, "dim")]


def _totals(stats: Mapping[str, Any], place: str) -> list[Text]:
    held, traffic = stats["allocations"], stats["traffic"]
    clock = printable(stats["time"])[11:19]
    state = printable(stats["state"])
    return [
        Text.assemble(
            (state, "bold green" if state == "ready" else "bold yellow"),
            f", up {span(stats['uptime_seconds'])}, at {clock} UTC  ",
            (f"zrc-relay {printable(stats['version'])} {place}", "dim"),
        ),
        Text(
            f"{held['current']} allocations: {held['active']} active, {held['waiting']} waiting; "
            f"{stats['connections']['current']} connections"
        ),
        Text(
            f"{rate(traffic['bytes_per_second'])}, {traffic['packets_per_second']:.0f} packets/s; "
            f"{size(traffic['bytes'])} carried; {sum(stats['dropped']['packets'].values())} packets dropped; "
            f"{sum(stats['refused'].values())} requests refused"
        ),
    ]


def _workers(workers: Sequence[Mapping[str, Any]], lines: int) -> list[Text]:
    """A line for each worker below their titles; the last says how many there are beside those that fit."""
    if not lines:
        return []
    titles = tuple(title for title, _ in _WORKER_COLUMNS)
    shown = workers if len(workers) < lines else workers[: lines - 2]
    found = [Text(_worker_line(titles), "bold")]
    found += [
        Text(_worker_line(worker_cells(each)), "" if each["state"] == "ready" else "yellow") for each in shown
    ]
    if len(shown) < len(workers):
        found.append(Text(f"and {len(workers) - len(shown)} more workers", "dim"))
    return found


def _worker_line(cells: Sequence[str]) -> str:
    return (" " * GAP).join(
        printable(cell).rjust(width) for cell, (_, width) in zip(cells, _WORKER_COLUMNS, strict=True)
    )


def _listed(page: Mapping[str, Any], order: Order, problem: str) -> Text:
    if problem:
        return Text(f"OLD: {printable(problem)}", "bold red")
    first, gaps = page["offset"] + 1, missing(page)
    listed = "no allocations"
    if page["items"]:
        listed = f"{first} to {page['offset'] + len(page['items'])} of {page['total']}, {order.words}"
    return Text("; ".join((*gaps, listed)), "bold yellow" if gaps else "dim")


def _titles(shown: list[Column], order: Order, width: int) -> Text:
    line = Text(style="reverse")
    for number, column in enumerate(shown):
        line.append(" " * (GAP if number else 0))
        line.append(_cell(column, column.title), "bold" if column.key is order.key else "")
    line.pad_right(max(0, width - len(line)))
    return line


def _row(item: Mapping[str, Any], shown: list[Column], now: float) -> Text:
    return Text((" " * GAP).join(_cell(column, printable(column.text(item, now))) for column in shown).rstrip())


def _cell(column: Column, text: str) -> str:
    text = text[:column.width]
    return text.rjust(column.width) if column.is_number else text.ljust(column.width)
