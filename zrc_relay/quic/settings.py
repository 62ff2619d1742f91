"""What connections are made with: each keeps what was in force when it began (R8)."""

from __future__ import annotations

from dataclasses import dataclass

from aioquic.quic.configuration import QuicConfiguration


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Settings of the QUIC side; names as in the configuration, times in seconds, sizes in bytes."""

    handshake_timeout: float = 5.0
    egress_queue_bytes: int = 256 * 1024
    egress_queue_age: float = 0.1
    max_streams: int = 32
    max_pending_streams: int = 64
    max_udp_payload: int = 1452
    fast_path: bool = True
    gather_time: float = 0.0
    max_connections: int = 10_000


@dataclass(frozen=True, slots=True)
class Credentials:
    """The QUIC configuration that holds the certificate, and the SHA-256 of that certificate in DER."""

    configuration: QuicConfiguration
    certificate_sha256: bytes
