"""Variable-length integers (RFC 9000 §16), the one number format of QUIC that the capsules share."""

from __future__ import annotations

MAX_VARINT = (1 << 62) - 1
MAX_VARINT_SIZE = 8


def encode_varint(value: int) -> bytes:
    """The shortest encoding of ``value`` (0 to 2^62 - 1), 1 to 8 bytes; ``ValueError`` outside that range."""
    if value < 0:
        msg = f"a varint cannot be negative: {value}"
        raise ValueError(msg)
    if value < 0x40:
        return bytes((value,))
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    if value <= MAX_VARINT:
        return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")
    msg = f"a varint cannot exceed 2^62 - 1: {value}"
    raise ValueError(msg)


def pull_varint(data: bytes | bytearray, offset: int) -> tuple[int, int] | None:
    """Read the varint at ``offset``.

    Returns ``(value, offset behind it)``, or None when its last byte has not arrived yet. Encodings longer than necessary are
    valid (RFC 9000 §16).
    """
    if offset >= len(data):
        return None
    first = data[offset]
    size = 1 << (first >> 6)
    end = offset + size
    if end > len(data):
        return None
    if size == 1:
        return first, end
    return int.from_bytes(data[offset:end], "big") & ((1 << (8 * size - 2)) - 1), end
