"""Reading a long JSON document a piece at a time.

``json.loads`` of some megabytes holds up every packet for a quarter of a second, in a thread as well, because it keeps the
interpreter's lock. Here the arrays in question are walked item by item, so that the caller can stop between any two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Final, NoReturn

_decoder: Final = json.JSONDecoder()
_BLANKS: Final = re.compile(r"[ \t\n\r]*")


class JsonError(ValueError):
    """The text is not what was expected; the message says where."""


def array_items(text: str, names: Collection[str]) -> Iterator[tuple[str, object]]:
    """The items of the arrays that the object ``text`` has under ``names``, each with its name.

    null counts as an empty array, and what else the object has is passed over. ``JsonError`` comes when the place that is wrong
    is reached, so what was yielded until then may be of a text that is cut off.
    """
    at = _expect(text, 0, "{")
    if text[at : at + 1] == "}":
        return _end(text, at + 1)
    while True:
        name, at = _value(text, at)
        if not isinstance(name, str):
            _fail("a name", at)
        at = _expect(text, at, ":")
        if name in names and text[at : at + 1] == "[":
            at = _skip(text, at + 1)
            while text[at : at + 1] != "]":
                item, at = _value(text, at)
                yield name, item
                if text[at : at + 1] == ",":
                    at = _skip(text, at + 1)
                    if text[at : at + 1] == "]":
                        _fail("an item", at)
                elif text[at : at + 1] != "]":
                    _fail("a comma or the end of the array", at)
            at = _skip(text, at + 1)
        else:
            value, at = _value(text, at)
            if name in names and value is not None:
                _fail("an array", at)
        if text[at : at + 1] == "}":
            return _end(text, at + 1)
        at = _expect(text, at, ",")


def _value(text: str, at: int) -> tuple[object, int]:
    """The value at ``at`` and where the next thing after it is."""
    try:
        value, end = _decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        msg = f"not JSON as expected: no value at character {at}"
        raise JsonError(msg) from error
    return value, _skip(text, end)


def _skip(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, char: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != char:
        _fail(f'"{char}"', at)
    return _skip(text, at + 1)


def _end(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        _fail("the end", at)


def _fail(expected: str, at: int) -> NoReturn:
    msg = f"not JSON as expected: no {expected} at character {at}"
    raise JsonError(msg)
