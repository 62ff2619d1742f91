"""Loading settings from a scratch directory, with a right and a wrong value for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.config import SETTINGS, Config, ConfigError, Problem, load_config

Options = Mapping[str, str | None]
CWD = Path("/somewhere")

REQUIRED = {
    "quic_cert_path": "cert.pem",
    "quic_key_path": "key.pem",
    "relay_id": "00112233445566778899aabbccddeeff",
    "device_keys_path": "devices.toml",
}
"""A value, as text, for each setting that has no default."""

ANOTHER = {
    "listen_addr": "127.0.0.1, ::1", "listen_port": "5000", "relay_addr": "192.0.2.7", "relay_port": "443",
    "quic_cert_path": "/x/c.pem", "quic_key_path": "/x/k.pem", "relay_id": "ff" * 16,
    "device_keys_path": "/x/d.toml", "require_proof": "devices", "max_token_lifetime": "2d",
    "revoke_ends_sessions": "false", "allocation_timeout": "1h", "wait_timeout": "5s", "idle_timeout": "6s",
    "quic_idle_timeout": "40s", "handshake_timeout": "2s", "keepalive_interval": "7s", "max_allocations": "9",
    "max_connections_per_side": "2", "default_bandwidth_limit": "1 MB/s", "default_quota": "2 GB",
    "global_bandwidth_limit": "1 Gbit/s", "bandwidth_burst": "50ms", "stream_window": "64 KiB", "max_streams": "16",
    "max_pending_streams": "3", "egress_queue_bytes": "128 KiB", "egress_queue_age": "20ms", "base_udp_payload": "1250",
    "max_udp_payload": "1300", "channels": "false", "fast_path": "false", "gather_time": "0.2ms",
    "drain_timeout": "1s", "state_dir": "/x/state",
    "admin_endpoint": "unix:/x/admin.sock:mode=660", "admin_tokens_path": "/x/t.toml", "admin_unix_trust": "true",
    "audit_log": "/x/audit.log",
    "observe_endpoint": "unix:/x/observe.sock", "log_format": "text", "log_level": "warn", "qlog_dir": "/x/qlog",
    "security_log": "/x/security.log", "webhook_url": "https://abuse.example/in?tenant=1", "webhook_secret_path": "/x/secret",
    "webhook_ca_path": "/x/ca.pem", "bouncer_url": "http://127.0.0.1:8080", "bouncer_key_path": "/x/key",
    "bouncer_ca_path": "/x/ca.pem", "bouncer_interval": "1min",
    "trust": "self-certified", "self_certified_tier": "paid", "connection_rate": "5/s", "allocation_rate": "off",
    "rejoin_rate": "1000/h", "stun_rate": "2/s", "allow": "192.0.2.0/24, 2001:db8::1", "block": "203.0.113.9",
    "handshake_pressure": "0", "amplification_block": "1min",
    "workers": "auto", "worker_port_base": "6000", "worker_stall": "1min", "worker_affinity": "true",
}
"""For each setting a value that is right and is not its default."""

WRONG = {
    "listen_addr": "everywhere", "listen_port": "65536", "relay_addr": "::", "relay_port": "0", "quic_cert_path": "",
    "quic_key_path": "", "relay_id": "0123", "device_keys_path": "", "require_proof": "sometimes",
    "max_token_lifetime": "0s", "revoke_ends_sessions": "perhaps", "allocation_timeout": "0", "wait_timeout": "-1s",
    "idle_timeout": "20h", "quic_idle_timeout": "none", "handshake_timeout": "61s", "keepalive_interval": "500ms",
    "max_allocations": "0", "max_connections_per_side": "65", "default_bandwidth_limit": "0", "default_quota": "0",
    "global_bandwidth_limit": "10 Mb/s", "bandwidth_burst": "0", "stream_window": "15 KiB", "max_streams": "1",
    "max_pending_streams": "-1", "egress_queue_bytes": "65535", "egress_queue_age": "11s", "base_udp_payload": "1199",
    "max_udp_payload": "9000", "channels": "maybe", "fast_path": "perhaps", "gather_time": "1s",
    "drain_timeout": "soon", "state_dir": "",
    "admin_endpoint": "tcp:9434", "admin_tokens_path": "", "admin_unix_trust": "perhaps", "audit_log": "",
    "observe_endpoint": "tcp:65536", "log_format": "xml", "log_level": "loud", "qlog_dir": "",
    "security_log": "", "webhook_url": "http://abuse.example/", "webhook_secret_path": "", "webhook_ca_path": "",
    "bouncer_url": "https://engine.example/?x=1", "bouncer_key_path": "", "bouncer_ca_path": "", "bouncer_interval": "500ms",
    "trust": "everybody", "self_certified_tier": "Free", "connection_rate": "0/s", "allocation_rate": "10", "rejoin_rate": "-1/s",
    "stun_rate": "1/d", "allow": "192.0.2.1/24", "block": "everyone", "handshake_pressure": "1001", "amplification_block": "0s",
    "workers": "65", "worker_port_base": "0", "worker_stall": "100ms", "worker_affinity": "all",
}
"""For each setting a value just outside what is allowed, or of another kind."""


COMPANIONS: Mapping[str, Mapping[str, str]] = {
    "webhook_url": {"webhook_secret_path": "/x/secret"}, "bouncer_url": {"bouncer_key_path": "/x/key"},
    "admin_endpoint": {"admin_tokens_path": "/x/t.toml"},
}
"""Settings that others need beside them."""


class LoadingTestCase(SynchronousTestCase):
    """Helpers for loading from a scratch directory."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.path = self.directory / "relay.toml"

    def load(
        self, toml: str | bytes | None = None, environ: dict[str, str] | None = None, options: Options | None = None
    ) -> Config:
        """Load from a file with this content, if any, and these variables and options."""
        if toml is not None:
            self.path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        path = None if toml is None else self.path
        return load_config(path=path, environ=environ or {}, options=options or {}, cwd=CWD)

    def problems(
        self, toml: str | bytes | None = None, environ: dict[str, str] | None = None, options: Options | None = None
    ) -> list[Problem]:
        """The problems with these, of which there must be some."""
        error: ConfigError = self.assertRaises(ConfigError, self.load, toml, environ, options)
        return error.problems


def toml_of(values: dict[str, str]) -> str:
    """A TOML file with these settings, as text would give them."""
    return "".join(f"{name} = '{text}'\n" for name, text in values.items())


def variables_of(values: dict[str, str]) -> dict[str, str]:
    """The same as variables."""
    return {SETTINGS[name].variable: text for name, text in values.items()}


def options_of(values: dict[str, str]) -> dict[str, str | None]:
    """The same as options."""
    return {SETTINGS[name].option: text for name, text in values.items()}
