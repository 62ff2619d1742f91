"""The relay's certificate and private key, loaded and checked (R8).

Whatever is wrong with the files becomes one ``CredentialsError`` with a sentence that names the file: a relay that cannot be
started must say why in one line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import CipherSuite
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from zrc_relay.quic.connection import ALPN, MAX_DATAGRAM_FRAME
from zrc_relay.quic.settings import Credentials
from zrc_relay.quic.stateless import SUPPORTED_VERSIONS

CIPHER_SUITES: Final = (
    CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384, CipherSuite.CHACHA20_POLY1305_SHA256,
)
"""The relay takes the first that a client has. All have AES-128 (RFC 8446 §9.1), and it costs least, in each packet as well."""
_SIGNING_KEYS = (ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey, rsa.RSAPrivateKey)


class CredentialsError(Exception):
    """A certificate or key file cannot be used; the message says which and why."""


def load_credentials(
    certificate_path: Path,
    key_path: Path,
    *,
    idle_timeout: float,
    udp_payload: int,
    stream_window: int,
    max_streams: int,
) -> Credentials:
    """A server's QUIC configuration with the certificate chain and key of these PEM files; ``CredentialsError`` otherwise.

    ``idle_timeout`` is in seconds, ``udp_payload`` and ``stream_window`` in bytes, ``max_streams`` counts streams of one kind.
    The connection's window holds every stream's and a reserve for the control stream, so that stalled streams cannot starve it.
    """
    certificates = _load_certificates(certificate_path)
    key = _load_key(key_path)
    if _public_bytes(key.public_key()) != _public_bytes(certificates[0].public_key()):
        msg = f"{key_path} is not the key of the certificate in {certificate_path}"
        raise CredentialsError(msg)
    return make_credentials(
        certificates, key,
        idle_timeout=idle_timeout, udp_payload=udp_payload, stream_window=stream_window, max_streams=max_streams,
    )


def make_credentials(
    certificates: Sequence[x509.Certificate], key: object, *,
    idle_timeout: float, udp_payload: int, stream_window: int, max_streams: int,
) -> Credentials:
    """The same for a certificate chain, the relay's own first, and its private key."""
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=[ALPN],
        certificate=certificates[0],
        certificate_chain=list(certificates[1:]),
        cipher_suites=list(CIPHER_SUITES),
        private_key=key,
        idle_timeout=idle_timeout,
        max_datagram_frame_size=MAX_DATAGRAM_FRAME,
        max_datagram_size=udp_payload,
        max_stream_data=stream_window,
        max_data=connection_window(stream_window, max_streams),
        supported_versions=list(SUPPORTED_VERSIONS),
    )
    return Credentials(configuration, hashlib.sha256(certificates[0].public_bytes(Encoding.DER)).digest())


def connection_window(stream_window: int, max_streams: int) -> int:
    """Connection flow control that never runs out before the streams' own: both kinds of stream, and one for control."""
    return stream_window * (2 * max_streams + 1)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"cannot read the {what} {path}: {error.strerror or error}"
        raise CredentialsError(msg) from error


def _load_certificates(path: Path) -> list[x509.Certificate]:
    data = _read(path, "certificate")
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        msg = f"{path} holds no PEM certificate: {error}"
        raise CredentialsError(msg) from error
    return certificates


def _load_key(
    path: Path,
) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey:
    data = _read(path, "private key")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        msg = f"{path} holds no unencrypted PEM private key: {error}"
        raise CredentialsError(msg) from error
    if not isinstance(key, _SIGNING_KEYS):
        msg = f"{path} holds a {type(key).__name__}; TLS 1.3 needs an EC, Ed25519, Ed448 or RSA key"
        raise CredentialsError(msg)
    return key


def _public_bytes(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]
