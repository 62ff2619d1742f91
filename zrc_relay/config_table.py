"""The table of settings, and everything derived from it but loading (R8).

Theory of operation
-------------------
``Config`` is the table. Each field carries in its metadata a ``Setting``: the kind of value (how it is read, written, bounded),
the default as a person would write it, and a sentence of help. TOML keys, ``ZRC_RELAY_*`` variables, twistd options, validation,
the reference page and the example file are all derived from it, so a new setting is one new field and nothing else.

The bounds keep out what cannot work or can only be a slip of the pen; they are wider than what is wise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, unique
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from zrc_relay.config_endpoints import ListenOn, StreamEndpoint
from zrc_relay.config_external import HttpUrl, Secret
from zrc_relay.config_units import AUTO, ByteRate, Duration, EventRate, Integer, OrAuto, Size
from zrc_relay.config_values import (
    MAX_PORT,
    Boolean,
    Choice,
    FilePath,
    HexId,
    IPAddress,
    IPAddressList,
    Kind,
    NetworkList,
    OrNone,
    TierName,
)
from zrc_relay.core.cidr import Network
from zrc_relay.core.routing import MAX_WORKERS
from zrc_relay.core.sources import Rate
from zrc_relay.core.tiers import BUILT_IN_TIERS, DEFAULT_MAX_ALLOCATIONS, Tier
from zrc_relay.logs.levels import LogFormat, LogLevel

ENVIRONMENT_PREFIX: Final = "ZRC_RELAY_"
CONFIG_VARIABLE: Final = "ZRC_RELAY_CONFIG"
"""Names the TOML file; not a setting itself."""
CTL_ENDPOINT_VARIABLE: Final = "ZRC_RELAY_CTL_ENDPOINT"
CTL_TOKEN_VARIABLE: Final = "ZRC_RELAY_CTL_TOKEN"  # noqa: S105 - the name of the variable
COMPILE_VARIABLE: Final = "ZRC_RELAY_COMPILE"
OTHER_VARIABLES: Final = frozenset((CTL_ENDPOINT_VARIABLE, CTL_TOKEN_VARIABLE, COMPILE_VARIABLE))
"""Read by ``zrc-relay ctl`` and when the package is built. Both may share their environment with a relay; it passes them over."""
TIERS_TABLE: Final = "tiers"
LOG_LEVELS_TABLE: Final = "log_levels"


@unique
class RequireProof(Enum):
    """Who must prove possession of the key that a token names (R6.8)."""

    ALWAYS = "always"
    NEVER = "never"
    DEVICES = "devices"
    PEERS = "peers"

    @property
    def of_devices(self) -> bool:
        """Whether devices must."""
        return self in (RequireProof.ALWAYS, RequireProof.DEVICES)

    @property
    def of_peers(self) -> bool:
        """Whether peers must."""
        return self in (RequireProof.ALWAYS, RequireProof.PEERS)


@unique
class TrustModel(Enum):
    """Which devices may sign tokens (R8)."""

    PINNED = "pinned"
    SELF_CERTIFIED = "self-certified"


@unique
class Section(Enum):
    """What belongs together on the reference page, in its order."""

    LISTENING = "Listening and identity"
    TOKENS = "Who may use the relay"
    ADMISSION = "How often, and from where"
    LIFETIME = "Lifetime of allocations and connections"
    LIMITS = "Limits"
    FORWARDING = "Forwarding"
    WORKERS = "Several cores"
    OPERATION = "Operation"
    EXTERNAL = "Security events and external abuse systems"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. ``default`` is text for ``kind.parse``, or None when the setting is required."""

    name: str
    kind: Kind[Any]
    default: str | None
    section: Section
    help: str
    unless: tuple[str, Any] | None = None
    """A required setting is not missed when another one, named here, has this value."""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def option(self) -> str:
        """Its command line option, without the dashes in front."""
        return self.name.replace("_", "-")

    @property
    def default_note(self) -> str:
        """What help and reference say about its default."""
        if self.default is not None:
            return f"default: {self.default}"
        if self.unless is None:
            return "required"
        other, value = self.unless
        return f"required unless {other} is {SETTINGS[other].kind.format(value)}"

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is None


@dataclass(frozen=True, slots=True)
class SecretVariable:
    """A secret that a variable may hold instead of a file; neither the command line nor the TOML file takes it."""

    name: str
    path_setting: str
    """The setting that names the file."""
    minimum: int
    """Shortest one that will do, in characters."""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()


NOWHERE: Final = Path()
"""Where relative paths start when there are none: no default and no table is a path."""


def _row(kind: Kind[Any], section: Section, help_: str, *, default: str | None = None) -> Mapping[str, Any]:
    return {"kind": kind, "default": default, "section": section, "help": help_}


def _default(text: str, kind: Kind[Any], section: Section, help_: str) -> Any:
    """A field with the default that ``text`` means."""
    return field(default=kind.parse(text, NOWHERE), metadata=_row(kind, section, help_, default=text))


def _required(
    kind: Kind[Any], section: Section, help_: str, *, unless: tuple[str, Any] | None = None
) -> Mapping[str, Any]:
    """Metadata of a field without a default. The field itself is left to ``dataclasses.field``, which type checkers know."""
    return {**_row(kind, section, help_), "unless": unless}


def _secret(path_setting: str, minimum: int) -> Mapping[str, Any]:
    """Metadata of a field for the secret that the file of ``path_setting`` would hold."""
    return {"path_setting": path_setting, "minimum": minimum}


NO_LOG_LEVELS: Final[Mapping[str, LogLevel]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, parsed. Durations are seconds, sizes bytes, bandwidths bytes per second, paths absolute; None: none.

    ``load_config`` is the way to get one from what people wrote; a test may build one directly, and then nothing is checked.
    """

    listen_addr: tuple[str, ...] = _default(
        "0.0.0.0, ::", IPAddressList(), Section.LISTENING, "Addresses to listen on, one or a list.")
    listen_port: int = _default(
        "4433", Integer(0, MAX_PORT), Section.LISTENING, "UDP port to listen on; 0 takes any free one.")
    relay_addr: str | None = _default(
        "none", OrNone(IPAddress()), Section.LISTENING,
        "Address announced to clients, for a relay behind address translation; none announces the one they reached.")
    relay_port: int | None = _default(
        "none", OrNone(Integer(1, MAX_PORT)), Section.LISTENING,
        "Port announced to clients; none announces the one they reached.")
    quic_cert_path: Path = field(metadata=_required(
        FilePath(), Section.LISTENING, "PEM file with the relay's certificate, and the chain behind it."))
    quic_key_path: Path = field(metadata=_required(
        FilePath(), Section.LISTENING, "PEM file with the certificate's private key; nobody else may be able to read it."))
    relay_id: bytes = field(metadata=_required(
        HexId(16), Section.LISTENING, "Who this relay is to tokens; all instances of a cluster share it."))

    trust: TrustModel = _default(
        "pinned", Choice(TrustModel), Section.TOKENS,
        "Which devices may sign tokens: those whose keys are pinned, or also any that proves possession of the key whose hash "
        "its id is.")
    self_certified_tier: str = _default(
        "free", TierName(), Section.TOKENS, "Tier of the devices that are not pinned, where trust is self-certified.")
    device_keys_path: Path | None = field(default=None, metadata=_required(
        FilePath(), Section.TOKENS, "TOML file with a [[device]] table for each device that may sign tokens.",
        unless=("trust", TrustModel.SELF_CERTIFIED)))
    require_proof: RequireProof = _default(
        "always", Choice(RequireProof), Section.TOKENS,
        "Who must prove possession of the key that the token names; a token alone is enough for the others.")
    max_token_lifetime: float = _default(
        "24h", Duration("1s", "3650d"), Section.TOKENS, "How far in the future a token may expire.")
    revoke_ends_sessions: bool = _default(
        "true", Boolean(), Section.TOKENS, "Whether taking a device's key away ends the allocations it has.")

    connection_rate: Rate | None = _default(
        "30/min", OrNone(EventRate()), Section.ADMISSION,
        "Connections that one source may make, and as many at once. A source is an IPv4 address or an IPv6 /64; only those count "
        "that have shown that they are there.")
    allocation_rate: Rate | None = _default(
        "10/min", OrNone(EventRate()), Section.ADMISSION,
        "Allocations that one source may make; requests that are refused count, too.")
    rejoin_rate: Rate | None = _default(
        "100/min", OrNone(EventRate()), Section.ADMISSION,
        "How often one source may join allocations that are there, or ask for ones whose device has yet to come.")
    stun_rate: Rate | None = _default(
        "60/min", OrNone(EventRate()), Section.ADMISSION, "STUN requests of one source that are answered.")
    allow: tuple[Network, ...] = _default(
        "none", NetworkList(), Section.ADMISSION,
        "Networks that are served. When there are any, nobody else is; of all lists the most specific network decides.")
    block: tuple[Network, ...] = _default(
        "none", NetworkList(), Section.ADMISSION, "Networks that are not served; of all lists the most specific network decides.")
    handshake_pressure: int = _default(
        "64", Integer(0, 1000, "handshakes"), Section.ADMISSION,
        "Open handshakes from which on every client has to show that its address is real, which costs it a round trip; 0 asks "
        "always.")
    amplification_block: float = _default(
        "10min", Duration("1s", "1d"), Section.ADMISSION,
        "How long a source has to show that its address is real after it left several handshakes unfinished, as happens to whom "
        "somebody else's packets are made to name as their source.")

    allocation_timeout: float = _default(
        "8h", Duration("1s", "3650d"), Section.LIFETIME,
        "An allocation ends this long after its last token was accepted, unless that token expires earlier.")
    wait_timeout: float = _default(
        "60s", Duration("1s", "1d"), Section.LIFETIME, "How long an allocation waits for a side that was never there.")
    idle_timeout: float = _default(
        "30s", Duration("1s", "18h"), Section.LIFETIME, "How long an allocation waits for a side that left.")
    quic_idle_timeout: float = _default(
        "30s", Duration("1s", "1h"), Section.LIFETIME, "A connection that was silent for this long is gone.")
    handshake_timeout: float = _default(
        "5s", Duration("100ms", "60s"), Section.LIFETIME, "How long a handshake may take.")
    keepalive_interval: float = _default(
        "15s", Duration("1s", "30min"), Section.LIFETIME,
        "How often an idle connection is kept alive; must be shorter than quic_idle_timeout.")

    max_allocations: int = _default(
        "1000", Integer(1, 1_000_000), Section.LIMITS, "Allocations at a time, all devices together.")
    max_connections_per_side: int = _default(
        "4", Integer(1, 64), Section.LIMITS, "Connections that each side of an allocation may have at a time.")
    default_bandwidth_limit: int | None = _default(
        "10 Mbit/s", OrNone(ByteRate("8 kbit/s", "1 Tbit/s")), Section.LIMITS,
        "Bandwidth of an allocation, both directions together, whose device has no tier; none for no cap.")
    default_quota: int | None = _default(
        "1 GB", OrNone(Size("1 kB", "1 EB")), Section.LIMITS,
        "Bytes that an allocation may carry, both directions together, when its device has no tier; none for no cap.")
    global_bandwidth_limit: int | None = _default(
        "none", OrNone(ByteRate("8 kbit/s", "100 Tbit/s")), Section.LIMITS,
        "Bandwidth of all allocations together; none for no cap.")
    bandwidth_burst: float = _default(
        "100ms", Duration("1ms", "10s"), Section.LIMITS,
        "The time whose bandwidth an allocation may use at once; never less than one datagram of 65,535 bytes.")

    stream_window: int = _default(
        "256 KiB", Size("16 KiB", "16 MiB"), Section.FORWARDING,
        "Flow control window of a forwarded stream: what a reader that stalls can cost.")
    max_streams: int = _default(
        "32", Integer(2, 1024), Section.FORWARDING,
        "Streams of each kind, one-way and two-way, that a client may have open at a time; the control stream is one of them.")
    max_pending_streams: int = _default(
        "64", Integer(0, 1024), Section.FORWARDING,
        "Streams of one connection that may wait because the counterpart takes no more; further ones are reset.")
    egress_queue_bytes: int = _default(
        "256 KiB", Size("64 KiB", "64 MiB"), Section.FORWARDING,
        "Datagrams that may wait for one connection, in bytes; the oldest goes first.")
    egress_queue_age: float = _default(
        "100ms", Duration("1ms", "10s"), Section.FORWARDING,
        "How long a datagram may wait for one connection; older ones are dropped.")
    base_udp_payload: int = _default(
        "1232", Integer(1200, 1452, "bytes"), Section.FORWARDING, "UDP payload that every path is taken to carry.")
    max_udp_payload: int = _default(
        "1452", Integer(1200, 8952, "bytes"), Section.FORWARDING,
        "Largest UDP payload that is tried on a path; at least base_udp_payload.")

    channels: bool = _default(
        "true", Boolean(), Section.FORWARDING,
        "Whether clients may open channels: UDP packets, encrypted end to end, that are passed on as they are, beside QUIC.")
    fast_path: bool = _default(
        "true", Boolean(), Section.FORWARDING,
        "Whether packets that hold only datagrams and acknowledgements take the short way; false is for finding faults.")
    gather_time: float = _default(
        "0.85ms", Duration("0s", "2ms"), Section.FORWARDING,
        "How far apart batches of packets are read at most, where packets come densely: as long as it takes for 20 to gather, "
        "and not at all where fewer than 7 would. More saves processor time and costs latency; 0 reads at once.")

    workers: int = _default(
        "1", OrAuto(Integer(1, MAX_WORKERS)), Section.WORKERS,
        "Processes that forward, each of which can use one core; auto takes as many as this process may use. With more than one "
        "there is another process in front of them, which forwards nothing.")
    worker_port_base: int | None = _default(
        "none", OrNone(Integer(1, MAX_PORT)), Section.WORKERS,
        "UDP port that leads to the first of several workers only; those of the others follow. Clients that came to a wrong one "
        "are sent there, so they must be able to reach these ports, under the same numbers. None is the port behind listen_port.")
    worker_stall: float = _default(
        "5s", Duration("500ms", "10min"), Section.WORKERS,
        "A worker that does nothing for this long is replaced.")
    worker_affinity: bool = _default(
        "false", Boolean(), Section.WORKERS, "Whether each worker is bound to a CPU of its own, as far as there are enough.")

    drain_timeout: float = _default(
        "30s", Duration("0s", "1h"), Section.OPERATION, "How long a relay that is stopping waits for its clients to leave.")
    state_dir: Path | None = _default(
        "none", OrNone(FilePath()), Section.OPERATION, "Directory for what should outlive a restart; none keeps nothing.")
    observe_endpoint: StreamEndpoint | None = _default(
        "tcp:9433:interface=127.0.0.1", OrNone(ListenOn()), Section.OPERATION,
        "Where /health, /ready and /metrics are served over HTTP; off serves them nowhere.")
    admin_endpoint: StreamEndpoint | None = _default(
        "none", OrNone(ListenOn(is_private=True)), Section.OPERATION,
        "Where the relay is administered over HTTP; off, the default, nowhere.")
    admin_tokens_path: Path | None = _default(
        "none", OrNone(FilePath()), Section.OPERATION,
        "TOML file with a [[token]] table for each bearer token of the admin endpoint; nobody but its owner may write it.")
    admin_unix_trust: bool = _default(
        "false", Boolean(), Section.OPERATION,
        "Whether root and the relay's own user need no token on an admin endpoint that is a UNIX socket.")
    audit_log: Path | None = _default(
        "none", OrNone(FilePath()), Section.OPERATION,
        "File for who did what by the admin endpoint or by signals, one JSON object on each line; none writes that with the log.")

    log_format: LogFormat = _default(
        "auto", Choice(LogFormat), Section.OPERATION,
        "What the program's log looks like: text, or a JSON object on each line; auto is text on a terminal and else JSON.")
    log_level: LogLevel = _default(
        "info", Choice(LogLevel), Section.OPERATION,
        "The least important lines that are logged; a [log_levels] table says otherwise for parts of the program.")
    qlog_dir: Path | None = _default(
        "none", OrNone(FilePath()), Section.OPERATION,
        "Directory for recordings of single connections in qlog format, which administrators ask for; none allows none.")

    security_log: Path | None = _default(
        "none", OrNone(FilePath()), Section.EXTERNAL,
        "File for the security events, one JSON object on each line; none writes them with the log.")
    webhook_url: str | None = _default(
        "none", OrNone(HttpUrl(with_query=True)), Section.EXTERNAL,
        "Where security events are posted, in batches; the answer may name sources to block.")
    webhook_secret_path: Path | None = _default(
        "none", OrNone(FilePath()), Section.EXTERNAL,
        "File with the secret that signs what is posted, 16 characters or more; ZRC_RELAY_WEBHOOK_SECRET may hold it instead.")
    webhook_ca_path: Path | None = _default(
        "none", OrNone(FilePath()), Section.EXTERNAL,
        "PEM file with the certificates that the webhook's may be signed by; none trusts those of the host.")
    bouncer_url: str | None = _default(
        "none", OrNone(HttpUrl()), Section.EXTERNAL,
        "Local API of a CrowdSec-style engine whose decisions are followed; /v1/decisions/stream is appended.")
    bouncer_key_path: Path | None = _default(
        "none", OrNone(FilePath()), Section.EXTERNAL,
        "File with the API key for it; ZRC_RELAY_BOUNCER_KEY may hold the key instead.")
    bouncer_ca_path: Path | None = _default(
        "none", OrNone(FilePath()), Section.EXTERNAL,
        "PEM file with the certificates that the engine's may be signed by; none trusts those of the host.")
    bouncer_interval: float = _default(
        "10s", Duration("1s", "1h"), Section.EXTERNAL, "How often the engine is asked for new decisions.")
    webhook_secret: Secret | None = field(default=None, metadata=_secret("webhook_secret_path", 16))
    bouncer_key: Secret | None = field(default=None, metadata=_secret("bouncer_key_path", 1))

    tiers: Mapping[str, Tier] = field(default_factory=lambda: BUILT_IN_TIERS, hash=False)
    """The tiers by name: built in, changed or added by ``[tiers.<name>]`` tables."""

    log_levels: Mapping[str, LogLevel] = field(default_factory=lambda: NO_LOG_LEVELS, hash=False)
    """Levels by namespace: a module of the program or what is in it."""

    def default_tier(self) -> Tier:
        """What a device without a tier may have."""
        return Tier("", self.default_bandwidth_limit, self.default_quota, DEFAULT_MAX_ALLOCATIONS)

    def worker_count(self) -> int:
        """How many workers there are to be, 1 to ``MAX_WORKERS``; for "auto" as many as this process may use CPUs."""
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if self.workers == AUTO else self.workers

    def first_worker_port(self, listen_port: int) -> int:
        """Port that leads to worker 0 only, where all of them share ``listen_port`` (not 0)."""
        return listen_port + 1 if self.worker_port_base is None else self.worker_port_base


SETTINGS: Final[Mapping[str, Setting]] = MappingProxyType({
    item.name: Setting(item.name, **item.metadata) for item in fields(Config) if "kind" in item.metadata
})
"""The table, by name, in the order of the fields."""

SECRETS: Final[Mapping[str, SecretVariable]] = MappingProxyType({
    item.name: SecretVariable(item.name, **item.metadata) for item in fields(Config) if "path_setting" in item.metadata
})
"""What may come from the environment and is no setting, by name."""

TIER_KEYS: Final[Mapping[str, tuple[str, Kind[int | None], str]]] = MappingProxyType({
    "bandwidth_limit": (
        "bandwidth_limit", OrNone(ByteRate("8 kbit/s", "1 Tbit/s")), "bandwidth of an allocation, both directions together"),
    "quota": ("quota", OrNone(Size("1 kB", "1 EB")), "bytes that an allocation may carry, both directions together"),
    "allocations": ("max_allocations", OrNone(Integer(1, 1_000_000)), "allocations that one device may have at a time"),
})
"""The keys of a ``[tiers.<name>]`` table: the field of ``Tier`` it fills, its kind, and help."""


def option_parameters() -> list[list[str | None]]:
    """What twistd needs for ``usage.Options.optParameters``: ``--config`` and every setting, all without defaults.

    The defaults stay out so that ``load_config`` sees what was given and what was not.
    """
    return [
        ["config", "c", None, f"TOML file with settings [default: what {CONFIG_VARIABLE} names]"],
        *(
            [setting.option, None, None, f"{setting.help} [{setting.default_note}]"] for setting in SETTINGS.values()
        ),
    ]
