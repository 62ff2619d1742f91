"""The rest of ``refusal_paths``: what sessions are refused, in scenes without packets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from tests import raw_quic as raw
from tests.fakes import DEVICE, PEER, STRANGER, FakeClient, Scene, make_token, public
from tests.refusal_paths import LIMITS, Act, Refusal
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.counters import Limit
from zrc_relay.core.token import RelayToken
from zrc_relay.core.wire import ListRelays

OTHER_ID: Final = b"another one....."


def code_of(client: FakeClient) -> str:
    """The code that a client was closed with, or of the ERROR that it got."""
    if client.close_code is not None:
        return client.close_code.name
    (error,) = client.errors
    return f"ERROR {ErrorCode(error).name}"


def allocating(role: Role = Role.DEVICE, token: RelayToken | None = None, **changes: Any) -> Callable[[Scene], Act]:
    """An ALLOCATE that is wrong in one way."""

    def act(scene: Scene) -> Act:
        client = scene.connect()
        yield
        client.allocate(role, token, **changes)
        return code_of(client)

    return act


def unproven(scene: Scene) -> Act:
    """A proof by the wrong key."""
    client = scene.connect()
    request = client.request(Role.DEVICE, make_token())
    yield
    client.feed(replace(request, proof=client.prove(PEER, request.token, Role.DEVICE)).encode())
    return code_of(client)


def bad_signature(scene: Scene) -> Act:
    """A signature by the wrong key."""
    forged = replace(make_token(), signature=make_token(STRANGER).signature)
    return (yield from allocating(token=forged)(scene))


def awaited(scene: Scene) -> Act:
    """A peer that comes before its device."""
    client = scene.connect()
    yield
    client.allocate(Role.PEER, make_token(STRANGER))
    return code_of(client)


def ended_by(reason: TerminationReason) -> Callable[[Scene], Act]:
    """An allocation that has ended for good."""

    def act(scene: Scene) -> Act:
        scene.bind(Role.DEVICE)
        scene.relay.end(scene.allocation(), reason, scene.now, scene.wall)
        client = scene.connect()
        yield
        client.allocate(Role.DEVICE)
        return code_of(client)

    return act


def relay_full(scene: Scene) -> Act:
    """One allocation too many for the relay."""
    scene.bind(Role.DEVICE)
    client = scene.connect()
    yield
    client.allocate(Role.DEVICE, make_token(allocation_id=OTHER_ID))
    return code_of(client)


def over_allocation_rate(scene: Scene) -> Act:
    """One allocation too many for the source."""
    for number in range(2):
        scene.bind(Role.DEVICE, make_token(allocation_id=bytes((number,)) * 16))
    client = scene.connect()
    yield
    client.allocate(Role.DEVICE, make_token(allocation_id=OTHER_ID))
    return code_of(client)


def over_rejoin_rate(scene: Scene) -> Act:
    """One join too many for the source."""
    for _ in range(3):
        scene.bind(Role.DEVICE)
    client = scene.connect()
    yield
    client.allocate(Role.DEVICE)
    return code_of(client)


def side_full(scene: Scene) -> Act:
    """One connection too many for its side."""
    scene.bind(Role.DEVICE)
    client = scene.connect()
    yield
    client.allocate(Role.DEVICE)
    return code_of(client)


def other_peer(scene: Scene) -> Act:
    """The allocation is there, for another peer."""
    scene.bind(Role.DEVICE)
    client = scene.connect()
    yield
    client.allocate(Role.DEVICE, make_token(peer_id=bytes(31) + b"\1"))
    return code_of(client)


def proven_before(scene: Scene) -> Act:
    """The side was bound with a proof before."""
    scene.bind(Role.DEVICE)
    client = scene.connect()
    yield
    client.allocate(Role.DEVICE, prove=False)
    return code_of(client)


def used_more(token: RelayToken) -> Callable[[Scene], Act]:
    """A token whose quota is used up already, to join with or to refresh with."""

    def act(scene: Scene) -> Act:
        device, _ = scene.pair()
        device.datagram(bytes(1000))
        yield
        device.refresh(token)
        return code_of(device)

    return act


def refreshing(**changes: Any) -> Callable[[Scene], Act]:
    """A REFRESH with a token that does not fit."""

    def act(scene: Scene) -> Act:
        device = scene.bind(Role.DEVICE)
        yield
        device.refresh(make_token(**changes))
        return code_of(device)

    return act


def draining(scene: Scene) -> Act:
    """A relay that is about to stop."""
    scene.relay.drain(scene.wall + 30)
    return (yield from allocating()(scene))


def too_many_capsules(scene: Scene) -> Act:
    """The fifty-first within a second."""
    client = scene.bind(Role.DEVICE)
    for _ in range(49):
        client.feed(ListRelays().encode())
    yield
    client.feed(ListRelays().encode())
    return code_of(client)


def unread_output(scene: Scene) -> Act:
    """Notices that pile up."""
    client = scene.bind(Role.DEVICE)
    client.link.stalled = True
    client.link.control_backlog = 40_000
    yield
    scene.relay.drain(scene.wall + 30)
    scene.settle()
    return code_of(client)


def control(data: bytes, *, bound: bool = False) -> Callable[[Scene], Act]:
    """Control input that breaks the protocol."""

    def act(scene: Scene) -> Act:
        client = scene.bind(Role.DEVICE) if bound else scene.connect()
        yield
        client.feed(data)
        return code_of(client)

    return act


def control_closed(scene: Scene) -> Act:
    """The end of the control stream."""
    client = scene.bind(Role.DEVICE)
    yield
    client.session.control_ended(scene.now, scene.wall)
    return code_of(client)


SESSIONS: Final = (
    Refusal("ALLOCATE of another version", "VERSION", ErrorCode.VERSION, allocating(version=2)),
    Refusal("token that can be none", "TOKEN_MALFORMED", ErrorCode.TOKEN_MALFORMED,
            allocating(token=replace(make_token(), peer_id=bytes(32)))),
    Refusal("device that is not known", "DEVICE_UNKNOWN", ErrorCode.DEVICE_UNKNOWN, allocating(token=make_token(STRANGER))),
    Refusal("signature that is not the device's", "TOKEN_BAD_SIGNATURE", ErrorCode.TOKEN_BAD_SIGNATURE, bad_signature),
    Refusal("token that has expired", "TOKEN_EXPIRED", ErrorCode.TOKEN_EXPIRED, allocating(token=make_token(expires_at=1))),
    Refusal("token that lives longer than `max_token_lifetime`", "TOKEN_TOO_LONG", ErrorCode.TOKEN_TOO_LONG,
            allocating(token=make_token(expires_at=1 << 40))),
    Refusal("token for another relay", "TOKEN_WRONG_RELAY", ErrorCode.TOKEN_WRONG_RELAY,
            allocating(token=make_token(relay_id=b"another relay..."))),
    Refusal("token for another allocation than asked for", "TOKEN_WRONG_ALLOCATION", ErrorCode.TOKEN_WRONG_ALLOCATION,
            allocating(allocation_id=OTHER_ID)),
    Refusal("token for another peer than asked for", "TOKEN_WRONG_PEER", ErrorCode.TOKEN_WRONG_PEER,
            allocating(peer_id=bytes(32))),
    Refusal("no proof of possession", "PROOF_REQUIRED", ErrorCode.PROOF_REQUIRED, allocating(prove=False)),
    Refusal("proof that is wrong", "PROOF_INVALID", ErrorCode.PROOF_INVALID, unproven),
    Refusal("allocation that an administrator has ended", "TERMINATED", ErrorCode.TERMINATED,
            ended_by(TerminationReason.ADMINISTRATOR)),
    Refusal("allocation that has used up its quota", "QUOTA_EXCEEDED", ErrorCode.QUOTA_EXCEEDED,
            ended_by(TerminationReason.QUOTA)),
    Refusal("live allocation that is for another peer", "TOKEN_WRONG_PEER", ErrorCode.TOKEN_WRONG_PEER, other_peer),
    Refusal("side that was bound with a proof before, now without", "PROOF_REQUIRED", ErrorCode.PROOF_REQUIRED, proven_before),
    Refusal("relay that is about to stop", "DRAINING", ErrorCode.DRAINING, draining),
    Refusal("malformed capsule", "PROTOCOL_ERROR", ErrorCode.PROTOCOL_ERROR, control(raw.capsule(raw.ALLOCATE, b"\x01"))),
    Refusal("capsule out of turn", "PROTOCOL_ERROR", ErrorCode.PROTOCOL_ERROR, control(raw.capsule(raw.RELEASE))),
    Refusal("control stream closed or reset", "PROTOCOL_ERROR", ErrorCode.PROTOCOL_ERROR, control_closed),
    Refusal("capsule of more than 4096 bytes", "CONTROL_TOO_LARGE", ErrorCode.CONTROL_TOO_LARGE,
            control(raw.varint(raw.ALLOCATE) + raw.varint(4097))),
    Refusal("more than 50 capsules a second", "RATE_LIMITED", ErrorCode.RATE_LIMITED, too_many_capsules),
    Refusal("control output that is not read", "RATE_LIMITED", ErrorCode.RATE_LIMITED, unread_output),
    Refusal("REFRESH with an older token", "ERROR TOKEN_EXPIRED", ErrorCode.TOKEN_EXPIRED, refreshing(quota_bytes=1)),
    Refusal("REFRESH with a token for another allocation", "ERROR TOKEN_WRONG_ALLOCATION", ErrorCode.TOKEN_WRONG_ALLOCATION,
            refreshing(allocation_id=OTHER_ID)),
    Refusal("REFRESH with a quota below what is used", "ERROR QUOTA_EXCEEDED", ErrorCode.QUOTA_EXCEEDED,
            used_more(make_token(expires_at=make_token().expires_at + 60, quota_bytes=10))),
)
"""On a ``Scene`` without limits."""

LIMITED_SESSIONS: Final = (
    Refusal("peer that comes before its device, where trust is self-certified", "DEVICE_UNKNOWN", ErrorCode.DEVICE_UNKNOWN,
            awaited),
    Refusal("one allocation too many for the relay, or for the device", "CAPACITY", ErrorCode.CAPACITY, relay_full),
    Refusal("one connection too many for its side", "TOO_MANY_CONNECTIONS", ErrorCode.TOO_MANY_CONNECTIONS, side_full),
    Refusal("new allocation of a source over `allocation_rate`", "RATE_LIMITED", Limit.ALLOCATION_RATE, over_allocation_rate),
    Refusal("join of a source over `rejoin_rate`", "RATE_LIMITED", Limit.REJOIN_RATE, over_rejoin_rate),
)
"""On a ``Scene`` of its own each; see ``scene_for``."""


def scene_for(refusal: Refusal) -> Scene:
    """The scene that one of ``LIMITED_SESSIONS`` needs."""
    match refusal.answer:
        case "DEVICE_UNKNOWN":
            return Scene(self_certified_tier="free")
        case "CAPACITY":
            return Scene(max_allocations=1)
        case "TOO_MANY_CONNECTIONS":
            return Scene(max_connections_per_side=1)
        case _:
            return Scene(limits=LIMITS)


KEYS: Final = (public(DEVICE), public(PEER), public(STRANGER))
"""Nothing of them may be in an event."""
