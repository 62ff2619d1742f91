"""What the relay is made of besides code: the settings, and the files that they name, read and checked (R8).

``Inputs`` is everything that a relay can be given anew while it runs. It is read whole before anything of it is used, at the
start as well as on a reload; this module also says which part of the settings goes to which part of the relay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from zrc_relay.config import Config, TrustModel
from zrc_relay.core.admission import AdmissionSettings
from zrc_relay.core.codes import Role
from zrc_relay.core.keys import DeviceKeys, KeyFileError, parse_device_keys
from zrc_relay.core.relay import Policy
from zrc_relay.core.wire import NO_ADDRESS, Address
from zrc_relay.credentials import CredentialsError, load_credentials
from zrc_relay.engine import EngineSettings, StartError
from zrc_relay.logs.observer import LogSettings
from zrc_relay.quic.endpoint import MAX_HANDSHAKES
from zrc_relay.quic.settings import Credentials, EndpointSettings

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Settings, and the contents of the files that they name."""

    config: Config
    credentials: Credentials
    device_keys: DeviceKeys


def read_inputs(load: Callable[[], Config]) -> Inputs:
    """Everything, read anew.

    ``ConfigError`` of ``load`` comes first, because without settings there are no files. After that everything that is wrong with
    any of the files is one ``StartError``, a line for each thing.
    """
    config = load()
    problems: list[str] = []
    credentials, keys = _try(problems, credentials_of, config), _try(problems, load_device_keys, config)
    if credentials is None or keys is None:
        raise StartError("\n".join(problems))
    return Inputs(config, credentials, keys)


def _try(problems: list[str], read: Callable[[Config], Read], config: Config) -> Read | None:
    try:
        return read(config)
    except (CredentialsError, StartError) as error:
        problems += str(error).splitlines()
        return None


def credentials_of(config: Config) -> Credentials:
    """The relay's certificate and key, with what connections are to agree on; ``CredentialsError`` when they cannot be used."""
    return load_credentials(
        config.quic_cert_path,
        config.quic_key_path,
        idle_timeout=config.quic_idle_timeout,
        udp_payload=config.base_udp_payload,
        stream_window=config.stream_window,
        max_streams=config.max_streams,
    )


def load_device_keys(config: Config) -> DeviceKeys:
    """The devices of ``device_keys_path``, if there is one; ``StartError`` with every problem on its own line."""
    path = config.device_keys_path
    if path is None:
        return DeviceKeys()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the device keys {path}: {getattr(error, 'strerror', None) or error}"
        raise StartError(msg) from error
    try:
        return parse_device_keys(text, tiers=config.tiers)
    except KeyFileError as error:
        raise StartError("\n".join(f"{path}: {problem}" for problem in error.problems)) from error


def engine_settings_of(config: Config, instance_id: bytes) -> EngineSettings:
    """The part of ``config`` that decides about forwarding."""
    return EngineSettings(policy_of(config, instance_id), admission_of(config), endpoint_settings_of(config), config.qlog_dir)


def endpoint_settings_of(config: Config) -> EndpointSettings:
    """The part of ``config`` that decides about connections."""
    return EndpointSettings(
        handshake_timeout=config.handshake_timeout,
        egress_queue_bytes=config.egress_queue_bytes,
        egress_queue_age=config.egress_queue_age,
        max_streams=config.max_streams,
        max_pending_streams=config.max_pending_streams,
        max_udp_payload=config.max_udp_payload,
        fast_path=config.fast_path,
        gather_time=config.gather_time,
        max_connections=2 * config.max_allocations * config.max_connections_per_side + MAX_HANDSHAKES,
    )


def log_settings_of(config: Config) -> LogSettings:
    """The part of ``config`` that decides about the log."""
    return LogSettings(config.log_level, config.log_levels, config.log_format)


def admission_of(config: Config) -> AdmissionSettings:
    """The part of ``config`` that decides about sources."""
    return AdmissionSettings(
        connection_rate=config.connection_rate,
        allocation_rate=config.allocation_rate,
        rejoin_rate=config.rejoin_rate,
        stun_rate=config.stun_rate,
        handshake_pressure=config.handshake_pressure,
        amplification_block=config.amplification_block,
    )


def policy_of(config: Config, instance_id: bytes) -> Policy:
    """The part of ``config`` that decides about allocations."""
    proving = {Role.DEVICE: config.require_proof.of_devices, Role.PEER: config.require_proof.of_peers}
    relay_addr = NO_ADDRESS
    if config.relay_addr is not None or config.relay_port is not None:
        relay_addr = Address(config.relay_addr or "", config.relay_port or 0)
    return Policy(
        relay_id=config.relay_id,
        instance_id=instance_id,
        default_tier=config.default_tier(),
        tiers=config.tiers,
        proving_roles=frozenset(role for role, must in proving.items() if must),
        relay_addr=relay_addr,
        max_allocations=config.max_allocations,
        max_connections_per_side=config.max_connections_per_side,
        max_token_lifetime=config.max_token_lifetime,
        allocation_timeout=config.allocation_timeout,
        wait_timeout=config.wait_timeout,
        idle_timeout=config.idle_timeout,
        keepalive_interval=config.keepalive_interval,
        global_bandwidth_limit=config.global_bandwidth_limit,
        bandwidth_burst=config.bandwidth_burst,
        revoke_ends_sessions=config.revoke_ends_sessions,
        channels=config.channels,
        self_certified_tier=config.self_certified_tier if config.trust is TrustModel.SELF_CERTIFIED else None,
    )
