"""Listening for HTTP where the configuration says: TCP, TLS, UNIX sockets (R7, R10.1, R10.7).

Theory of operation
-------------------
``SiteService`` serves one web resource on one ``StreamEndpoint``. It binds while the process may still be privileged, and what
keeps it from binding is a ``ListenError`` with one line for the operator.

* A UNIX socket is reachable by nobody but the relay's own user before it has its owner and mode: it starts with mode 0600. A
  socket file that was left behind is removed when nobody listens on it; one that somebody listens on is not touched, nor is any
  other kind of file. When the service stops it removes the file, unless it is somebody else's by then.
* Certificates of ``ssl:`` are read when the service starts and by ``reload``, for connections made from then on.

What one connection, or many, may cost is the business of ``site``.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.ssl import CertificateOptions, ContextFactory, TLSVersion
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource

from zrc_relay.config_endpoints import SslEndpoint, StreamEndpoint, UnixEndpoint
from zrc_relay.control.site import BoundedSite


class ListenError(Exception):
    """An endpoint cannot be had; the message is one line for the operator."""


class TlsContexts(ContextFactory):
    """Gives each connection the TLS context of the files as they were when last read; at least TLS 1.2."""

    def __init__(self, endpoint: SslEndpoint) -> None:
        self._endpoint = endpoint
        self._context = self.load()

    def load(self) -> SSL.Context:
        """A context of the files as they are now; ``ListenError`` when they cannot be used."""
        endpoint = self._endpoint
        try:
            key = crypto.load_privatekey(crypto.FILETYPE_PEM, endpoint.private_key.read_bytes())
            pem = endpoint.certificate.read_bytes()
            chain = [
                crypto.load_certificate(crypto.FILETYPE_PEM, b"-----BEGIN CERTIFICATE-----" + part)
                for part in pem.split(b"-----BEGIN CERTIFICATE-----")[1:]
            ]
            if not chain:
                msg = f"{endpoint.certificate} holds no PEM certificate"
                raise ListenError(msg)
            options = CertificateOptions(
                privateKey=key, certificate=chain[0], extraCertChain=chain[1:], raiseMinimumTo=TLSVersion.TLSv1_2
            )
            context = options.getContext()
        except OSError as error:
            msg = f"cannot read {error.filename}: {error.strerror}"
            raise ListenError(msg) from error
        except (crypto.Error, SSL.Error, ValueError) as error:
            msg = f"{endpoint.private_key} and {endpoint.certificate} are no key with its certificate"
            raise ListenError(msg) from error
        return context

    def use(self, context: SSL.Context) -> None:
        """Give ``context`` to connections from now on."""
        self._context = context

    def getContext(self) -> SSL.Context:  # noqa: N802 - Twisted's name
        """See ``IOpenSSLContextFactory``."""
        return self._context


class _UnixPort(unix.Port):
    """Twisted's UNIX port, without its belief that the file is its own until the end."""

    identity: tuple[int, int] | None = None

    def connectionLost(self, reason: Failure) -> None:
        path = Path(os.fsdecode(self._bindPath))
        if self.identity is None or self.identity != _identity(path):
            tcp.Port.connectionLost(self, reason)  # its parent would remove the file
        else:
            super().connectionLost(reason)


class SiteService(Service):
    """Serves ``resource`` on ``endpoint`` between start and stop. ``name`` is what the service tree and messages call it."""

    _log = Logger()

    def __init__(self, name: str, endpoint: StreamEndpoint, resource: IResource | Resource, reactor: Any) -> None:
        self.setName(name)
        self.endpoint = endpoint
        self._reactor = reactor
        self._contexts: TlsContexts | None = None
        self.site = BoundedSite(resource, reactor)
        self.port: Any = None
        """The listening port while the service runs; ``port.getHost()`` tells its address."""

    def privilegedStartService(self) -> None:
        """Listen; ``ListenError`` when the endpoint cannot be had."""
        if self.port is not None:
            return
        endpoint = self.endpoint
        try:
            if isinstance(endpoint, UnixEndpoint):
                self.port = listen_unix(endpoint, self.site, self._reactor)
            elif isinstance(endpoint, SslEndpoint):
                self._contexts = self._contexts or TlsContexts(endpoint)
                self.port = self._reactor.listenSSL(endpoint.port, self.site, self._contexts, interface=endpoint.interface)
            else:
                self.port = self._reactor.listenTCP(endpoint.port, self.site, interface=endpoint.interface)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            msg = f"{self.name}: cannot listen on {endpoint}: {reason}"
            raise ListenError(msg) from error
        except ListenError as error:
            msg = f"{self.name}: {error}"
            raise ListenError(msg) from error
        bound = endpoint if isinstance(endpoint, UnixEndpoint) else replace(endpoint, port=self.port.getHost().port)
        self._log.info("{service} listens on {endpoint}", event="listen.http", service=self.name, endpoint=str(bound))

    def startService(self) -> None:
        """Listen, unless that is so already."""
        super().startService()
        self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Stop listening and close what is open; fires when the port is closed."""
        super().stopService()
        port, self.port = self.port, None
        if port is None:
            return succeed(None)
        stopped: Deferred[Any] = maybeDeferred(port.stopListening)
        self.site.close_all()
        return stopped

    def prepare_reload(self) -> SSL.Context | None:
        """Read the certificate again without using it; ``ListenError`` when it cannot be used, None where there is no TLS."""
        return self._contexts.load() if self._contexts is not None else None

    def reload(self, context: SSL.Context | None) -> None:
        """Use what ``prepare_reload`` gave for connections from now on."""
        if self._contexts is not None and context is not None:
            self._contexts.use(context)


def listen_unix(endpoint: UnixEndpoint, factory: BoundedSite, reactor: Any) -> Any:
    """A listening UNIX socket with its owner and mode; ``ListenError`` or ``CannotListenError`` when it cannot be had."""
    uid, gid = _uid(endpoint.owner), _gid(endpoint.group)
    _make_way(endpoint.path)
    # 0600 until it has its owner: Twisted sets the mode before anyone can connect.
    make: Any = _UnixPort  # what it wants of a factory is told by zope interfaces
    port: _UnixPort = make(os.fsencode(endpoint.path), factory, mode=0o600, reactor=reactor)
    try:
        port.startListening()
    except CannotListenError:
        factory.doStop()  # which Twisted has started before it tried
        raise
    port.identity = _identity(endpoint.path)
    try:
        if (uid, gid) != (-1, -1):
            os.chown(endpoint.path, uid, gid, follow_symlinks=False)
        endpoint.path.chmod(endpoint.mode)
    except OSError as error:
        port.stopListening()
        msg = f"cannot set owner and mode of {endpoint.path}: {error.strerror}"
        raise ListenError(msg) from error
    return port


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens on; ``ListenError`` when something else has the name."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        msg = f"cannot look at {path}: {error.strerror}"
        raise ListenError(msg) from error
    if not stat.S_ISSOCK(mode):
        msg = f"{path} is there already, and no socket"
        raise ListenError(msg)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        refused = probe.connect_ex(os.fsencode(path)) == errno.ECONNREFUSED
    if not refused:
        msg = f"somebody listens on {path} already, or it cannot be asked"
        raise ListenError(msg)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        msg = f"cannot remove the old socket {path}: {error.strerror}"
        raise ListenError(msg) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _uid(name: str | None) -> int:
    if name is None:
        return -1
    try:
        return int(name) if name.isascii() and name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError as error:
        msg = f"there is no user {name}"
        raise ListenError(msg) from error


def _gid(name: str | None) -> int:
    if name is None:
        return -1
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        msg = f"there is no group {name}"
        raise ListenError(msg) from error
