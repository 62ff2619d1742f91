"""Sources: whom a rate is for, and how fast each may go (R6.1, R6.2, R6.9).

Theory of operation
-------------------
A *source* is an IPv4 address or an IPv6 /64: who has an IPv6 address has all of its /64. An IPv4-mapped IPv6 address is IPv4.
As a key a source is one int, so that a table of them stays small.

``SourceLimiter`` keeps one number for each source, and no timer: the moment at which all that the source has done would have been
done at exactly the permitted rate (the "theoretical arrival time" of the generic cell rate algorithm). A source may be ahead of
that by one period's worth of events, and is otherwise told how long to wait. Whoever waits a period has everything again, which
is the same as not being known; so the table can forget the source that was seen least recently without ever being unjust to one
that behaves.

Only what cannot be spoofed may be counted against a source that something else depends on; who calls ``take`` decides that.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

MAX_SOURCES: Final = 65_536
"""Sources remembered by each limiter: some 15 MB, and more than a core can shake hands with in a minute."""
REMEMBERED_HOSTS: Final = 4096
"""Hosts whose numbers are kept, less than 1 MB: each that connects is asked for several times."""
IPV4_BITS: Final = 32
IPV6_BITS: Final = 128
IPV6_SOURCE_BITS: Final = 64
_IPV6_MARK: Final = 1 << IPV6_SOURCE_BITS
"""Set in the key of every IPv6 source, so that ``::/64`` is not ``0.0.0.0``."""
_MAPPED: Final = 0xFFFF
"""What stands above the last 32 bits of an IPv4-mapped address (RFC 4291 §2.5.5.2)."""
ROUNDING: Final = 1e-6
"""Seconds that sums of floats may be off: a source that waits exactly as long as it was told is in time."""

Numeric = tuple[int, int]
"""An IP address for computing with: how many bits it has (32 or 128) and its value."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen: ``events`` (at least 1) in ``seconds``, and as many at once."""

    events: int
    seconds: int


@lru_cache(REMEMBERED_HOSTS)
def numeric(host: str) -> Numeric:
    """The IP address that ``host`` says as text, as a number; a scope id is passed over. ``ValueError`` if it is none."""
    if ":" not in host:
        return IPV4_BITS, int(IPv4Address(host))
    value = int(IPv6Address(host.partition("%")[0]))
    if value >> IPV4_BITS == _MAPPED:
        return IPV4_BITS, value & 0xFFFF_FFFF
    return IPV6_BITS, value


def source_of(address: Numeric) -> int:
    """The source that an address belongs to."""
    bits, value = address
    return value if bits == IPV4_BITS else _IPV6_MARK | value >> (IPV6_BITS - IPV6_SOURCE_BITS)


class SourceLimiter:
    """Holds each source to ``rate``; None holds nobody. At most ``capacity`` sources are remembered."""

    def __init__(self, rate: Rate | None, *, capacity: int = MAX_SOURCES) -> None:
        self._capacity = capacity
        self._rate = rate
        self._interval = rate.seconds / rate.events if rate is not None else 0.0
        self._period = rate.seconds if rate is not None else 0
        self._arrivals: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrivals)

    def take(self, source: int, now: float) -> bool:
        """Count one event of ``source`` at ``now`` (monotonic seconds) if its rate allows it."""
        interval = self._interval
        if not interval:
            return True
        arrivals = self._arrivals
        arrival = arrivals.get(source)
        arrival = (now if arrival is None or arrival < now else arrival) + interval
        if arrival - now > self._period + ROUNDING:
            arrivals.move_to_end(source)
            return False
        arrivals[source] = arrival
        arrivals.move_to_end(source)
        if len(arrivals) > self._capacity:
            arrivals.popitem(last=False)
        return True

    def set_rate(self, rate: Rate | None, now: float) -> None:
        """Hold each source to another ``rate`` from ``now`` on. What a source has done counts on, event by event.

        Costs some 20 ms when all ``MAX_SOURCES`` are known, and nothing when the rate is the same.
        """
        if rate == self._rate:
            return
        before, self._rate = self._interval, rate
        self._interval = rate.seconds / rate.events if rate is not None else 0.0
        self._period = rate.seconds if rate is not None else 0
        scale = self._interval / before if before else 0.0
        # Nobody is ahead by more than one period's worth of events, neither before nor after.
        self._arrivals = OrderedDict(
            (source, now + min((arrival - now) * scale, self._period))
            for source, arrival in self._arrivals.items() if scale and arrival > now
        )

    def wait(self, source: int, now: float) -> float:
        """Seconds from ``now`` until ``take`` would be granted; 0 when it would be now. Nothing is counted."""
        arrival = self._arrivals.get(source)
        if arrival is None:
            return 0.0
        missing = arrival + self._interval - now - self._period
        return missing if missing > ROUNDING else 0.0
