"""Allocations and connections as the admin endpoint shows them: choosing, sorting, and putting into words (R10.2, R7.6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from zrc_relay.control.answers import AllocationDetail, AllocationInfo, ConnectionInfo, SideInfo, moment
from zrc_relay.control.operations import AllocationFilter, SortKey
from zrc_relay.control.traffic import Row
from zrc_relay.core.allocation import Allocation, AllocationKey, Side
from zrc_relay.core.cidr import Network
from zrc_relay.core.codes import Role
from zrc_relay.core.session import Session
from zrc_relay.core.sources import numeric
from zrc_relay.quic.link import RelayConnection

Rates = Mapping[AllocationKey, float]

_SORTS: Final[Mapping[SortKey, Callable[[Allocation, Rates], Any]]] = {
    SortKey.ID: lambda allocation, _: allocation.key,
    SortKey.DEVICE_ID: lambda allocation, _: allocation.key[0],
    SortKey.STATE: lambda allocation, _: allocation.state.value,
    SortKey.TIER: lambda allocation, _: allocation.tier.name,
    SortKey.CREATED_AT: lambda allocation, _: allocation.created_at,
    SortKey.LAST_ACTIVITY_AT: lambda allocation, _: allocation.last_activity,
    SortKey.EXPIRES_AT: lambda allocation, _: allocation.expires_at,
    SortKey.BYTES_TRANSFERRED: lambda allocation, _: allocation.bytes_transferred,
    SortKey.BYTES_PER_SECOND: lambda allocation, rates: rates.get(allocation.key, 0.0),
}


def full_name(key: AllocationKey) -> str:
    """How an allocation is called where ids of several devices meet."""
    return f"{key[0].hex()}:{key[1].hex()}"


def key_of(name: str) -> AllocationKey:
    """The allocation of a full name; ``ValueError`` when it is none."""
    device_id, _, allocation_id = name.partition(":")
    return bytes.fromhex(device_id), bytes.fromhex(allocation_id)


def row_of(value: Any, key: AllocationKey) -> Row:
    """An allocation in a ranking, by what it is sorted by; ids are in hexadecimal, which sorts as they do."""
    if isinstance(value, tuple):
        return full_name(key), full_name(key)
    return value.hex() if isinstance(value, bytes) else value, full_name(key)


def sort_value(sort: SortKey, rates: Rates) -> Callable[[Allocation], Any]:
    """What to sort allocations by."""
    by = _SORTS[sort]
    return lambda allocation: by(allocation, rates)


def chosen_by(which: AllocationFilter) -> Callable[[Allocation], bool]:
    """Whether an allocation is one of those that are asked for."""
    tests: list[Callable[[Allocation], bool]] = []
    if which.state is not None:
        state = which.state.value
        tests.append(lambda allocation: allocation.state.value == state)
    if which.device_id is not None:
        tests.append(lambda allocation: allocation.key[0] == which.device_id)
    if which.peer_id is not None:
        tests.append(lambda allocation: allocation.token.peer_id == which.peer_id)
    if which.tier is not None:
        tests.append(lambda allocation: allocation.tier.name == which.tier)
    if which.pinned is not None:
        tests.append(lambda allocation: allocation.is_pinned is which.pinned)
    if which.source is not None:
        network = which.source
        tests.append(lambda allocation: any(comes_from(_session(member), network) for member in allocation.members))
    return lambda allocation: all(test(allocation) for test in tests)


def comes_from(session: Session, network: Network) -> bool:
    """Whether the client of ``session`` is in ``network``."""
    return network.holds(numeric(session.link.remote.host))


class Describer:
    """Puts things into words as they are at ``now`` (monotonic) and ``wall`` (Unix seconds)."""

    def __init__(self, now: float, wall: float, rates: Rates) -> None:
        self._now = now
        self._offset = wall - now
        self._rates = rates

    def allocation(self, allocation: Allocation) -> AllocationInfo:
        """A row of the list."""
        return AllocationInfo(**self._fields(allocation))

    def detail(self, allocation: Allocation) -> AllocationDetail:
        """All of it."""
        members = tuple(self.connection(cast(RelayConnection, _session(member).link)) for member in allocation.members)
        return AllocationDetail(**self._fields(allocation), members=members)

    def connection(self, connection: RelayConnection) -> ConnectionInfo:
        """A connection."""
        session = connection.session
        allocation = session.allocation
        round_trip = connection.quic.round_trip_time
        return ConnectionInfo(
            id=connection.name,
            address=str(connection.remote),
            local_address=str(connection.local),
            state=session.state.value,
            role=session.role.name.lower() if allocation is not None else None,
            allocation=full_name(allocation.key) if allocation is not None else None,
            current=allocation is not None and allocation.sides[session.role].current is session,
            max_payload=connection.max_payload,
            round_trip_seconds=round(round_trip, 6) if round_trip is not None else None,
            silent_seconds=round(max(0.0, self._now - session.last_heard), 3),
        )

    def _fields(self, allocation: Allocation) -> dict[str, Any]:
        device_id, allocation_id = allocation.key
        return {
            "id": full_name(allocation.key),
            "device_id": device_id.hex(),
            "allocation_id": allocation_id.hex(),
            "peer_id": allocation.token.peer_id.hex(),
            "state": allocation.state.value,
            "tier": allocation.tier.name,
            "pinned": allocation.is_pinned,
            "created_at": moment(allocation.created_at + self._offset),
            "last_activity_at": moment(allocation.last_activity + self._offset),
            "expires_at": moment(allocation.expires_at),
            "bandwidth_limit": allocation.bandwidth_limit,
            "quota_bytes": allocation.quota,
            "bytes_transferred": allocation.bytes_transferred,
            "bytes_per_second": round(self._rates.get(allocation.key, 0.0), 1),
            "device": _side(allocation.sides[Role.DEVICE]),
            "peer": _side(allocation.sides[Role.PEER]),
        }


def _side(side: Side) -> SideInfo:
    link = _session(side.current).link if side.current is not None else None
    return SideInfo(
        connections=len(side.members),
        connection=link.name if link is not None else None,
        address=str(link.remote) if link is not None else None,
        proven=side.proven,
    )


def _session(member: object) -> Session:
    return cast(Session, member)
