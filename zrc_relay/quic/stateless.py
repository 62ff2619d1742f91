"""Packets that are sent without a connection: Version Negotiation, Retry, a close in an Initial packet (RFC 9000 §17.2).

Theory of operation
-------------------
All are answers to one datagram, are made from that datagram alone, and leave nothing behind. None is longer than the shortest
Initial (1200 bytes), let alone three times as long (RFC 9000 §8.1); the endpoint checks that all the same. The connection ids of
an answer are those of what it answers, swapped.

A close is sealed with keys that follow from the client's Destination Connection ID (RFC 9001 §5.2), so anybody on the way can
read it and make one; that is how QUIC is. Making one takes some 30 µs, most of them for the keys, which is why it has a rate.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aioquic._buffer import Buffer, BufferReadError
from aioquic.buffer import encode_uint_var
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicFrameType, QuicProtocolVersion, encode_quic_retry, encode_quic_version_negotiation

V1: Final = int(QuicProtocolVersion.VERSION_1)
V2: Final = int(QuicProtocolVersion.VERSION_2)
SUPPORTED_VERSIONS: Final = (V1, V2)
MAX_CONNECTION_ID: Final = 20
INITIAL_TYPE: Final[Mapping[int, int]] = {V1: 0, V2: 1}
"""What the two bits behind the fixed bit say in an Initial packet."""
_TAG_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class LongHeader:
    """The part of a long header that all versions of QUIC share (RFC 8999 §5.1), and where it ends."""

    first: int
    version: int
    destination: bytes
    source: bytes
    end: int

    @property
    def is_initial(self) -> bool:
        """Whether it is an Initial packet of a version that is spoken here."""
        return self.first >> 4 & 3 == INITIAL_TYPE.get(self.version)


def parse_long_header(data: bytes) -> LongHeader | None:
    """The header of a packet that begins with a long one; None when it is cut off or its connection ids are too long."""
    size = len(data)
    dcid_end = 6 + data[5] if size > 5 else size
    scid_end = dcid_end + 1 + data[dcid_end] if size > dcid_end else size
    if scid_end >= size or data[5] > MAX_CONNECTION_ID or data[dcid_end] > MAX_CONNECTION_ID:
        return None
    version = int.from_bytes(data[1:5], "big")
    return LongHeader(data[0], version, data[6:dcid_end], data[dcid_end + 1 : scid_end], scid_end)


def parse_token(data: bytes, header: LongHeader) -> bytes | None:
    """The token of an Initial packet with that header (RFC 9000 §17.2.2), mostly empty; None when the packet is cut off."""
    buf = Buffer(data=data)
    buf.seek(header.end)
    try:
        return buf.pull_bytes(buf.pull_uint_var())
    except BufferReadError:
        return None


def version_negotiation(header: LongHeader) -> bytes:
    """The versions spoken here, in answer to a packet of another one."""
    packet = bytearray(
        encode_quic_version_negotiation(
            source_cid=header.destination, destination_cid=header.source, supported_versions=list(SUPPORTED_VERSIONS)
        )
    )
    packet[0] |= 0x40  # the fixed bit, which lets multiplexing by first byte work (RFC 9443 §3, RFC 9000 §17.2.1)
    return bytes(packet)


def retry(header: LongHeader, retry_id: bytes, token: bytes) -> bytes:
    """A Retry that answers an Initial, proposes ``retry_id`` and holds ``token``."""
    return encode_quic_retry(header.version, retry_id, header.source, header.destination, token)


def initial_close(header: LongHeader, error_code: int) -> bytes:
    """An Initial packet that closes, with a transport error, the connection that an Initial would have begun."""
    pair = CryptoPair()
    pair.setup_initial(cid=header.destination, is_client=False, version=header.version)
    number = b"\0"
    # Of no frame in particular, and without a reason: 4 bytes at least, which is what header protection needs (RFC 9001 §5.4.2).
    frame = bytes((QuicFrameType.TRANSPORT_CLOSE,)) + encode_uint_var(error_code) + b"\0\0"
    first = 0xC0 | INITIAL_TYPE[header.version] << 4 | len(number) - 1
    plain_header = b"".join((
        struct.pack("!BIB", first, header.version, len(header.source)), header.source,
        bytes((len(header.destination),)), header.destination,
        b"\0", encode_uint_var(len(number) + len(frame) + _TAG_SIZE), number,
    ))
    return pair.encrypt_packet(plain_header, frame, 0)
