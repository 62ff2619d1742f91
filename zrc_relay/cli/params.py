"""Kinds of parameter that several commands share: hex, addresses, amounts, keys, tokens, and how far a relay is trusted.

Each is a function that turns text into a checked value, or raises ``click.BadParameter`` with one line that says what would be
right (``BadInput`` for a file that cannot be used). Amounts ("1h", "10 Mbit/s") are read by the kinds of ``config_units``, so
that they are written the same way here as in the relay's configuration.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from nacl.signing import SigningKey

from zrc_relay.cli.errors import BadInput
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.client.connect import CONNECT_TIMEOUT, DEFAULT_PORT
from zrc_relay.client.trust import Trust
from zrc_relay.config_units import Duration
from zrc_relay.config_values import MAX_PORT, Kind
from zrc_relay.core.token import RelayToken, TokenError

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

MAX_TOKEN_FILE: Final = 4096
"""Bytes of a token file that are looked at: a token has 240."""
_HEX: Final = re.compile(r"[0-9a-fA-F]+")


def hex_bytes(size: int) -> Callable[[str], bytes]:
    """``size`` bytes as hex digits; colons between them are fine, as openssl writes fingerprints."""

    def convert(text: str) -> bytes:
        digits = text.strip().replace(":", "")
        if len(digits) != 2 * size or not _HEX.fullmatch(digits):
            msg = f"must be {2 * size} hex digits"
            raise click.BadParameter(msg)
        return bytes.fromhex(digits)

    return convert


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host (name or IP address) and a UDP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_port(
    *, default_port: int | None = None, default_host: str | None = None, minimum_port: int = 1
) -> Callable[[str], HostPort]:
    """``HOST:PORT``; an IPv6 address with a port wants brackets.

    With ``default_port``, "HOST" alone will do; with ``default_host``, "PORT" alone.
    """

    def convert(text: str) -> HostPort:
        text = text.strip()
        if default_host is not None and text.isdigit():
            host, port = default_host, text
        else:
            host, port = _split(text)
        if not host:
            msg = f"{text!r} names no host"
            raise click.BadParameter(msg)
        if not port:
            if default_port is None:
                msg = f"{text!r} has no port; write HOST:PORT"
                raise click.BadParameter(msg)
            return HostPort(host, default_port)
        if not (port.isascii() and port.isdigit() and len(port) < 6 and minimum_port <= int(port) <= MAX_PORT):
            msg = f"{port!r} is not a port from {minimum_port} to {MAX_PORT}"
            raise click.BadParameter(msg)
        return HostPort(host, int(port))

    return convert


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", ""
        return host, rest[1:]
    if text.count(":") > 1:  # an IPv6 address by itself
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def amount(kind: Kind[T]) -> Callable[[str], T]:
    """A number with a unit, or whatever ``kind`` reads."""

    def convert(text: str) -> T:
        try:
            return kind.parse(text, Path.cwd())
        except ValueError as error:
            msg = f"{text!r} {error}; must be {kind.expected}"
            raise click.BadParameter(msg) from error

    return convert


def key_file(text: str) -> SigningKey:
    """A file with an Ed25519 key that ``zrc-relay keygen`` wrote."""
    return read_key(Path(text))


def public_key(text: str) -> bytes:
    """A public key, 32 bytes: 64 hex digits, or a key file, whose public half is taken."""
    if len(text) == 64 and _HEX.fullmatch(text):
        return bytes.fromhex(text)
    return bytes(read_key(Path(text)).verify_key)


def token_text(text: str) -> RelayToken:
    """A token in its text form, or ``@FILE`` for a file that holds it; ``-`` reads standard input."""
    if text == "-":
        text = sys.stdin.buffer.read(MAX_TOKEN_FILE).decode("ascii", errors="replace")
    elif text.startswith("@"):
        text = _read_token(Path(text[1:]))
    try:
        return RelayToken.from_text(text)
    except TokenError as error:
        msg = f"not a token: {error}"
        raise click.BadParameter(msg) from error


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN_FILE).decode("ascii", errors="replace")
    except OSError as error:
        msg = f"cannot read the token in {path}: {error.strerror or error}"
        raise BadInput(msg) from error


RELAY_ADDRESS: Final = host_port(default_port=DEFAULT_PORT)
"""``HOST[:PORT]`` of a relay."""


def timeout_option(command: Command) -> Command:
    """Adds ``--timeout``, in seconds."""
    return click.option(
        "--timeout", metavar="DURATION", type=amount(Duration("100ms", "10min")), default=f"{CONNECT_TIMEOUT:g}s",
        show_default=True, help="How long to wait for an answer.",
    )(command)


def trust_options(command: Command) -> Command:
    """Adds the options that ``make_trust`` takes."""
    options = (
        click.option(
            "--fingerprint", metavar="HEX", type=hex_bytes(32),
            help="SHA-256 of the relay's certificate: accept exactly that one, self-signed or not.",
        ),
        click.option(
            "--ca-file", metavar="FILE", type=Path,
            help="PEM file with the certificate authorities to trust, in place of the system's.",
        ),
        click.option("--server-name", metavar="NAME", help="Name that the relay's certificate must have, in place of HOST."),
        click.option(
            "--insecure", is_flag=True,
            help="Accept any certificate. Whoever can redirect packets can then be the relay.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def make_trust(*, fingerprint: bytes | None, ca_file: Path | None, server_name: str | None, insecure: bool) -> Trust:
    """What the options of ``trust_options`` mean; options that contradict each other are ``BadInput``."""
    given = [
        name for name, is_given in (("--fingerprint", fingerprint), ("--ca-file", ca_file), ("--insecure", insecure)) if is_given
    ]
    if len(given) > 1:
        msg = f"{' and '.join(given)} exclude each other"
        raise BadInput(msg)
    if ca_file is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca_file)
        except OSError as error:  # SSLError is one
            msg = f"cannot use the certificate authorities in {ca_file}: {error.strerror or error}"
            raise BadInput(msg) from error
    return Trust(fingerprint=fingerprint, ca_file=ca_file, server_name=server_name, insecure=insecure)
