"""Inputs as hypothesis makes them: any bytes, and whole messages with a few things changed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

Edit = tuple[str, int, bytes]
EDITS = ("replace", "insert", "delete", "cut", "append", "flip")


def inputs(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Any bytes, or one of the ``seeds``, or two of them in a row, edited."""
    whole = st.sampled_from(seeds)
    pieces = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from((b"\0", b"\xff", b"\x40", b"\x7f\xff", b"\x80\0\0\0")))
    edit: st.SearchStrategy[Edit] = st.tuples(st.sampled_from(EDITS), st.integers(0, 2000), pieces)
    edits = st.lists(edit, min_size=0, max_size=6)
    return st.one_of(
        st.binary(max_size=400),
        st.builds(edited, whole, edits),
        st.builds(lambda first, second, changes: edited(first + second[1:], changes), whole, whole, edits),
    )


def edited(data: bytes, edits: Sequence[Edit]) -> bytes:
    """``data`` with the edits, one after the other; positions are taken modulo its length."""
    for kind, position, piece in edits:
        at = position % (len(data) + 1)
        size = len(piece)
        match kind:
            case "replace":
                data = data[:at] + piece + data[at + size :]
            case "insert":
                data = data[:at] + piece + data[at:]
            case "delete":
                data = data[:at] + data[at + size :]
            case "cut":
                data = data[:at]
            case "flip" if at < len(data):
                data = data[:at] + bytes((data[at] ^ (piece[0] or 1),)) + data[at + 1 :]
            case _:
                data += piece
    return data
