"""STUN Binding: telling a client its own address (PROTOCOL §8, RFC 8489).

Theory of operation
-------------------
``answer`` takes a datagram whose first byte says STUN and gives the response to send, or None when there is none. Nothing is
kept. What is answered:

* a Binding request that is well-formed, with XOR-MAPPED-ADDRESS and no other attribute;
* one that holds attributes which have to be understood and are not, with an error 420 that lists them.

Indications, responses, other methods and what is not well-formed get no answer at all, so that nobody can make two relays talk
to each other. Attributes of RFC 8489 are understood in so far as they ask for nothing here; there is no authentication.

An answer is never longer than three times its request (R6.4): a success has 32 bytes, or 44 for IPv6, where a request has at
least 20; an error has at least 56 where the request has 24, and two bytes more for each attribute that took four more.

The other two functions are the client's side.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Final

from zrc_relay.core.fields import Address

MAX_REQUEST: Final = 1280
"""Longest request looked at, in bytes: no honest one is longer than the smallest IPv6 MTU."""
TRANSACTION_ID_SIZE: Final = 12
_MAGIC: Final = 0x2112A442
_MAGIC_BYTES: Final = _MAGIC.to_bytes(4, "big")
_HEADER: Final = struct.Struct("!HHI12s")
_ATTRIBUTE: Final = struct.Struct("!HH")
_BINDING_REQUEST: Final = 0x0001
_BINDING_SUCCESS: Final = 0x0101
_BINDING_ERROR: Final = 0x0111
_ERROR_CODE: Final = 0x0009
_UNKNOWN_ATTRIBUTES: Final = 0x000A
_XOR_MAPPED_ADDRESS: Final = 0x0020
_UNKNOWN_ATTRIBUTE_ERROR: Final = bytes((0, 0, 4, 20)) + b"Unknown Attribute"
_FAMILIES: Final = {4: 1, 6: 2}
_MAPPED_SHAPES: Final = frozenset(((8, b"\1"), (20, b"\2")))
"""Length and family of the two kinds of XOR-MAPPED-ADDRESS."""
_OPTIONAL: Final = 0x8000
"""Attributes from here on need not be understood (RFC 8489 §14)."""
_INTEGRITY: Final = frozenset((0x0008, 0x001C))
"""MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256: whatever follows is to be ignored (RFC 8489 §14.5, §14.6)."""
_UNDERSTOOD: Final = frozenset((
    0x0001, 0x0006, *_INTEGRITY, _ERROR_CODE, _UNKNOWN_ATTRIBUTES, 0x0014, 0x0015, 0x001D, 0x001E, _XOR_MAPPED_ADDRESS,
))
"""What RFC 8489 §18.3 defines below ``_OPTIONAL``; unexpected in a Binding request without authentication, it is ignored."""


def answer(data: bytes, source: Address) -> bytes | None:
    """The response to a datagram from ``source``, or None."""
    if not _HEADER.size <= len(data) <= MAX_REQUEST:
        return None
    kind, length, magic, transaction_id = _HEADER.unpack_from(data)
    if kind != _BINDING_REQUEST or magic != _MAGIC or length != len(data) - _HEADER.size or length % 4:
        return None
    unknown = _unknown_attributes(data)
    if unknown is None:
        return None
    if unknown:
        listed = b"".join(attribute.to_bytes(2, "big") for attribute in unknown)
        return _message(
            _BINDING_ERROR, transaction_id,
            _attribute(_ERROR_CODE, _UNKNOWN_ATTRIBUTE_ERROR) + _attribute(_UNKNOWN_ATTRIBUTES, listed),
        )
    return _message(_BINDING_SUCCESS, transaction_id, _attribute(_XOR_MAPPED_ADDRESS, _xor(source, transaction_id)))


def binding_request(transaction_id: bytes) -> bytes:
    """A Binding request; ``transaction_id`` is 12 random bytes."""
    return _message(_BINDING_REQUEST, transaction_id, b"")


def mapped_address(data: bytes, transaction_id: bytes) -> Address | None:
    """The address in a Binding success that answers the request with ``transaction_id``; None if that is not what ``data`` is."""
    if len(data) < _HEADER.size:
        return None
    kind, length, magic, answered = _HEADER.unpack_from(data)
    if kind != _BINDING_SUCCESS or magic != _MAGIC or answered != transaction_id or length != len(data) - _HEADER.size:
        return None
    at = _HEADER.size
    while at + _ATTRIBUTE.size <= len(data):
        attribute, size = _ATTRIBUTE.unpack_from(data, at)
        value = data[at + _ATTRIBUTE.size : at + _ATTRIBUTE.size + size]
        if attribute == _XOR_MAPPED_ADDRESS and len(value) == size and (size, value[1:2]) in _MAPPED_SHAPES:
            port = int.from_bytes(value[2:4], "big") ^ _MAGIC >> 16
            packed = bytes(a ^ b for a, b in zip(value[4:], _MAGIC_BYTES + transaction_id, strict=False))
            return Address.of(str(ip_address(packed)), port)
        at += _ATTRIBUTE.size + _padded(size)
    return None


def _unknown_attributes(data: bytes) -> list[int] | None:
    """The attributes of a message that have to be understood and are not, each once; None if they do not fit the message."""
    unknown: dict[int, None] = {}
    is_read = True
    at = _HEADER.size
    while at < len(data):
        attribute, size = _ATTRIBUTE.unpack_from(data, at)  # lengths are multiples of 4, so there are 4 bytes
        at += _ATTRIBUTE.size + _padded(size)
        if at > len(data):
            return None
        if is_read and attribute < _OPTIONAL and attribute not in _UNDERSTOOD:
            unknown[attribute] = None
        is_read = is_read and attribute not in _INTEGRITY
    return list(unknown)


def _message(kind: int, transaction_id: bytes, attributes: bytes) -> bytes:
    return _HEADER.pack(kind, len(attributes), _MAGIC, transaction_id) + attributes


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value.ljust(_padded(len(value)), b"\0")


def _padded(size: int) -> int:
    return size + 3 & ~3


def _xor(source: Address, transaction_id: bytes) -> bytes:
    """The value of XOR-MAPPED-ADDRESS (RFC 8489 §14.2)."""
    parsed = ip_address(source.host)
    port = source.port ^ _MAGIC >> 16
    packed = bytes(a ^ b for a, b in zip(parsed.packed, _MAGIC_BYTES + transaction_id, strict=False))
    return bytes((0, _FAMILIES[parsed.version])) + port.to_bytes(2, "big") + packed
