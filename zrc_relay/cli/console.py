"""What the commands print on standard output: rich on a terminal, plain text of the same content elsewhere."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

PLAIN_WIDTH: Final = 160
"""Columns where there is no terminal to ask: a pipe or a file has room for any line of ours."""


def console() -> Console:
    """A console on standard output as it is now."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def print_fields(rows: Mapping[str, str]) -> None:
    """A line for each name and value; long values are never cut."""
    width = max(map(len, rows))
    screen = console()
    for name, value in rows.items():
        screen.print(Text.assemble((name.ljust(width), "bold"), "  ", value), soft_wrap=True)


def print_json(value: Any) -> None:
    """``value`` as JSON."""
    click.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """What a stranger sent, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def when(unix: float) -> str:
    """A Unix time for people, in UTC to the second; far beyond the calendar's end, the number."""
    try:
        return dt.datetime.fromtimestamp(unix, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return str(int(unix))


def span(seconds: float) -> str:
    """A time span for people, by its two largest units: "1 d 3 h", "59 min 12 s"."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def size(count: float) -> str:
    """A number of bytes for people: "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
