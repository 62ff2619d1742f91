"""A flame graph of the relay: which function had how much of the time, and who called it.

    py-spy record --format raw --function --pid PID --duration 20 --output stacks.txt
    python -m bench.flame stacks.txt "at saturation" > docs/flame-saturation.svg

Each line of ``stacks.txt`` is a stack, outermost function first, and how many samples had it. A box is a function, as wide as its
share of the samples; below it is who called it. What is too narrow to be seen is left out. A box tells more when pointed at.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

WIDTH: Final = 1200
ROW: Final = 17
TOP: Final = 40
LETTER: Final = 6.6
"""Width of a letter, about."""
NARROWEST: Final = 0.8
"""Boxes below this width are left out; all of these are pixels."""
COLOURS: Final = {"zrc_relay": "#f2a65a", "aioquic": "#a3c4bc", "twisted": "#c9c5dd"}
"""By the package that a function is of; what is of none of them is grey."""
OTHER: Final = "#d9d9d9"


@dataclass(slots=True)
class Box:
    """A function under those that called it, and the samples that had it there."""

    samples: int = 0
    calls: dict[str, Box] = field(default_factory=dict)


def gather(lines: Iterable[str]) -> Box:
    """The tree of all stacks; ``ValueError`` for a line without a number at its end."""
    root = Box()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        box = root
        box.samples += int(count)
        for name in stack.split(";"):
            box = box.calls.setdefault(name, Box())
            box.samples += int(count)
    return root


def draw(root: Box, what: str) -> str:
    """The picture, as SVG."""
    scale = WIDTH / max(1, root.samples)
    boxes = list(_place(root, 0.0, 0, scale))
    height = TOP + (1 + max((level for level, *_ in boxes), default=0)) * ROW + 6
    title = f"zrc-relay {escape(what)}: {root.samples} samples"
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{WIDTH / 2}" y="22" text-anchor="middle" font-size="15">{title}</text>',
    ]
    for level, x, width, name, samples in boxes:
        y = height - 6 - (level + 1) * ROW
        package = name.partition("(")[2].partition("/")[0]
        shown = name[: int(width / LETTER)] if width > 4 * LETTER else ""
        rows.append(
            f'<g><title>{escape(name)}: {samples / root.samples:.1%}</title>'
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" fill="{COLOURS.get(package, OTHER)}"/>'
            f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(shown)}</text></g>'
        )
    return "\n".join([*rows, "</svg>\n"])


def _place(box: Box, x: float, level: int, scale: float) -> Iterator[tuple[int, float, float, str, int]]:
    for name, each in sorted(box.calls.items()):
        width = each.samples * scale
        if width >= NARROWEST:
            yield level, x, width, name, each.samples
            yield from _place(each, x, level + 1, scale)
        x += width


if __name__ == "__main__":
    with Path(sys.argv[1]).open(encoding="utf-8") as stacks:
        sys.stdout.write(draw(gather(stacks), sys.argv[2]))
