"""The web site that health, metrics and administration are served by: bounded in what strangers cost (R6.9).

At most ``MAX_CONNECTIONS`` at a time, ``MAX_BODY`` bytes of a request's body (413 beyond that; a body that is not much longer is
read to its end and thrown away, because who is still sending does not see the answer), and idle connections are closed. Requests
are not logged here: a scraper comes every few seconds, and what is done by admin goes to the audit log.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

MAX_CONNECTIONS: Final = 128
"""HTTP connections of one site at a time; further ones are closed at once. A scraper needs one, a person some, listeners of
events one each."""
MAX_BODY: Final = 64 * 1024
"""Longest body of a request in bytes: the longest list of networks that makes sense to give in one request, and some."""
MAX_DRAINED: Final = 1024 * 1024
"""Bytes of a body that are read although it is too long."""
IDLE_TIMEOUT: Final = 60
"""Seconds that a connection may wait for its next request."""
_BAD_PATH: Final = b'{"type":"about:blank","title":"Bad Request","status":400,"detail":"the path is not UTF-8"}'
_TOO_LARGE: Final = b'{"type":"about:blank","title":"Content Too Large","status":413}'
TOO_LARGE: Final = (
    b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/problem+json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_TOO_LARGE), _TOO_LARGE)
)


def _not_told(request: object, status: int) -> None:
    """Nobody wants to hear of it."""


class BoundedRequest(Request):
    """A request whose body is bounded, and that says nothing about the software's version."""

    _received = 0
    _is_too_large = False
    _is_refused = False

    def gotLength(self, length: int | None) -> None:  # noqa: N802 - Twisted's name
        """The length of the body, None when it comes in chunks."""
        self._is_too_large = length is not None and length > MAX_BODY
        super().gotLength(0 if self._is_too_large else length)
        if length is not None and length > MAX_DRAINED:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        """A piece of the body."""
        self._received += len(data)
        self._is_too_large = self._is_too_large or self._received > MAX_BODY
        if self._received > MAX_DRAINED:
            self._refuse()
        elif not self._is_too_large:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802 - Twisted's name
        """The request is complete."""
        if self._is_too_large:
            self._refuse()
        else:
            super().requestReceived(command, path, version)

    def render(self, resrc: IResource) -> None:
        """Answer, under the name of the program without its version; 400 for a path that is no text."""
        self.setHeader(b"server", b"zrc-relay")
        try:
            self.method.decode("ascii")
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            self._tell(HTTPStatus.BAD_REQUEST)
            self.setResponseCode(400)
            self.setHeader(b"content-type", b"application/problem+json")
            self.setHeader(b"content-length", str(len(_BAD_PATH)).encode())
            self.write(_BAD_PATH)
            self.finish()
            return
        # No answer depends on what this host is called, and Klein chokes on some names, and on none over a UNIX socket.
        self.requestHeaders.setRawHeaders(b"host", [b"localhost"])
        super().render(resrc)

    def _tell(self, status: int) -> None:
        channel: Any = self.channel
        channel.site.on_refused(self, status)

    def _refuse(self) -> None:
        if not self._is_refused:
            self._is_refused = True
            self._tell(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            transport: Any = self.channel.transport
            transport.write(TOO_LARGE)
            transport.loseConnection()


class BoundedSite(Site):
    """A site that serves ``resource`` to at most ``max_connections`` at a time, and logs no requests."""

    def __init__(self, resource: IResource | Resource, reactor: Any, *, max_connections: int = MAX_CONNECTIONS) -> None:
        super().__init__(resource, requestFactory=BoundedRequest, timeout=IDLE_TIMEOUT, reactor=reactor)
        self.displayTracebacks = False
        self._max_connections = max_connections
        self.on_refused: Callable[[Any, int], object] = _not_told
        """Hears of each request that the site refuses by itself, and with which status; the resource never sees those."""
        self._open: dict[Any, Any] = {}
        """The connections there are, with their transports."""

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._open)

    def buildProtocol(self, addr: IAddress | None) -> Any:  # noqa: N802 - Twisted's name
        """A protocol for a connection, or None for one too many."""
        if len(self._open) >= self._max_connections:
            return None
        protocol: Any = super().buildProtocol(addr)
        made, lost = protocol.makeConnection, protocol.connectionLost

        def make_connection(transport: Any) -> None:
            self._open[protocol] = transport
            made(transport)

        def connection_lost(reason: Failure) -> None:
            self._open.pop(protocol, None)
            lost(reason)

        protocol.makeConnection, protocol.connectionLost = make_connection, connection_lost
        return protocol

    def log(self, request: Any) -> None:
        """Log nothing."""

    def close_all(self) -> None:
        """Close what is open: a listener of events would stay for ever."""
        for transport in list(self._open.values()):
            transport.abortConnection()
