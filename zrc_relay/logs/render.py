"""A log event as one line, of text for people or of JSON for programs (R5.7, R6.7).

Theory of operation
-------------------
Both forms show the time, the level, where in the program it comes from, the name of the event, and the fields that the catalog
has for it; no other. Text that comes from elsewhere cannot do harm: it is cut to ``MAX_TEXT``, control characters are escaped, so
that no client writes a line of its own, and what looks like bytes, a key or a token in the words of an exception is blacked out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from twisted.logger import formatEvent
from twisted.python.failure import Failure

from zrc_relay.logs.catalog import EVENTS, OTHER
from zrc_relay.moments import timestamp

MAX_TEXT: Final = 1000
"""Longest text of a field or sentence, in characters."""
MAX_TRACEBACK: Final = 8000
MAX_ITEMS: Final = 100
"""Longest list in a field."""
SUPPRESSED: Final = "suppressed"
WORKER: Final = "worker"
_BYTES: Final = re.compile(r"""\b(?:b|bytearray\(b)(['"])(?:\\.?|(?!\1)[^\\])*\1?""", re.DOTALL)
SHORTEST_LONG: Final = 64
_LONG: Final = re.compile(rf"[0-9a-zA-Z_-]{{{SHORTEST_LONG},}}")
"""A key in hexadecimal has 64 digits, a token in base64 has 240 letters; ids have 32, connection ids at most 40."""

_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))
_IDS: Final = frozenset(("device", "allocation", "connection", "relay_id"))
"""Fields with ids, of which a device's is as long as a key."""

Event = Mapping[str, Any]


def event_name(event: Event) -> str:
    """What kind of event it is: a name of the catalog, or ``other``."""
    name = event.get("event")
    return name if isinstance(name, str) and name in EVENTS else OTHER


def json_line(event: Event, suppressed: int = 0, worker: int | None = None) -> str:
    """``event`` as a JSON object, with the ``worker`` that says it. ``suppressed``: how many of its kind were not written."""
    name = event_name(event)
    line: dict[str, object] = {**_head(event), "event": name}
    if worker is not None:
        line[WORKER] = worker
    if not _is_list_of_fields(event) and "record" not in event:
        line["message"] = _message(event)
    line.update(_fields(name, event))
    suppressed += _carried(event)
    if suppressed:
        line[SUPPRESSED] = suppressed
    traceback = _traceback(event)
    if traceback:
        line["traceback"] = traceback
    return _COMPACT.encode(line)


def text_line(event: Event, suppressed: int = 0, worker: int | None = None) -> str:
    """``event`` for people: one line, and a traceback indented below it."""
    name, head = event_name(event), _head(event)
    spoken = str(event.get("log_format") or "")
    if _is_list_of_fields(event):
        words, fields = [name], _fields(name, event)
    else:
        words = [_message(event)]
        fields = {key: value for key, value in _fields(name, event).items() if f"{{{key}}}" not in spoken and key != "record"}
    suppressed += _carried(event)
    if worker is not None:
        fields[WORKER] = worker
    if suppressed:
        fields[SUPPRESSED] = suppressed
    words += [f"{key}={_as_word(value)}" for key, value in fields.items()]
    line = f"{head['time']} {head['level']:<5} [{head['namespace']}] {' '.join(words)}"
    traceback = _traceback(event)
    return "\n".join((line, *(f"    {_escape(row)}" for row in traceback.splitlines())))


def redact(text: str) -> str:
    """``text`` without what looks like bytes, a key or a token."""
    if len(text) < SHORTEST_LONG and "'" not in text and '"' not in text:
        return text  # neither can match, and nearly all fields end here
    return _LONG.sub("<long>", _BYTES.sub("<bytes>", text))


def _head(event: Event) -> dict[str, object]:
    when = event.get("log_time")
    seconds = float(when) if isinstance(when, int | float) else 0.0
    level = event.get("log_level")
    return {
        "time": timestamp(seconds),
        "level": level.name if level is not None else "info",
        "namespace": _escape(str(event.get("log_namespace", "")))[:MAX_TEXT],
    }


def _is_list_of_fields(event: Event) -> bool:
    """Whether the sentence is nothing but the event's name and fields, as ``EventLog`` makes it."""
    return str(event.get("log_format") or "").startswith("{event}")


def _message(event: Event) -> str:
    text = formatEvent(dict(event)) or ""
    failure = event.get("log_failure")
    if not text and isinstance(failure, Failure):
        text = failure.type.__name__ if failure.type is not None else ""
    return _escape(redact(text))[:MAX_TEXT]


def _fields(name: str, event: Event) -> dict[str, object]:
    known = EVENTS.get(name)
    found: dict[str, object] = {}
    for field in known.fields if known is not None else ():
        value = _plain(event.get(field))
        if value is not None:
            found[field] = redact(value) if isinstance(value, str) and field not in _IDS else value
    return found


def _carried(event: Event) -> int:
    carried = event.get(SUPPRESSED)
    return carried if isinstance(carried, int) else 0


def _plain(value: object) -> object:
    """``value`` as JSON can have it; None when it is nothing to be shown, as bytes are."""
    if type(value) is str:
        return value[:MAX_TEXT]  # what nearly all are, and what would be looked at last
    match value:
        case None | bytes() | bytearray() | memoryview():
            plain: object = None
        case Enum():
            plain = value.name
        case float():
            plain = round(value, 3) if math.isfinite(value) else None
        case int():
            plain = value
        case tuple() | list():
            plain = [item for item in map(_plain, value[:MAX_ITEMS]) if item is not None]
        case Mapping():
            plain = {str(key): item for key, item in ((key, _plain(each)) for key, each in value.items()) if item is not None}
        case _:
            plain = str(value)[:MAX_TEXT]
    return plain


def _as_word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_as_word, value)) or "-"
    text = _escape(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text


def _traceback(event: Event) -> str:
    failure = event.get("log_failure")
    if not isinstance(failure, Failure):
        return ""
    text = redact(failure.getTraceback(elideFrameworkCode=True))
    return text if len(text) <= MAX_TRACEBACK else f"{text[:MAX_TRACEBACK // 2]}\n...\n{text[-MAX_TRACEBACK // 2:]}"


def _escape(text: str) -> str:
    """``text`` on one line: what would move a terminal's cursor is written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
