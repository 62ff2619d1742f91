"""Whom a client believes to be its relay (PROTOCOL §1)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration

from zrc_relay.quic.connection import ALPN, MAX_DATAGRAM_FRAME
from zrc_relay.quic.stateless import SUPPORTED_VERSIONS

IDLE_TIMEOUT = 30.0
"""Seconds of silence after which a client gives a connection up; the relay's own timeout holds too, if it is shorter."""
UDP_PAYLOAD = 1232
"""UDP payload in bytes that every path is taken to carry."""
MAX_UDP_PAYLOAD = 1452
"""UDP payload in bytes up to which the path is probed (RFC 8899): what fits Ethernet over IPv6."""
STREAM_WINDOW = 256 * 1024
MAX_STREAMS = 32


@dataclass(frozen=True, slots=True)
class Trust:
    """How the relay's certificate is checked, on every connection and after every redirect.

    * by default against the system's certificate authorities (or those in ``ca_file``, PEM) and the name;
    * with ``fingerprint`` (SHA-256 of the certificate in DER, 32 bytes) against exactly that certificate, whoever signed it and
      whatever names it holds: the way for self-signed ones;
    * with ``insecure`` not at all. Whoever can redirect packets can then be the relay; payloads are safe only because they are
      end-to-end encrypted.

    ``server_name`` replaces the host name of the address as the name to look for.
    """

    fingerprint: bytes | None = None
    ca_file: Path | None = None
    server_name: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.fingerprint is not None and len(self.fingerprint) != 32:
            msg = f"a fingerprint is 32 bytes of SHA-256, not {len(self.fingerprint)}"
            raise ValueError(msg)

    def configuration(self, host: str) -> QuicConfiguration:
        """QUIC's configuration for a connection to the relay that the user called ``host``."""
        by_authority = self.fingerprint is None and not self.insecure
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[ALPN],
            idle_timeout=IDLE_TIMEOUT,
            max_datagram_frame_size=MAX_DATAGRAM_FRAME,
            max_datagram_size=UDP_PAYLOAD,
            max_stream_data=STREAM_WINDOW,
            max_data=STREAM_WINDOW * (2 * MAX_STREAMS + 1),
            server_name=self.server_name or host,
            verify_mode=ssl.CERT_REQUIRED if by_authority else ssl.CERT_NONE,
            supported_versions=list(SUPPORTED_VERSIONS),
        )
        if self.ca_file is not None:
            configuration.load_verify_locations(cafile=str(self.ca_file))
        return configuration

    def accepts(self, certificate_sha256: bytes) -> bool:
        """Whether the certificate is the pinned one; true where none is pinned (the handshake has checked the others)."""
        return self.fingerprint is None or self.fingerprint == certificate_sha256
