"""HTTP as a client that trusts nobody: certificates verified, time and size bounded, no redirects, no connection kept (R6.6).

Each request has a connection of its own, which is aborted when the request is over, however it went: a server that neither
answers nor hangs up holds nothing here for longer than ``timeout``. Everything that a connection brings is counted, headers too,
and too much ends it. Whatever goes wrong is one ``HttpError`` whose message is fit for a log: it repeats no URL and no header.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL.crypto import X509
from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER, Connection
from OpenSSL.SSL import Error as TLSError
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer  # type: ignore[import-untyped]  # as everywhere in Twisted

from zrc_relay import __version__

MAX_OVERHEAD: Final = 64 * 1024
"""Bytes that may come beside the body: headers, and the framing of chunks."""
MAX_PROBLEM: Final = 200
"""Longest description of a problem, in characters."""
USER_AGENT: Final = f"zrc-relay/{__version__}"


class HttpError(Exception):
    """There was no answer that could be used; the message says why."""


class TrustError(Exception):
    """A file of certificates cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whatever its status."""

    status: int
    body: bytes


class Requester(typing.Protocol):
    """What asks a server; see ``HttpClient``."""

    async def request(self, method: str, path: str = "", headers: Mapping[str, str] | None = None, body: bytes = b"") -> Response:
        """The answer; ``HttpError`` when there is none."""
        ...


class HttpClient:
    """Asks the server of one URL. ``timeout`` is in seconds and for the whole request, ``max_body`` in bytes.

    ``ca_path`` names a PEM file with the certificates that the server's may be signed by; None trusts those of the host.
    ``TrustError`` when it cannot be used.
    """

    def __init__(self, reactor: Any, url: str, *, ca_path: Path | None, timeout: float, max_body: int) -> None:
        self._reactor = reactor
        self._url = url
        self._timeout = timeout
        self._max_body = max_body
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            # Made once: reading the host's certificates takes longer than a packet may wait.
            creator: Any = StrictTLS(host, trust_root(ca_path) if ca_path is not None else None)
            self._endpoint: Callable[[], Any] = lambda: wrapClientTLS(creator, self._host(host, parts.port or 443))
        else:
            self._endpoint = lambda: self._host(host, parts.port or 80)

    async def request(self, method: str, path: str = "", headers: Mapping[str, str] | None = None, body: bytes = b"") -> Response:
        """The answer to one request for the URL with ``path`` behind it; ``HttpError`` when there is none."""
        connection = _Connection(self._endpoint(), self._max_body + MAX_OVERHEAD)
        asked = Deferred.fromCoroutine(self._exchange(connection, method, self._url + path, headers or {}, body))
        asked.addTimeout(self._timeout, self._reactor, _timed_out)
        try:
            return await asked
        except Exception as error:
            if is_cancelled(error):
                raise CancelledError from error
            msg = f"the answer is longer than {self._max_body} bytes" if connection.is_exceeded else describe(error)
            raise HttpError(msg) from error
        finally:
            connection.abort()

    def _host(self, host: str, port: int) -> Any:
        return HostnameEndpoint(self._reactor, host.encode(), port)

    async def _exchange(
        self, connection: _Connection, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Response:
        agent = Agent.usingEndpointFactory(self._reactor, connection)
        every = Headers({"User-Agent": [USER_AGENT], **{name: [value] for name, value in headers.items()}})
        answer: Any = await agent.request(
            method.encode(), url.encode(), every, Bytes(body) if body else None
        )
        content = _Body()
        answer.deliverBody(content)
        return Response(answer.code, await content.complete)


def _timed_out(result: object, timeout: float) -> NoReturn:
    """What Agent makes of being cancelled is as good as any other failure, so it does not matter here."""
    del result
    msg = f"no answer within {timeout:g} s"
    raise HttpError(msg)


def root_cause(error: BaseException) -> BaseException:
    """What is behind an error of Twisted's client, which wraps others."""
    reasons = getattr(error, "reasons", None)
    if reasons and isinstance(reasons[0], Failure) and reasons[0].value is not None:
        return root_cause(reasons[0].value)
    return error


def is_cancelled(error: BaseException) -> bool:
    """Whether somebody did not want to wait any longer."""
    return isinstance(root_cause(error), CancelledError)


def describe(error: BaseException) -> str:
    """What went wrong, in a few words."""
    error = root_cause(error)
    if isinstance(error, VerificationError):
        return "the server's certificate is for another name"
    if isinstance(error, CertificateError):
        return f"the server's certificate names no server as it should: {error}"[:MAX_PROBLEM]
    if isinstance(error, TLSError):
        details = error.args[0] if error.args else ()
        text = details[-1][-1] if isinstance(details, list) and details and details[-1] else "the connection broke"
        return f"TLS: {text}"[:MAX_PROBLEM]
    return (str(error) or type(error).__name__)[:MAX_PROBLEM]


def trust_root(path: Path) -> Any:
    """What Twisted needs to trust the certificates of a PEM file; ``TrustError`` when it holds none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"cannot read the certificates {path}: {error.strerror or error}"
        raise TrustError(msg) from error
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        msg = f"{path} holds no PEM certificate: {error}"
        raise TrustError(msg) from error
    return trustRootFromCertificates([Certificate.loadPEM(each.public_bytes(Encoding.PEM)) for each in found])


@implementer(IOpenSSLClientConnectionCreator)
class StrictTLS:
    """Twisted's TLS for clients, with a check of the name that fails when it cannot be made.

    Twisted's own lets everything through that a trusted authority signed when ``service_identity`` cannot tell what a certificate
    is for, because it has no subjectAltName for instance.
    """

    def __init__(self, host: str, trust: Any) -> None:
        self._options: Any = optionsForClientTLS(host, trustRoot=trust)
        self._expected = IPAddress_ID(host) if isIPAddress(host) or isIPv6Address(host) else DNS_ID(host)

    def clientConnectionForTLS(self, protocol: Any) -> Connection:  # noqa: N802 - Twisted's name
        """See ``IOpenSSLClientConnectionCreator``."""
        connection: Connection = self._options.clientConnectionForTLS(protocol)

        def verify(_: Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
            del error
            if not ok or depth:
                return bool(ok)
            try:
                verify_service_identity(extract_patterns(certificate), [self._expected], [])
            except Exception:
                protocol.failVerification(Failure())
                return False
            return True

        connection.set_verify(VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """The connection of one request: where Agent is to connect, what came from there, and the way to end it."""

    def __init__(self, endpoint: Any, limit: int) -> None:
        self._endpoint = endpoint
        self._limit = limit
        self._received = 0
        self._wrapper: ProtocolWrapper | None = None

    @property
    def is_exceeded(self) -> bool:
        """Whether more came than was allowed."""
        return self._received > self._limit

    def endpointForURI(self, uri: URI) -> _Connection:  # noqa: N802 - Twisted's name
        """See ``IAgentEndpointFactory``; the endpoint was chosen before."""
        del uri
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        """See ``IStreamClientEndpoint``."""
        connecting: Deferred[_Counting] = self._endpoint.connect(_CountingFactory(factory, self))
        return connecting.addCallback(self._connected)

    def received(self, size: int) -> bool:
        """Count ``size`` bytes; whether they may be looked at."""
        self._received += size
        if self.is_exceeded:
            self.abort()
        return not self.is_exceeded

    def abort(self) -> None:
        """End the connection at once, if there is one."""
        if self._wrapper is not None and self._wrapper.transport is not None:
            self._wrapper.transport.abortConnection()

    def _connected(self, wrapper: _Counting) -> Any:
        self._wrapper = wrapper
        return wrapper.wrappedProtocol


class _Counting(ProtocolWrapper):
    """Lets a connection bring so much and no more."""

    factory: _CountingFactory

    def dataReceived(self, data: bytes) -> None:
        """Pass ``data`` on while it is not too much."""
        if self.factory.connection.received(len(data)):
            super().dataReceived(data)


class _CountingFactory(WrappingFactory[_Counting]):
    """Makes the one ``_Counting`` of a connection."""

    protocol = _Counting
    noisy = False

    def __init__(self, wrapped: Any, connection: _Connection) -> None:
        super().__init__(wrapped)
        self.connection = connection


@implementer(IBodyProducer)
class Bytes:
    """A request body that is there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> Deferred[None]:  # noqa: N802 - Twisted's name
        """Write all of it."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Nothing is left to hold back."""

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Nothing is left to go on with."""

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Nothing is left to stop."""


class _Body(Protocol):
    """Collects an answer's body; ``complete`` fires with it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.complete: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Keep ``data``; the connection sees to it that it does not get too much."""
        self._pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The answer is over. One without a length ends with its connection; whether it is whole shows in its JSON."""
        if reason.check(ResponseDone, PotentialDataLoss):
            self.complete.callback(b"".join(self._pieces))
        else:
            self.complete.errback(reason)
