"""The queue of payloads that wait to leave in DATAGRAM frames (R3.9).

Congestion control and pacing hold datagrams back, so a queue forms. It is bounded in bytes and in age, and the oldest go first:
what is late is worth less than what is new. It has the few methods of a deque that aioquic uses on its own (unbounded) queue of
datagrams, so that it can stand in its place.

Payloads come in batches, so the time is kept once for each batch, with how many of it are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
        self._batches: deque[list[float]] = deque()
        self.size = 0

    def push(self, payload: bytes, now: float) -> None:
        """Queue one payload; see ``extend``."""
        self.extend([payload], now)

    def extend(self, payloads: list[bytes], now: float) -> None:
        """Queue ``payloads`` in order; older ones are dropped if that is what it takes."""
        if not payloads:
            return
        self.payloads.extend(payloads)
        self._batches.append([now, len(payloads)])
        least = self.MIN_COST
        for payload in payloads:
            size = len(payload)
            self.size += max(least, size)
        while self.size > self._max_bytes and len(self.payloads) > 1:
            self._drop()

    def expire(self, now: float) -> None:
        """Drop what has waited longer than ``max_age``."""
        batches = self._batches
        if not batches:
            return
        age = now - batches[0][0]
        if age >= WORTH_NOTING and self._waits is not None:
            self._waits.note(age, now)
        limit = now - self._max_age
        while batches and batches[0][0] < limit:
            self._drop()

    def _drop(self) -> None:
        self._on_drop(len(self.popleft()))

    def popleft(self) -> bytes:
        """Take the oldest payload."""
        payload = self.payloads.popleft()
        batch = self._batches[0]
        if batch[1] == 1:
            self._batches.popleft()
        else:
            batch[1] -= 1
        self.size -= max(len(payload), self.MIN_COST)
        return payload

    def took(self, count: int, cost: int) -> None:
        """``count`` payloads were taken from the front of ``payloads``, which counted ``cost`` bytes together."""
        self.size -= cost
        batches = self._batches
        while count:
            batch = batches[0]
            if batch[1] > count:
                batch[1] -= count
                return
            count -= int(batch[1])
            batches.popleft()

    def remove_larger(self, limit: int) -> list[bytes]:
        """Take out the payloads of more than ``limit`` bytes, in order."""
        larger: list[bytes] = []
        payloads, batches = self.payloads, self._batches
        self.payloads, self._batches, self.size = deque(), deque(), 0
        for time, count in batches:
            batch = [payloads.popleft() for _ in range(int(count))]
            larger += [payload for payload in batch if len(payload) > limit]
            self.extend([payload for payload in batch if len(payload) <= limit], time)
        return larger

    def __getitem__(self, index: int) -> bytes:
        return self.payloads[index]

    def __len__(self) -> int:
        return len(self.payloads)

    def __bool__(self) -> bool:
        return bool(self.payloads)
