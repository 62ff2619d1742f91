"""Where ``zrc-relay ctl`` finds the admin endpoint of a relay, and with what it is let in (R10.7).

Theory of operation
-------------------
A ``Place`` is where to connect and what to expect there. ``--endpoint`` tells, else the relay's TOML file that ``--config``
names, else ``ZRC_RELAY_CTL_ENDPOINT``, else what the relay itself would read: ``ZRC_RELAY_ADMIN_ENDPOINT``, or the file that
``ZRC_RELAY_CONFIG`` names. Of the file only ``admin_endpoint`` is looked at: "reload" must get through when the rest is wrong.

A token comes from a file or from the environment, never from the command line, which everybody on the host can read. It is not
sent in the clear to another host.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
from cryptography import x509
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS

from zrc_relay.abuse.http import StrictTLS, TrustError, trust_root
from zrc_relay.cli.config import certificate_names
from zrc_relay.cli.errors import BadInput
from zrc_relay.cli.params import HostPort, host_port
from zrc_relay.config_endpoints import SslEndpoint, StreamEndpoint, UnixEndpoint, parse_endpoint
from zrc_relay.config_table import CONFIG_VARIABLE, CTL_ENDPOINT_VARIABLE, CTL_TOKEN_VARIABLE, SETTINGS

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_TOKEN_FILE: Final = 4096
"""Bytes of a token file that are looked at: a token has 43 characters."""
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,400}")
_LISTENING: Final = re.compile(r"(tcp|ssl):(port=)?[0-9]+(:.*)?", re.DOTALL)
"""The notation of the configuration, which begins with a port; ours begins with a host."""
_LOCALHOST: Final = "127.0.0.1"
_SETTING: Final = SETTINGS["admin_endpoint"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a relay is administered: a UNIX socket at ``path``, or else a port of a host.

    With ``is_tls`` the server's certificate must be for ``name`` (empty: ``host``) and signed by one of ``ca`` (None: by an
    authority that this host trusts). ``prefix`` is what a reverse proxy wants in front of every path.
    """

    path: Path | None = None
    host: str = ""
    port: int = 0
    is_tls: bool = False
    prefix: str = ""
    name: str = ""
    ca: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"{'https' if self.is_tls else 'http'}://{HostPort(self.host, self.port)}{self.prefix}"

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read along."""
        return self.path is not None or self.is_tls or is_loopback(self.host)

    def client_endpoint(self, reactor: Any) -> Any:
        """What Twisted needs to connect there; ``BadInput`` when the file of certificates cannot be used."""
        if self.path is not None:
            return UNIXClientEndpoint(reactor, os.fspath(self.path))
        plain: Any = HostnameEndpoint(reactor, self.host.encode(), self.port)
        if not self.is_tls:
            return plain
        try:
            trust = trust_root(self.ca) if self.ca is not None else None
        except TrustError as error:
            raise BadInput(str(error)) from error
        creator: Any = StrictTLS(self.name or self.host, trust)
        return wrapClientTLS(creator, plain)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this host's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_place(text: str) -> Place:
    """What a person wrote: ``unix:PATH``, ``tcp:HOST:PORT``, ``ssl:HOST:PORT``, a URL, or what the configuration has."""
    kind, colon, rest = text.strip().partition(":")
    if kind in DEFAULT_PORTS and rest.startswith("//"):
        return _from_url(text.strip())
    if kind not in ("unix", "tcp", "ssl") or not colon:
        msg = f"{text!r} is no endpoint; write unix:PATH, tcp:HOST:PORT, ssl:HOST:PORT or a URL"
        raise BadInput(msg)
    if kind == "unix" or _LISTENING.fullmatch(text.strip()):
        return _from_setting(text.strip(), Path.cwd(), "the endpoint")
    try:
        where = host_port()(rest)
    except click.BadParameter as error:
        msg = f"{text!r} is no endpoint: {error.message}"
        raise BadInput(msg) from error
    return Place(host=where.host, port=where.port, is_tls=kind == "ssl")


def _from_url(text: str) -> Place:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    except ValueError as error:  # a port that is none, brackets that do not match
        msg = f"{text!r} is no URL: {error}"
        raise BadInput(msg) from error
    if not host or parts.username is not None or parts.query or parts.fragment:
        msg = "the URL of an endpoint is http:// or https:// with a host, and maybe a port and a path"
        raise BadInput(msg)
    return Place(host=host, port=port, is_tls=parts.scheme == "https", prefix=parts.path.rstrip("/").removesuffix("/admin"))


def _from_setting(raw: object, base: Path, where: str) -> Place:
    try:
        if not isinstance(raw, str):
            msg = "is no text"
            raise ValueError(msg)  # noqa: TRY004 - one kind of error for whatever a file holds
        return from_listening(parse_endpoint(raw, base))
    except ValueError as error:
        msg = f"{where}: {raw!r} {error}"
        raise BadInput(msg) from error


def from_listening(endpoint: StreamEndpoint) -> Place:
    """Where to connect to on the host where a relay listens on ``endpoint``; ``ValueError`` when that cannot be told.

    The certificate of ``ssl:`` tells which name to expect there, and where nobody else has signed it, it is what to trust.
    """
    if isinstance(endpoint, UnixEndpoint):
        return Place(path=endpoint.path)
    if not endpoint.port:
        msg = "takes any free port; name the one it got with --endpoint"
        raise ValueError(msg)
    host = endpoint.interface or _LOCALHOST
    address = ip_address(host)
    if address.is_unspecified:
        host = _LOCALHOST if address.version == 4 else "::1"
    place = Place(host=host, port=endpoint.port)
    return _expecting(place, endpoint) if isinstance(endpoint, SslEndpoint) else place


def _expecting(place: Place, endpoint: SslEndpoint) -> Place:
    try:
        certificate = x509.load_pem_x509_certificate(endpoint.certificate.read_bytes())
    except (OSError, ValueError):  # not ours to read: then what the host and the command line say must do
        return replace(place, is_tls=True)
    names = certificate_names(certificate)
    name = place.host if place.host in names or not names else names[0]
    is_its_own = certificate.issuer == certificate.subject
    return replace(place, is_tls=True, name=name, ca=endpoint.certificate if is_its_own else None)


def find_place(option: str | None, config: Path | None, environ: Mapping[str, str]) -> Place:
    """Where the relay is; see the module's docstring. ``BadInput`` when nothing tells, or what tells cannot be used."""
    given = option or (None if config is not None else environ.get(CTL_ENDPOINT_VARIABLE))
    if given:
        return parse_place(given)
    if config is None and environ.get(_SETTING.variable):
        return _told(environ[_SETTING.variable], Path.cwd(), f"variable {_SETTING.variable}")
    name = config or environ.get(CONFIG_VARIABLE)
    if not name:
        msg = (
            f"where is the relay? Say it with --endpoint or {CTL_ENDPOINT_VARIABLE} (unix:/run/zrc-relay/admin.sock, for "
            "example), or name the relay's configuration with --config"
        )
        raise BadInput(msg)
    path = Path(name)
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}; --endpoint says where the relay is without it"
        raise BadInput(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not TOML: {error}; --endpoint says where the relay is without it"
        raise BadInput(msg) from error
    return _told(document.get(_SETTING.name, "none"), path.absolute().parent, str(path))


def _told(raw: object, base: Path, source: str) -> Place:
    if isinstance(raw, str) and raw.strip().lower() in ("", "none", "off"):
        msg = f"{source} has no {_SETTING.name}: that relay is not administered over HTTP; docs/admin.md says how to switch it on"
        raise BadInput(msg)
    return _from_setting(raw, base, f"{_SETTING.name} ({source})")


def find_token(path: Path | None, environ: Mapping[str, str]) -> str | None:
    """The token to show, None for none: the first line of the file at ``path``, else what the environment has."""
    if path is None:
        text, source = environ.get(CTL_TOKEN_VARIABLE, "").strip(), CTL_TOKEN_VARIABLE
        if not text:
            return None
    else:
        text, source = _read_token(path), str(path)
    if not _TOKEN.fullmatch(text):
        msg = f'{source} holds no token: it must be one line as "zrc-relay admin-token" prints it first'
        raise BadInput(msg)
    return text


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_TOKEN_FILE)
    except OSError as error:
        msg = f"cannot read the token file {path}: {error.strerror or error}"
        raise BadInput(msg) from error
    if mode & 0o007:
        msg = f"everyone on this host has access to the token file {path} (mode {mode:04o}); mend it with: chmod 600 {path}"
        raise BadInput(msg)
    return next(iter(data.decode("ascii", errors="replace").splitlines()), "").strip()
