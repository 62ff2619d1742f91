"""The frames that packets on the short way may hold: PADDING, PING, ACK (RFC 9000 §19) and DATAGRAM (RFC 9221 §4)."""

from __future__ import annotations

import re
from typing import Final

from zrc_relay.core.varint import encode_varint
from zrc_relay.quic.recent import ReceivedRanges

MAX_ACK_BLOCKS: Final = 32
"""Ranges behind the first that an ACK frame of ours tells."""
_PADDING: Final = re.compile(rb"\0*")
Acked = tuple[int, list[tuple[int, int]]]
"""The encoded delay of an ACK frame, and its ranges, newest first."""


def ack_frame(received: ReceivedRanges, delay: int) -> bytes:
    """An ACK frame for what was ``received``, at least one packet, with the encoded ``delay``."""
    start, largest = received.start, received.stop - 1
    older = received.newest_earlier(MAX_ACK_BLOCKS)
    if not older:  # nothing is missing
        return b"".join((b"\x02", encode_varint(largest), encode_varint(delay), b"\0", encode_varint(largest - start)))
    parts = [b"\x02", encode_varint(largest), encode_varint(delay), encode_varint(len(older)), encode_varint(largest - start)]
    for block in older:
        parts.append(encode_varint(start - block.stop - 1))
        parts.append(encode_varint(block.stop - block.start - 1))
        start = block.start
    return b"".join(parts)


def parse(plain: bytes, payloads: list[bytes]) -> tuple[bool, Acked | None] | None:
    """Take the frames of a packet apart; nothing is done and nothing kept if there is one that is not known here.

    Appends the payloads of DATAGRAM frames, and returns whether the packet asks for an acknowledgement, and the delay and ranges
    of its ACK frame if it has one. Types: 0x00 PADDING, 0x01 PING, 0x02 ACK (RFC 9000 §19), 0x30 and 0x31 DATAGRAM (RFC 9221 §4).
    """
    before = len(payloads)
    acked: Acked | None = None
    eliciting = False
    position, limit = 0, len(plain)
    while position < limit:
        kind = plain[position]
        position += 1
        if kind == 0x30:
            payloads.append(plain[position:])
            return True, acked
        if kind == 0x31:
            length, position = _varint(plain, position)
            if position + length > limit:
                break
            payloads.append(plain[position : position + length])
            position += length
            eliciting = True
        elif kind == 0x01:
            eliciting = True
        elif kind == 0x02 and acked is None:
            position, acked = _parse_ack(plain, position)
        elif kind:
            break
        else:
            position = padding_end(plain, position)
    if position == limit and limit:
        return eliciting, acked
    del payloads[before:]
    return None


def padding_end(data: bytes, position: int) -> int:
    """Where the zeros end that begin at ``position``, if there are any; each byte is looked at once."""
    found = _PADDING.match(data, position)
    return position if found is None else found.end()


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length integer and what is behind it; behind the end if it is cut off."""
    end = len(data)
    if position >= end:
        return 0, end + 1
    first = data[position]
    if first < 0x40:
        return first, position + 1
    size = 1 << (first >> 6)
    if position + size > end:
        return 0, end + 1
    return int.from_bytes(data[position : position + size], "big") & ((1 << (8 * size - 2)) - 1), position + size


def _parse_ack(data: bytes, position: int) -> tuple[int, Acked | None]:
    """An ACK frame behind its type: where it ends, then the encoded delay and the ranges, newest first.

    One that is cut off, or acknowledges negative packet numbers, ends behind the end of the data.
    """
    largest, position = _varint(data, position)
    delay, position = _varint(data, position)
    blocks, position = _varint(data, position)
    length, position = _varint(data, position)
    start = largest - length
    ranges = [(start, largest + 1)]
    while blocks and position <= len(data):
        gap, position = _varint(data, position)
        length, position = _varint(data, position)
        stop = start - gap - 1
        start = stop - length - 1
        ranges.append((start, stop))
        blocks -= 1
    return (position, (delay, ranges)) if start >= 0 else (len(data) + 1, None)
