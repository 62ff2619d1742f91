"""Who may come at all: the lists of networks that are allowed and blocked (R6.3).

Theory of operation
-------------------
An entry says of one network that it is allowed or blocked. **The most specific entry that holds an address decides**, whichever
list it is in. Where no entry holds it, the address is served, unless the *configuration* has an allowlist: then only who is on a
list is served. (Entries added at run time never close the relay to everybody else.)

Entries come from the configuration, for ever, or from run time, with or without an end. For one and the same network the
configuration wins: what is added at run time is refused there, and what run time added in an earlier life is passed over.

Addresses are numbers. For each prefix length there is a dict from the leading bits to the entry, and a look-up asks these dicts
from the longest prefix to the shortest. Lengths come in strides (of 8 for IPv4, 16 for IPv6); for each stride another dict says
of the bits before it which lengths are in use behind them, so that only those are asked (``_Family``). What a look-up costs
depends on how many lengths are in use around the address, not on how many entries there are. An entry whose time is over is not
seen from that very moment, and is taken out by the next ``sweep``.

``wall`` is Unix time in seconds, because entries outlive a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, unique
from ipaddress import IPv6Network, ip_network
from math import inf
from typing import Final, NamedTuple

from zrc_relay.core.deadlines import Deadlines
from zrc_relay.core.sources import IPV4_BITS, IPV6_BITS, Numeric

MAX_RUNTIME_ENTRIES: Final = 131_072
"""Entries that may be added at run time, some 60 MB: a list of 100,000 and room to spare. Whoever adds them can err."""
MAX_NOTE: Final = 100
"""Characters kept of what was noted about an entry."""
_MAPPED_LENGTH: Final = 96
"""Length of ``::ffff:0:0/96``, in which IPv4 addresses are written as IPv6 ones."""


class Network(NamedTuple):
    """A network: how many bits its addresses have (32 or 128), the length of its prefix, and the prefix as a number."""

    bits: int
    length: int
    prefix: int

    @classmethod
    def parse(cls, text: str, *, strict: bool = False) -> Network:
        """From CIDR notation or one address; an IPv4-mapped network becomes IPv4.

        ``ValueError`` if it is neither, or, with ``strict``, if bits are set behind the prefix.
        """
        if "%" in text:
            msg = "a network has no scope"
            raise ValueError(msg)
        found = ip_network(text, strict=strict)
        length, value = found.prefixlen, int(found.network_address)
        if not isinstance(found, IPv6Network):
            return cls(IPV4_BITS, length, value >> (IPV4_BITS - length))
        if found.network_address.ipv4_mapped is not None and length >= _MAPPED_LENGTH:
            return cls(IPV4_BITS, length - _MAPPED_LENGTH, (value & 0xFFFF_FFFF) >> (IPV6_BITS - length))
        return cls(IPV6_BITS, length, value >> (IPV6_BITS - length))

    @classmethod
    def of(cls, address: Numeric) -> Network:
        """The network of one address alone."""
        bits, value = address
        return cls(bits, bits, value)

    def holds(self, address: Numeric) -> bool:
        """Whether ``address`` is in the network."""
        bits, value = address
        return bits == self.bits and value >> (bits - self.length) == self.prefix

    def __str__(self) -> str:
        first = self.prefix << (self.bits - self.length)
        return str(ip_network((first.to_bytes(self.bits // 8, "big"), self.length)))


@unique
class Access(Enum):
    """What an entry says of its network."""

    ALLOW = "allow"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``until`` is Unix seconds, infinity for no end; ``note`` says who added it, or why, for people."""

    network: Network
    access: Access
    until: float = inf
    note: str = ""
    configured: bool = False


_Plan = tuple[tuple[int, Callable[[int], "Entry | None"]], ...]


class _Family:
    """The entries of one address family, of addresses with ``bits`` bits, by length and prefix."""

    def __init__(self, bits: int, stride: int) -> None:
        self._bits = bits
        self._stride = stride
        self._mask = (1 << stride) - 1
        self._tables: list[dict[int, Entry]] = [{} for _ in range(bits + 1)]
        self._nodes: dict[int, dict[int, int]] = {}
        """By where a stride begins: from the bits before it to how many entries end in it, and which lengths they (or others that
        were there) have, in one number: ``count << stride | lengths``."""
        self._plans: dict[tuple[int, int], _Plan] = {}
        self._levels: list[tuple[int, int, Callable[[int], int | None]]] = []

    def __iter__(self) -> Iterator[Entry]:
        for table in self._tables:
            yield from table.values()

    def get(self, length: int, prefix: int) -> Entry | None:
        """The entry of exactly that network."""
        return self._tables[length].get(prefix)

    def find(self, value: int, wall: float) -> Entry | None:
        """The most specific entry that holds an address."""
        plans, mask = self._plans, self._mask
        for start, shift, nodes in self._levels:
            node = nodes(value >> shift)
            if node is not None:
                for behind, entries in plans[start, node & mask]:
                    entry = entries(value >> behind)
                    if entry is not None and entry.until > wall:
                        return entry
        return None

    def put(self, entry: Entry) -> None:
        """Add an entry, or replace that of the same network."""
        _, length, prefix = entry.network
        table = self._tables[length]
        if prefix not in table:
            start, leading, bit = self._place(length, prefix)
            nodes = self._nodes.get(start)
            if nodes is None:
                nodes = self._nodes[start] = {}
                self._arrange()
            node = nodes[leading] = (nodes.get(leading, 0) + self._mask + 1) | bit
            if (start, node & self._mask) not in self._plans:
                self._plans[start, node & self._mask] = self._plan(start, node)
        table[prefix] = entry

    def take_out(self, length: int, prefix: int) -> None:
        """Remove the entry of that network, which must be there."""
        del self._tables[length][prefix]
        start, leading, _ = self._place(length, prefix)
        nodes = self._nodes[start]
        nodes[leading] -= self._mask + 1
        if nodes[leading] <= self._mask:
            del nodes[leading]
            if not nodes:
                del self._nodes[start]
                self._arrange()

    def _place(self, length: int, prefix: int) -> tuple[int, int, int]:
        """Where the stride of a length begins, the bits of ``prefix`` before it, and the bit of the length in it."""
        start = (length - 1) // self._stride * self._stride if length else 0
        # Length 0 shares the stride of the shortest ones, and the bit of length 1: ``_plan`` asks for both.
        return start, prefix >> (length - start), 1 << max(0, length - start - 1)

    def _plan(self, start: int, node: int) -> _Plan:
        lengths = [start + index + 1 for index in reversed(range(self._stride)) if node >> index & 1]
        if start == 0 and lengths[-1] == 1:
            lengths.append(0)
        return tuple((self._bits - length, self._tables[length].get) for length in lengths)

    def _arrange(self) -> None:
        self._levels = [(start, self._bits - start, self._nodes[start].get) for start in sorted(self._nodes, reverse=True)]


class AccessLists:
    """The lists. ``allow`` and ``block`` are the configuration's; none may be in both."""

    def __init__(self, allow: Iterable[Network] = (), block: Iterable[Network] = ()) -> None:
        self.revision = 0
        """Grows whenever somebody may be blocked who was not: time to look at who is there."""
        self.changes = 0
        """Grows with each change at run time: time to keep them anew."""
        self.on_change: Callable[[Network, Entry | None], None] = _ignore
        """Hears of each change at run time: of what network, and what is said of it now."""
        self._families = {IPV4_BITS: _Family(IPV4_BITS, 8), IPV6_BITS: _Family(IPV6_BITS, 16)}
        self._ends: Deadlines[Network] = Deadlines()
        self._entries = 0
        self._runtime = 0
        self._closed = False
        self._configured: dict[Network, Access] = {}
        self.configure(allow, block)
        self.revision = self.changes = 0

    def __len__(self) -> int:
        return self._entries

    def __iter__(self) -> Iterator[Entry]:
        for family in self._families.values():
            yield from family

    @property
    def is_empty(self) -> bool:
        """Whether there is no entry at all: everybody is served."""
        return self._entries == 0

    @property
    def runtime_entries(self) -> list[Entry]:
        """The entries that were added at run time."""
        return [entry for entry in self if not entry.configured] if self._runtime else []

    def find(self, address: Numeric, wall: float) -> Entry | None:
        """The entry that decides about ``address``, if there is one."""
        bits, value = address
        return self._families[bits].find(value, wall)

    def get(self, network: Network) -> Entry | None:
        """The entry of exactly that network, also when its time is over and no ``sweep`` has seen it yet."""
        return self._families[network.bits].get(network.length, network.prefix)

    def blocked_until(self, address: Numeric, wall: float) -> float | None:
        """Until when ``address`` is not served, in Unix seconds, infinity for no end; None when it is served."""
        entry = self.find(address, wall)
        if entry is None:
            return inf if self._closed else None
        return entry.until if entry.access is Access.BLOCK else None

    def configure(self, allow: Iterable[Network], block: Iterable[Network]) -> None:
        """Replace what the configuration says; none may be in both.

        What run time added stays, but for networks that the configuration speaks of now: there it has the last word.
        """
        wanted = {**dict.fromkeys(allow, Access.ALLOW), **dict.fromkeys(block, Access.BLOCK)}
        if wanted == self._configured:
            return
        for network in self._configured.keys() - wanted.keys():
            self._families[network.bits].take_out(network.length, network.prefix)
            self._entries -= 1
        for network, access in wanted.items():
            self.remove(network)
            self._put(Entry(network, access, configured=True))
        self._configured = wanted
        self._closed = Access.ALLOW in wanted.values()
        self.revision += 1

    def add(self, entry: Entry, wall: float) -> bool:
        """Add a run-time entry, instead of one that run time added for the same network before.

        False, and nothing changed, when the configuration speaks of that network, when the entry's time is over, or when there
        are ``MAX_RUNTIME_ENTRIES`` already.
        """
        network = entry.network
        known = self.get(network)
        if entry.until <= wall or (known is not None and known.configured):
            return False
        if known is None:
            if self._runtime >= MAX_RUNTIME_ENTRIES:
                return False
            self._runtime += 1
        self._put(Entry(network, entry.access, entry.until, entry.note[:MAX_NOTE]))
        self._ends.set(network, None if entry.until == inf else entry.until)
        self.changes += 1
        if entry.access is Access.BLOCK:
            self.revision += 1
        self.on_change(network, entry)
        return True

    def remove(self, network: Network) -> bool:
        """Take out what run time added for ``network``; whether there was something."""
        known = self.get(network)
        if known is None or known.configured:
            return False
        self._families[network.bits].take_out(network.length, network.prefix)
        self._ends.set(network, None)
        self._entries -= 1
        self._runtime -= 1
        self.changes += 1
        if known.access is Access.ALLOW:
            self.revision += 1  # it may have been the exception in a network that is blocked
        self.on_change(network, None)
        return True

    def sweep(self, wall: float) -> int:
        """Take out the entries whose time is over; how many they were."""
        removed = 0
        for network in self._ends.due(wall):
            removed += self.remove(network)
        return removed

    def _put(self, entry: Entry) -> None:
        self._entries += self.get(entry.network) is None
        self._families[entry.network.bits].put(entry)


def _ignore(network: Network, entry: Entry | None) -> None:
    """Nobody wants to know."""
