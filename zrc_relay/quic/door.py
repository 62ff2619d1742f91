"""The door: what becomes of an Initial that belongs to no connection, and of STUN (R6.1-R6.4).

Theory of operation
-------------------
The endpoint brings every such Initial here before anything is made for it. ``knock`` reads the token that a client has from a
Retry, asks ``Admission``, and either says how to begin a connection (``Opening``) or deals with the packet itself, with a
stateless answer or none. What it does costs some tens of microseconds and leaves nothing, so that who is not admitted can be sent
away at any rate.

A token that is not good can only be a Retry token that expired, was stolen or was made up, because the relay gives out no other;
a client that has one will not follow another Retry, so it is closed with INVALID_TOKEN (RFC 9000 §8.1.2), with the rate of
refusals.

Answers go out through ``reply``, the one way to an address that has no connection. Each datagram buys at most three times its own
size, at once or never, and a datagram that is handed to a connection counts there (aioquic) and not here. So all that goes to an
address before it is validated stays within three times of what came from it, whatever it is made of, without a table that
somebody could fill (RFC 9000 §8.1, R6.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aioquic.quic.packet import QuicErrorCode

from zrc_relay.core import stun
from zrc_relay.core.admission import Verdict
from zrc_relay.core.counters import InputDrop, Limit
from zrc_relay.core.fields import Address
from zrc_relay.core.relay import Relay
from zrc_relay.core.sources import numeric
from zrc_relay.quic.ids import ConnectionIds
from zrc_relay.quic.retry import RetryTokens
from zrc_relay.quic.stateless import LongHeader, initial_close, parse_token, retry
from zrc_relay.quic.udp import Path

AMPLIFICATION: Final = 3
"""How many times more bytes may go to an address that is not validated than came from it (RFC 9000 §8.1)."""
PRESSURE_INTERVAL: Final = 1.0
"""Shortest time in seconds between two events about handshake pressure; it is about no source in particular."""


def reply(received: int, data: bytes, path: Path) -> None:
    """Answer a datagram of ``received`` bytes that belongs to no connection, within the bounds of amplification."""
    if len(data) <= AMPLIFICATION * received:
        to, origin = path
        origin.send(data, to)


@dataclass(frozen=True, slots=True)
class Opening:
    """How a connection begins: the client's first Destination Connection ID, and the one of our Retry if there was one.

    After a Retry the client's address is validated.
    """

    original_id: bytes
    retry_id: bytes | None

    @property
    def is_validated(self) -> bool:
        """Whether the client has shown that it receives what is sent to its address."""
        return self.retry_id is not None


class Door:
    """See the module's docstring. ``random`` gives random bytes; ``now`` is monotonic seconds."""

    def __init__(self, relay: Relay, ids: ConnectionIds, random: Callable[[int], bytes], now: float) -> None:
        self._relay = relay
        self._ids = ids
        self._tokens = RetryTokens(random, now)
        self._pressure_told = float("-inf")

    def knock(
        self, data: bytes, header: LongHeader, path: Path, *, open_handshakes: int, now: float, wall: float
    ) -> Opening | None:
        """How to begin a connection for the Initial ``data``, or None when it was dealt with."""
        relay = self._relay
        token = parse_token(data, header)
        if token is None:
            relay.counters.input_dropped[InputDrop.TRUNCATED] += 1
            return None
        host, port = path[0][:2]
        address = numeric(host)
        opening = Opening(header.destination, None)
        if token:
            original_id = self._tokens.check(token, host, port, header.destination, now)
            if original_id is None and relay.admission.serves(address, wall):
                self._refuse(data, header, path, Limit.RETRY_INVALID, is_answered=relay.admission.may_refuse(address, now))
                return None
            if original_id is not None:
                opening = Opening(original_id, header.destination)
        validated = opening.is_validated
        decision = relay.admission.decide(
            address, validated=validated, open_handshakes=open_handshakes, now=now, wall=wall
        )
        if decision.limit is None:
            return opening
        if decision.verdict is Verdict.RETRY:
            self._retry(data, header, path, decision.limit, now)
        elif decision.limit is Limit.BLOCKED:
            relay.limited(Limit.BLOCKED, host, port, "silence", validated=validated)
        else:
            self._refuse(data, header, path, decision.limit, is_answered=decision.verdict is Verdict.REFUSE)
        return None

    def stun(self, data: bytes, path: Path, *, now: float, wall: float) -> None:
        """Answer a STUN Binding request (PROTOCOL §8)."""
        relay = self._relay
        host, port = path[0][:2]
        answer = stun.answer(data, Address.of(host, port))
        if answer is None:
            relay.counters.input_dropped[InputDrop.STUN] += 1
            return
        address = numeric(host)
        if not relay.admission.serves(address, wall):
            relay.limited(Limit.BLOCKED, host, port, "silence")
        elif not relay.admission.answers_stun(address, now):
            relay.limited(Limit.STUN_RATE, host, port, "silence")
        else:
            reply(len(data), answer, path)
            relay.counters.stun_answered += 1

    def _retry(self, data: bytes, header: LongHeader, path: Path, limit: Limit, now: float) -> None:
        host, port = path[0][:2]
        retry_id = self._ids.new()
        token = self._tokens.create(host, port, header.destination, retry_id, now)
        reply(len(data), retry(header, retry_id, token), path)
        self._relay.counters.retries_sent += 1
        is_told = limit is not Limit.HANDSHAKE_PRESSURE or now - self._pressure_told >= PRESSURE_INTERVAL
        if limit is Limit.HANDSHAKE_PRESSURE and is_told:
            self._pressure_told = now
        self._relay.limited(limit, host, port, "retry", is_told=is_told)

    def _refuse(self, data: bytes, header: LongHeader, path: Path, limit: Limit, *, is_answered: bool) -> None:
        host, port = path[0][:2]
        validated = limit is not Limit.RETRY_INVALID
        if is_answered:
            code = QuicErrorCode.CONNECTION_REFUSED if validated else QuicErrorCode.INVALID_TOKEN
            reply(len(data), initial_close(header, code), path)
            self._relay.counters.connections_refused += 1
        self._relay.limited(limit, host, port, "refused" if is_answered else "silence", validated=validated)
