"""UDP sockets: batches, the address that was reached, and a network that loses what it cannot carry."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.real_relay import PATIENCE, eventually, reactor
from zrc_relay.core.wire import Address
from zrc_relay.quic import udp as udp_module
from zrc_relay.quic.udp import MAX_BATCH, MAX_ORIGINS, MAX_READS, Path, UdpPort


class Collector:
    """A ``Receiver`` that remembers, and echoes when told to."""

    def __init__(self, *, echo: bool = False) -> None:
        self.got: list[tuple[bytes, Path]] = []
        self.batches: list[int] = []
        self.blocked = 0
        self._echo = echo
        self._seen = 0

    def datagram_received(self, data: bytes, path: Path) -> None:
        self.got.append((data, path))
        if self._echo:
            to, origin = path
            origin.send(data, to)

    def batch_done(self) -> None:
        self.batches.append(len(self.got) - self._seen)
        self._seen = len(self.got)

    def send_blocked(self) -> None:
        self.blocked += 1

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class UdpCase(TestCase):
    """A port on loopback and a plain socket to talk to it."""

    timeout = 2 * PATIENCE

    def listen(self, host: str, receiver: Collector | None = None) -> UdpPort:
        self.receiver = receiver or Collector()
        port = UdpPort(host, 0, self.receiver, reactor)
        port.startListening()
        self.addCleanup(port.stopListening)
        return port

    def plain(self, host: str) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.bind((host, 0))
        self.addCleanup(made.close)
        return made

    async def receive(self, plain: socket.socket) -> tuple[bytes, tuple[Any, ...]]:
        found: list[tuple[bytes, tuple[Any, ...]]] = []

        def look() -> bool:
            try:
                found.append(plain.recvfrom(65535))
            except BlockingIOError:
                return False
            return True

        await eventually(look, "an answer")
        return found[0]


class AddressTests(UdpCase):
    """R5.1: IPv4 and IPv6; a wildcard socket answers from the address that was reached."""

    async def check(self, listen: str, reached: str, client: str) -> None:
        port = self.listen(listen, Collector(echo=True))
        plain = self.plain(client)
        plain.sendto(b"ping", (reached, port.local.port))
        data, sender = await self.receive(plain)
        self.assertEqual((data, sender[0], sender[1]), (b"ping", reached, port.local.port))
        ((_, (to, origin)),) = self.receiver.got
        self.assertEqual(origin.address, Address.of(reached, port.local.port))
        self.assertEqual(Address.of(to[0], to[1]), Address.of(client, plain.getsockname()[1]))

    async def test_ipv4(self) -> None:
        await self.check("127.0.0.1", "127.0.0.1", "127.0.0.1")

    async def test_ipv6(self) -> None:
        await self.check("::1", "::1", "::1")

    async def test_a_wildcard_answers_from_an_address_that_routing_would_not_choose(self) -> None:
        await self.check("0.0.0.0", "127.0.0.2", "127.0.0.1")

    async def test_an_ipv6_wildcard_answers_from_the_address_reached(self) -> None:
        await self.check("::", "::1", "::1")

    async def test_one_socket_serves_several_of_its_addresses(self) -> None:
        port = self.listen("0.0.0.0", Collector(echo=True))
        plain = self.plain("127.0.0.1")
        for reached in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
            plain.sendto(reached.encode(), (reached, port.local.port))
            data, sender = await self.receive(plain)
            self.assertEqual((data.decode(), sender[0]), (reached, reached))
        first, second, third = (path for _, path in self.receiver.got)
        self.assertIs(first, third, "the same path, so that it does not look like a migration")
        self.assertNotEqual(first, second)

    async def test_ipv4_and_ipv6_can_have_the_same_port(self) -> None:
        port = self.listen("::")
        other = UdpPort("0.0.0.0", port.local.port, Collector(), reactor)
        other.startListening()
        self.addCleanup(other.stopListening)
        self.assertEqual(other.local.port, port.local.port)

    async def test_the_default_origin_is_for_who_speaks_first(self) -> None:
        port = self.listen("0.0.0.0")
        plain = self.plain("127.0.0.1")
        port.default_origin.send(b"first", plain.getsockname())
        data, sender = await self.receive(plain)
        self.assertEqual((data, sender[1]), (b"first", port.local.port))


class BatchTests(UdpCase):
    """ARCHITECTURE "the way of a packet": many datagrams per wake-up, and one word at the end of each batch."""

    async def test_what_waits_comes_in_batches_of_bounded_size_and_in_order(self) -> None:
        port = self.listen("127.0.0.1")
        plain = self.plain("127.0.0.1")
        sent = [b"%d" % number for number in range(3 * MAX_BATCH)]
        for payload in sent:
            plain.sendto(payload, ("127.0.0.1", port.local.port))
        await eventually(lambda: len(self.receiver.got) == len(sent), "all datagrams")
        self.assertEqual([data for data, _ in self.receiver.got], sent)
        self.assertEqual(max(self.receiver.batches), MAX_READS)
        self.assertEqual(sum(self.receiver.batches), len(sent))

    async def test_the_largest_and_the_smallest_datagram_arrive_whole(self) -> None:
        port = self.listen("127.0.0.1")
        plain = self.plain("127.0.0.1")
        largest = bytes(range(256)) * 255
        for payload in (b"", largest):
            plain.sendto(payload, ("127.0.0.1", port.local.port))
        await eventually(lambda: len(self.receiver.got) == 2, "both")
        self.assertEqual([data for data, _ in self.receiver.got], [b"", largest])

    async def test_a_receiver_that_raises_is_still_told_that_the_batch_is_done(self) -> None:
        class Failing(Collector):
            """Raises at the first datagram."""

            def datagram_received(self, data: bytes, path: Path) -> None:
                super().datagram_received(data, path)
                if len(self.got) == 1:
                    raise ZeroDivisionError

        port = self.listen("127.0.0.1", Failing())
        plain = self.plain("127.0.0.1")
        plain.sendto(b"1", ("127.0.0.1", port.local.port))
        await eventually(lambda: self.receiver.batches, "the end of the batch")
        self.flushLoggedErrors(ZeroDivisionError)


class FakeSocket:
    """A socket whose sending fails with ``error``."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def sendto(self, *_: object) -> None:
        raise self._error

    def sendmsg(self, *_: object) -> None:
        raise self._error

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 4433)


class SendingTests(SynchronousTestCase):
    """ARCHITECTURE "facts": sending never raises; what the system refuses is lost, as on any network."""

    def port(self, error: OSError) -> tuple[UdpPort, Collector]:
        receiver = Collector()
        port = UdpPort("127.0.0.1", 0, receiver, reactor)
        port.socket = cast(Any, FakeSocket(error))
        return port, receiver

    def test_a_full_buffer_is_reported_and_the_datagram_lost(self) -> None:
        port, receiver = self.port(BlockingIOError(errno.EAGAIN, "full"))
        port.default_origin.send(b"x", ("127.0.0.1", 9))
        port.send(b"x", ("127.0.0.1", 9), [(0, 0, b"")])
        self.assertEqual(receiver.blocked, 2)

    def test_other_errors_are_nobodys_problem(self) -> None:
        for number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE, errno.EPERM, errno.ECONNREFUSED, errno.EINVAL):
            port, receiver = self.port(OSError(number, "no"))
            port.default_origin.send(b"x", ("127.0.0.1", 9))
            self.assertEqual(receiver.blocked, 0)

    def test_addresses_of_its_own_that_it_remembers_are_bounded(self) -> None:
        port, _ = self.port(OSError())
        for number in range(MAX_ORIGINS + 10):
            port._origin(number.to_bytes(4, "big"))  # noqa: SLF001 - as if so many local addresses had been reached
        self.assertLessEqual(len(port._origins), MAX_ORIGINS)  # noqa: SLF001 - compiled it has no __dict__

    def test_paths_that_it_remembers_are_bounded(self) -> None:
        self.patch(udp_module, "MAX_PATHS", 10)
        port, _ = self.port(OSError())
        for number in range(25):
            port._make_path(("127.0.0.1", number), b"")  # noqa: SLF001 - as if packets of so many senders had come
        self.assertLessEqual(len(vars(port)["_paths"]), 10)


class IcmpTests(UdpCase):
    """An ICMP error for something that was sent is no reason to stop reading."""

    async def test_a_port_unreachable_does_not_stop_the_socket(self) -> None:
        port = self.listen("127.0.0.1")
        gone = self.plain("127.0.0.1")
        address = gone.getsockname()
        gone.close()
        for _ in range(5):
            port.default_origin.send(b"nobody there", address)
        plain = self.plain("127.0.0.1")
        plain.sendto(b"but I am", ("127.0.0.1", port.local.port))
        await eventually(lambda: self.receiver.got, "the datagram behind the errors")
        self.assertEqual(self.receiver.got[0][0], b"but I am")
