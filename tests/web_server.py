"""HTTP servers on loopback, as external systems are: well behaved, slow, or hostile."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL.SSL import TLS_METHOD, Context
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import ContextFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.real_relay import reactor


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    method: str
    uri: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer; ``hangs`` answers nothing."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] | None = None
    hangs: bool = False


class _Everything(Resource):
    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, server: WebServer) -> None:
        super().__init__()
        self._server = server

    def render(self, request: Any) -> Any:
        server = self._server
        headers = {name.decode().lower(): values[0].decode() for name, values in request.requestHeaders.getAllRawHeaders()}
        server.asked.append(Asked(request.method.decode(), request.uri.decode(), headers, request.content.read()))
        answer = server.answer(server.asked[-1])
        if answer.hangs:
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET
        request.setResponseCode(answer.status)
        for name, value in (answer.headers or {}).items():
            request.setHeader(name, value)
        return answer.body


class WebServer:
    """A server on 127.0.0.1 that notes what it is asked and answers as it is told; it stops with the test."""

    def __init__(self, case: TestCase, certificate: Certificate | None = None) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Answer] = lambda _: Answer()
        self.port = listen(case, Site(_Everything(self)), certificate)
        self.scheme = "https" if certificate else "http"

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        """A URL of this server."""
        return f"{self.scheme}://{host}:{self.port}{path}"


class Peer(Protocol):
    """One connection to a ``RawServer``."""

    def __init__(self, server: RawServer) -> None:
        self._server = server

    def dataReceived(self, data: bytes) -> None:
        """Begin with the answer at the first data."""
        self._server.received += data
        behaviour, self._server.behaviour = self._server.behaviour, lambda _: None
        behaviour(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note it."""
        del reason
        self._server.lost += 1


class RawServer:
    """A server on 127.0.0.1 that does something to the transport when it is asked, and never hangs up by itself."""

    def __init__(self, case: TestCase, behaviour: Callable[[Any], None], certificate: Certificate | None = None) -> None:
        self.behaviour = behaviour
        self.received = b""
        self.lost = 0
        factory = Factory.forProtocol(lambda: Peer(self))
        self.port = listen(case, factory, certificate)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"


def listen(case: TestCase, factory: Any, certificate: Certificate | None = None) -> int:
    """Let ``factory`` serve until the test ends; the port."""
    factory.noisy = False
    if certificate is None:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    else:
        port = reactor.listenSSL(0, factory, _Context(certificate), interface="127.0.0.1")
    case.addCleanup(port.stopListening)
    return int(port.getHost().port)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, and the certificate in PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate, not the key."""
        return self.certificate.public_bytes(Encoding.PEM)


class _Context(ContextFactory):
    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate

    def getContext(self) -> Context:  # noqa: N802 - Twisted's name
        context = Context(TLS_METHOD)
        context.use_certificate(self._certificate.certificate)
        context.use_privatekey(self._certificate.key)
        return context


def make_certificate(
    *names: x509.GeneralName, signed_by: Certificate | None = None, ends: dt.timedelta = dt.timedelta(days=1)
) -> Certificate:
    """A certificate for ``names``; one that nobody signed is an authority that signs others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{'server' if signed_by else 'authority'} {uuid4()}")])
    issuer = signed_by.certificate.subject if signed_by else subject
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=signed_by is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Certificate(builder.sign(signed_by.key if signed_by else key, SHA256()), key)


def key_pem(certificate: Certificate) -> bytes:
    """The private key in PEM."""
    return certificate.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
