"""What all that lies in shared memory needs: guards, words, and names that nobody can foresee (see ``shared``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from zrc_relay.core.routing import Share

Guard = Callable[[int, int], AbstractContextManager[object]]
"""``guard(offset, length)``: while it is entered, no other process is in a guard of any of these bytes of the memory."""
WORD: Final = 8
"""Bytes of a word."""
LINE: Final = 64
"""What each part of the memory begins at a multiple of: a cache line, so that two parts are never in one."""


@dataclass(frozen=True, slots=True)
class View:
    """The memory as one worker has it: writable bytes, who guards them, whose view it is, and 16 random bytes that all know."""

    memory: memoryview
    guard: Guard
    share: Share
    key: bytes


def padded(size: int) -> int:
    """The next multiple of ``LINE``."""
    return -(-size // LINE) * LINE


def name_of(data: bytes, key: bytes) -> int:
    """64 bits, not 0, that stand for ``data``; who does not have the ``key`` cannot choose them."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=WORD, key=key).digest(), "little") or 1
