"""What statistics of several processes are together (R10.4). Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import reduce
from heapq import nlargest
from typing import Final

from zrc_relay.control.answers import TALKERS, AllocationStats, ConnectionStats, DropStats, TrafficStats
from zrc_relay.control.traffic import Numbers

NOTHING: Final = Numbers(
    uptime_seconds=0.0,
    allocations=AllocationStats(current=0, active=0, waiting=0, peak=0, maximum=0, created=0, ended={}),
    connections=ConnectionStats(current=0, peak=0, handshakes={}),
    traffic=TrafficStats(
        bytes=0, packets=0, bytes_per_second=0.0, packets_per_second=0.0, peak_bytes_per_second=0.0, average_bytes_per_second=0.0
    ),
    dropped=DropStats(packets={}, bytes={}),
    refused={},
    limited={},
    top_talkers=(),
)
"""The numbers of nobody."""


def together(parts: Iterable[Numbers]) -> Numbers:
    """The sum. A limit is everybody's, so the largest that was told; uptime, peaks and averages do not add up, and are 0."""
    return reduce(_plus, parts, NOTHING)


def counted(numbers: Numbers) -> Numbers:
    """What stays of them when their process is gone: how often things happened, not how things are."""
    return replace(
        NOTHING,
        allocations=replace(NOTHING.allocations, created=numbers.allocations.created, ended=numbers.allocations.ended),
        connections=replace(NOTHING.connections, handshakes=numbers.connections.handshakes),
        traffic=replace(NOTHING.traffic, bytes=numbers.traffic.bytes, packets=numbers.traffic.packets),
        dropped=numbers.dropped,
        refused=numbers.refused,
        limited=numbers.limited,
    )


def _plus(one: Numbers, other: Numbers) -> Numbers:
    held, more = one.allocations, other.allocations
    carried, beside = one.traffic, other.traffic
    return Numbers(
        uptime_seconds=0.0,
        allocations=AllocationStats(
            current=held.current + more.current, active=held.active + more.active, waiting=held.waiting + more.waiting,
            peak=0, maximum=max(held.maximum, more.maximum), created=held.created + more.created,
            ended=_added(held.ended, more.ended),
        ),
        connections=ConnectionStats(
            current=one.connections.current + other.connections.current, peak=0,
            handshakes=_added(one.connections.handshakes, other.connections.handshakes),
        ),
        traffic=TrafficStats(
            bytes=carried.bytes + beside.bytes, packets=carried.packets + beside.packets,
            bytes_per_second=round(carried.bytes_per_second + beside.bytes_per_second, 1),
            packets_per_second=round(carried.packets_per_second + beside.packets_per_second, 1),
            peak_bytes_per_second=0.0, average_bytes_per_second=0.0,
        ),
        dropped=DropStats(
            packets=_added(one.dropped.packets, other.dropped.packets), bytes=_added(one.dropped.bytes, other.dropped.bytes)
        ),
        refused=_added(one.refused, other.refused),
        limited=_added(one.limited, other.limited),
        top_talkers=tuple(nlargest(
            TALKERS, (*one.top_talkers, *other.top_talkers), key=lambda talker: (talker.bytes_per_second, talker.id)
        )),
    )


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {**one, **{name: one.get(name, 0) + count for name, count in other.items()}}
