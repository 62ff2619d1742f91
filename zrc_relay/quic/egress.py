"""The queue of payloads that wait to leave in DATAGRAM frames (R3.9).

Congestion control and pacing hold datagrams back, so a queue forms. It is bounded in bytes and in age, and the oldest go first:
what is late is worth less than what is new. It has the few methods of a deque that aioquic uses on its own (unbounded) queue of
datagrams, so that it can stand in its place.

Payloads come in batches, so the time is kept once for each batch, with how many of it are left; mostly there is one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

from zrc_relay.core.histogram import Waits

WORTH_NOTING: Final = 0.001
"""Shortest wait in seconds that counts as one: what takes less waits for nothing but its batch."""


class EgressQueue:
    """Payloads with the time each was queued.

    ``max_bytes`` bounds the sum of payload sizes (a payload counts at least ``MIN_COST``, so that empty ones are bounded too),
    ``max_age`` the seconds that one may wait. ``on_drop`` hears the size of each payload that is dropped, ``waits`` how long the
    oldest has waited whenever somebody looks.
    """

    MIN_COST: Final = 64

    def __init__(self, max_bytes: int, max_age: float, on_drop: Callable[[int], None], waits: Waits | None = None) -> None:
        self._waits = waits
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._on_drop = on_drop
        self.payloads: deque[bytes] = deque()
        """What waits, oldest first. Who takes from it directly says so with ``took``."""
        self._since = inf
        """When the oldest were queued,"""
        self._oldest = 0
        """and how many of them are left."""
        self._younger: deque[tuple[float, int]] = deque()
        """The same for those behind them."""
        self.size = 0

    def push(self, payload: bytes, now: float) -> None:
        """Queue one payload; see ``extend``."""
        self.extend([payload], now)

    def extend(self, payloads: list[bytes], now: float) -> None:
        """Queue ``payloads`` in order; older ones are dropped if that is what it takes."""
        if not payloads:
            return
        self.payloads.extend(payloads)
        if self._oldest:
            self._younger.append((now, len(payloads)))
        else:
            self._since, self._oldest = now, len(payloads)
        for payload in payloads:
            size = len(payload)
            self.size += max(size, self.MIN_COST)
        while self.size > self._max_bytes and len(self.payloads) > 1:
            self._drop()

    def expire(self, now: float) -> None:
        """Drop what has waited longer than ``max_age``."""
        age = now - self._since
        if age >= WORTH_NOTING and self._waits is not None:
            self._waits.note(age, now)
        limit = now - self._max_age
        while self._since < limit:
            self._drop()

    def _drop(self) -> None:
        self._on_drop(len(self.popleft()))

    def popleft(self) -> bytes:
        """Take the oldest payload."""
        payload = self.payloads.popleft()
        self.took(1, max(len(payload), self.MIN_COST))
        return payload

    def took(self, count: int, cost: int) -> None:
        """``count`` payloads were taken from the front of ``payloads``, which counted ``cost`` bytes together."""
        self.size -= cost
        left = self._oldest - count
        while left <= 0:
            if not self._younger:
                self._since, left = inf, 0
                break
            self._since, more = self._younger.popleft()
            left += more
        self._oldest = left

    def remove_larger(self, limit: int) -> list[bytes]:
        """Take out the payloads of more than ``limit`` bytes, in order."""
        larger: list[bytes] = []
        payloads, batches = self.payloads, [(self._since, self._oldest), *self._younger]
        self.payloads, self._younger = deque(), deque()
        self._since, self._oldest, self.size = inf, 0, 0
        for time, count in batches:
            batch = [payloads.popleft() for _ in range(count)]
            larger += [payload for payload in batch if len(payload) > limit]
            self.extend([payload for payload in batch if len(payload) <= limit], time)
        return larger

    def close(self) -> None:
        """Nothing will leave any more: forget what waits, without a word, and who was to hear of drops."""
        self.payloads.clear()
        self._younger.clear()
        self._since, self._oldest, self.size = inf, 0, 0
        self._on_drop = _unheard

    def __getitem__(self, index: int) -> bytes:
        return self.payloads[index]

    def __len__(self) -> int:
        return len(self.payloads)

    def __bool__(self) -> bool:
        return bool(self.payloads)


def _unheard(_size: int) -> None:
    """Nobody is told."""
