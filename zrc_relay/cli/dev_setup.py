"""``zrc-relay dev-setup``: all the files that a first relay and its first two clients need, in one directory.

The files name each other relatively, so the directory can be moved. The relay's TOML file holds only what differs from the
defaults. Everything that is secret has mode 0600.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import click
from nacl.signing import SigningKey

from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.cli.errors import BadInput, Failure
from zrc_relay.cli.keyfiles import write_key, write_private
from zrc_relay.cli.params import HostPort, amount
from zrc_relay.cli.tokens import make_token
from zrc_relay.client.connect import DEFAULT_PORT
from zrc_relay.config import SETTINGS
from zrc_relay.config_values import MAX_PORT, IPAddress, quote
from zrc_relay.core.token import key_id

TOKEN_LIFETIME: Final = 24 * 3600
"""Seconds: as long as a relay accepts by default (max_token_lifetime)."""
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_MAX_HOST_NAME: Final = 253


@dataclass(frozen=True, slots=True)
class DevSetup:
    """What was made: where, and what clients have to know about the relay."""

    directory: Path
    relay_id: bytes
    fingerprint: bytes
    """SHA-256 of the certificate in DER."""

    @property
    def config(self) -> Path:
        """The relay's TOML file."""
        return self.directory / "relay.toml"

    @property
    def device_key(self) -> Path:
        """The device's key file."""
        return self.directory / "device.key"

    @property
    def peer_key(self) -> Path:
        """The peer's key file."""
        return self.directory / "peer.key"

    @property
    def token(self) -> Path:
        """The token that device and peer share."""
        return self.directory / "token.txt"


def host_name(text: str) -> str:
    """A host name (ASCII) or an IP address."""
    if not _is_address(text) and not (_HOST_NAME.fullmatch(text) and len(text) <= _MAX_HOST_NAME):
        msg = f"{text!r} is neither a host name in ASCII nor an IP address"
        raise click.BadParameter(msg)
    return text


@click.command("dev-setup")
@click.argument("directory", metavar="DIR", type=Path)
@click.option(
    "--listen", metavar="IP", multiple=True, type=amount(IPAddress(allow_unspecified=True)),
    help="Address to listen on; repeatable.  [default: 127.0.0.1]",
)
@click.option(
    "--port", type=click.IntRange(0, MAX_PORT), default=DEFAULT_PORT, show_default=True, help="UDP port; 0 takes any free one.",
)
@click.option(
    "--name", "names", metavar="NAME", multiple=True, type=host_name,
    help="Another host name or address for the certificate; repeatable.",
)
@click.option("--force", is_flag=True, help="Write into DIR although it is not empty; files of the same names are replaced.")
def dev_setup(directory: Path, listen: tuple[str, ...], port: int, names: tuple[str, ...], *, force: bool) -> None:
    """Make everything a first relay needs, in DIR.

    A self-signed certificate (for localhost, 127.0.0.1, ::1, the addresses of --listen, and --name), the relay's configuration
    and its file of device keys, a key for a device and one for its peer, and a token for the two that is valid for a day. Then
    says what to type to start the relay and to carry a UDP port through it.
    """
    addresses = tuple(dict.fromkeys(listen)) or ("127.0.0.1",)
    made = make_dev_setup(directory, listen=addresses, port=port, names=names, force=force)
    click.echo(instructions(made, HostPort(_reached(addresses, names), port)))


def make_dev_setup(
    directory: Path,
    *,
    listen: Sequence[str],
    port: int,
    names: Sequence[str] = (),
    force: bool = False,
    tier: str = "",
    settings: Mapping[str, str] | None = None,
) -> DevSetup:
    """Write the files. ``tier`` is the device's, ``settings`` are further ones for the TOML file, as a person would write them.

    ``BadInput`` for a directory that is not empty, unless ``force``; ``Failure`` when something cannot be written.
    """
    _prepare(directory, force=force)
    specific = [address for address in listen if not ip_address(address).is_unspecified]
    certificate, certificate_key = make_self_signed(list(dict.fromkeys([*names, *LOCAL_NAMES, *specific])))
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).digest()
    device, peer = SigningKey.generate(), SigningKey.generate()
    made = DevSetup(directory, relay_id=os.urandom(16), fingerprint=fingerprint)
    token = make_token(
        device,
        relay_id=made.relay_id,
        peer_id=key_id(bytes(peer.verify_key)),
        expires_at=int(time.time()) + TOKEN_LIFETIME,
    )
    given = {
        "listen_addr": ", ".join(listen),
        "listen_port": str(port),
        "quic_cert_path": "cert.pem",
        "quic_key_path": "key.pem",
        "relay_id": made.relay_id.hex(),
        "device_keys_path": "devices.toml",
        **({} if port else {"observe_endpoint": "tcp:0:interface=127.0.0.1"}),
        **(settings or {}),
    }
    write_private(directory / "key.pem", certificate_key.decode(), replace=force)
    write_key(made.device_key, device, replace=force)
    write_key(made.peer_key, peer, replace=force)
    write_private(made.token, token.to_text() + "\n", replace=force)
    _write(directory / "cert.pem", certificate.decode())
    _write(directory / "devices.toml", _devices_toml(bytes(device.verify_key), tier))
    _write(made.config, _relay_toml(given))
    return made


def instructions(made: DevSetup, relay: HostPort) -> str:
    """What to type next, for a relay that clients reach at ``relay``."""
    fingerprint, token = made.fingerprint.hex(), f"@{made.token}"
    tunnel = [program("zrc-relay"), "tunnel", "--relay", str(relay), "--fingerprint", fingerprint, "--token", token]
    start = [program("twistd"), "-n", "zrc-relay", "--config", str(made.config)]
    device = [*tunnel, "--key", str(made.device_key), "--target", "127.0.0.1:51820"]
    peer = [*tunnel, "--key", str(made.peer_key), "--listen", "51821"]
    unknown_port = "" if relay.port else "\nIt takes any free port and logs which: put that in place of the 0 below.\n"
    return f"""\
Everything is in {made.directory}.

Start the relay:

  {shlex.join(start)}
{unknown_port}
Then carry a UDP port through it. At the device's end, to the program that answers on UDP port 51820 there:

  {shlex.join(device)}

and at the peer's end, whose programs talk to UDP port 51821:

  {shlex.join(peer)}

The token is valid for a day. For another one:

  {shlex.join([
      program("zrc-relay"), "token", "mint", "--key", str(made.device_key), "--relay-id", made.relay_id.hex(),
      "--peer-key", str(made.peer_key), "--expires", "24h",
  ])} > {shlex.quote(str(made.token))}"""


def program(name: str) -> str:
    """How to call a program that was installed with us: by its name where the shell finds that one, else by its path."""
    ours = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not ours.exists() or (found is not None and Path(found).resolve() == ours.resolve()):
        return name
    return str(ours)


def _reached(listen: Sequence[str], names: Sequence[str]) -> str:
    """What the clients of the instructions call the relay: a name that was given, else an address that it listens on."""
    specific = [address for address in listen if not ip_address(address).is_unspecified]
    return [*names, *specific, "127.0.0.1" if "0.0.0.0" in listen else "::1"][0]  # noqa: S104 - looked for, not bound


def _prepare(directory: Path, *, force: bool) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_empty = next(directory.iterdir(), None) is None
    except OSError as error:
        msg = f"cannot use {directory}: {error.strerror or error}"
        raise Failure(msg) from error
    if not is_empty and not force:
        msg = f"{directory} is not empty; --force writes into it all the same and replaces what is in the way"
        raise BadInput(msg)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}"
        raise Failure(msg) from error


def _relay_toml(given: Mapping[str, str]) -> str:
    lines = ["# A relay for trying things out, made by zrc-relay dev-setup. Paths start at this file's directory."]
    for name, text in given.items():
        kind = SETTINGS[name].kind
        # Paths stay as they are; everything else is checked, and written as the reference page says.
        value = quote(text) if name.endswith("_path") else kind.toml(kind.parse(text, Path()))
        lines += ["", f"# {SETTINGS[name].help}", f"{name} = {value}"]
    return "\n".join(lines) + "\n"


def _devices_toml(public_key: bytes, tier: str) -> str:
    lines = ["# Who may sign tokens for this relay.", "", "[[device]]", f"public_key = {quote(public_key.hex())}"]
    if tier:
        lines.append(f"tier = {quote(tier)}")
    return "\n".join([*lines, 'note = "made by zrc-relay dev-setup"']) + "\n"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text
