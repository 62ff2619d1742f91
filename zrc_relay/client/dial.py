"""``Dialer``: from a relay's name to an established ``ClientConnection``, with sockets, addresses and redirects."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from socket import SOCK_DGRAM, gaierror, getaddrinfo
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool

from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.errors import ConnectFailed, Redirected, RedirectLoop
from zrc_relay.client.identity import Identity
from zrc_relay.client.notices import NoticeEvent
from zrc_relay.client.streams import RelayStream
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import RedirectReason
from zrc_relay.quic.udp import Path, SocketAddress, UdpPort

MAX_REDIRECTS: Final = 3
"""REDIRECTs followed in a row (PROTOCOL §5)."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Who gets what a connection receives; see ``ClientConnection``."""

    on_datagram: Callable[[bytes], None] | None = None
    on_notice: Callable[[NoticeEvent], None] | None = None
    on_stream: Callable[[RelayStream], None] | None = None


Dial = Callable[[Identity, Handlers], Awaitable[ClientConnection]]
"""Makes an established connection, or raises."""


class Dialer:
    """Makes connections to the relay that the user calls ``host``: tries its addresses and follows redirects.

    The address of the last connection that was made is the first to be tried for the next one (PROTOCOL §9, "the address in
    use"). Where a REDIRECT led to another worker of the same relay, that is the address before it: which worker serves us, and at
    which port, is the relay's own affair and may be another one after its restart. Addresses say where to connect, never whom to
    trust: the certificate is always checked against ``host`` and ``trust`` (PROTOCOL §1).
    """

    def __init__(self, reactor: Any, host: str, port: int, *, trust: Trust | None, timeout: float) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._trust = trust or Trust()
        self._timeout = timeout
        self._in_use: SocketAddress | None = None

    async def dial(self, identity: Identity | None, handlers: Handlers) -> ClientConnection:
        """A connection that is established; raises as ``connect`` does."""
        if self._in_use is not None:
            try:
                return await self._follow([self._in_use], identity, handlers)
            except ConnectFailed:
                self._in_use = None  # perhaps the name leads elsewhere by now
        return await self._follow(await resolve(self._reactor, self._host, self._port), identity, handlers)

    async def _follow(self, addresses: list[SocketAddress], identity: Identity | None, handlers: Handlers) -> ClientConnection:
        in_use: SocketAddress | None = None
        for _ in range(MAX_REDIRECTS + 1):
            error: Exception = ConnectFailed(f"{self._host} has no address")
            for address in addresses:
                try:
                    connection = await self._try(address, identity, handlers)
                except ConnectFailed as failed:
                    error = failed
                except Redirected as redirected:
                    error = redirected
                    is_same_relay = redirected.redirect.reason == RedirectReason.OTHER_WORKER
                    in_use = in_use or address if is_same_relay else None
                    break
                else:
                    self._in_use = in_use or address
                    return connection
            if not isinstance(error, Redirected):
                raise error
            addresses = [
                resolved
                for target in error.redirect.addresses
                if target.host
                for resolved in await resolve(self._reactor, target.host, target.port)
            ]
        msg = f"more than {MAX_REDIRECTS} redirects in a row"
        raise RedirectLoop(msg)

    async def _try(self, address: SocketAddress, identity: Identity | None, handlers: Handlers) -> ClientConnection:
        reactor = self._reactor
        try:
            socket = _ClientSocket(reactor, "::" if len(address) == 4 else "0.0.0.0")  # noqa: S104 - any local address will do
        except CannotListenError as error:
            msg = f"no socket to reach {address[0]}: {error.socketError}"
            raise ConnectFailed(msg) from error
        connection = ClientConnection(
            identity,
            self._trust,
            self._host,
            sender=socket.port.default_origin,
            remote=address,
            clock=reactor,
            now=time.monotonic,
            random=os.urandom,
            on_datagram=handlers.on_datagram,
            on_notice=handlers.on_notice,
            on_stream=handlers.on_stream,
        )
        socket.attach(connection)
        failure = ConnectFailed(f"no answer from {self._host} within {self._timeout:g} s")
        timer = reactor.callLater(self._timeout, connection.give_up, failure)
        try:
            connection.start()
            return await connection.established
        except BaseException:  # cancelled, too: nobody will have the connection
            connection.close()
            raise
        finally:
            if timer.active():
                timer.cancel()


async def resolve(reactor: Any, host: str, port: int) -> list[SocketAddress]:
    """The socket addresses of ``host``:``port``, in the order of the system; ``ConnectFailed`` when the name is not found."""
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

    def train_received(self, train: bytes, size: int, path: Path) -> None:
        """See ``TrainReceiver``."""
        if self._connection is not None:
            self._connection.train_received(train, size, path)

    def batch_done(self) -> None:
        """See ``Receiver``."""
        if self._connection is not None:
            self._connection.batch_done()

    def send_blocked(self) -> None:
        """See ``Receiver``: lost like any datagram that the network drops."""
