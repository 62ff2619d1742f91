"""What limits are kept in: here for a relay that is one process, in ``shared`` for one that is several (R4.1, R4.4, R6.1).

Theory of operation
-------------------
Some limits are about a relay as a whole: how often a source may come, how many allocations there may be, how fast all of them
together may go. Whoever enforces one asks a ``Limits`` for what counts it, and does not know who else counts there:

* ``Sources``: the rate of each source, by the name of the table (``admission.TABLES``);
* ``Bucket``: tokens that all sources share (``admission.BUCKETS``), or all allocations do (the global bandwidth limit);
* ``Places``: room for allocations, in all and for each device.

``LocalLimits`` is plain Python objects, and what is used wherever no ``Limits`` is given. A relay of one process pays nothing for
there being another kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from zrc_relay.core.limiter import TokenBucket, bandwidth_bucket
from zrc_relay.core.sources import Rate, SourceLimiter


class Sources(Protocol):
    """Holds each source to a rate; ``now`` is monotonic seconds. ``SourceLimiter`` says exactly what the methods do."""

    def __len__(self) -> int:
        """Sources that are remembered."""
        ...

    def take(self, source: int, now: float) -> bool:
        """Count one event of ``source`` if its rate allows it."""
        ...

    def wait(self, source: int, now: float) -> float:
        """Seconds until ``take`` would be granted; nothing is counted."""
        ...

    def set_rate(self, rate: Rate | None, now: float) -> None:
        """Hold each source to another ``rate``. The same once more changes nothing, whoever of those who count here says it."""
        ...


class Bucket(Protocol):
    """Tokens that are taken by several; ``now`` is monotonic seconds. ``TokenBucket`` says exactly what the methods do.

    Who takes tokens without ``take`` asks ``available`` for as many as it wants, takes them from ``tokens`` before it does
    anything else, and calls ``trim`` if it took fewer than it asked for.
    """

    tokens: float
    burst: float

    def available(self, now: float, wanted: float, /) -> float:
        """Tokens that could be taken; how many more than ``wanted`` there are may be left out."""
        ...

    def take(self, amount: float, now: float) -> bool:
        """Take ``amount`` tokens, all or none."""
        ...

    def trim(self, now: float, /) -> None:
        """Not all was taken that ``available`` was asked for."""
        ...

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` tokens (at most ``burst``) could be taken."""
        ...

    def set_rate(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate. The same once more changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Lack:
    """Why there is no place: the relay is full, or the device holds as many allocations as it may."""

    is_of_device: bool
    held: int
    """Allocations that the relay, or the device, holds."""


class Places(Protocol):
    """Places for allocations. A maximum of None is none."""

    def __len__(self) -> int:
        """Places that are taken, by all processes of the relay."""
        ...

    def lack(self, device_id: bytes, maximum: int, device_maximum: int | None) -> Lack | None:
        """What ``take`` would answer now; nothing changes."""
        ...

    def take(self, device_id: bytes, maximum: int, device_maximum: int | None) -> Lack | None:
        """Take a place for an allocation of a device, unless ``maximum`` are taken, or ``device_maximum`` by the device."""
        ...

    def leave(self, device_id: bytes) -> None:
        """Give back a place that this process took."""
        ...

    def holds(self, device_id: bytes) -> bool:
        """Whether this process has taken a place for the device."""
        ...


class Limits(Protocol):
    """Where the limits of a relay are counted; see the module's docstring."""

    @property
    def places(self) -> Places:
        """Room for allocations."""
        ...

    def sources(self, name: str, rate: Rate | None, now: float) -> Sources:
        """The table of sources ``name``, held to ``rate`` from ``now`` on."""
        ...

    def bucket(self, name: str, rate: float, burst: float, now: float) -> Bucket:
        """The bucket ``name``, with ``rate`` tokens a second and at most ``burst`` at once from ``now`` on."""
        ...

    def bandwidth(self, limit: int, burst_seconds: float, now: float) -> Bucket:
        """The bucket of what all allocations may forward together, ``limit`` in bytes a second (R4.1)."""
        ...

    def rest(self, now: float) -> None:
        """A few times a second: let others have what this process has kept for itself and does not use."""
        ...


class LocalPlaces:
    """``Places`` of a relay that is one process."""

    def __init__(self) -> None:
        self._taken = 0
        self._per_device: dict[bytes, int] = {}

    def __len__(self) -> int:
        return self._taken

    def lack(self, device_id: bytes, maximum: int, device_maximum: int | None) -> Lack | None:
        """See ``Places``."""
        if self._taken >= maximum:
            return Lack(is_of_device=False, held=self._taken)
        held = self._per_device.get(device_id, 0)
        if device_maximum is not None and held >= device_maximum:
            return Lack(is_of_device=True, held=held)
        return None

    def take(self, device_id: bytes, maximum: int, device_maximum: int | None) -> Lack | None:
        """See ``Places``."""
        lack = self.lack(device_id, maximum, device_maximum)
        if lack is None:
            self._taken += 1
            self._per_device[device_id] = self._per_device.get(device_id, 0) + 1
        return lack

    def leave(self, device_id: bytes) -> None:
        """See ``Places``; ``KeyError`` for a device that has none."""
        held = self._per_device[device_id] - 1
        if held:
            self._per_device[device_id] = held
        else:
            del self._per_device[device_id]
        self._taken -= 1

    def holds(self, device_id: bytes) -> bool:
        """See ``Places``."""
        return device_id in self._per_device


class LocalLimits:
    """``Limits`` of a relay that is one process."""

    def __init__(self) -> None:
        self.places = LocalPlaces()

    def sources(self, name: str, rate: Rate | None, now: float) -> SourceLimiter:
        """See ``Limits``."""
        del name, now
        return SourceLimiter(rate)

    def bucket(self, name: str, rate: float, burst: float, now: float) -> TokenBucket:
        """See ``Limits``."""
        del name
        return TokenBucket(rate, burst, now)

    def bandwidth(self, limit: int, burst_seconds: float, now: float) -> TokenBucket:
        """See ``Limits``."""
        return bandwidth_bucket(limit, burst_seconds, now)

    def rest(self, now: float) -> None:
        """See ``Limits``: there is nobody else."""
