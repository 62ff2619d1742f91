"""Capsules and addresses: their exact bytes (PROTOCOL §2, §4, §5).

Theory of operation
-------------------
A capsule is ``type varint, length varint, value``. Each known capsule is a frozen dataclass with an ``encode`` method that gives
the whole capsule; ``CapsuleDecoder`` turns a byte stream, cut anywhere, back into them. The rules of the decoder:

* The length is checked before anything is kept, so a decoder never holds more than ``MAX_VALUE`` plus one header.
* Which capsules are *known* depends on who reads: the relay knows those of PROTOCOL §4, a client those of §5. Everything else is
  ``Unknown`` and left to the caller to ignore (and to count).
* Bytes behind the fields defined here are ignored, so that every capsule can grow. Missing bytes are not.
* The parsers hold no policy: a wrong version in ALLOCATE is a field like any other.

All integers are big-endian here; only the token (``token.py``) differs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from zrc_relay.core.codes import AllocateFeature, CapsuleType, ErrorCode, NoticeCode
from zrc_relay.core.fields import (
    MAX_ADDRESSES,
    NO_ADDRESS,
    Address,
    Reader,
    WireError,
    decode_text,
    encode_addresses,
    malformed,
    pull_address,
    pull_addresses,
)
from zrc_relay.core.varint import encode_varint, pull_varint

__all__ = [
    "CLIENT_CAPSULES",
    "MAX_ADDRESSES",
    "MAX_REGION",
    "MAX_RELAYS",
    "MAX_VALUE",
    "NO_ADDRESS",
    "PROTOCOL_VERSION",
    "RELAY_CAPSULES",
    "TOKEN_SIZE",
    "Address",
    "Allocate",
    "Allocated",
    "Capsule",
    "CapsuleDecoder",
    "Channel",
    "ClientCapsule",
    "CloseChannel",
    "Error",
    "Hello",
    "ListRelays",
    "Notice",
    "OpenChannel",
    "Redirect",
    "Refresh",
    "Refreshed",
    "RelayCapsule",
    "RelayEntry",
    "Relays",
    "Release",
    "Released",
    "Unknown",
    "WireError",
    "encode_capsule",
]

PROTOCOL_VERSION: Final = 1
MAX_VALUE: Final = 4096
"""Longest capsule value, in bytes (PROTOCOL §2)."""
TOKEN_SIZE: Final = 180
MAX_RELAYS: Final = 32
MAX_REGION: Final = 32


def encode_capsule(capsule_type: int, value: bytes) -> bytes:
    """Type, length and ``value`` (at most ``MAX_VALUE`` bytes, else ``ValueError``)."""
    if len(value) > MAX_VALUE:
        msg = f"a capsule value is at most {MAX_VALUE} bytes, not {len(value)}"
        raise ValueError(msg)
    return encode_varint(capsule_type) + encode_varint(len(value)) + value


# -- client to relay (PROTOCOL §4)


@dataclass(frozen=True, slots=True)
class Allocate:
    """ALLOCATE. ``token`` stays opaque bytes here; ``public_key`` and ``proof`` are empty without feature bit 0."""

    role: int
    allocation_id: bytes
    peer_id: bytes
    token: bytes
    client_addr: Address = NO_ADDRESS
    public_key: bytes = b""
    proof: bytes = b""
    features: int = 0
    version: int = PROTOCOL_VERSION

    TYPE: ClassVar = CapsuleType.ALLOCATE

    def encode(self) -> bytes:
        """The whole capsule; feature bit 0 is set when there is a proof."""
        features = self.features | (AllocateFeature.PROOF if self.proof else 0)
        value = b"".join((
            struct.pack("!BBI", self.version, self.role, features),
            self.allocation_id, self.peer_id, self.token, self.client_addr.encode(), self.public_key, self.proof,
        ))
        return encode_capsule(self.TYPE, value)

    @classmethod
    def parse(cls, value: bytes) -> Allocate:
        """From a capsule value. Of another version only ``version`` is right: how it goes on is not known."""
        reader = Reader(value, "ALLOCATE")
        version = reader.uint(1)
        if version != PROTOCOL_VERSION:
            return cls(role=0, allocation_id=b"", peer_id=b"", token=b"", version=version)
        role = reader.uint(1)
        if role > 1:
            msg = f"ALLOCATE has no role {role}"
            raise malformed(msg)
        features = reader.uint(4)
        allocation_id, peer_id, token = reader.take(16), reader.take(32), reader.take(TOKEN_SIZE)
        client_addr = pull_address(reader)
        public_key = proof = b""
        if features & AllocateFeature.PROOF:
            public_key, proof = reader.take(32), reader.take(64)
        return cls(role, allocation_id, peer_id, token, client_addr, public_key, proof, features, version)


@dataclass(frozen=True, slots=True)
class Refresh:
    """REFRESH with a 180-byte token."""

    token: bytes
    TYPE: ClassVar = CapsuleType.REFRESH

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(self.TYPE, self.token)

    @classmethod
    def parse(cls, value: bytes) -> Refresh:
        """From a capsule value."""
        return cls(Reader(value, "REFRESH").take(TOKEN_SIZE))


@dataclass(frozen=True, slots=True)
class _Empty:
    """A capsule without fields."""

    TYPE: ClassVar[CapsuleType]

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(self.TYPE, b"")


@dataclass(frozen=True, slots=True)
class Release(_Empty):
    """RELEASE."""

    TYPE: ClassVar = CapsuleType.RELEASE


@dataclass(frozen=True, slots=True)
class OpenChannel(_Empty):
    """OPEN_CHANNEL."""

    TYPE: ClassVar = CapsuleType.OPEN_CHANNEL


@dataclass(frozen=True, slots=True)
class ListRelays(_Empty):
    """LIST_RELAYS."""

    TYPE: ClassVar = CapsuleType.LIST_RELAYS


@dataclass(frozen=True, slots=True)
class CloseChannel(_Empty):
    """CLOSE_CHANNEL."""

    TYPE: ClassVar = CapsuleType.CLOSE_CHANNEL


# -- relay to client (PROTOCOL §5)


@dataclass(frozen=True, slots=True)
class Hello:
    """HELLO: who the relay is and the challenge a proof must cover. ``features`` as ``HelloFeature``."""

    relay_id: bytes
    challenge: bytes
    features: int
    version: int = PROTOCOL_VERSION
    TYPE: ClassVar = CapsuleType.HELLO

    def encode(self) -> bytes:
        """The whole capsule."""
        head = bytes((self.version,)) + self.relay_id + self.challenge
        return encode_capsule(self.TYPE, head + self.features.to_bytes(4, "big"))

    @classmethod
    def parse(cls, value: bytes) -> Hello:
        """From a capsule value."""
        reader = Reader(value, "HELLO")
        version = reader.uint(1)
        return cls(reader.take(16), reader.take(32), reader.uint(4), version)


@dataclass(frozen=True, slots=True)
class Allocated:
    """ALLOCATED. Times are Unix seconds, ``bandwidth_limit`` bytes per second, the timeouts seconds; a limit of 0 means none."""

    allocation_id: bytes
    relay_addr: Address
    expires_at: int
    bandwidth_limit: int
    quota_bytes: int
    bytes_transferred: int
    observed_addr: Address
    keepalive_interval: int
    idle_timeout: int
    peer_present: bool
    peer_max_payload: int
    TYPE: ClassVar = CapsuleType.ALLOCATED

    def encode(self) -> bytes:
        """The whole capsule."""
        limits = struct.pack("!QQQQ", self.expires_at, self.bandwidth_limit, self.quota_bytes, self.bytes_transferred)
        tail = struct.pack("!HHBH", self.keepalive_interval, self.idle_timeout, self.peer_present, self.peer_max_payload)
        value = b"".join((self.allocation_id, self.relay_addr.encode(), limits, self.observed_addr.encode(), tail))
        return encode_capsule(self.TYPE, value)

    @classmethod
    def parse(cls, value: bytes) -> Allocated:
        """From a capsule value."""
        reader = Reader(value, "ALLOCATED")
        return cls(
            reader.take(16), pull_address(reader), reader.uint(8), reader.uint(8), reader.uint(8), reader.uint(8),
            pull_address(reader), reader.uint(2), reader.uint(2), reader.uint(1) != 0, reader.uint(2),
        )


@dataclass(frozen=True, slots=True)
class Refreshed:
    """REFRESHED: the limits in force after a refresh."""

    expires_at: int
    bandwidth_limit: int
    quota_bytes: int
    bytes_transferred: int
    TYPE: ClassVar = CapsuleType.REFRESHED

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(
            self.TYPE,
            struct.pack("!QQQQ", self.expires_at, self.bandwidth_limit, self.quota_bytes, self.bytes_transferred),
        )

    @classmethod
    def parse(cls, value: bytes) -> Refreshed:
        """From a capsule value."""
        reader = Reader(value, "REFRESHED")
        return cls(reader.uint(8), reader.uint(8), reader.uint(8), reader.uint(8))


@dataclass(frozen=True, slots=True)
class Released(_Empty):
    """RELEASED."""

    TYPE: ClassVar = CapsuleType.RELEASED


@dataclass(frozen=True, slots=True)
class Redirect:
    """REDIRECT: where to connect instead, in order."""

    reason: int
    routing_byte: int
    addresses: tuple[Address, ...]
    TYPE: ClassVar = CapsuleType.REDIRECT

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(self.TYPE, bytes((self.reason, self.routing_byte)) + encode_addresses(self.addresses))

    @classmethod
    def parse(cls, value: bytes) -> Redirect:
        """From a capsule value."""
        reader = Reader(value, "REDIRECT")
        return cls(reader.uint(1), reader.uint(1), pull_addresses(reader, "REDIRECT"))


@dataclass(frozen=True, slots=True)
class Notice:
    """NOTICE. Which of the numbers have a meaning depends on ``code`` (PROTOCOL §5), named by the builders below.

    ``first`` and ``second`` are the two integers of the body in order (used/quota, limit/dropped, max_payload, deadline, reason,
    cause/packets).
    """

    code: int
    first: int = 0
    second: int = 0
    addresses: tuple[Address, ...] = ()
    TYPE: ClassVar = CapsuleType.NOTICE

    def encode(self) -> bytes:
        """The whole capsule."""
        first_size, second_size, has_addresses = _NOTICE_SHAPES[NoticeCode(self.code)]
        value = bytes((self.code,)) + self.first.to_bytes(first_size, "big") + self.second.to_bytes(second_size, "big")
        if has_addresses:
            value += encode_addresses(self.addresses)
        return encode_capsule(self.TYPE, value)

    @classmethod
    def parse(cls, value: bytes) -> Notice:
        """From a capsule value; of an unknown code only the code is read."""
        reader = Reader(value, "NOTICE")
        code = reader.uint(1)
        shape = _NOTICE_SHAPES.get(code)
        if shape is None:
            return cls(code)
        first, second = reader.uint(shape[0]), reader.uint(shape[1])
        return cls(code, first, second, pull_addresses(reader, "NOTICE") if shape[2] else ())


_NOTICE_SHAPES: Final[Mapping[int, tuple[int, int, bool]]] = {
    NoticeCode.QUOTA_WARNING: (8, 8, False),
    NoticeCode.RATE_LIMITED: (8, 8, False),
    NoticeCode.PEER_JOINED: (2, 0, False),
    NoticeCode.PEER_LEFT: (0, 0, False),
    NoticeCode.DRAINING: (8, 0, True),
    NoticeCode.TERMINATED: (1, 0, False),
    NoticeCode.DROPPED: (1, 8, False),
    NoticeCode.SUPERSEDED: (0, 0, False),
    NoticeCode.MAX_PAYLOAD: (2, 0, False),
}


@dataclass(frozen=True, slots=True)
class Channel:
    """CHANNEL: the 7-byte id of the allocation's channel."""

    channel_id: bytes
    TYPE: ClassVar = CapsuleType.CHANNEL

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(self.TYPE, self.channel_id)

    @classmethod
    def parse(cls, value: bytes) -> Channel:
        """From a capsule value."""
        return cls(Reader(value, "CHANNEL").take(7))


@dataclass(frozen=True, slots=True)
class RelayEntry:
    """One relay of a RELAYS capsule. ``load`` is 0 to 100; ``region`` at most 32 bytes of UTF-8."""

    instance_id: bytes
    address: Address
    load: int
    draining: bool
    region: str = ""

    def encode(self) -> bytes:
        """The entry with its length byte."""
        region = self.region.encode()
        if len(region) > MAX_REGION:
            msg = f"a region is at most {MAX_REGION} bytes: {self.region!r}"
            raise ValueError(msg)
        body = self.instance_id + self.address.encode() + bytes((self.load, self.draining, len(region))) + region
        return bytes((len(body),)) + body

    @classmethod
    def parse(cls, body: bytes) -> RelayEntry:
        """From the bytes behind the length byte."""
        reader = Reader(body, "a RELAYS entry")
        instance_id, address, load, flags = reader.take(8), pull_address(reader), reader.uint(1), reader.uint(1)
        size = reader.uint(1)
        if load > 100 or size > MAX_REGION:
            msg = "a RELAYS entry is out of range"
            raise malformed(msg)
        return cls(instance_id, address, load, bool(flags & 1), decode_text(reader.take(size)))


@dataclass(frozen=True, slots=True)
class Relays:
    """RELAYS: at most 32 entries, at least the relay itself."""

    entries: tuple[RelayEntry, ...]
    TYPE: ClassVar = CapsuleType.RELAYS

    def encode(self) -> bytes:
        """The whole capsule."""
        if len(self.entries) > MAX_RELAYS:
            msg = f"more than {MAX_RELAYS} relays: {len(self.entries)}"
            raise ValueError(msg)
        return encode_capsule(self.TYPE, bytes((len(self.entries),)) + b"".join(e.encode() for e in self.entries))

    @classmethod
    def parse(cls, value: bytes) -> Relays:
        """From a capsule value."""
        reader = Reader(value, "RELAYS")
        count = reader.uint(1)
        if count > MAX_RELAYS:
            msg = f"RELAYS lists {count} entries, more than {MAX_RELAYS}"
            raise malformed(msg)
        return cls(tuple(RelayEntry.parse(reader.take(reader.uint(1))) for _ in range(count)))


@dataclass(frozen=True, slots=True)
class Error:
    """ERROR: something was refused and the session goes on."""

    code: int
    message: str
    TYPE: ClassVar = CapsuleType.ERROR

    def encode(self) -> bytes:
        """The whole capsule."""
        message = self.message.encode()
        return encode_capsule(self.TYPE, struct.pack("!HH", self.code, len(message)) + message)

    @classmethod
    def parse(cls, value: bytes) -> Error:
        """From a capsule value."""
        reader = Reader(value, "ERROR")
        code, size = reader.uint(2), reader.uint(2)
        return cls(code, decode_text(reader.take(size)))


@dataclass(frozen=True, slots=True)
class Unknown:
    """A capsule this side does not know; ignored, but counted against the capsule rate."""

    type: int


ClientCapsule = Allocate | Refresh | Release | OpenChannel | ListRelays | CloseChannel
RelayCapsule = Hello | Allocated | Refreshed | Released | Redirect | Notice | Channel | Relays | Error
Capsule = ClientCapsule | RelayCapsule
_Parser = Callable[[bytes], Capsule]

CLIENT_CAPSULES: Final[Mapping[int, _Parser]] = {
    Allocate.TYPE: Allocate.parse,
    Refresh.TYPE: Refresh.parse,
    Release.TYPE: lambda _: Release(),
    OpenChannel.TYPE: lambda _: OpenChannel(),
    ListRelays.TYPE: lambda _: ListRelays(),
    CloseChannel.TYPE: lambda _: CloseChannel(),
}
"""What a relay reads."""

RELAY_CAPSULES: Final[Mapping[int, _Parser]] = {
    Hello.TYPE: Hello.parse,
    Allocated.TYPE: Allocated.parse,
    Refreshed.TYPE: Refreshed.parse,
    Released.TYPE: lambda _: Released(),
    Redirect.TYPE: Redirect.parse,
    Notice.TYPE: Notice.parse,
    Channel.TYPE: Channel.parse,
    Relays.TYPE: Relays.parse,
    Error.TYPE: Error.parse,
}
"""What a client reads."""


class CapsuleDecoder:
    """Cuts a byte stream into capsules.

    ``feed`` what arrives, then take capsules with ``next`` until it gives None. ``known`` is ``CLIENT_CAPSULES`` or
    ``RELAY_CAPSULES``. ``WireError`` is final: the stream cannot be resynchronised.
    """

    def __init__(self, known: Mapping[int, _Parser]) -> None:
        self._known = known
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Keep ``data`` for ``next``; the caller bounds how much it feeds before taking."""
        self._buffer += data

    def next(self) -> Capsule | Unknown | None:
        """The next whole capsule, or None until more arrives.

        Raises ``WireError``: CONTROL_TOO_LARGE as soon as a length above ``MAX_VALUE`` is seen, PROTOCOL_ERROR for a malformed
        known capsule.
        """
        head = pull_varint(self._buffer, 0)
        if head is None:
            return None
        capsule_type, offset = head
        size = pull_varint(self._buffer, offset)
        if size is None:
            return None
        length, offset = size
        if length > MAX_VALUE:
            msg = f"capsule {capsule_type:#x} has a value of {length} bytes, more than {MAX_VALUE}"
            raise WireError(ErrorCode.CONTROL_TOO_LARGE, msg)
        end = offset + length
        if len(self._buffer) < end:
            return None
        value = bytes(self._buffer[offset:end])
        del self._buffer[:end]
        parser = self._known.get(capsule_type)
        return Unknown(capsule_type) if parser is None else parser(value)

    def __iter__(self) -> Iterator[Capsule | Unknown]:
        while (capsule := self.next()) is not None:
            yield capsule

    @property
    def pending(self) -> int:
        """Bytes of capsules that were fed and not taken yet."""
        return len(self._buffer)
