"""``ClientConnection``: one connection to a relay, bound to one end of an allocation.

Theory of operation
-------------------
The connection drives a ``Connection`` (QUIC) and speaks the client's side of PROTOCOL §4-6. It holds no socket: ``connect`` gives
it a ``Sender`` and hands it what arrives, which is also how tests join it to a relay without a network. Its life::

    handshake --HELLO read--> ALLOCATE sent --ALLOCATED--> established --release, close or loss--> closed

``established`` fires at ALLOCATED, or fails with what went wrong before. ``closed`` fires once at the end: with None after
``release``, ``close`` or the relay's NO_ERROR, else with the error. Everything that is queued here is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from aioquic.quic import events
from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from zrc_relay.client.errors import (
    ConnectFailed,
    ConnectionLost,
    PayloadTooLarge,
    RelayError,
    UnknownCode,
    error_for,
)
from zrc_relay.client.notices import NoticeEvent, PeerJoined, PeerLeft, notice_event
from zrc_relay.client.trust import MAX_STREAMS, Trust
from zrc_relay.core import wire
from zrc_relay.core.codes import ErrorCode, HelloFeature, Role
from zrc_relay.core.token import RelayToken, key_id, proof_digest, routing_byte
from zrc_relay.core.wire import Address, Allocated, Hello, Redirect, Refreshed, RelayEntry, Released
from zrc_relay.quic.clock import Clock, DelayedCall
from zrc_relay.quic.connection import CONTROL_STREAM, HELLO_STREAM, Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.ids import SECRET_SIZE, ConnectionIds
from zrc_relay.quic.udp import Path, Sender, SocketAddress

MAX_RECEIVED: Final = 1024
"""Datagrams kept for ``datagrams()`` when nobody takes them; the oldest goes first."""
EGRESS_BYTES: Final = 1024 * 1024
EGRESS_AGE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the client is: the token, its role in it, and the key that proves the role (None: no proof is given)."""

    token: RelayToken
    role: Role
    key: SigningKey | None

    @classmethod
    def of(cls, token: RelayToken, key: SigningKey | None, role: Role | None = None) -> Identity:
        """With the role that ``key`` has in ``token``; ``ValueError`` if it has none, or if neither key nor role is given."""
        if key is None:
            if role is None:
                msg = "without a key the role must be given"
                raise ValueError(msg)
            return cls(token, role, None)
        own_id = key_id(bytes(key.verify_key))
        roles = [r for r, owner in ((Role.DEVICE, token.device_id), (Role.PEER, token.peer_id)) if owner == own_id]
        if role is None and roles:
            role = roles[0]
        if role not in roles:
            wanted = "device or peer" if role is None else role.name.lower()
            msg = f"the key is not that of the token's {wanted}"
            raise ValueError(msg)
        return cls(token, role, key)


class Redirected(Exception):
    """The relay answered ALLOCATE with other addresses."""

    def __init__(self, redirect: Redirect) -> None:
        super().__init__(f"redirected to {', '.join(map(str, redirect.addresses)) or 'nowhere'}")
        self.redirect = redirect


class ClientConnection:
    """One end of an allocation. Made by ``connect``; see the module's docstring.

    ``on_datagram`` is called with each payload; while it is None, payloads wait for ``datagrams()``. ``on_notice`` is called with
    each notice of the relay as a typed event.
    """

    _log = Logger()

    def __init__(
        self,
        identity: Identity | None,
        trust: Trust,
        host: str,
        *,
        sender: Sender,
        remote: SocketAddress,
        clock: Clock,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        on_datagram: Callable[[bytes], None] | None = None,
        on_notice: Callable[[NoticeEvent], None] | None = None,
    ) -> None:
        self.identity = identity
        self.on_datagram = on_datagram
        self.on_notice = on_notice
        self.established: Deferred[ClientConnection] = Deferred()
        self.closed: Deferred[None] = Deferred()
        self.hello: Hello | None = None
        self.allocated: Allocated | None = None
        self.peer_present = False
        self.peer_max_payload = 0
        self.is_closed = False
        self.dropped = 0
        """Payloads dropped on our own side: egress queue or receive queue full, or too old."""
        self._trust = trust
        self._path: Path = (remote, sender)
        self._clock = clock
        self._now = now
        self._timer: DelayedCall | None = None
        self._timer_at = 0.0
        self._flush_call: DelayedCall | None = None
        self._in_batch = False
        self._decoder = wire.CapsuleDecoder(wire.RELAY_CAPSULES)
        self._hello_decoder = wire.CapsuleDecoder(wire.RELAY_CAPSULES)
        self._received: deque[bytes] = deque()
        self._takers: deque[Deferred[bytes | None]] = deque()
        self._refreshes: deque[Deferred[Refreshed]] = deque()
        self._listings: deque[Deferred[tuple[RelayEntry, ...]]] = deque()
        self._pings: dict[int, tuple[float, Deferred[float]]] = {}
        self._next_ping = 0
        self._releasing = False
        self._heard_at = now()
        self.quic = Connection(
            configuration=trust.configuration(host),
            ids=ConnectionIds(random(SECRET_SIZE), random),
            egress=EgressQueue(EGRESS_BYTES, EGRESS_AGE, self._count_drop),
            max_streams=MAX_STREAMS,
            on_issued=lambda _: None,
        )
        first = bytes((routing_byte(identity.token.allocation_id),)) if identity is not None else random(1)
        self.quic.set_first_destination_id(first + random(8))

    # -- for users

    @property
    def allocation_id(self) -> bytes:
        """The allocation's id, 16 bytes."""
        return self._allocated.allocation_id

    @property
    def observed_addr(self) -> Address:
        """Our address as the relay sees it."""
        return self._allocated.observed_addr

    @property
    def max_payload(self) -> int:
        """The longest payload that fits a DATAGRAM to the relay, in bytes."""
        return self.quic.max_payload

    def send(self, payload: bytes) -> None:
        """Send ``payload`` to the other end, as a datagram: it may be lost. ``PayloadTooLarge`` if it cannot fit."""
        self._check_open()
        if not self.quic.send_payload(payload, self._now()):
            msg = f"a datagram to this relay carries at most {self.max_payload} bytes, not {len(payload)}"
            raise PayloadTooLarge(msg)
        self._flush_soon()

    async def datagrams(self) -> AsyncIterator[bytes]:
        """Payloads as they arrive, until the connection is closed. Only while ``on_datagram`` is None."""
        while True:
            payload = await self.receive()
            if payload is None:
                return
            yield payload

    def receive(self) -> Deferred[bytes | None]:
        """The next payload; None when the connection is closed."""
        taker: Deferred[bytes | None] = Deferred(self._takers.remove)
        if self._received:
            taker.callback(self._received.popleft())
        elif self.is_closed:
            taker.callback(None)
        else:
            self._takers.append(taker)
        return taker

    def refresh(self, token: RelayToken) -> Deferred[Refreshed]:
        """Put ``token`` in force; fires with the new limits, or fails with the ``RelayError`` of the refusal."""
        self._check_open()
        self._send_capsule(wire.Refresh(token.encode()))
        waiter: Deferred[Refreshed] = Deferred()
        self._refreshes.append(waiter)
        return waiter

    def release(self) -> Deferred[None]:
        """End the allocation for both sides; fires when the relay has confirmed and the connection is closed."""
        if not self.is_closed and not self._releasing:
            self._releasing = True
            self._send_capsule(wire.Release())
        return self._when_closed()

    def list_relays(self) -> Deferred[tuple[RelayEntry, ...]]:
        """The relays that this one knows of, itself at least."""
        self._check_open()
        self._send_capsule(wire.ListRelays())
        waiter: Deferred[tuple[RelayEntry, ...]] = Deferred()
        self._listings.append(waiter)
        return waiter

    def ping(self) -> Deferred[float]:
        """Round-trip time to the relay in seconds, by a QUIC PING."""
        self._check_open()
        self._next_ping += 1
        waiter: Deferred[float] = Deferred()
        self._pings[self._next_ping] = (self._now(), waiter)
        self.quic.send_ping(self._next_ping)
        self._flush_soon()
        return waiter

    def close(self) -> None:
        """Leave without ending the allocation: the other side hears PEER_LEFT."""
        self._finish(None, tell=True)

    # -- for ``connect``

    def start(self) -> None:
        """Send the first Initial."""
        self.quic.connect(self._path, self._now())
        self._flush()

    def datagram_received(self, data: bytes, path: Path) -> None:
        """One UDP datagram from the relay; see ``Receiver``."""
        if self.is_closed:
            return
        self._in_batch = True
        now = self._now()
        # The remote address is what makes a path; our own side of it may look different on a wildcard socket.
        self.quic.receive_datagram(data, (path[0], self._path[1]), now)
        self._handle_events(now)

    def batch_done(self) -> None:
        """Answer what the batch asked for; see ``Receiver``."""
        self._in_batch = False
        self._flush()

    def give_up(self, error: Exception) -> None:
        """End it from outside with ``error``, telling the relay if it listens."""
        self._finish(error, tell=True)

    # -- events

    def _handle_events(self, now: float) -> None:
        try:
            while (event := self.quic.next_event()) is not None:
                self._handle(event, now)
        except wire.WireError as error:
            self.quic.close(error_code=error.code, reason_phrase=str(error))
            self._finish(ConnectionLost(f"the relay broke the protocol: {error}"), tell=True)

    def _handle(self, event: events.QuicEvent, now: float) -> None:
        match event:
            case events.DatagramFrameReceived(data=payload):
                self._heard_at = now
                self._deliver(payload)
            case events.StreamDataReceived(stream_id=stream_id, data=data):
                self._heard_at = now
                self.quic.consume(stream_id, len(data))
                self._stream_data(stream_id, data)
            case events.HandshakeCompleted():
                if not self._trust.accepts(self.quic.peer_certificate_sha256):
                    self._finish(ConnectFailed("the relay's certificate is not the pinned one"), tell=True)
                elif self.identity is None:
                    self._succeed()
            case events.PingAcknowledged(uid=uid):
                self._heard_at = now
                sent_at, waiter = self._pings.pop(uid, (now, None))
                if waiter is not None:
                    waiter.callback(now - sent_at)
            case events.ConnectionTerminated(error_code=code, frame_type=frame_type, reason_phrase=reason):
                self._terminated(code, frame_type, reason)
            case _:
                pass

    def _stream_data(self, stream_id: int, data: bytes) -> None:
        if stream_id == HELLO_STREAM:
            self._hello_decoder.feed(data)
            for capsule in self._hello_decoder:
                if isinstance(capsule, Hello) and self.hello is None:
                    self.hello = capsule
                    self._allocate(capsule)
        elif stream_id == CONTROL_STREAM:
            self._decoder.feed(data)
            for capsule in self._decoder:
                self._capsule(capsule)

    def _allocate(self, hello: Hello) -> None:
        identity = self.identity
        if identity is None or self.is_closed:
            return
        token = identity.token.encode()
        public_key = proof = b""
        wanted = HelloFeature.DEVICES_PROVE if identity.role is Role.DEVICE else HelloFeature.PEERS_PROVE
        if identity.key is not None:
            digest = proof_digest(
                relay_id=hello.relay_id,
                certificate_sha256=self.quic.peer_certificate_sha256,
                token=token,
                challenge=hello.challenge,
                role=identity.role,
            )
            public_key, proof = bytes(identity.key.verify_key), identity.key.sign(digest).signature
        elif hello.features & wanted:
            self._finish(ConnectFailed("the relay wants a proof of possession, and there is no key to give one"), tell=True)
            return
        self._send_capsule(
            wire.Allocate(
                role=identity.role,
                allocation_id=identity.token.allocation_id,
                peer_id=identity.token.peer_id,
                token=token,
                client_addr=self._path[1].address,
                public_key=public_key,
                proof=proof,
            )
        )

    def _capsule(self, capsule: wire.Capsule | wire.Unknown) -> None:
        match capsule:
            case Allocated():
                self.allocated = capsule
                self.peer_present = capsule.peer_present
                self.peer_max_payload = capsule.peer_max_payload
                self._keep_alive()
                self._succeed()
            case Redirect():
                self._finish(Redirected(capsule), tell=True)
            case Refreshed():
                if self._refreshes:
                    self._refreshes.popleft().callback(capsule)
            case wire.Error(code=code, message=message):
                if self._refreshes:
                    self._refreshes.popleft().errback(error_for(code, message))
            case wire.Relays(entries=entries):
                if self._listings:
                    self._listings.popleft().callback(entries)
            case wire.Notice():
                self._notice(notice_event(capsule))
            case Released():
                self._finish(None, tell=True)  # the close that follows says the same, and may be lost
            case _:
                pass

    def _notice(self, event: NoticeEvent | None) -> None:
        if event is None:
            return
        if isinstance(event, PeerJoined):
            self.peer_present, self.peer_max_payload = True, event.max_payload
        elif isinstance(event, PeerLeft):
            self.peer_present, self.peer_max_payload = False, 0
        if self.on_notice is not None:
            self._call(self.on_notice, event)

    def _deliver(self, payload: bytes) -> None:
        if self.on_datagram is not None:
            self._call(self.on_datagram, payload)
        elif self._takers:
            self._takers.popleft().callback(payload)
        else:
            if len(self._received) >= MAX_RECEIVED:
                self._received.popleft()
                self.dropped += 1
            self._received.append(payload)

    def _call(self, function: Callable[[Any], None], argument: object) -> None:
        try:
            function(argument)
        except Exception:
            self._log.failure("a callback of the user failed; the connection goes on")

    # -- the end

    def _terminated(self, code: int, frame_type: int | None, reason: str) -> None:
        if frame_type is not None:  # closed by QUIC itself, on either side, not by the relay's protocol
            kind = ConnectionLost if self.established.called else ConnectFailed
            self._finish(kind(reason or f"QUIC error {code:#x}"), tell=False)
        elif code == ErrorCode.NO_ERROR:
            self._finish(None, tell=False)
        else:
            self._finish(error_for(code, reason), tell=False)

    def _succeed(self) -> None:
        if not self.established.called:
            self.established.callback(self)

    def _finish(self, error: Exception | None, *, tell: bool) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if tell:
            self.quic.close(error_code=ErrorCode.NO_ERROR)
            self._send()
        for call in (self._timer, self._flush_call):
            if call is not None:
                call.cancel()
        self._timer = self._flush_call = None
        reported = error or ConnectionLost("the connection is closed")
        waiters: list[Deferred[Any]] = [*self._refreshes, *self._listings, *(waiter for _, waiter in self._pings.values())]
        self._refreshes.clear()
        self._listings.clear()
        self._pings.clear()
        if not self.established.called:
            self.established.errback(reported)
        for waiter in waiters:
            waiter.errback(reported)
        while self._takers:
            self._takers.popleft().callback(None)
        if error is None:
            self.closed.callback(None)
        else:
            self.closed.errback(error)
            # Who does not look at ``closed`` has not asked; an unhandled-error report would only be noise.
            self.closed.addErrback(self._keep_error)

    def _keep_error(self, failure: Any) -> None:
        self.error: Exception | None = failure.value

    error: Exception | None = None
    """Why the connection ended, if not in peace."""

    def _when_closed(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()

        def ended(_: object) -> None:
            if self.error is None:
                waiter.callback(None)
            else:
                waiter.errback(self.error)

        self.closed.addCallback(ended)
        return waiter

    # -- sending and time

    def _send_capsule(self, capsule: wire.ClientCapsule) -> None:
        self.quic.send_stream_data(CONTROL_STREAM, capsule.encode())
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._in_batch and self._flush_call is None:
            self._flush_call = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        if self._flush_call is not None:
            call, self._flush_call = self._flush_call, None
            if getattr(call, "active", lambda: False)():
                call.cancel()
        if self.is_closed:
            return
        self._send()
        self._handle_events(self._now())
        deadline = self.quic.get_timer()
        if deadline is not None and not self.is_closed:
            self._wake(deadline)

    def _send(self) -> None:
        for data, (to, sender) in cast("list[tuple[bytes, Path]]", self.quic.datagrams_to_send(self._now())):
            sender.send(data, to)

    def _wake(self, deadline: float) -> None:
        if self._timer is not None:
            if deadline >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._clock.callLater(max(0.0, deadline - self._now()), self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        now = self._now()
        timer = self.quic.get_timer()
        if timer is not None and now >= timer:
            self.quic.handle_timer(now)
            self._handle_events(now)
        self._flush()

    def _keep_alive(self) -> None:
        if self.is_closed:
            return
        interval = self._allocated.keepalive_interval
        if interval <= 0:
            return
        if self._now() - self._heard_at >= interval / 2:
            self.ping().addErrback(lambda _: None)  # its loss shows as the loss of the connection
        self._clock.callLater(interval / 2, self._keep_alive)

    @property
    def _allocated(self) -> Allocated:
        if self.allocated is None:
            msg = "not allocated yet"
            raise ConnectionLost(msg)
        return self.allocated

    def _check_open(self) -> None:
        if self.is_closed:
            raise self.error or ConnectionLost("the connection is closed")

    def _count_drop(self, size: int) -> None:
        del size
        self.dropped += 1


__all__ = ["ClientConnection", "Identity", "Redirected", "RelayError", "UnknownCode"]
