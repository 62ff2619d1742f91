"""Values between the processes of a relay: frozen dataclasses as JSON, driven by their type hints.

Theory of operation
-------------------
Whoever sends and whoever reads have the same program and name the same type, so the bytes say nothing of types: a dataclass is
the array of its fields, in their order. What is read is held against the type hints all the same; whatever does not fit is a
``BadValue``. No object is made of anything but the type that was named, so reading strange bytes can run nothing.

====================================  ==========================================================
in Python                             in JSON
====================================  ==========================================================
str, bool, None, int, float           themselves; infinity as Python's ``json`` writes it
bytes                                 hexadecimal
tuple, frozenset                      array
mapping with texts as keys            object
any other mapping                     array of pairs
Enum                                  the member's name
Path                                  text
dataclass, NamedTuple                 array of the fields
one of several dataclasses            array of the class's name and the value
====================================  ==========================================================

For each type a pair of functions is made once (``_codec``), so that a page of a thousand rows costs some milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints, overload

T = TypeVar("T")
Turn = Callable[[Any], Any]

_ATOMS: Final[Mapping[Any, frozenset[type]]] = {
    str: frozenset((str,)), bool: frozenset((bool,)), int: frozenset((int,)), float: frozenset((float, int)),
    NoneType: frozenset((NoneType,)), None: frozenset((NoneType,)),
}
"""What JSON has itself, and what each may be in Python: a whole number is good enough where a fraction may stand."""


class BadValue(Exception):
    """A value does not have the type that was named, or its bytes do not, or the type is none that is known here."""


@dataclass(frozen=True, slots=True)
class _Codec:
    """How a type is turned into what JSON has, and back. ``encode`` is None where there is nothing to turn."""

    encode: Turn | None
    decode: Turn


def encode(value: Any, kind: Any) -> bytes:
    """``value``, which is of the type ``kind``, as bytes; ``BadValue`` when it is not."""
    turn = _codec(kind).encode
    try:
        return json.dumps(value if turn is None else turn(value), separators=(",", ":")).encode()
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        msg = f"not a value of {_name(kind)}: {error}"
        raise BadValue(msg) from error


@overload
def decode(data: bytes, kind: type[T]) -> T: ...


@overload
def decode(data: bytes, kind: Any) -> Any: ...


def decode(data: bytes, kind: Any) -> Any:
    """The value of the type ``kind`` that ``encode`` made ``data`` of; ``BadValue`` when they do not go together."""
    turn = _codec(kind).decode
    try:
        return turn(json.loads(data))
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        msg = f"no value of {_name(kind)}: {error}"
        raise BadValue(msg) from error


@cache
def _codec(kind: Any) -> _Codec:
    if kind in _ATOMS:
        return _Codec(None, _one_of(_ATOMS[kind]))
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _union(inner)
    if origin is tuple:
        return _many(inner[0], tuple) if len(inner) == 2 and inner[1] is Ellipsis else _fixed(tuple, inner)
    if origin is frozenset:
        return _many(inner[0], frozenset)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*inner)
    if isinstance(kind, type):
        return _of_class(kind)
    raise _unknown(kind)


def _of_class(kind: type) -> _Codec:
    if is_dataclass(kind):
        return _fields(kind)
    if issubclass(kind, Enum):
        members = kind.__members__
        return _Codec(attrgetter("name"), members.__getitem__)
    if issubclass(kind, bytes):
        return _Codec(bytes.hex, bytes.fromhex)
    if issubclass(kind, Path):
        return _Codec(str, _checked(str, Path))
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _fixed(lambda values: kind(*values), tuple(get_type_hints(kind).values()))
    raise _unknown(kind)


def _one_of(kinds: frozenset[type]) -> Turn:
    def check(value: Any) -> Any:
        if type(value) not in kinds:
            raise _misfit(value)
        return value

    return check


def _checked(kind: type, make: Turn) -> Turn:
    def turn(value: Any) -> Any:
        if type(value) is not kind:
            raise _misfit(value)
        return make(value)

    return turn


def _many(inner: Any, make: Callable[[list[Any]], Any]) -> _Codec:
    codec = _codec(inner)
    to, back = codec.encode, codec.decode
    encode_all: Turn = list if to is None else lambda values: [to(value) for value in values]
    return _Codec(encode_all, _checked(list, lambda values: make([back(value) for value in values])))


def _fixed(make: Callable[[list[Any]], Any], inner: tuple[Any, ...]) -> _Codec:
    codecs = [_codec(each) for each in inner]

    def to(values: Any) -> list[Any]:
        return [
            value if codec.encode is None else codec.encode(value) for codec, value in zip(codecs, values, strict=True)
        ]

    def back(values: list[Any]) -> Any:
        return make([codec.decode(value) for codec, value in zip(codecs, values, strict=True)])

    return _Codec(to, _checked(list, back))


def _mapping(key: Any, inner: Any) -> _Codec:
    if key is not str:
        pairs = _many(tuple[key, inner], dict)
        turn = pairs.encode
        return _Codec(lambda value: turn(value.items()) if turn is not None else list(value.items()), pairs.decode)
    codec = _codec(inner)
    to, back = codec.encode, codec.decode
    encode_all: Turn = dict if to is None else lambda value: {name: to(each) for name, each in value.items()}
    return _Codec(encode_all, _checked(dict, lambda value: {name: back(each) for name, each in value.items()}))


def _union(inner: tuple[Any, ...]) -> _Codec:
    kinds = [kind for kind in inner if kind is not NoneType]
    if all(kind in _ATOMS for kind in inner):
        return _Codec(None, _one_of(frozenset().union(*(_ATOMS[kind] for kind in inner))))
    codec = _codec(kinds[0]) if len(kinds) == 1 else _named(kinds)
    if len(kinds) == len(inner):
        return codec
    to, back = codec.encode, codec.decode
    encode_some: Turn | None = None if to is None else lambda value: None if value is None else to(value)
    return _Codec(encode_some, lambda value: None if value is None else back(value))


def _named(kinds: list[Any]) -> _Codec:
    """One of several classes: with the name of the one that it is."""
    codecs = {_name(kind): _codec(kind) for kind in kinds if isinstance(kind, type)}
    if len(codecs) != len(kinds):
        raise _unknown(tuple(kinds))

    def to(value: Any) -> list[Any]:
        name = _name(type(value))
        if name not in codecs:
            raise _misfit(value)
        turn = codecs[name].encode
        return [name, value if turn is None else turn(value)]

    def back(pair: list[Any]) -> Any:
        name, value = pair
        return codecs[name].decode(value)

    return _Codec(to, _checked(list, back))


def _fields(kind: Any) -> _Codec:
    hints = get_type_hints(kind)
    names = [item.name for item in fields(kind)]
    codecs = [_codec(hints[name]) for name in names]
    turns = [(number, codec.encode) for number, codec in enumerate(codecs) if codec.encode is not None]
    decoders = [codec.decode for codec in codecs]
    pick = attrgetter(*names) if names else None

    def to(value: Any) -> list[Any]:
        if type(value) is not kind:
            raise _misfit(value)
        if pick is None:
            return []
        found = list(pick(value)) if len(names) > 1 else [pick(value)]
        for number, turn in turns:
            found[number] = turn(found[number])
        return found

    if any(item.kw_only for item in fields(kind)):
        def make(values: list[Any]) -> Any:
            return kind(**dict(zip(names, values, strict=True)))
    else:
        def make(values: list[Any]) -> Any:
            return kind(*values)

    def back(values: list[Any]) -> Any:
        if len(values) != len(decoders):
            raise _misfit(values)
        return make([turn(value) for turn, value in zip(decoders, values, strict=True)])

    return _Codec(to, _checked(list, back))


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _unknown(kind: Any) -> BadValue:
    return BadValue(f"values of {_name(kind)} cannot be sent")


def _misfit(value: Any) -> TypeError:
    return TypeError(f"{type(value).__name__} is not what should be there: {str(value)[:80]}")
