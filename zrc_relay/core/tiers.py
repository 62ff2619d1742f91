"""Tiers: what a token may ask for (R4.4, R4.7, R8).

Theory of operation
-------------------
A token names the limits its device would like; a tier caps them. The smaller of the two holds. A token that asks for nothing
(0) gets the tier's own limit, so that devices need not know in which tier they are. ``None`` means "no cap" everywhere in this
module and behind it; 0 has that meaning only on the wire (PROTOCOL §5, ALLOCATED), and the codec's callers translate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tier:
    """What the devices of one tier may have.

    ``bandwidth_limit`` is in bytes per second and ``quota`` in bytes, per allocation and both directions together;
    ``max_allocations`` is how many allocations one device may have at a time. ``None``: no cap. The name is empty for devices
    without a tier.
    """

    name: str
    bandwidth_limit: int | None
    quota: int | None
    max_allocations: int | None


DEFAULT_MAX_ALLOCATIONS: Final = 10
"""Allocations a device without a tier may have at a time (R8)."""

BUILT_IN_TIERS: Final[Mapping[str, Tier]] = MappingProxyType({
    tier.name: tier
    for tier in (
        Tier("free", bandwidth_limit=625_000, quota=500_000_000, max_allocations=10),  # 5 Mbit/s, 500 MB
        Tier("paid", bandwidth_limit=6_250_000, quota=10_000_000_000, max_allocations=100),  # 50 Mbit/s, 10 GB
        Tier("unlimited", bandwidth_limit=None, quota=None, max_allocations=None),
    )
})
"""The tiers that exist without configuration (R8)."""


def effective_limits(token_bandwidth: int, token_quota: int, tier: Tier) -> tuple[int | None, int | None]:
    """The limits in force for a token in a tier: ``(bytes per second, bytes)``, ``None`` for no cap (R4.7).

    ``token_bandwidth`` (0 to 2^32 - 1) and ``token_quota`` (0 to 2^64 - 1) are the token's fields; 0 asks for the tier's own.
    """
    return _effective(token_bandwidth, tier.bandwidth_limit), _effective(token_quota, tier.quota)


def _effective(asked: int, cap: int | None) -> int | None:
    if asked == 0:
        return cap
    return asked if cap is None else min(asked, cap)
