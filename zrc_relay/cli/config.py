"""``zrc-relay check-config``: everything a relay looks at when it starts, without starting one (R8).

It goes through the loading that the relay itself does, so what passes here starts there, and what the relay would say is said
here: all problems at once. Files are looked at when the settings are right, because the settings name them.
"""

from __future__ import annotations

import datetime as dt
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography import x509

from zrc_relay.abuse.setup import SetupError, check_external
from zrc_relay.cli.console import print_fields, when
from zrc_relay.cli.errors import BadInput, complain
from zrc_relay.config import SETTINGS, Config, ConfigError, find_config, load_config
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.core.wire import Address
from zrc_relay.credentials import CredentialsError, load_credentials
from zrc_relay.quic.settings import Credentials
from zrc_relay.service import StartError, admin_tokens, load_device_keys

Command = TypeVar("Command", bound=Callable[..., Any])


def setting_options(command: Command) -> Command:
    """Adds an option for each setting, those that twistd has."""
    for setting in reversed(list(SETTINGS.values())):
        command = click.option(f"--{setting.option}", setting.name, help=f"{setting.help} [{setting.default_note}]")(command)
    return command


@click.command("check-config")
@click.option("--config", "-c", "path", metavar="FILE", help="TOML file with settings [default: what ZRC_RELAY_CONFIG names].")
@setting_options
def check_config(path: str | None, **settings: str | None) -> None:
    """Check a relay's configuration without starting it.

    Settings are found as the relay finds them: in the TOML file, in ZRC_RELAY_* variables and on this command line; certificate,
    private key, device keys and admin tokens are read. Says what was found, or everything that is wrong, with exit status 2.
    """
    try:
        config = load_config(path=find_config(os.environ, path), environ=os.environ, options=settings)
    except ConfigError as error:
        raise BadInput(str(error)) from error
    problems: list[str] = []
    credentials = _try(problems, _credentials, config)
    keys = _try(problems, load_device_keys, config)
    warnings = _try(problems, check_external, config)
    tokens = _try(problems, admin_tokens, config)
    if credentials is None or keys is None or warnings is None or tokens is None:
        raise BadInput("\n".join(problems))
    certificate = credentials.configuration.certificate
    for warning in [*_warnings(config, certificate), *warnings]:
        complain(f"warning: {warning}")
    click.echo("OK")
    print_fields(_summary(config, certificate, credentials.certificate_sha256, keys))


T = TypeVar("T")


def _try(problems: list[str], load: Callable[[Config], T], config: Config) -> T | None:
    try:
        return load(config)
    except (CredentialsError, SetupError, StartError) as error:
        problems.extend(str(error).splitlines())
        return None


def _credentials(config: Config) -> Credentials:
    return load_credentials(
        config.quic_cert_path,
        config.quic_key_path,
        idle_timeout=config.quic_idle_timeout,
        udp_payload=config.base_udp_payload,
        stream_window=config.stream_window,
        max_streams=config.max_streams,
    )


def _warnings(config: Config, certificate: x509.Certificate) -> Iterator[str]:
    now = dt.datetime.now(dt.UTC)
    if certificate.not_valid_after_utc <= now:
        yield f"the certificate in {config.quic_cert_path} has expired; only clients that pin its fingerprint accept it"
    if certificate.not_valid_before_utc > now:
        yield f"the certificate in {config.quic_cert_path} is not valid yet"
    mode = stat.S_IMODE(Path(config.quic_key_path).stat().st_mode)
    if mode & 0o007:
        yield f"everyone on this host has access to the private key {config.quic_key_path} (mode {mode:04o})"
    if config.relay_port is not None and config.worker_count() > 1:
        yield (
            f"relay_port does not apply to the workers' own ports, {_worker_ports(config)}: "
            "clients must be able to reach those under the same numbers"
        )


def _summary(config: Config, certificate: x509.Certificate, fingerprint: bytes, keys: DeviceKeys) -> dict[str, str]:
    return {
        "relay id": config.relay_id.hex(),
        "listens on": _ports(config),
        "certificate": ", ".join(certificate_names(certificate)) or "no name",
        "valid until": when(certificate.not_valid_after_utc.timestamp()),
        "fingerprint": fingerprint.hex(),
        "devices": str(len(keys)),
    }


def _ports(config: Config) -> str:
    shared = ", ".join(f"UDP {Address.of(address, config.listen_port)}" for address in config.listen_addr)
    count = config.worker_count()
    return shared if count == 1 else f"{shared} with {count} workers, each alone on {_worker_ports(config)}"


def _worker_ports(config: Config) -> str:
    """The ports that lead to one of several workers each."""
    if config.listen_port == 0 and config.worker_port_base is None:
        return "the ports behind that"
    first = config.first_worker_port(config.listen_port)
    return f"{first} to {first + config.worker_count() - 1}"


def certificate_names(certificate: x509.Certificate) -> list[str]:
    """The host names and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):  # none, or one that is broken
        return []
    return [str(name.value) for name in names if isinstance(name, (x509.DNSName, x509.IPAddress))]
