"""What the admin endpoint answers: frozen dataclasses of plain values, with the meaning of each field beside it (R10).

Each field says in its metadata what it means (``says``); the schemas of the OpenAPI document are made of the dataclasses, so the
document cannot say anything else than what is sent.

Moments are text, UTC in ISO 8601 with milliseconds. Durations are seconds, bandwidths bytes a second. None stands for what is not
there: no limit, no end, nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from zrc_relay.moments import timestamp

TALKERS: Final = 10
"""How many of the busiest allocations the statistics name."""


def says(text: str, **schema: object) -> Mapping[str, Any]:
    """Metadata of a field: what it means, and what JSON Schema should say of it beside its type."""
    return {"description": text, "schema": schema}


MOMENT: Final[Mapping[str, str]] = {"format": "date-time"}


def moment(unix: float) -> str | None:
    """A moment in Unix seconds as text; None for one that never comes."""
    if unix == inf:
        return None
    try:
        return timestamp(unix)
    except (ValueError, OverflowError, OSError):  # beyond the calendar's end
        return None


@dataclass(frozen=True, slots=True)
class SideInfo:
    """One end of an allocation."""

    connections: int = field(metadata=says("How many connections it has.", minimum=0))
    connection: str | None = field(metadata=says("The one that carries what is sent to it."))
    address: str | None = field(metadata=says("Address and port of its client on that connection."))
    proven: bool = field(metadata=says("Whether it has proved possession of its key."))


@dataclass(frozen=True, slots=True)
class AllocationInfo:
    """One live allocation, as the list shows it."""

    id: str = field(metadata=says("Its full name, `device_id:allocation_id`.", pattern="^[0-9a-f]{64}:[0-9a-f]{32}$"))
    device_id: str = field(metadata=says("SHA-256 of the device's public key."))
    allocation_id: str = field(metadata=says("Its id, which the device chose; another device may use the same."))
    peer_id: str = field(metadata=says("SHA-256 of the peer's public key."))
    state: str = field(metadata=says("`active` with both ends there, `waiting` with one.", enum=["waiting", "active"]))
    tier: str = field(metadata=says("Tier of the device; empty for the defaults."))
    pinned: bool = field(metadata=says("Whether the device's key is pinned; false for one that is self-certified."))
    created_at: str = field(metadata=says("When it was created.", **MOMENT))
    last_activity_at: str = field(metadata=says("When it last carried something, or was created.", **MOMENT))
    expires_at: str | None = field(metadata=says("When it ends unless its token is refreshed.", **MOMENT))
    bandwidth_limit: int | None = field(metadata=says("Bytes a second that it may carry, both directions together."))
    quota_bytes: int | None = field(metadata=says("Bytes that it may carry in all."))
    bytes_transferred: int = field(metadata=says("Bytes that it has carried, in earlier lives as well.", minimum=0))
    bytes_per_second: float = field(metadata=says("Bytes a second that it carried lately.", minimum=0))
    device: SideInfo = field(metadata=says("The device's end."))
    peer: SideInfo = field(metadata=says("The peer's end."))


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One QUIC connection."""

    id: str = field(metadata=says("What logs call it: the first connection id that the client used."))
    address: str = field(metadata=says("Address and port of the client."))
    local_address: str = field(metadata=says("The address of the relay that the client reached."))
    state: str = field(metadata=says(
        "`greeting` in its handshake, `choosing` before ALLOCATE, `bound` to an allocation, `closed` when it is about to go.",
        enum=["greeting", "choosing", "bound", "closed"]))
    role: str | None = field(metadata=says("Which end of its allocation it is, if it is bound.", enum=["device", "peer", None]))
    allocation: str | None = field(metadata=says("Full name of its allocation, if it is bound."))
    current: bool = field(metadata=says("Whether it carries what is sent to its end."))
    max_payload: int = field(metadata=says("The longest payload that fits a DATAGRAM towards the client, in bytes."))
    round_trip_seconds: float | None = field(metadata=says("Smoothed round trip time."))
    silent_seconds: float = field(metadata=says("For how long the client was not heard.", minimum=0))


@dataclass(frozen=True, slots=True)
class AllocationDetail(AllocationInfo):
    """One live allocation with its connections."""

    members: tuple[ConnectionInfo, ...] = field(metadata=says("Its connections, both ends'."))


@dataclass(frozen=True, slots=True)
class AllocationPage:
    """A page of allocations."""

    items: tuple[AllocationInfo, ...] = field(metadata=says("The allocations."))
    total: int = field(metadata=says("How many there are on all pages.", minimum=0))
    offset: int = field(metadata=says("How many come before the page.", minimum=0))
    missing_workers: tuple[int, ...] = field(metadata=says(
        "Workers, by index, that do not answer or are being replaced: what they have is neither here nor in `total`."))


@dataclass(frozen=True, slots=True)
class ConnectionPage:
    """A page of connections."""

    items: tuple[ConnectionInfo, ...] = field(metadata=says("The connections."))
    total: int = field(metadata=says("How many there are on all pages.", minimum=0))
    offset: int = field(metadata=says("How many come before the page.", minimum=0))
    missing_workers: tuple[int, ...] = field(metadata=says(
        "Workers, by index, that do not answer or are being replaced: what they have is neither here nor in `total`."))


@dataclass(frozen=True, slots=True)
class Termination:
    """An allocation that was ended, and stays ended until its token's expiry."""

    id: str = field(metadata=says("Its full name."))
    reason: str = field(metadata=says("Why, as the request said."))
    bytes_transferred: int = field(metadata=says("Bytes that it had carried.", minimum=0))
    connections: int = field(metadata=says("Connections that were closed with TERMINATED.", minimum=0))


@dataclass(frozen=True, slots=True)
class QlogOrder:
    """A trace that will be written of an allocation's next connection."""

    id: str = field(metadata=says("Full name of the allocation."))
    directory: str = field(metadata=says("Where on the relay's host the file will appear."))


@dataclass(frozen=True, slots=True)
class AllocationStats:
    """How many allocations."""

    current: int = field(metadata=says("How many there are.", minimum=0))
    active: int = field(metadata=says("With both ends there.", minimum=0))
    waiting: int = field(metadata=says("With one end there.", minimum=0))
    peak: int = field(metadata=says("The most that there were at a time.", minimum=0))
    maximum: int = field(metadata=says("The most that there may be.", minimum=0))
    created: int = field(metadata=says("How many were created.", minimum=0))
    ended: Mapping[str, int] = field(metadata=says("How many ended, by reason."))


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """How many connections."""

    current: int = field(metadata=says("How many there are, half-open and closing ones included.", minimum=0))
    peak: int = field(metadata=says("The most that there were at a time.", minimum=0))
    handshakes: Mapping[str, int] = field(metadata=says("How many handshakes, by how they ended."))


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """What was forwarded."""

    bytes: int = field(metadata=says("Bytes in all.", minimum=0))
    packets: int = field(metadata=says("Datagrams in all.", minimum=0))
    bytes_per_second: float = field(metadata=says("In the last second.", minimum=0))
    packets_per_second: float = field(metadata=says("In the last second.", minimum=0))
    peak_bytes_per_second: float = field(metadata=says("The most in any second.", minimum=0))
    average_bytes_per_second: float = field(metadata=says("Since the start.", minimum=0))


@dataclass(frozen=True, slots=True)
class DropStats:
    """What was not forwarded."""

    packets: Mapping[str, int] = field(metadata=says("Datagrams, by cause."))
    bytes: Mapping[str, int] = field(metadata=says("Bytes, by cause."))


@dataclass(frozen=True, slots=True)
class Talker:
    """A busy allocation."""

    id: str = field(metadata=says("Its full name."))
    bytes_per_second: float = field(metadata=says("In the last second.", minimum=0))
    bytes_transferred: int = field(metadata=says("Bytes that it has carried.", minimum=0))


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One of the processes that forward, where there are several."""

    index: int = field(metadata=says("Which one it is, from 0 on; the same for whoever takes its place.", minimum=0))
    pid: int | None = field(metadata=says("Its process; null while there is none."))
    state: str = field(metadata=says(
        "`ready`, `draining`, `starting` until it is ready, `silent` when it has said nothing for more than 3 s, `down` while "
        "nobody has taken its place.", enum=["starting", "ready", "draining", "silent", "down"]))
    uptime_seconds: float = field(metadata=says("How long ago it was started.", minimum=0))
    allocations: int = field(metadata=says("Allocations that it has.", minimum=0))
    connections: int = field(metadata=says("Connections that it has.", minimum=0))
    bytes_per_second: float = field(metadata=says("Bytes that it forwarded in the last second.", minimum=0))
    packets_per_second: float = field(metadata=says("Datagrams that it forwarded in the last second.", minimum=0))
    cpu_share: float = field(metadata=says("Part of one core that it used in the last second.", minimum=0))
    loop_lag_seconds: float = field(metadata=says("How late its event loop was at most in the last 15 to 30 seconds.", minimum=0))
    restarts: int = field(metadata=says("How often it was replaced.", minimum=0))


@dataclass(frozen=True, slots=True)
class Stats:
    """The relay at a glance."""

    time: str = field(metadata=says("Now.", **MOMENT))
    started_at: str = field(metadata=says("When it was started.", **MOMENT))
    uptime_seconds: float = field(metadata=says("How long ago that is.", minimum=0))
    version: str = field(metadata=says("Version of the program."))
    relay_id: str = field(metadata=says("Who it is to tokens."))
    instance_id: str = field(metadata=says("Which run of it this is."))
    state: str = field(metadata=says(
        "`starting`, `ready`, or `draining`, which takes nobody new.", enum=["starting", "ready", "draining"]))
    allocations: AllocationStats = field(metadata=says("Allocations."))
    connections: ConnectionStats = field(metadata=says("Connections."))
    traffic: TrafficStats = field(metadata=says("What was forwarded."))
    dropped: DropStats = field(metadata=says("What was not forwarded."))
    refused: Mapping[str, int] = field(metadata=says("Requests that were refused, by the code that says why."))
    limited: Mapping[str, int] = field(metadata=says("What sources were limited by, and how often."))
    top_talkers: tuple[Talker, ...] = field(metadata=says("The busiest allocations, the busiest first.", maxItems=TALKERS))
    workers: tuple[WorkerStats, ...] = field(metadata=says("The processes that forward; empty where there is only one."))


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """An entry of the lists of networks."""

    network: str = field(metadata=says("The network, in CIDR notation."))
    access: str = field(metadata=says("What is said of it.", enum=["allow", "block"]))
    until: str | None = field(metadata=says("When that ends.", **MOMENT))
    note: str = field(metadata=says("Who added it, or why."))
    configured: bool = field(metadata=says("Whether the configuration says so; run time cannot change it then."))
    kept: bool = field(metadata=says(
        "Whether that outlives a restart: the configuration says so, or there is a `state_dir`, and it could be written. Of an "
        "entry that was taken back, whether it stays away."))


@dataclass(frozen=True, slots=True)
class EntryPage:
    """A page of the lists of networks."""

    items: tuple[EntryInfo, ...] = field(metadata=says("The entries."))
    total: int = field(metadata=says("How many there are on all pages.", minimum=0))
    offset: int = field(metadata=says("How many come before the page.", minimum=0))


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is known of a device."""

    device_id: str = field(metadata=says("SHA-256 of its public key.", pattern="^[0-9a-f]{64}$"))
    public_key: str | None = field(metadata=says("Its Ed25519 public key; null where only the id is known."))
    tier: str = field(metadata=says("Its tier; empty for the defaults."))
    note: str = field(metadata=says("What was noted about it."))
    pinned: bool = field(metadata=says("Whether it may sign tokens; false for one that was unpinned at run time."))
    source: str = field(metadata=says("Who says so: the file of device keys, or run time.", enum=["file", "runtime"]))


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A page of device keys."""

    items: tuple[KeyInfo, ...] = field(metadata=says("The devices."))
    total: int = field(metadata=says("How many there are on all pages.", minimum=0))
    offset: int = field(metadata=says("How many come before the page.", minimum=0))


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A device that was pinned or unpinned."""

    key: KeyInfo = field(metadata=says("What holds of it now."))
    kept: bool = field(metadata=says("Whether that outlives a restart: there is a `state_dir`, and it could be written."))
    ended: int = field(metadata=says("Allocations that ended with it.", minimum=0))


@dataclass(frozen=True, slots=True)
class DrainState:
    """A relay that drains: it takes nobody new and waits for those who are there."""

    state: str = field(metadata=says("Always `draining`.", enum=["draining"]))
    deadline: str | None = field(metadata=says("Until when clients were told to leave.", **MOMENT))
    allocations: int = field(metadata=says("Allocations that are still there.", minimum=0))
    connections: int = field(metadata=says("Connections that are still there.", minimum=0))


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of reading the configuration again."""

    changed: tuple[str, ...] = field(metadata=says("Settings that have changed, or whose file has, and are in force now."))
    not_reloadable: tuple[str, ...] = field(metadata=says("Settings that have changed and need a restart."))
    ended: int = field(metadata=says("Allocations that ended because the key of their device is gone.", minimum=0))
