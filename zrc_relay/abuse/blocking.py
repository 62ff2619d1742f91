"""What external systems may do to the blocklist: block or unblock a range of addresses, within reason (R6.3, R6.6).

Whatever comes from outside is checked here, entry by entry: a range that is no range, or so wide that it can only be a slip or a
system that was taken over, is not believed. Applying a long list happens in slices, between which packets get their turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.task import deferLater

from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.core.sources import IPV4_BITS

T = TypeVar("T")

MIN_PREFIX_IPV4: Final = 8
MIN_PREFIX_IPV6: Final = 16
"""Shortest prefixes believed: one wrong entry must not shut everybody out."""
MAX_RANGE_TEXT: Final = 64
"""Longest text looked at: an IPv6 address with a prefix length has 49 characters at most."""
MAX_TTL: Final = 366 * 86400.0
"""Longest time in seconds that something is blocked for."""
SLICE: Final = 64
"""Entries taken at a time: some 0.5 ms, less than a datagram may be late (R3.3)."""


class BlockList(Protocol):
    """The relay's blocklist, as far as one external system reaches it."""

    def block(self, network: Network, ttl: float) -> bool:
        """Refuse sources in ``network`` for ``ttl`` seconds; whether that is so now."""
        ...

    def unblock(self, network: Network) -> None:
        """Take back the ``block`` of the same network; nothing happens when there is none, or it is somebody else's."""
        ...

    def networks(self) -> Iterable[Network]:
        """What this system has blocked, in an earlier life of the relay as well; some of it may be over."""
        ...


class NotedBlocks:
    """The ``BlockList`` of one external system: entries of ``lists`` that carry its ``note``. ``wall`` gives Unix seconds.

    What somebody else said about the same network stays if it is stricter or allows it: an administrator's word is not undone
    by a system's.
    """

    def __init__(self, lists: AccessLists, note: str, wall: Callable[[], float]) -> None:
        self._lists = lists
        self._note = note
        self._wall = wall

    def block(self, network: Network, ttl: float) -> bool:
        """See ``BlockList``."""
        now = self._wall()
        until = now + ttl
        known = self._lists.get(network)
        if known is not None and known.until > now and known.note != self._note:
            if known.access is Access.ALLOW:
                return False
            if known.until >= until:
                return True
        return self._lists.add(Entry(network, Access.BLOCK, until, self._note), now)

    def unblock(self, network: Network) -> None:
        """See ``BlockList``."""
        known = self._lists.get(network)
        if known is not None and known.note == self._note and not known.configured:
            self._lists.remove(network)

    def networks(self) -> Iterable[Network]:
        """See ``BlockList``."""
        own = (entry for entry in self._lists.runtime_entries if entry.note == self._note)
        return [entry.network for entry in own if entry.access is Access.BLOCK]


def parse_network(value: object) -> Network:
    """The network that an address or CIDR range is; ``ValueError`` when it is none or too wide. Host bits do not matter."""
    if not isinstance(value, str) or len(value) > MAX_RANGE_TEXT:
        msg = "not an address or range"
        raise ValueError(msg)
    network = Network.parse(value.strip())
    if network.length < (MIN_PREFIX_IPV4 if network.bits == IPV4_BITS else MIN_PREFIX_IPV6):
        msg = f"{network} is too wide"
        raise ValueError(msg)
    return network


def parse_ttl(value: object) -> float:
    """Seconds, more than 0 and finite; ``ValueError`` otherwise. Longer than ``MAX_TTL`` is as long as that."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        msg = "not a number of seconds above 0"
        raise ValueError(msg)
    return float(min(value, MAX_TTL))


async def in_slices(items: Iterable[T], handle: Callable[[T], object], clock: Any) -> None:
    """Call ``handle`` for each of ``items``, ``SLICE`` of them and then whatever else the reactor has to do, and so on."""
    remaining = iter(items)
    while taken := list(islice(remaining, SLICE)):
        for item in taken:
            handle(item)
        await deferLater(clock, 0)
