r"""Where to listen for a stream protocol: the setting's value, as a person writes it and as the program uses it (R8, R10).

Theory of operation
-------------------
The notation is Twisted's: a kind, its first argument, and ``name=value`` arguments, with colons between them::

    tcp:9433:interface=127.0.0.1
    ssl:9434:privateKey=admin.key:certKey=admin.pem:interface=[::1]
    unix:/run/zrc-relay/admin.sock:mode=660:owner=zrc-relay:group=ops

A colon inside a value is written ``\:``; colons in square brackets need no backslash. Unlike Twisted's own parser this one knows
every argument that there is, so that a slip of the pen shows when the configuration is read and not when the port is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from zrc_relay.config_values import MAX_PORT, NOT_UNDERSTOOD, Quoted, show, text_of

MAX_SOCKET_PATH: Final = 107
"""Longest path of a UNIX socket in bytes: ``sun_path`` holds 108 with the zero behind it (unix(7))."""
DEFAULT_SOCKET_MODE: Final = 0o600
_ARGUMENT: Final = re.compile(r"([A-Za-z]+)=(.*)", re.DOTALL)
_MODE: Final = re.compile(r"[0-7]{3,4}")
_PIECES: Final = re.compile(r"(?:\\.|\[[^\]]*\]|[^:\\])*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A TCP port of one address, or of every IPv4 address when ``interface`` is empty; port 0 takes any free one."""

    port: int
    interface: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can connect."""
        return bool(self.interface) and ip_address(self.interface).is_loopback

    def __str__(self) -> str:
        return f"tcp:{self.port}{_interface(self.interface)}"


@dataclass(frozen=True, slots=True)
class SslEndpoint:
    """The same with TLS. Both files are PEM; the certificate's may hold the chain behind it."""

    port: int
    private_key: Path
    certificate: Path
    interface: str = ""

    def __str__(self) -> str:
        files = f"privateKey={_escape(self.private_key)}:certKey={_escape(self.certificate)}"
        return f"ssl:{self.port}:{files}{_interface(self.interface)}"


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A UNIX socket. ``owner`` and ``group`` are names or numbers; None leaves them as the process has them."""

    path: Path
    mode: int = DEFAULT_SOCKET_MODE
    owner: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        text = f"unix:{_escape(self.path)}:mode={self.mode:03o}"
        for name, value in (("owner", self.owner), ("group", self.group)):
            if value is not None:
                text += f":{name}={_escape(value)}"
        return text


StreamEndpoint = TcpEndpoint | SslEndpoint | UnixEndpoint

_KNOWN: Final = {
    "tcp": frozenset(("port", "interface")),
    "ssl": frozenset(("port", "interface", "privateKey", "certKey")),
    "unix": frozenset(("address", "mode", "owner", "group")),
}
_FIRST: Final = {"tcp": "port", "ssl": "port", "unix": "address"}


@dataclass(frozen=True, slots=True)
class ListenOn(Quoted):
    """Where to listen for a stream protocol. ``is_private`` wants TLS, a UNIX socket or the loopback interface."""

    is_private: bool = False

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        name, more = ("admin", "ssl:9434:privateKey=admin.key:certKey=admin.pem") if self.is_private else ("observe", "tcp:9433")
        return f'an endpoint such as "tcp:9433:interface=127.0.0.1", "unix:/run/zrc-relay/{name}.sock:mode=600" or "{more}"'

    def parse(self, raw: object, base: Path) -> StreamEndpoint:
        """See ``Kind``."""
        endpoint = parse_endpoint(text_of(raw), base)
        if self.is_private and isinstance(endpoint, TcpEndpoint) and not endpoint.is_loopback:
            msg = "is plain TCP that other hosts can reach: add interface=127.0.0.1, or use ssl: or unix:"
            raise ValueError(msg)
        return endpoint


def parse_endpoint(text: str, base: Path) -> StreamEndpoint:
    """The endpoint that ``text`` means, with relative paths from ``base``; ``ValueError`` with a predicate of the text."""
    kind, *pieces = _split(text)
    if not pieces:
        raise ValueError(NOT_UNDERSTOOD)
    if kind not in _KNOWN:
        msg = f"begins with {show(kind)}, which is none of {', '.join(_KNOWN)}"
        raise ValueError(msg)
    arguments: dict[str, str] = {}
    for index, piece in enumerate(pieces):
        match = _ARGUMENT.fullmatch(piece)
        name, value = (match[1], match[2]) if match else (_FIRST[kind], piece)
        if not match and index:
            msg = f"has {show(piece)} where a name=value belongs; colons inside a value go in [] or behind a backslash"
            raise ValueError(msg)
        if name not in _KNOWN[kind]:
            msg = f"has an unknown argument {show(name)}; {kind}: takes {', '.join(sorted(_KNOWN[kind]))}"
            raise ValueError(msg)
        if name in arguments:
            msg = f"has {name} twice"
            raise ValueError(msg)
        arguments[name] = _unescape(value)
        if name == "port":
            _port(arguments[name])  # before what follows: an address in its place is the likeliest slip
    if _FIRST[kind] not in arguments:
        msg = f"has no {_FIRST[kind]}"
        raise ValueError(msg)
    if kind == "unix":
        return _unix(arguments, base)
    port, interface = _port(arguments["port"]), _address(arguments.get("interface"))
    if kind == "tcp":
        return TcpEndpoint(port, interface)
    if "privateKey" not in arguments:
        msg = "has no privateKey=, a PEM file"
        raise ValueError(msg)
    key = _path(arguments["privateKey"], base)
    return SslEndpoint(port, key, _path(arguments["certKey"], base) if "certKey" in arguments else key, interface)


def _unix(arguments: dict[str, str], base: Path) -> UnixEndpoint:
    path = _path(arguments["address"], base)
    size = len(str(path).encode(errors="surrogateescape"))
    if size > MAX_SOCKET_PATH:
        msg = f"has a path of {size} bytes; a socket's may have {MAX_SOCKET_PATH}"
        raise ValueError(msg)
    mode = arguments.get("mode")
    if mode is not None and (not _MODE.fullmatch(mode) or int(mode, 8) > 0o777):
        msg = f"has {show(mode)} where a mode such as 600 belongs"
        raise ValueError(msg)
    for name in ("owner", "group"):
        if arguments.get(name) == "":
            msg = f"has an empty {name}"
            raise ValueError(msg)
    return UnixEndpoint(
        path, DEFAULT_SOCKET_MODE if mode is None else int(mode, 8), arguments.get("owner"), arguments.get("group")
    )


def _split(text: str) -> Iterator[str]:
    """The pieces between colons that are neither escaped nor in brackets."""
    start = 0
    while True:
        match = _PIECES.match(text, start)
        end = match.end() if match else start
        yield text[start:end]
        if end >= len(text):
            return
        if text[end] != ":":  # a backslash with nothing behind it, a bracket that is never closed
            raise ValueError(NOT_UNDERSTOOD)
        start = end + 1


def _escape(value: object) -> str:
    return re.sub(r"[\\:\[\]]", lambda match: "\\" + match[0], str(value))


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _interface(address: str) -> str:
    if not address:
        return ""
    return f":interface=[{address}]" if ":" in address else f":interface={address}"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_PORT):
        msg = f"has {show(text)} where the port belongs"
        raise ValueError(msg)
    return int(text)


def _address(text: str | None) -> str:
    if text is None:
        return ""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ip_address(inner))
    except ValueError as error:
        msg = f"has {show(text)} where an IP address of this host belongs"
        raise ValueError(msg) from error


def _path(text: str, base: Path) -> Path:
    if not text or "\0" in text:
        msg = "has a path that is empty" if not text else "has a zero byte in a path"
        raise ValueError(msg)
    return base / text
