"""The tables of ``docs/metrics.md``, made of the catalogue; the rest of the page is written by people."""

from __future__ import annotations

from typing import Final

from zrc_relay.metrics.catalogue import SECTIONS, Kind, Metric

END: Final = "### Standard ones\n"
"""What comes on the page behind the tables."""
_HEAD: Final = "| metric | kind | label and its values | what it says |\n|---|---|---|---|\n"
_FACTS: Final = "`version`, `python`, `twisted`, `aioquic`, `form`"


def with_tables(page: str) -> str:
    """``page`` with its tables brought up to date; ``ValueError`` when it has no place for them."""
    begin = page.index(f"### {next(iter(SECTIONS))}\n")
    end = page.index(END, begin)
    return page[:begin] + tables() + page[end:]


def tables() -> str:
    """A heading and a table for each section, in Markdown."""
    return "".join(f"### {title}\n\n{_HEAD}{''.join(map(_row, metrics))}\n" for title, metrics in SECTIONS.items())


def _row(metric: Metric) -> str:
    labels = f"`{metric.label}`: {', '.join(metric.labels)}" if metric.label else ""
    if metric.kind is Kind.INFO:
        labels = _FACTS
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |\n"
