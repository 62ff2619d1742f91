"""How much state there is: every container that can be reached from some objects of ours or of aioquic, by where it hangs.

A container is counted under the class and the attribute that hold it, ``Connection._streams`` for instance; containers of equal
name are counted together. What is inside is looked at, too, as far as it is an object of these packages or a container.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, Final

PACKAGES: Final = ("zrc_relay", "aioquic", "tests", "figures")
CONTAINERS: Final = (dict, list, set, frozenset, tuple, deque, bytearray)


def census(roots: list[object], ignored: frozenset[str] = frozenset()) -> Counter[str]:
    """How many items there are in the containers below ``roots``, by name; ``ignored`` names are not looked into."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: deque[tuple[str, object]] = deque(("root", root) for root in roots)
    while waiting:
        name, value = waiting.popleft()
        if name in ignored or id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        if isinstance(value, CONTAINERS):
            if not isinstance(value, tuple):  # of a fixed size, each
                found[name] += len(value)
            if not isinstance(value, bytearray):
                items: Any = [*value, *value.values()] if isinstance(value, dict) else value
                waiting.extend((name, item) for item in items)
        elif type(value).__module__.partition(".")[0] in PACKAGES:
            waiting.extend((f"{type(value).__name__}.{attribute}", item) for attribute, item in _attributes(value))
    return found


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, slot):
                yield slot, getattr(value, slot)
