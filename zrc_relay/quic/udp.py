"""UDP sockets: batches in, packets out from the address that was reached (R5.1).

``UdpPort`` is Twisted's UDP port with its reading and writing replaced: it reads many datagrams per wake-up and then says so once
(``batch_done``), and it writes without raising when the socket's buffer is full. Twisted's own write raises then, and checks the
address's syntax on every call.

Where the kernel can, one call carries many packets (Linux 4.18 and 5.0, udp(7)): with UDP_GRO it hands over a train of equal
packets of one sender as one piece, and with UDP_SEGMENT it cuts a piece into equal packets for one address. Each is left out,
once and for all, when the kernel refuses it.

Where a socket is bound to a wildcard address, the kernel tells for each datagram which address it was sent to (IP_PKTINFO), and
the answer leaves from there; otherwise it might leave from another one and be dropped as a stranger's.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from twisted.internet import udp
from twisted.internet.interfaces import IReactorFDSet
from twisted.logger import Logger

from zrc_relay.core.counters import Traffic
from zrc_relay.core.wire import Address

MAX_READS: Final = 192
"""System calls per batch."""
MAX_BATCH: Final = 192
"""Packets per batch after which no further call is made, and a call may bring 64 at once: about 3 ms of work at most, so that
other sockets and timers get their turn."""
MAX_STAY: Final = 4
"""Batches that are read in one turn of the reactor, which costs some 20 µs: less than 4 ms with the default ``gather_time``."""
SMALL_BATCH: Final = 48
"""Packets from which on a batch is worth a turn of the reactor."""
MAX_SEGMENTS: Final = 64
"""Packets that one call may send (UDP_MAX_SEGMENTS in the kernel)."""
MAX_TRAIN: Final = 65_000
"""Bytes that one call may send: less than the largest IP packet."""
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103  # linux/udp.h
_UDP_GRO: Final = 104
_NO_SEGMENTS: Final = frozenset((errno.EINVAL, errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP))
_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
MAX_DATAGRAM: Final = 65535
MAX_ORIGINS: Final = 1024
"""Local addresses remembered per socket: far more than a host has; all are forgotten when there are more."""
MAX_PATHS: Final = 65536
"""Paths remembered per socket, some 20 MB; all are forgotten when there are more, which only costs making them again."""
SOCKET_BUFFER: Final = 4 * 1024 * 1024
"""Receive and send buffer asked of the kernel, in bytes; it may give less (net.core.rmem_max)."""
_IPV6_RECVPKTINFO: Final = 49  # linux/in6.h; the socket module has it only on some builds
_IP_PKTINFO: Final = 8  # linux/in.h, likewise
_IP_MTU_DISCOVER: Final = 10  # linux/in.h
_IPV6_MTU_DISCOVER: Final = 23  # linux/in6.h
_PMTUDISC_PROBE: Final = 3  # linux/in.h and in6.h: set DF, fragment nothing, and believe no ICMP about what fits
_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")

_log: Final = Logger()

SocketAddress = tuple[Any, ...]
"""What the socket module calls an address: ``(host, port)`` or ``(host, port, flow, scope)``."""


class Sender(Protocol):
    """Where a datagram came from, seen from our side: the way back."""

    @property
    def address(self) -> Address:
        """Our own address on that way."""
        ...

    def send(self, data: bytes, to: SocketAddress) -> None:
        """Send one datagram to ``to``; it may be lost, it never raises for that."""
        ...

    def send_many(self, packets: list[bytes], to: SocketAddress) -> None:
        """Send datagrams to ``to`` in this order, likewise."""
        ...

    def send_train(self, train: bytes, size: int, to: SocketAddress) -> None:
        """Send datagrams of ``size`` bytes each, the last perhaps shorter, that come in one piece."""
        ...


class Path(NamedTuple):
    """A network path as aioquic's connections see it: opaque, compared by value.

    A port gives packets of one path the same object, so that they are mostly compared by identity.
    """

    to: SocketAddress
    """The remote address."""
    origin: Sender
    """Our own side of it."""


class Receiver(Protocol):
    """Who gets what arrives: a ``DatagramProtocol`` that takes batches, and may belong to several ports."""

    def makeConnection(self, transport: object) -> None:
        """A port started."""
        ...

    def doStop(self) -> None:
        """A port stopped."""
        ...

    def datagram_received(self, data: bytes, path: Path) -> None:
        """One datagram."""
        ...

    def batch_done(self) -> None:
        """No more datagrams for now: act on what was received."""
        ...

    def send_blocked(self) -> None:
        """A datagram was dropped because the socket's buffer is full."""
        ...


class PatientReceiver(Receiver, Protocol):
    """A ``Receiver`` that has a word on when to read."""

    def batch_begins(self) -> None:
        """Datagrams are there, and will be read when this returns."""
        ...

    def stays(self) -> bool:
        """Whether the next batch should be read at once, without a turn of the reactor: it comes in no time."""
        ...


class TrainReceiver(Receiver, Protocol):
    """A ``Receiver`` that takes trains as they are."""

    def train_received(self, train: bytes, size: int, path: Path) -> None:
        """Several datagrams of one sender in one piece, of ``size`` bytes each, the last perhaps shorter."""
        ...


class _Origin:
    """Our side of a path: a socket, and on a wildcard socket the address that was reached. Compared by these."""

    __slots__ = ("_ancillary", "_port", "address")

    def __init__(self, port: UdpPort, address: Address, ancillary: list[tuple[int, int, bytes]]) -> None:
        self._port = port
        self._ancillary = ancillary
        self.address = address

    def send(self, data: bytes, to: SocketAddress) -> None:
        self._port.send(data, to, self._ancillary)

    def send_many(self, packets: list[bytes], to: SocketAddress) -> None:
        self._port.send_many(packets, to, self._ancillary)

    def send_train(self, train: bytes, size: int, to: SocketAddress) -> None:
        self._port.send_train(train, size, to, self._ancillary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Origin) and (self._port, self._ancillary) == (other._port, other._ancillary)

    def __hash__(self) -> int:
        return hash((id(self._port), self.address))


def is_wildcard(host: str) -> bool:
    """Whether a socket that is bound to ``host`` is reached at every address."""
    return ip_address(host.partition("%")[0]).is_unspecified


def prepare(made: socket.socket, host: str) -> None:
    """Set all that a ``UdpPort`` needs of a socket which will be bound to ``host``."""
    is_v6 = made.family == socket.AF_INET6
    if is_v6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)  # RFC 9000 §14
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    if is_wildcard(host):
        if is_v6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    try:
        made.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    except OSError:
        _log.debug("this kernel has no UDP_GRO: one packet for each read", event="udp.no_gro")
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)


def takes_trains(prepared: socket.socket) -> bool:
    """Whether the kernel may hand over several packets in one piece."""
    try:
        return prepared.getsockopt(_SOL_UDP, _UDP_GRO) != 0
    except OSError:
        return False


class UdpPort(udp.Port):
    """A listening (or client) UDP socket that hands batches to a ``Receiver``, and trains in one piece to a ``TrainReceiver``.

    ``sock`` is a socket that was prepared (``prepare``) and bound to ``host`` by somebody else, and is ours from now on.
    """

    _log: ClassVar = Logger()

    def __init__(
        self,
        host: str,
        port: int,
        receiver: Receiver | TrainReceiver,
        reactor: IReactorFDSet,
        *,
        sock: socket.socket | None = None,
    ) -> None:
        super().__init__(port, receiver, interface=host, maxPacketSize=MAX_DATAGRAM, reactor=reactor)
        self._preexistingSocket = sock  # type: ignore[assignment]  # typed as None, and set to a socket by Twisted itself
        self._receiver = receiver
        self._train_received = getattr(receiver, "train_received", self._split)
        self._batch_begins: Callable[[], None] = getattr(receiver, "batch_begins", _nothing)
        self._stays: Callable[[], bool] = getattr(receiver, "stays", bool)
        self.traffic = Traffic()
        self._wildcard = is_wildcard(host)
        self._origins: dict[bytes, _Origin] = {}
        self._paths: dict[object, Path] = {}
        """By the sender's address, or that and where the packet was sent to."""
        self._can_segment = True
        self._takes_trains = False
        if sock is not None:
            sock.setblocking(False)  # noqa: FBT003 - the socket module's signature
            self._takes_trains = takes_trains(sock)

    def createInternetSocket(self) -> socket.socket:  # noqa: N802 - Twisted's name
        """The socket, with its options set before it is bound."""
        made: socket.socket = super().createInternetSocket()
        prepare(made, self.interface)
        self._takes_trains = takes_trains(made)
        return made

    @property
    def local(self) -> Address:
        """The address that the socket is bound to."""
        host, port = self.socket.getsockname()[:2]
        return Address.of(host, port)

    @property
    def default_origin(self) -> Sender:
        """For who speaks first: sends from whatever address the kernel chooses."""
        return self._origin(b"")

    def doRead(self) -> None:  # noqa: N802 - Twisted's name
        """Read a batch; while the receiver wants to stay and batches are small, up to ``MAX_STAY`` of them."""
        for _ in range(MAX_STAY):
            if not 0 < self._read_batch() < SMALL_BATCH or not self._stays():
                break

    def _read_batch(self) -> int:
        """Read what is there, within ``MAX_READS`` and ``MAX_BATCH``, then say that the batch is done; returns its packets.

        What the receiver raises is logged here: the reactor would close the socket for it, and end everyone's connection.
        """
        self._batch_begins()
        receive = self.socket.recvmsg
        received = self._receiver.datagram_received
        paths = self._paths
        ancillary_size = socket.CMSG_SPACE(_GRO_SIZE.size) if self._takes_trains else 0
        if self._wildcard:
            ancillary_size += socket.CMSG_SPACE(_PKTINFO6.size)
        packets = reads = octets = 0
        for _ in range(MAX_READS):
            try:
                data, ancillary, _, sender = receive(MAX_DATAGRAM, ancillary_size)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error of an earlier send, reported here; the next call goes on
            reads += 1
            octets += len(data)
            pktinfo, size = _read_ancillary(ancillary) if ancillary else (b"", 0)
            try:
                path = paths.get((sender, pktinfo) if pktinfo else sender) or self._make_path(sender, pktinfo)
                if 0 < size < len(data):
                    self._train_received(data, size, path)
                    packets += -(-len(data) // size)
                else:
                    received(data, path)
                    packets += 1
            except Exception:
                self._log.failure("a datagram from {sender} could not be dealt with", event="datagram.failed", sender=sender[0])
            if packets >= MAX_BATCH:
                break
        if packets:
            self.traffic.arrived(reads, packets, octets)
        try:
            self._receiver.batch_done()
        except Exception:
            self._log.failure("a batch of datagrams could not be finished", event="batch.failed")
        return packets

    def _split(self, train: bytes, size: int, path: Path) -> None:
        for start in range(0, len(train), size):
            self._receiver.datagram_received(train[start : start + size], path)

    def send_many(self, packets: list[bytes], to: SocketAddress, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Send datagrams in order; equal ones that follow each other, and a shorter one behind them, in one call."""
        index, count = 0, len(packets)
        while index < count:
            size = len(packets[index])
            end = index + 1
            if self._can_segment:
                limit = min(count, index + MAX_SEGMENTS, index + MAX_TRAIN // max(size, 1))
                while end < limit and len(packets[end]) == size:
                    end += 1
                if end < limit and end > index + 1 and len(packets[end]) < size:
                    end += 1
            if end == index + 1:
                self.send(packets[index], to, ancillary)
            elif not self._send_segments(packets[index:end], end - index, size, to, ancillary):
                continue  # once more, one by one
            index = end

    def send_train(self, train: bytes, size: int, to: SocketAddress, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Send datagrams of ``size`` bytes each, the last perhaps shorter, that come in one piece."""
        count = -(-len(train) // size)
        if count > MAX_SEGMENTS or not (self._can_segment and self._send_segments([train], count, size, to, ancillary)):
            self.send_many([train[start : start + size] for start in range(0, len(train), size)], to, ancillary)

    def _send_segments(
        self, pieces: list[bytes], count: int, size: int, to: SocketAddress, ancillary: list[tuple[int, int, bytes]]
    ) -> bool:
        """One call for ``count`` packets of ``size`` bytes, the last perhaps shorter; False when the kernel does not do that."""
        segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(size))
        try:
            sent = self.socket.sendmsg(pieces, [*ancillary, segment], 0, to)
        except (BlockingIOError, InterruptedError):
            self._receiver.send_blocked()
        except OSError as error:
            if error.errno not in _NO_SEGMENTS:
                self._log.debug("cannot send to {to}: {error}", event="udp.send_failed", to=to[0], error=error)
                return True
            self._can_segment = False
            self._log.info("this kernel or interface has no UDP_SEGMENT: one packet for each send", event="udp.no_gso")
            return False
        else:
            self.traffic.trains.observe(count)
            self.traffic.bytes_sent += sent
        return True

    def send(self, data: bytes, to: SocketAddress, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Send a datagram, or lose it: a full buffer or an unreachable address is what the network does, too."""
        try:
            sent = self.socket.sendmsg([data], ancillary, 0, to) if ancillary else self.socket.sendto(data, to)
        except (BlockingIOError, InterruptedError):
            self._receiver.send_blocked()
        except OSError as error:
            self._log.debug("cannot send to {to}: {error}", event="udp.send_failed", to=to[0], error=error)
        else:
            traffic = self.traffic
            traffic.singles += 1
            traffic.bytes_sent += sent

    def _make_path(self, sender: SocketAddress, pktinfo: bytes) -> Path:
        if len(self._paths) >= MAX_PATHS:
            self._paths.clear()
        path = Path(sender, self._origin(_destination(pktinfo)))
        self._paths[(sender, pktinfo) if pktinfo else sender] = path
        return path

    def _origin(self, ip: bytes) -> _Origin:
        origin = self._origins.get(ip)
        if origin is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._origins.clear()
            origin = self._origins[ip] = self._make_origin(ip)
        return origin

    def _make_origin(self, ip: bytes) -> _Origin:
        local = self.local
        if not ip:
            return _Origin(self, local, [])
        address = Address.of(str(ip_address(ip)), local.port)
        if len(ip) == 4:
            return _Origin(self, address, [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, ip, bytes(4)))])
        return _Origin(self, address, [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(ip, 0))])


def _nothing() -> None:
    """A receiver that wants nothing before packets are read."""


def _read_ancillary(ancillary: list[tuple[int, int, bytes]]) -> tuple[bytes, int]:
    """The IP_PKTINFO or IPV6_PKTINFO of a datagram (empty: none), and the size of the packets in a train (0: it is none)."""
    pktinfo, size = b"", 0
    for level, kind, data in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO:
            (size,) = _GRO_SIZE.unpack_from(data)
        else:
            pktinfo = data
    return pktinfo, size


def _destination(pktinfo: bytes) -> bytes:
    """The address in an IP_PKTINFO or IPV6_PKTINFO; empty if there is none."""
    if len(pktinfo) == _PKTINFO4.size:
        _, _, address = _PKTINFO4.unpack(pktinfo)
    elif len(pktinfo) == _PKTINFO6.size:
        address, _ = _PKTINFO6.unpack(pktinfo)
    else:
        address = b""
    return bytes(address)
