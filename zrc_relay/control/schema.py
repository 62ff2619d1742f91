"""JSON Schema: made of dataclasses, and held against what comes in.

The same schemas describe the admin endpoint in its OpenAPI document and decide about requests, so that the two cannot differ.
Only the keywords that stand here are known; patterns stand between ``^`` and ``$``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

Schema = Mapping[str, Any]

_PLAIN: Final[Mapping[type, str]] = {str: "string", bool: "boolean", int: "integer", float: "number"}
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,), "boolean": (bool,), "integer": (int,), "number": (int, float), "object": (dict,), "null": (NoneType,),
}


def schema_name(kind: type) -> str:
    """What the schema of a dataclass is called."""
    return kind.__name__


def schema_of(kind: type) -> Schema:
    """The schema of a dataclass whose fields say what they mean; those of its fields' dataclasses are referred to by name."""
    hints = get_type_hints(kind)
    properties: dict[str, Schema] = {}
    for item in fields(kind):
        more = item.metadata
        properties[item.name] = {**_of_type(hints[item.name]), **more["schema"], "description": more["description"]}
    return {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n")[0],
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parts_of(kind: type) -> Iterator[type]:
    """The dataclasses that a dataclass is made of, itself first; some may come more than once."""
    yield kind
    for hint in get_type_hints(kind).values():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from parts_of(inner)


def _of_type(hint: Any) -> Schema:
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        return {"$ref": f"#/components/schemas/{schema_name(hint)}"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return {"type": "array", "items": _of_type(inner[0])}
    if origin is UnionType:
        return {"type": [*(_PLAIN[part] for part in inner if part is not NoneType), "null"]}
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {"type": "object", "additionalProperties": _of_type(inner[1])}
    raise TypeError(hint)


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind))


def plain(value: Any) -> Any:
    """``value`` as JSON can have it: dataclasses are objects, tuples arrays."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def problems(schema: Schema, value: Any, where: str) -> Iterator[tuple[str, str]]:
    """What is wrong with ``value`` by ``schema``: where it is wrong, and a predicate of what is there."""
    wrong = _wrong(schema, value)
    if wrong:
        yield where, wrong
    elif schema.get("type") == "object":
        known = schema["properties"]
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where}.{name}", "is required"
        for name, inner in value.items():
            if name in known:
                yield from problems(known[name], inner, f"{where}.{name}")
            else:
                yield f"{where}.{name[:40]}", "is unknown"


def _wrong(schema: Schema, value: Any) -> str:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_is(kind, value) for kind in kinds):
        return f"must be {' or '.join(kinds)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"must be one of {', '.join(str(choice) for choice in schema['enum'])}"
    if isinstance(value, str):
        return _wrong_text(schema, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _wrong_number(schema, value)
    return ""


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, float) and not math.isfinite(value))


def _wrong_text(schema: Schema, value: str) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if not least <= len(value) <= most:
        return f"must have {least} to {most} characters" if most != math.inf else f"must have {least} characters or more"
    if "pattern" in schema and re.fullmatch(schema["pattern"], value) is None:  # in Python, $ alone would let a newline pass
        return "does not have the right form"
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, which JSON can say
        return "is not Unicode text"
    return ""


def _wrong_number(schema: Schema, value: float) -> str:
    least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    return "" if least <= value <= most else f"must be from {least} to {most}"
