"""``connect``: from an address and a token to an established ``ClientConnection``, sockets, names and redirects included."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from socket import SOCK_DGRAM, gaierror, getaddrinfo
from typing import Any, Final

from nacl.signing import SigningKey
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool

from zrc_relay.client.connection import ClientConnection, Identity, Redirected
from zrc_relay.client.errors import ConnectFailed, RedirectLoop
from zrc_relay.client.notices import NoticeEvent
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken
from zrc_relay.quic.udp import Path, SocketAddress, UdpPort

DEFAULT_PORT: Final = 4433
MAX_REDIRECTS: Final = 3
CONNECT_TIMEOUT: Final = 10.0


async def connect(
    reactor: Any,
    host: str,
    port: int = DEFAULT_PORT,
    *,
    token: RelayToken | str,
    key: SigningKey | None,
    role: Role | None = None,
    trust: Trust | None = None,
    timeout: float = CONNECT_TIMEOUT,
    on_datagram: Callable[[bytes], None] | None = None,
    on_notice: Callable[[NoticeEvent], None] | None = None,
) -> ClientConnection:
    """Connect to the relay at ``host``:``port`` and allocate with ``token``; returns the established connection.

    ``key`` is the Ed25519 key of the device or of the peer, whichever this end is (the role follows from it); with None, for
    relays that ask for no proof, ``role`` says it. ``timeout`` is in seconds and holds for each address that is tried. Raises a
    ``RelayError`` when the relay refuses, ``ConnectFailed`` when there is no connection, ``ValueError`` for a key that does not
    belong to the token.
    """
    parsed = RelayToken.from_text(token) if isinstance(token, str) else token
    identity = Identity.of(parsed, key, role)
    return await _Attempt(reactor, host, identity, trust or Trust(), timeout, on_datagram, on_notice).connect(port)


async def connect_unbound(
    reactor: Any, host: str, port: int = DEFAULT_PORT, *, trust: Trust | None = None, timeout: float = CONNECT_TIMEOUT
) -> ClientConnection:
    """Connect without a token, to measure a relay or to list relays; the relay closes it after some seconds."""
    return await _Attempt(reactor, host, None, trust or Trust(), timeout, None, None).connect(port)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What stays the same while addresses are tried."""

    reactor: Any
    host: str
    identity: Identity | None
    trust: Trust
    timeout: float
    on_datagram: Callable[[bytes], None] | None
    on_notice: Callable[[NoticeEvent], None] | None

    async def connect(self, port: int) -> ClientConnection:
        """Try the addresses of the host, and follow redirects."""
        addresses = await _resolve(self.reactor, self.host, port)
        for _ in range(MAX_REDIRECTS + 1):
            error: Exception = ConnectFailed(f"{self.host} has no address")
            for address in addresses:
                try:
                    return await self._try(address)
                except ConnectFailed as failed:
                    error = failed
                except Redirected as redirected:
                    error = redirected
                    break
            if not isinstance(error, Redirected):
                raise error
            # The certificate is still checked against the host's name (PROTOCOL §1): addresses say where to connect, never
            # whom to trust.
            addresses = [
                resolved
                for target in error.redirect.addresses
                if target.host
                for resolved in await _resolve(self.reactor, target.host, target.port)
            ]
        msg = f"more than {MAX_REDIRECTS} redirects in a row"
        raise RedirectLoop(msg)

    async def _try(self, address: SocketAddress) -> ClientConnection:
        reactor = self.reactor
        socket = _ClientSocket(reactor, "::" if len(address) == 4 else "0.0.0.0")  # noqa: S104 - any local address will do
        connection = ClientConnection(
            self.identity,
            self.trust,
            self.host,
            sender=socket.port.default_origin,
            remote=address,
            clock=reactor,
            now=time.monotonic,
            random=os.urandom,
            on_datagram=self.on_datagram,
            on_notice=self.on_notice,
        )
        socket.attach(connection)
        failure = ConnectFailed(f"no answer from {self.host} within {self.timeout:g} s")
        timer = reactor.callLater(self.timeout, connection.give_up, failure)
        try:
            connection.start()
            return await connection.established
        except CancelledError:
            connection.close()
            raise
        finally:
            if timer.active():
                timer.cancel()


async def _resolve(reactor: Any, host: str, port: int) -> list[SocketAddress]:
    try:
        ip_address(host.partition("%")[0])
        found = getaddrinfo(host, port, type=SOCK_DGRAM)
    except ValueError:
        try:
            found = await deferToThreadPool(reactor, reactor.getThreadPool(), getaddrinfo, host, port, 0, SOCK_DGRAM)
        except gaierror as error:
            msg = f"cannot find {host}: {error.strerror}"
            raise ConnectFailed(msg) from error
    return [address for _, _, _, _, address in found]


class _ClientSocket:
    """The UDP socket of one connection; it goes when the connection is closed."""

    def __init__(self, reactor: Any, interface: str) -> None:
        self._connection: ClientConnection | None = None
        self.port = UdpPort(interface, 0, self, reactor)
        self.port.startListening()

    def attach(self, connection: ClientConnection) -> None:
        self._connection = connection
        connection.closed.addBoth(self._stop)

    def _stop(self, result: object) -> object:
        stopped: Deferred[None] | None = self.port.stopListening()
        del stopped  # nothing is left to do when it has stopped
        return result

    # Receiver

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        if self._connection is not None:
            self._connection.datagram_received(data, path)

    def batch_done(self) -> None:
        """See ``Receiver``."""
        if self._connection is not None:
            self._connection.batch_done()

    def send_blocked(self) -> None:
        """See ``Receiver``: lost like any datagram that the network drops."""
