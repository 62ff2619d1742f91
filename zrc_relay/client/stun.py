"""Asking a relay by STUN for one's own address, and measuring the way there without a handshake (PROTOCOL §8)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from zrc_relay.client.dial import resolve
from zrc_relay.client.errors import ConnectFailed
from zrc_relay.core.stun import TRANSACTION_ID_SIZE, binding_request, mapped_address
from zrc_relay.core.wire import Address
from zrc_relay.quic.udp import SocketAddress

FIRST_WAIT: Final = 0.5
"""Seconds until a request is repeated for the first time; each repetition waits twice as long (RFC 8489 §6.2.1)."""


@dataclass(frozen=True, slots=True)
class StunAnswer:
    """Our address as the relay sees it, and how long the answer took, in seconds."""

    address: Address
    round_trip: float


class StunClient(DatagramProtocol):
    """Asks the relay at ``remote``, one question at a time. ``now`` gives monotonic seconds, ``random`` random bytes."""

    def __init__(
        self,
        clock: Any,
        remote: SocketAddress,
        *,
        now: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock = clock
        self._remote = remote
        self._now = now
        self._random = random
        self._socket: Any = None
        self._asked: dict[bytes, float] = {}
        self._waiter: Deferred[StunAnswer] | None = None
        self._calls: list[Any] = []

    @classmethod
    async def open(cls, reactor: Any, host: str, port: int) -> StunClient:
        """On a socket of its own, for the relay at ``host``:``port``; ``ConnectFailed`` when there is no way to it."""
        remote = (await resolve(reactor, host, port))[0]
        client = cls(reactor, remote)
        interface = "::" if len(remote) == 4 else "0.0.0.0"  # noqa: S104 - any local address will do
        try:
            client.attach(reactor.listenUDP(0, client, interface=interface))
        except CannotListenError as error:
            msg = f"no socket to reach {host}: {error.socketError}"
            raise ConnectFailed(msg) from error
        return client

    def attach(self, socket: Any) -> None:
        """Send by ``socket``, which has ``write`` and ``stopListening`` of Twisted's UDP ports."""
        self._socket = socket

    def ask(self, timeout: float) -> Deferred[StunAnswer]:
        """Ask, again and again until there is an answer; ``ConnectFailed`` when there is none within ``timeout`` seconds."""
        if self._waiter is not None:
            msg = "one question at a time"
            raise RuntimeError(msg)
        self._waiter = Deferred(lambda _: self._forget())
        self._calls = [self._clock.callLater(timeout, self._give_up, timeout)]
        self._send(FIRST_WAIT)
        return self._waiter

    def close(self) -> Deferred[None] | None:
        """Let the socket go."""
        self._forget()
        stopped: Deferred[None] | None = self._socket.stopListening()
        return stopped

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """What came back; only an answer to one of our requests, from the relay, counts."""
        waiter = self._waiter
        if waiter is None or address[:2] != self._remote[:2]:
            return
        for transaction_id, sent_at in self._asked.items():
            found = mapped_address(data, transaction_id)
            if found is not None:
                self._forget()
                waiter.callback(StunAnswer(found, self._now() - sent_at))
                return

    def _send(self, wait: float) -> None:
        # Each try has a transaction of its own, so that it is known which one was answered, and how fast.
        transaction_id = self._random(TRANSACTION_ID_SIZE)
        self._asked[transaction_id] = self._now()
        self._calls[1:] = [self._clock.callLater(wait, self._send, 2 * wait)]
        self._socket.write(binding_request(transaction_id), self._remote[:2])

    def _give_up(self, timeout: float) -> None:
        waiter = self._waiter
        self._forget()
        if waiter is not None:
            waiter.errback(ConnectFailed(f"no answer to STUN from {self._remote[0]} within {timeout:g} s"))

    def _forget(self) -> None:
        self._waiter = None
        self._asked.clear()
        for call in self._calls:
            if call.active():
                call.cancel()
        self._calls = []
