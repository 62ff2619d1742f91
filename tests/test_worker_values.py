"""Values between processes: what is sent comes back the same, and nothing but what was named comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, unique
from math import inf
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.test_worker_commands import DETAIL
from zrc_relay.control import answers
from zrc_relay.control.operations import AllocationFilter, AllocationName, AllocationState, NewEntry, NewKey, Page, SortKey
from zrc_relay.control.traffic import Numbers, Ranking, WorkerReport
from zrc_relay.core.cidr import Access, Entry, Network
from zrc_relay.core.fields import Address
from zrc_relay.core.keys import Device
from zrc_relay.metrics.snapshot import Buckets, Snapshot
from zrc_relay.workers.values import BadValue, decode, encode

ANSWERS = tuple(kind for kind in vars(answers).values() if isinstance(kind, type) and is_dataclass(kind))
OTHERS = (
    AllocationFilter, AllocationName, NewEntry, NewKey, Page, Ranking, Numbers, WorkerReport, Snapshot, Buckets, Entry, Address,
    Device,
)
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8), int: st.integers(), float: st.floats(allow_nan=False), bool: st.booleans(), NoneType: st.none(),
    bytes: st.binary(max_size=40), Path: st.just(Path("/var/lib/x")),
    Network: st.builds(Network.of, st.tuples(st.just(32), st.integers(0, 9))),
}


@unique
class Colour(Enum):
    """Members whose values JSON does not have."""

    RED = (255, 0, 0)
    BLUE = (0, 0, 255)


@dataclass(frozen=True)
class Circle:
    """One of several."""

    radius: float


@dataclass(frozen=True)
class Square:
    """Another one, of the same form."""

    side: float


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Everything that has not been in an answer yet."""

    shape: Circle | Square | None
    colours: frozenset[Colour]
    weights: Mapping[Colour, float]
    corner: tuple[int, bytes]
    file: Path | None
    mixed: str | int | float


@dataclass(frozen=True)
class Empty:
    """No field at all."""


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type, made of nothing but its hints."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if get_args(kind):
        return _values_of_generic(get_origin(kind), get_args(kind))
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    hints = get_type_hints(kind)
    made: st.SearchStrategy[Any] = st.builds(kind, **{item.name: values_of(hints[item.name]) for item in fields(kind)})
    return made


def _values_of_generic(origin: Any, inner: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if origin in (Union, UnionType):
        return st.one_of(*map(values_of, inner))
    if origin is tuple and inner[1:] == (Ellipsis,):
        return st.lists(values_of(inner[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, inner))
    if origin is frozenset:
        return st.frozensets(values_of(inner[0]), max_size=3)
    return st.dictionaries(values_of(inner[0]), values_of(inner[1]), max_size=3)


class RoundTripTests(SynchronousTestCase):
    """Issue "all cores": values cross between processes without pickle and come out as they went in."""

    @given(st.sampled_from((*ANSWERS, *OTHERS, Drawing, Empty)).flatmap(lambda kind: st.tuples(st.just(kind), values_of(kind))))
    def test_any_value_of_any_type(self, given_: tuple[type, Any]) -> None:
        kind, value = given_
        again: Any = decode(encode(value, kind), kind)
        self.assertEqual(again, value)
        self.assertIs(type(again), kind)

    def test_parts_of_a_value_are_of_their_own_types_again(self) -> None:
        drawing = Drawing(
            shape=Square(1.5), colours=frozenset((Colour.RED,)), weights={Colour.BLUE: inf}, corner=(3, b"\0\xff"),
            file=Path("/x"), mixed=7,
        )
        again = decode(encode(drawing, Drawing), Drawing)
        self.assertEqual(again, drawing)
        self.assertIsInstance(again.shape, Square)
        self.assertIsInstance(again.colours, frozenset)
        self.assertIsInstance(again.corner, tuple)

    def test_types_that_are_no_class(self) -> None:
        for value, kind in (
            (None, Network | None), (Network.parse("2001:db8::/32"), Network | None), ((1, "a"), tuple[int, str]), ("x", str),
            (("a", None), tuple[str | None, ...]), ({"a": (1,)}, Mapping[str, tuple[int, ...]]), (SortKey.STATE, SortKey),
        ):
            self.assertEqual(decode(encode(value, kind), kind), value)

    def test_the_bytes_are_json_and_say_no_types(self) -> None:
        which = AllocationFilter(state=AllocationState.ACTIVE, device_id=b"\xab", source=Network.parse("10.0.0.0/8"))
        self.assertEqual(json.loads(encode(which, AllocationFilter)), ["ACTIVE", "ab", None, None, None, [32, 8, 10]])


class RefusalTests(SynchronousTestCase):
    """Issue "all cores": what does not fit the type that was named is one kind of error, and makes no object."""

    @given(st.sampled_from((*ANSWERS, *OTHERS, Drawing)), st.binary(max_size=60))
    def test_strange_bytes(self, kind: type, data: bytes) -> None:
        self.assertRaises(BadValue, decode, data, kind)

    @given(
        st.sampled_from((*ANSWERS, *OTHERS, Drawing)),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda part: st.lists(part, max_size=3)),
    )
    def test_strange_json(self, kind: type, value: Any) -> None:
        try:
            found: Any = decode(json.dumps(value).encode(), kind)
        except BadValue:
            return
        self.assertIs(type(found), kind)
        self.assertEqual(decode(encode(found, kind), kind), found)

    def test_a_value_of_another_type_than_was_said(self) -> None:
        for value, kind in (
            ("1", int), (True, int), (1, bool), (1, str), (1.5, int), (None, str), ((1, 2), tuple[int]),
            (("x",), tuple[int, ...]), ({"a": "b"}, Mapping[str, int]),
        ):
            self.assertRaises(BadValue, lambda value=value, kind=kind: decode(encode(value, kind), kind))

    def test_a_dataclass_that_only_looks_like_the_one_that_was_said(self) -> None:
        self.assertRaises(BadValue, encode, Circle(1), Square)
        self.assertRaises(BadValue, encode, DETAIL, answers.AllocationInfo)
        self.assertRaises(BadValue, encode, Page(0, 1), Circle | Square)
        self.assertRaises(BadValue, decode, b'["Triangle",[1]]', Circle | Square)
        self.assertRaises(BadValue, decode, b"[1,2]", Circle)

    def test_members_that_an_enumeration_does_not_have(self) -> None:
        self.assertRaises(BadValue, decode, b'"MAYBE"', Access)
        self.assertRaises(BadValue, decode, b"[1]", Access)

    def test_types_that_have_no_form(self) -> None:
        for kind in (object, Any, set[int], complex, tuple[object, ...], list[int] | str):
            self.assertRaises(BadValue, encode, None, kind)

    def test_what_is_nested_without_end(self) -> None:
        self.assertRaises(BadValue, decode, b"[" * 100_000, Page)
