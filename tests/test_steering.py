"""One UDP port for several workers: which socket the kernel gives a packet to, with real sockets on loopback."""

from __future__ import annotations

import errno
import random
import select
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from zrc_relay.quic.steering import SO_ATTACH_REUSEPORT_CBPF, SteeringRefused, open_group, open_single
from zrc_relay.quic.udp import Path, UdpPort

reactor: Any = installed_reactor
PATIENCE = 30.0
"""Seconds that a test waits for what comes at once on an idle machine."""
LOOPBACK = "127.0.0.1"
COUNTS = (2, 3, 4, 7)
LONG, SHORT, CHANNEL, STUN = 0xC0, 0x40, 5, 0
PLACES = {LONG: 6, SHORT: 1, CHANNEL: 1, STUN: 8}
"""First byte of each kind of packet, and where the byte is that says whose it is (RFC 9000 §17, PROTOCOL §7, RFC 8489 §5)."""
rng = random.Random(7)  # noqa: S311 - packets, the same each time


def packet(first: int, byte: int, size: int = 60) -> bytes:
    """A packet that begins with ``first`` and is for ``byte``; the rest is arbitrary."""
    made = bytearray(rng.randbytes(size))
    made[0] = first
    made[PLACES[first]] = byte
    return bytes(made)


def has_ipv6() -> bool:
    """Whether this host has an IPv6 loopback address."""
    try:
        open_single("::1", 0).close()
    except OSError:
        return False
    return True


class GroupTestCase(SynchronousTestCase):
    """Groups that are closed when the test ends, and packets that are found where they arrived."""

    def group(self, count: int, host: str = LOOPBACK) -> list[socket.socket]:
        group = open_group(host, 0, count)
        for member in group:
            self.addCleanup(member.close)
        return group

    def sender(self, host: str = LOOPBACK) -> socket.socket:
        """A socket with a source port of its own."""
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        return made

    def arrivals(self, group: list[socket.socket], packets: list[bytes], senders: int = 1) -> list[tuple[int, bytes]]:
        """Where each packet arrived, sent in turns from so many source ports; loopback delivers before ``sendto`` returns."""
        host, port = group[0].getsockname()[:2]
        sources = [self.sender(host) for _ in range(senders)]
        found = []
        for number, sent in enumerate(packets):
            sources[number % senders].sendto(sent, (host, port))
            ready, _, _ = select.select(group, [], [], PATIENCE)
            found += [(group.index(member), member.recv(65535)) for member in ready]
        return found

    def check(self, group: list[socket.socket], kind: int, expected: dict[int, int]) -> None:
        """Packets of ``kind`` for each byte, from twenty ports, arrive at the socket that ``expected`` names."""
        packets = [packet(kind, byte) for byte in expected]
        self.assertEqual(
            self.arrivals(group, packets, senders=20),
            [(index, sent) for index, sent in zip(expected.values(), packets, strict=True)],
        )


class SteeringTests(GroupTestCase):
    """Issue "all cores": the kernel picks the worker by ``byte % N``, whatever the source address is."""

    def test_each_kind_of_packet_goes_where_its_byte_says_and_not_where_its_source_would(self) -> None:
        for count in COUNTS:
            group = self.group(count)
            for kind in PLACES:
                self.check(group, kind, {byte: byte % count for byte in range(256)})

    def test_it_is_so_for_every_first_byte_of_its_kind(self) -> None:
        group = self.group(7)
        kinds = {LONG: range(0x80, 0x100), SHORT: range(0x40, 0x80), STUN: range(4)}
        for kind, firsts in kinds.items():
            packets = [bytes((first,)) + packet(kind, first)[1:] for first in firsts]
            found = self.arrivals(group, packets, senders=5)
            self.assertEqual([index for index, _ in found], [first % 7 for first in firsts])

    def test_what_is_nobodys_goes_to_the_first(self) -> None:
        group = self.group(4)
        packets = [bytes((first,)) + b"\xff" * 40 for first in (4, *range(6, 0x40))]
        self.assertEqual({index for index, _ in self.arrivals(group, packets, senders=9)}, {0})

    def test_packets_that_are_too_short_and_empty_ones_go_to_the_first_and_harm_nobody(self) -> None:
        group = self.group(3)
        packets = [b"", *(bytes((kind,)) + b"\xff" * size for kind, place in PLACES.items() for size in range(place))]
        packets = [short for short in packets if len(short) <= PLACES.get(short[0] if short else 0, 0)]
        found = self.arrivals(group, packets, senders=3)
        self.assertEqual(found, [(0, short) for short in packets])
        self.check(group, LONG, {byte: byte % 3 for byte in range(20)})

    def test_stun_is_spread(self) -> None:
        group = self.group(4)
        requests = [b"\x00\x01\x00\x00\x21\x12\xa4\x42" + rng.randbytes(12) for _ in range(400)]
        found = Counter(index for index, _ in self.arrivals(group, requests))
        self.assertEqual(set(found), {0, 1, 2, 3})
        self.assertGreater(min(found.values()), 60)

    def test_ipv6_and_wildcard_groups_are_steered_alike(self) -> None:
        for host, target in (("0.0.0.0", LOOPBACK), ("::1", "::1"), ("::", "::1")):
            if ":" in host and not has_ipv6():
                continue
            group = self.group(3, host)
            port = group[0].getsockname()[1]
            for byte in range(12):
                self.sender(target).sendto(packet(SHORT, byte), (target, port))
                ready, _, _ = select.select(group, [], [], PATIENCE)
                self.assertEqual([group.index(member) for member in ready], [byte % 3])
                ready[0].recv(2000)


class KeptTests(GroupTestCase):
    """Issue "all cores": a worker's index survives its restart, and packets wait for it."""

    def test_the_number_of_a_socket_is_its_place_among_those_that_were_bound(self) -> None:
        group = self.group(4)
        self.assertEqual(len({member.getsockname() for member in group}), 1)
        for index, member in enumerate(group):
            self.sender().sendto(packet(SHORT, index), group[0].getsockname())
            self.assertEqual(select.select(group, [], [], PATIENCE)[0], [member])
            member.recv(2000)

    def test_packets_wait_for_a_reader_that_is_gone_while_its_socket_is_kept(self) -> None:
        group = self.group(3)
        reader = group[1].dup()
        self.sender().sendto(packet(LONG, 1), group[0].getsockname())
        self.assertTrue(reader.recv(2000))
        reader.close()  # a process that dies closes what it had, and the one that opened the group still has it
        sent = [packet(LONG, byte) for byte in range(30)]
        for number, data in enumerate(sent):
            self.sender().sendto(data, group[0].getsockname())
            if number % 3 != 1:
                self.assertEqual(group[number % 3].recv(2000), data)
        reader = group[1].dup()
        self.addCleanup(reader.close)
        self.assertEqual([reader.recv(2000) for _ in range(10)], sent[1::3])


class OpeningTests(GroupTestCase):
    """R8, issue "all cores": what cannot be had is an error, and nothing is left behind."""

    @contextmanager
    def counted(self) -> Iterator[list[socket.socket]]:
        """Sockets that the module opens in the meantime."""
        made: list[socket.socket] = []

        class Counted(socket.socket):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                made.append(self)

        patch = self.patch(socket, "socket", Counted)
        try:
            yield made
        finally:
            patch.restore()

    def in_use(self, host: str, port: int, count: int) -> None:
        with self.counted() as made, self.assertRaises(OSError) as raised:
            open_group(host, port, count)
        self.assertEqual(raised.exception.errno, errno.EADDRINUSE)
        self.assertEqual([one.fileno() for one in made], [-1] * len(made))

    def test_a_port_that_another_relay_has_is_refused_also_when_that_one_has_several_workers(self) -> None:
        alone = open_single(LOOPBACK, 0)
        self.addCleanup(alone.close)
        for other in (alone, self.group(2)[0]):
            for count in (1, 2):
                self.in_use(LOOPBACK, other.getsockname()[1], count)
        group = self.group(2)
        self.assertRaises(OSError, open_single, LOOPBACK, group[0].getsockname()[1])
        self.check(group, SHORT, {byte: byte % 2 for byte in range(20)})

    def test_a_kernel_that_refuses_the_program_is_told_from_a_port_that_is_taken(self) -> None:
        class Refusing(socket.socket):
            made: list[socket.socket] = []  # noqa: RUF012 - one of them

            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                self.made.append(self)

            def setsockopt(self, *arguments: Any) -> None:
                if arguments[1] == SO_ATTACH_REUSEPORT_CBPF:
                    raise OSError(errno.ENOPROTOOPT, "no such option")
                super().setsockopt(*arguments)

        self.patch(socket, "socket", Refusing)
        refusal: SteeringRefused = self.assertRaises(SteeringRefused, open_group, LOOPBACK, 0, 2)
        self.assertEqual(str(refusal), "Protocol not available")
        self.assertEqual([one.fileno() for one in Refusing.made], [-1, -1])
        (single,) = open_group(LOOPBACK, 0, 1)  # one worker needs no program
        single.close()

    def test_the_sockets_are_not_inherited_and_do_not_block(self) -> None:
        for member in self.group(2):
            self.assertFalse(member.get_inheritable())
            self.assertFalse(member.getblocking())
            self.assertRaises(BlockingIOError, member.recv, 1)

    def test_an_address_that_is_not_ours_is_an_error(self) -> None:
        error: OSError = self.assertRaises(OSError, open_group, "192.0.2.1", 0, 2)
        self.assertEqual(error.errno, errno.EADDRNOTAVAIL)


class Kept:
    """A ``Receiver`` that keeps what it gets, with our own side of the path."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, Path]] = []
        self.first: Deferred[None] = Deferred()

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        self.got.append((data, path))
        if not self.first.called:
            self.first.callback(None)

    def batch_done(self) -> None:
        """See ``Receiver``."""

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class AdoptionTests(TestCase):
    """Issue "all cores": a worker listens on sockets that were handed down; they do all that its own would do."""

    timeout = 2 * PATIENCE

    def ports(self, host: str, count: int) -> list[tuple[UdpPort, Kept]]:
        group = []
        for sock in open_group(host, 0, count):
            kept = Kept()
            port = UdpPort(host, 0, kept, reactor, sock=sock)
            port.startListening()
            self.addCleanup(port.stopListening)
            group.append((port, kept))
        return group

    def options(self, port: UdpPort) -> list[int]:
        """Path MTU discovery, what address was reached, GRO, buffers (ip(7), udp(7), socket(7))."""
        wanted = ((0, 10), (0, 8), (17, 104), (socket.SOL_SOCKET, socket.SO_RCVBUF), (socket.SOL_SOCKET, socket.SO_SNDBUF))
        return [port.socket.getsockopt(level, name) for level, name in wanted]

    def test_their_options_are_those_of_a_socket_of_ones_own(self) -> None:
        for host in (LOOPBACK, "0.0.0.0"):
            own = UdpPort(host, 0, Kept(), reactor)
            own.startListening()
            self.addCleanup(own.stopListening)
            for port, _ in self.ports(host, 2):
                self.assertEqual(self.options(port), self.options(own))
                self.assertEqual(vars(port)["_takes_trains"], vars(own)["_takes_trains"])

    def test_a_socket_that_comes_blocking_does_not_stay_so(self) -> None:
        sock = open_single(LOOPBACK, 0)
        sock.setblocking(True)
        port = UdpPort(LOOPBACK, 0, Kept(), reactor, sock=sock)
        self.assertFalse(sock.getblocking())
        port.startListening()
        self.addCleanup(port.stopListening)

    async def test_packets_come_in_and_answers_leave_from_the_address_that_was_reached(self) -> None:
        group = self.ports("0.0.0.0", 2)
        number = group[0][0].local.port
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sender.close)
        sender.setblocking(False)
        for byte in (0, 1):
            sender.sendto(packet(SHORT, byte), ("127.0.0.2", number))
        for _, kept in group:
            await kept.first
            ((_, (to, origin)),) = kept.got
            self.assertEqual(str(origin.address), f"127.0.0.2:{number}")
            origin.send(b"answer", to)
            data, source = sender.recvfrom(100)
            self.assertEqual((data, source), (b"answer", ("127.0.0.2", number)))

    async def test_stopping_a_port_closes_its_socket(self) -> None:
        ((port, _), (other, kept)) = self.ports(LOOPBACK, 2)
        sock = port.socket
        stopped: Deferred[None] | None = port.stopListening()
        if stopped is not None:
            await stopped
        self.assertEqual(sock.fileno(), -1)
        self.assertIsNotNone(other.socket.getsockname())
        self.assertEqual(kept.got, [])
