"""Which settings a reload puts in force (R8); the others need a restart."""

from __future__ import annotations

from typing import Final

RELOADABLE: Final = frozenset((
    # what decides about allocations: core.relay.Policy
    "relay_addr", "relay_port", "trust", "self_certified_tier", "require_proof", "max_token_lifetime", "revoke_ends_sessions",
    "channels", "allocation_timeout", "wait_timeout", "idle_timeout", "keepalive_interval", "max_allocations",
    "max_connections_per_side", "default_bandwidth_limit", "default_quota", "global_bandwidth_limit", "bandwidth_burst",
    "tiers",
    # what decides about sources: core.admission.AdmissionSettings, core.cidr.AccessLists
    "connection_rate", "allocation_rate", "rejoin_rate", "stun_rate", "handshake_pressure", "amplification_block",
    "allow", "block",
    # files that are read again
    "quic_cert_path", "quic_key_path", "device_keys_path",
    # what new connections get: quic.settings
    "quic_idle_timeout", "handshake_timeout", "stream_window", "max_streams", "max_pending_streams", "egress_queue_bytes",
    "egress_queue_age", "base_udp_payload", "max_udp_payload", "fast_path",
    # what the endpoint does
    "gather_time",
    # operation
    "drain_timeout", "log_format", "log_level", "log_levels", "qlog_dir",
))
"""Fields of ``Config``. The addresses that are listened on, who the relay is, and everything with a file, a port or a system of
its own behind it are not among them."""
