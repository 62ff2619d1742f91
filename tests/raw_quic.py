"""What a test needs to talk to a relay without ``zrc_relay.client``: packets made byte by byte, and a client that says anything.

* ``Initial`` protects and opens Initial packets straight from RFC 9001 §5 (and RFC 9369 for version 2).
* ``mint``, ``prove`` and ``allocate`` make tokens, proofs and ALLOCATE straight from PROTOCOL §3-4, with ``cryptography``.
* ``ScriptedClient`` is aioquic's own ``QuicConnection`` on the simulated network of ``tests.harness``. It sends whatever control
  bytes, frames and datagrams a test gives it and remembers what it gets.

Nothing here shares code with the relay but the simulated network.
"""

from __future__ import annotations

import hashlib
import ssl
import struct
from dataclasses import dataclass
from typing import Any, Final

from aioquic._buffer import Buffer, BufferReadError
from aioquic.buffer import encode_uint_var
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding

from tests.harness import RELAY_ADDRESS, Network, World
from zrc_relay.quic.udp import Path, SocketAddress

V1: Final = 0x00000001
V2: Final = 0x6B3343CF
DEVICE: Final = 0
PEER: Final = 1
ALLOCATE, REFRESH, RELEASE, OPEN_CHANNEL, LIST_RELAYS, CLOSE_CHANNEL = 1, 2, 3, 4, 5, 6
HELLO, ALLOCATED, REFRESHED, RELEASED, NOTICE, RELAYS, ERROR = 0x10, 0x11, 0x12, 0x13, 0x15, 0x17, 0x1F
CRYPTO_BUFFER_EXCEEDED: Final = 0x0D
MIN_INITIAL: Final = 1200

_SALTS: Final = {
    V1: bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
    V2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
}
_LABELS: Final = {V1: b"quic ", V2: b"quicv2 "}
_INITIAL_TYPES: Final = {V1: 0, V2: 1}


# -- packets (RFC 9000 §17, RFC 9001 §5)


def _hmac(key: bytes, data: bytes) -> bytes:
    mac = HMAC(key, SHA256())
    mac.update(data)
    return mac.finalize()


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of TLS 1.3; one block of SHA-256 is always enough here."""
    full = b"tls13 " + label
    return _hmac(secret, struct.pack("!HB", size, len(full)) + full + b"\0\x01")[:size]


def varint(value: int) -> bytes:
    """RFC 9000 §16."""
    return encode_uint_var(value)


def crypto_frame(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return b"\x06" + varint(offset) + varint(len(data)) + data


class Initial:
    """The Initial packets of one connection: protects the client's (or the server's), opens either.

    ``dcid`` is the Destination Connection ID of the client's first packet.
    """

    def __init__(self, dcid: bytes, version: int = V1) -> None:
        self.dcid = dcid
        self.version = version
        common = _hmac(_SALTS[version], dcid)
        self._secrets = {True: _expand(common, b"client in", 32), False: _expand(common, b"server in", 32)}

    def _keys(self, *, is_client: bool) -> tuple[AESGCM, bytes, bytes]:
        secret, label = self._secrets[is_client], _LABELS[self.version]
        return AESGCM(_expand(secret, label + b"key", 16)), _expand(secret, label + b"iv", 12), _expand(secret, label + b"hp", 16)

    def protect(
        self,
        frames: bytes,
        *,
        packet_number: int = 0,
        scid: bytes = b"raw-scid",
        size: int = MIN_INITIAL,
        dcid: bytes | None = None,
    ) -> bytes:
        """A client's Initial with ``frames``, padded with PADDING frames so that the datagram has at least ``size`` bytes."""
        aead, iv, hp = self._keys(is_client=True)
        dcid = self.dcid if dcid is None else dcid
        first = 0xC0 | _INITIAL_TYPES[self.version] << 4 | 3
        head = struct.pack("!BI", first, self.version) + bytes((len(dcid),)) + dcid + bytes((len(scid),)) + scid + b"\0"
        frames = frames.ljust(size - len(head) - 2 - 4 - 16, b"\0")
        head += struct.pack("!H", 0x4000 | (4 + len(frames) + 16))
        header = head + packet_number.to_bytes(4, "big")
        sealed = aead.encrypt(_nonce(iv, packet_number), frames, header)
        mask = _mask(hp, sealed[:16])
        number = bytes(a ^ b for a, b in zip(header[-4:], mask[1:], strict=False))
        return bytes((header[0] ^ mask[0] & 0x0F,)) + header[1:-4] + number + sealed

    def open(self, data: bytes, *, is_client: bool) -> bytes:
        """The frames of the first Initial packet in a datagram; raises when there is none."""
        aead, iv, hp = self._keys(is_client=is_client)
        buf = Buffer(data=data)
        first, version = buf.pull_uint8(), buf.pull_uint32()
        if version != self.version or first >> 4 & 3 != _INITIAL_TYPES[version]:
            msg = f"not an Initial of version {self.version:#x}"
            raise ValueError(msg)
        for _ in range(2):
            buf.pull_bytes(buf.pull_uint8())
        buf.pull_bytes(buf.pull_uint_var())
        length = buf.pull_uint_var()
        at = buf.tell()
        mask = _mask(hp, data[at + 4 : at + 20])
        first ^= mask[0] & 0x0F
        size = (first & 3) + 1
        number = bytes(a ^ b for a, b in zip(data[at : at + size], mask[1:], strict=False))
        header = bytes((first,)) + data[1:at] + number
        return aead.decrypt(_nonce(iv, int.from_bytes(number, "big")), data[at + size : at + length], header)


def _nonce(iv: bytes, packet_number: int) -> bytes:
    return (int.from_bytes(iv, "big") ^ packet_number).to_bytes(12, "big")


def _mask(key: bytes, sample: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(sample)  # noqa: S305 - header protection is ECB


def transport_close_code(frames: bytes) -> int:
    """The error code of the CONNECTION_CLOSE frame of type 0x1c at the start of ``frames``, after ACK and PADDING frames."""
    buf = Buffer(data=frames)
    while True:
        kind = buf.pull_uint_var()
        if kind == 0x1C:
            return buf.pull_uint_var()
        if kind == 0x02:
            buf.pull_uint_var()
            buf.pull_uint_var()
            for _ in range(2 * buf.pull_uint_var() + 1):
                buf.pull_uint_var()
        elif kind != 0:
            msg = f"frame {kind:#x} instead of a close"
            raise ValueError(msg)


# -- tokens and proofs (PROTOCOL §3-4)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public key."""
    return key.public_key().public_bytes_raw()


def identity(key: Ed25519PrivateKey) -> bytes:
    """Device or peer id of a key."""
    return hashlib.sha256(public_bytes(key)).digest()


def mint(
    device: Ed25519PrivateKey,
    *,
    relay_id: bytes,
    allocation_id: bytes,
    peer_id: bytes,
    expires_at: int,
    bandwidth_limit: int = 0,
    quota: int = 0,
) -> bytes:
    """A RelayTokenV1: 180 bytes."""
    signed = (
        relay_id + allocation_id + identity(device) + peer_id
        + expires_at.to_bytes(8, "little") + bandwidth_limit.to_bytes(4, "little") + quota.to_bytes(8, "little")
    )
    return signed + device.sign(hashlib.sha256(signed).digest())


def prove(key: Ed25519PrivateKey, *, relay_id: bytes, certificate: bytes, token: bytes, challenge: bytes, role: int) -> bytes:
    """A proof of possession; ``certificate`` is the relay's in DER."""
    message = b"zrc-relay/1 possession" + relay_id
    message += hashlib.sha256(certificate).digest() + hashlib.sha256(token).digest() + challenge + bytes((role,))
    return key.sign(hashlib.sha256(message).digest())


def routing_byte(allocation_id: bytes) -> int:
    """First byte of a client's first Destination Connection ID (PROTOCOL §1)."""
    return hashlib.sha256(allocation_id).digest()[0]


def capsule(kind: int, value: bytes = b"") -> bytes:
    """A capsule of any type with any value."""
    return varint(kind) + varint(len(value)) + value


def split_capsules(data: bytes) -> list[tuple[int, bytes]]:
    """The whole capsules at the beginning of ``data``: type and value."""
    buf = Buffer(data=data)
    found = []
    try:
        while not buf.eof():
            found.append((buf.pull_uint_var(), buf.pull_bytes(buf.pull_uint_var())))
    except BufferReadError:
        pass
    return found


@dataclass(frozen=True, slots=True)
class Allocation:
    """The fields of an ALLOCATE; ``proof`` is public key and signature, or nothing."""

    role: int
    token: bytes
    proof: bytes = b""
    version: int = 1
    allocation_id: bytes = b""
    peer_id: bytes = b""
    address: bytes = b"\0"

    def value(self) -> bytes:
        """The capsule's value; ids that are not given are the token's."""
        features = 1 if self.proof else 0
        return (
            bytes((self.version, self.role)) + features.to_bytes(4, "big")
            + (self.allocation_id or self.token[16:32]) + (self.peer_id or self.token[64:96])
            + self.token + self.address + self.proof
        )

    def encode(self) -> bytes:
        """The capsule."""
        return capsule(ALLOCATE, self.value())


# -- hosts on the simulated network


class Raw:
    """A host that sends what it is told to and keeps every datagram it gets."""

    def __init__(self, network: Network, sockaddr: SocketAddress = ("203.0.113.9", 999)) -> None:
        self.got: list[bytes] = []
        self._host = network.attach(sockaddr, self)

    def send(self, data: bytes) -> None:
        """Send to the relay."""
        self._host.send(data, RELAY_ADDRESS)

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        del path
        self.got.append(data)

    def batch_done(self) -> None:
        """See ``Receiver``."""

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class ScriptedClient(Raw):
    """A stock QUIC connection to the relay of ``world`` that does what a test says, and nothing by itself but QUIC.

    ``first_id`` is the Destination Connection ID of the first Initial; other keywords are fields of ``QuicConfiguration``.
    """

    def __init__(self, world: World, *, first_id: bytes | None = None, start: bool = True, **changes: Any) -> None:
        world.next_port += 1
        self.sockaddr: SocketAddress = ("198.51.100.8", world.next_port)
        super().__init__(world.network, self.sockaddr)
        self._world = world
        self._timer: Any = None
        self.datagrams: list[bytes] = []
        self.streams: dict[int, bytearray] = {}
        self.finished: set[int] = set()
        self.retired: list[bytes] = []
        self.is_established = False
        self.closed: events.ConnectionTerminated | None = None
        settings: dict[str, Any] = {
            "alpn_protocols": ["zrc-relay"], "max_datagram_frame_size": 65535, "max_datagram_size": 1232, "idle_timeout": 30.0,
        }
        self.quic = QuicConnection(
            configuration=QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE, **(settings | changes)),
        )
        if first_id is not None:
            # Stock QUIC has no way to choose it.
            vars(self.quic)["_peer_cid"].cid = first_id
            vars(self.quic)["_original_destination_connection_id"] = first_id
        if start:
            self.connect()

    def connect(self) -> None:
        """Send the first flight."""
        self.quic.connect((RELAY_ADDRESS, None), self._world.now())
        self.flush()

    # what a test says

    def send_control(self, data: bytes, *, end: bool = False) -> None:
        """Send bytes on stream 0."""
        self.quic.send_stream_data(0, data, end_stream=end)
        self.flush()

    def send_datagram(self, payload: bytes) -> None:
        """Send a DATAGRAM frame."""
        self.quic.send_datagram_frame(payload)
        self.flush()

    def send_frames(self, frames: bytes) -> None:
        """Send a 1-RTT packet that holds exactly ``frames``, whatever they are."""
        private = vars(self.quic)
        number = private["_packet_number"]
        private["_packet_number"] += 1
        pair = private["_cryptos"][Epoch.ONE_RTT]
        header = bytes((0x43 | pair.key_phase << 2,)) + private["_peer_cid"].cid + number.to_bytes(4, "big")
        self.send(pair.encrypt_packet(header, frames.ljust(4, b"\0"), number))

    def flush(self) -> None:
        """Send what QUIC wants to send, and wake up when it wants to."""
        for data, _ in self.quic.datagrams_to_send(self._world.now()):
            self.send(data)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        at = self.quic.get_timer()
        if at is not None:
            self._timer = self._world.clock.callLater(max(0.0, at - self._world.now()), self._timed_out)

    def silence(self) -> None:
        """Be gone without a word."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._world.network.attach(self.sockaddr)

    def allocate(self, token: bytes, key: Ed25519PrivateKey | None = None, role: int = DEVICE, **changes: Any) -> None:
        """Send ALLOCATE, with a proof when there is a key."""
        self.send_control(Allocation(role, token, self.proof(token, key, role) if key else b"", **changes).encode())

    def proof(self, token: bytes, key: Ed25519PrivateKey, role: int) -> bytes:
        """Public key and proof for this connection."""
        signature = prove(
            key, relay_id=self.relay_id, certificate=self.certificate, token=token, challenge=self.challenge, role=role
        )
        return public_bytes(key) + signature

    # what it got

    def capsules(self, stream_id: int = 0) -> list[tuple[int, bytes]]:
        """The whole capsules of a stream: type and value."""
        return split_capsules(bytes(self.streams.get(stream_id, b"")))

    def values(self, kind: int) -> list[bytes]:
        """The values of the control capsules of one type."""
        return [value for found, value in self.capsules() if found == kind]

    def notices(self) -> list[bytes]:
        """The values of NOTICE but for MAX_PAYLOAD, which comes when the search for the path's MTU has got somewhere."""
        return [value for value in self.values(NOTICE) if value[0] != 9]

    @property
    def hello(self) -> bytes:
        """The value of HELLO."""
        ((kind, value),) = self.capsules(3)
        if kind != HELLO:
            msg = f"capsule {kind:#x} instead of HELLO"
            raise AssertionError(msg)
        return value

    @property
    def relay_id(self) -> bytes:
        """As HELLO says it."""
        return self.hello[1:17]

    @property
    def challenge(self) -> bytes:
        """As HELLO says it."""
        return self.hello[17:49]

    @property
    def certificate(self) -> bytes:
        """The relay's, in DER."""
        return bytes(vars(self.quic.tls)["_peer_certificate"].public_bytes(Encoding.DER))

    @property
    def close_code(self) -> int | None:
        """The code that the connection was closed with; None while it is not."""
        return None if self.closed is None else self.closed.error_code

    # what happens

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        super().datagram_received(data, path)
        self.quic.receive_datagram(data, (RELAY_ADDRESS, None), self._world.now())

    def batch_done(self) -> None:
        """See ``Receiver``."""
        self._take_events()
        self.flush()

    def _timed_out(self) -> None:
        self.quic.handle_timer(self._world.now())
        self._take_events()
        self.flush()

    def _take_events(self) -> None:
        while (event := self.quic.next_event()) is not None:
            match event:
                case events.HandshakeCompleted():
                    self.is_established = True
                case events.DatagramFrameReceived(data=data):
                    self.datagrams.append(data)
                case events.StreamDataReceived(stream_id=stream_id, data=data, end_stream=end):
                    self.streams.setdefault(stream_id, bytearray()).extend(data)
                    if end:
                        self.finished.add(stream_id)
                case events.ConnectionIdRetired(connection_id=connection_id):
                    self.retired.append(connection_id)
                case events.ConnectionTerminated():
                    self.closed = event
                case _:
                    pass


def leftovers(world: World) -> dict[str, int]:
    """How much the relay's endpoint still holds, by table; what is zero is left out."""
    names = ("_route_table", "_connections", "_handshaking", "_touched", "_deadlines")
    tables = {name: getattr(world.endpoint, name) for name in names}
    return {name: len(table) for name, table in tables.items() if len(table)}
