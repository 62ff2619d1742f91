"""Limits in memory that several workers share, all of them in one process, and what tests do to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zrc_relay.core.routing import Share
from zrc_relay.core.shared import Layout, SharedLimits

KEY = bytes(range(16))


class Memory:
    """Memory for ``workers``, with a guard that takes nobody in twice; ``limits[index]`` is how each worker sees it."""

    def __init__(self, workers: int, *, source_slots: int = 1024, device_slots: int = 256, key: bytes = KEY) -> None:
        self.layout = Layout(workers, source_slots, device_slots)
        self.content = bytearray(self.layout.size)
        self.guarded: range | None = None
        self.guards = 0
        self.limits = [
            SharedLimits(memoryview(self.content), self.guard, Share(index, workers), key=key, layout=self.layout)
            for index in range(workers)
        ]

    @contextmanager
    def guard(self, offset: int, length: int) -> Iterator[None]:
        """One process in it at a time is all that tests in one process can see; who holds two might wait in a circle."""
        if self.guarded is not None:
            msg = f"a guard of {self.guarded} is held while another is wanted"
            raise AssertionError(msg)
        if offset < 0 or length <= 0 or offset + length > len(self.content):
            msg = f"there are no {length} bytes at {offset}"
            raise AssertionError(msg)
        self.guarded = range(offset, offset + length)
        self.guards += 1
        try:
            yield
        finally:
            self.guarded = None


class Killed(BaseException):
    """What stands in for SIGKILL: nothing of the one that is hit runs on."""


class Life:
    """How many more words somebody writes before it is killed; None: not at all."""

    def __init__(self, stores: int | None = None) -> None:
        self.stores = stores

    def spend(self) -> None:
        """One word was written."""
        if self.stores is not None:
            self.stores -= 1
            if self.stores == 0:
                raise Killed


class Mortal:
    """A part of the memory as somebody sees it who is killed as soon as its ``life`` is over."""

    def __init__(self, cells: memoryview, life: Life) -> None:
        self.cells = cells
        self.life = life

    def __getitem__(self, index: Any) -> Any:
        return self.cells[index]

    def __setitem__(self, index: int, value: Any) -> None:
        self.cells[index] = value
        self.life.spend()


def mortal(subject: Any, *names: str) -> Life:
    """Let ``subject`` write the parts of the memory that are its attributes ``names`` as long as it lives."""
    life = Life()
    for name in names:
        setattr(subject, name, Mortal(getattr(subject, name), life))
    return life
