"""Oversize datagrams: records on a stream of type 0x01 (PROTOCOL §6).

A record is ``length varint, payload``; the stream begins with the type and then holds records one after the other. The decoder
takes bytes cut anywhere and keeps at most one unfinished record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.fields import WireError
from zrc_relay.core.varint import encode_varint, pull_varint

STREAM_FORWARDED: Final = 0x00
"""Stream type of application bytes, mirrored as they are."""
STREAM_OVERSIZE: Final = 0x01
"""Stream type of oversize datagrams."""
MAX_RECORD: Final = 65_535


def encode_record(payload: bytes) -> bytes:
    """One record; ``ValueError`` for more than ``MAX_RECORD`` bytes."""
    if len(payload) > MAX_RECORD:
        msg = f"a datagram is at most {MAX_RECORD} bytes, not {len(payload)}"
        raise ValueError(msg)
    return encode_varint(len(payload)) + payload


class RecordDecoder:
    """Cuts the bytes behind the stream type into payloads: ``push`` what arrives, then take them with ``next``."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that were pushed and are not taken yet."""
        return len(self._buffer)

    def push(self, data: bytes) -> None:
        """Keep ``data`` for ``next``; the caller bounds how much."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole payload, or None; ``WireError`` (PROTOCOL_ERROR) for a length above ``MAX_RECORD``."""
        head = pull_varint(self._buffer, 0)
        if head is None:
            return None
        length, start = head
        if length > MAX_RECORD:
            msg = f"an oversize record of {length} bytes"
            raise WireError(ErrorCode.PROTOCOL_ERROR, msg)
        end = start + length
        if end > len(self._buffer):
            return None
        payload = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return payload

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that ``data`` completes."""
        self.push(data)
        while (payload := self.next()) is not None:
            yield payload
