"""What was received: ``RecentPackets`` tells a duplicate (RFC 9000 §12.3), ``ReceivedRanges`` what is acknowledged (§13.2.3).

Both have the interface of aioquic's own, and the same meaning. Packets mostly come in order, and then each of them is one number
that goes up by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aioquic.quic.recovery import MAX_ACK_RANGES

WINDOW: Final = 2 * MAX_ACK_RANGES
_WINDOW_MASK: Final = (1 << WINDOW) - 1


class RecentPackets:
    """The last ``WINDOW`` packet numbers up to ``highest``; one below those counts as received."""

    __slots__ = ("_bits", "_marked", "highest")

    def __init__(self) -> None:
        self.highest = -1
        self._marked = -1
        """All after this one were received."""
        self._bits = 0
        """Bit n stands for ``_marked - n``."""

    def add(self, packet_number: int) -> None:
        """A packet was received; one below the window changes nothing."""
        ahead = packet_number - self.highest
        if ahead == 1:
            self.highest = packet_number
            return
        self._mark()
        if ahead > 0:
            self._bits = (self._bits << ahead | 1) & _WINDOW_MASK if ahead < WINDOW else 1
            self.highest = self._marked = packet_number
        elif ahead > -WINDOW:
            self._bits |= 1 << -ahead

    def __contains__(self, packet_number: int) -> bool:
        back = self.highest - packet_number
        if back < 0:
            return False
        if back >= WINDOW or packet_number > self._marked:
            return True
        return self._bits >> (self._marked - packet_number) & 1 == 1

    def _mark(self) -> None:
        """Mark those that came in order since."""
        ahead = self.highest - self._marked
        if ahead:
            self._bits = ((self._bits + 1 << ahead) - 1) & _WINDOW_MASK if ahead < WINDOW else _WINDOW_MASK
            self._marked = self.highest


class ReceivedRanges:
    """Ranges of packet numbers, the newest from ``start`` to before ``stop``; there are none at all when these are equal."""

    __slots__ = ("_earlier", "start", "stop")

    def __init__(self) -> None:
        self._earlier: list[range] = []
        """Oldest first; there is a gap behind each."""
        self.start = 0
        self.stop = 0

    def add(self, number: int) -> None:
        """``number`` was received."""
        if self.start == self.stop:
            self.start, self.stop = number, number + 1
        elif number == self.stop:
            self.stop = number + 1
        elif number > self.stop:
            self._earlier.append(range(self.start, self.stop))
            self.start, self.stop = number, number + 1
        elif number < self.start:
            self._add_late(number)

    def _add_late(self, number: int) -> None:
        ranges = list(self)
        index = len(ranges) - 1
        while index > 0 and number < ranges[index - 1].stop:
            index -= 1  # what is late is mostly late by little
        after = ranges[index]
        if number >= after.start:
            return
        start, stop = number, number + 1
        if stop == after.start:
            stop = after.stop
            del ranges[index]
        if index and ranges[index - 1].stop == start:
            index -= 1
            start = ranges[index].start
            del ranges[index]
        ranges.insert(index, range(start, stop))
        self._keep(ranges)

    def shift(self) -> None:
        """Forget the oldest range."""
        if self._earlier:
            del self._earlier[0]
        else:
            self.start = self.stop

    def subtract(self, start: int, stop: int) -> None:
        """Forget what is below ``stop``; ``start`` is 0 always."""
        del start
        if not self._earlier:
            self.start = min(max(self.start, stop), self.stop)
            return
        self._keep([range(max(each.start, stop), each.stop) for each in self if each.stop > stop])

    def newest_earlier(self, count: int) -> list[range]:
        """Up to ``count`` of those before the newest range, newest first."""
        earlier = self._earlier
        return earlier[: -count - 1 : -1] if earlier else earlier

    def _keep(self, ranges: list[range]) -> None:
        if ranges:
            last = ranges.pop()
            self.start, self.stop = last.start, last.stop
        else:
            self.start = self.stop
        self._earlier = ranges

    def __len__(self) -> int:
        return len(self._earlier) + (self.start < self.stop)

    def __iter__(self) -> Iterator[range]:
        found = [*self._earlier, range(self.start, self.stop)] if self.start < self.stop else []
        return iter(found)

    def __getitem__(self, index: int) -> range:
        if index in (-1, len(self._earlier)) and self.start < self.stop:
            return range(self.start, self.stop)
        return self._earlier[index]
