"""Fields of capsules: addresses, text, and a reader that runs out of bytes loudly (PROTOCOL §2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from zrc_relay.core.codes import ErrorCode

MAX_ADDRESSES: Final = 16
"""Addresses in one list (PROTOCOL §5)."""
REMEMBERED_HOSTS: Final = 4096
"""Hosts whose text was taken apart lately, some 1 MB: who connects is asked for his address again and again."""


class WireError(Exception):
    """The bytes are not what the protocol allows; ``code`` is the close code that says so."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def malformed(what: str) -> WireError:
    """The error for bytes that a known capsule cannot have."""
    return WireError(ErrorCode.PROTOCOL_ERROR, what)


class Reader:
    """Pulls fields off a value; every shortage is a PROTOCOL_ERROR."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._offset = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        end = self._offset + size
        if end > len(self._data):
            msg = f"{self._what} is truncated: {len(self._data)} bytes"
            raise malformed(msg)
        piece = self._data[self._offset : end]
        self._offset = end
        return piece

    def uint(self, size: int) -> int:
        """The next ``size`` bytes as a big-endian number."""
        return int.from_bytes(self.take(size), "big")


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and port; ``host`` is empty for family 0 (none). IPv4-mapped IPv6 is normalised to IPv4."""

    host: str = ""
    port: int = 0

    @classmethod
    def of(cls, host: str, port: int) -> Address:
        """From a textual IP address (scope ids are dropped) and a port, 0 to 65535; ``ValueError`` if it is none."""
        if not 0 <= port <= 0xFFFF:
            msg = f"not a port: {port}"
            raise ValueError(msg)
        return cls(_parsed(host)[0], port)

    def encode(self) -> bytes:
        """``family u8, ip, port u16``; one zero byte for none."""
        if not self.host:
            return b"\0"
        return _parsed(self.host)[1] + self.port.to_bytes(2, "big")

    def __str__(self) -> str:
        if not self.host:
            return "none"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


NO_ADDRESS: Final = Address()


@lru_cache(REMEMBERED_HOSTS)
def _parsed(host: str) -> tuple[str, bytes]:
    """The normal form of an IP address, and ``family u8, ip``; ``ValueError`` if ``host`` is none."""
    parsed = ip_address(host.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return str(parsed), bytes((parsed.version,)) + parsed.packed


def pull_address(reader: Reader) -> Address:
    """``family u8, ip, port u16``."""
    family = reader.uint(1)
    if family == 0:
        return NO_ADDRESS
    if family == 4:
        host: IPv4Address | IPv6Address = IPv4Address(reader.take(4))
    elif family == 6:
        host = IPv6Address(reader.take(16))
        if host.ipv4_mapped is not None:
            msg = "an IPv4-mapped address must be written as family 4"
            raise malformed(msg)
    else:
        msg = f"unknown address family {family}"
        raise malformed(msg)
    return Address(str(host), reader.uint(2))


def pull_addresses(reader: Reader, what: str) -> tuple[Address, ...]:
    """``count u8, address * count``; ``what`` is the capsule's name."""
    count = reader.uint(1)
    if count > MAX_ADDRESSES:
        msg = f"{what} lists {count} addresses, more than {MAX_ADDRESSES}"
        raise malformed(msg)
    return tuple(pull_address(reader) for _ in range(count))


def encode_addresses(addresses: tuple[Address, ...]) -> bytes:
    """The inverse of ``pull_addresses``; ``ValueError`` for too many."""
    if len(addresses) > MAX_ADDRESSES:
        msg = f"more than {MAX_ADDRESSES} addresses: {len(addresses)}"
        raise ValueError(msg)
    return bytes((len(addresses),)) + b"".join(address.encode() for address in addresses)


def decode_text(data: bytes) -> str:
    """UTF-8, or the error."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        msg = "text that is not UTF-8"
        raise malformed(msg) from error
