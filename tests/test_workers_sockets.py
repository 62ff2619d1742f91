"""The UDP sockets that a parent binds for its workers: which ports, in which order, and what is said when one cannot be had."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.two_workers import LOOPBACK
from zrc_relay.config_values import MAX_PORT
from zrc_relay.engine import StartError
from zrc_relay.workers import sockets as module
from zrc_relay.workers.orders import FIRST_SOCKET_FD
from zrc_relay.workers.sockets import ATTEMPTS, Sockets


class SocketsCase(SynchronousTestCase):
    """Sockets that are closed with the test, and ports that somebody else has."""

    def make(
        self, count: int = 2, *, addresses: tuple[str, ...] = (LOOPBACK,), port: int = 0, first: int | None = None
    ) -> Sockets:
        made = Sockets(addresses, port, first, count)
        self.addCleanup(made.close)
        return made

    def opened(self, count: int = 2, *, addresses: tuple[str, ...] = (LOOPBACK,), first: int | None = None) -> Sockets:
        made = self.make(count, addresses=addresses, first=first)
        made.open()
        return made

    def taken(self, port: int = 0) -> int:
        """A port that somebody else has."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind((LOOPBACK, port))
        return int(sock.getsockname()[1])

    def refusal(self, sockets: Sockets) -> str:
        before = descriptors()
        with self.assertRaises(StartError) as caught:
            sockets.open()
        self.assertEqual(descriptors(), before, "nothing is left open")
        self.assertEqual(sockets.all, [])
        return str(caught.exception)


class PlaceTests(SocketsCase):
    """Issue "all cores": each worker has a socket of each group, in the order of the workers, and a port of its own."""

    def test_the_shared_port_and_those_behind_it(self) -> None:
        sockets = self.opened(3)
        port = sockets.port
        self.assertEqual(sockets.worker_port_base, port + 1)
        self.assertEqual([[place.port for place in sockets.places(index)] for index in range(3)], [
            [port, port + 1], [port, port + 2], [port, port + 3],
        ])

    def test_descriptors_are_numbered_as_they_are_handed_down(self) -> None:
        sockets = self.opened(3, addresses=(LOOPBACK, "127.0.0.2"))
        self.assertEqual(len(sockets.all), 3 * 2 * 2)
        for index in range(3):
            for place in sockets.places(index):
                sock = sockets.all[place.fd - FIRST_SOCKET_FD]
                self.assertEqual(sock.getsockname(), (place.host, place.port))
        fds = [place.fd for index in range(3) for place in sockets.places(index)]
        self.assertEqual(fds, list(range(FIRST_SOCKET_FD, FIRST_SOCKET_FD + 12)))

    def test_both_families_share_the_ports(self) -> None:
        sockets = self.opened(2, addresses=(LOOPBACK, "::1"))
        self.assertEqual({(place.host, place.port) for place in sockets.places(1)}, {
            (LOOPBACK, sockets.port), ("::1", sockets.port), (LOOPBACK, sockets.port + 2), ("::1", sockets.port + 2),
        })

    def test_a_first_port_of_ones_own_choice(self) -> None:
        base = self.opened(2).worker_port_base
        sockets = self.opened(1)
        self.assertEqual(sockets.worker_port_base, 0)
        wanted = base + 100
        self.assertEqual(self.opened(2, first=wanted).places(1)[1].port, wanted + 1)

    def test_one_worker_alone_shares_nothing(self) -> None:
        sockets = self.opened(1)
        self.assertEqual((len(sockets.all), len(sockets.places(0))), (1, 1))
        with self.assertRaises(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind((LOOPBACK, sockets.port))

    def test_all_are_closed(self) -> None:
        sockets = self.opened(2)
        port = sockets.port
        sockets.close()
        self.assertEqual(sockets.all, [])
        for number in range(3):
            self.assertEqual(self.taken(port + number), port + number)


class RefusalTests(SocketsCase):
    """Issue "bad input": a port that cannot be had is one line that names it, and nothing stays open."""

    def test_a_shared_port_that_is_taken(self) -> None:
        port = self.taken()
        self.assertEqual(self.refusal(self.make(port=port)), f"cannot listen on UDP {LOOPBACK}:{port}: Address already in use")

    def test_a_port_of_a_worker_that_is_taken(self) -> None:
        port = self.free_in_a_row()
        self.taken(port + 2)
        expected = f"cannot listen on UDP {LOOPBACK}:{port + 2}: Address already in use"
        self.assertEqual(self.refusal(self.make(port=port)), expected)

    def test_a_host_that_is_not_ours(self) -> None:
        text = self.refusal(self.make(addresses=("192.0.2.1",), port=self.free_in_a_row()))
        self.assertIn("cannot listen on UDP 192.0.2.1:", text)

    def test_a_port_behind_the_last_one(self) -> None:
        text = self.refusal(self.make(port=self.free_in_a_row(), first=MAX_PORT))
        self.assertEqual(text, "cannot listen on UDP port 65536 for worker 1: ports end at 65535")

    def free_in_a_row(self) -> int:
        sockets = self.make()
        sockets.open()
        port = sockets.port
        sockets.close()
        return port


class AnyPortTests(SocketsCase):
    """Where any port will do, another one is tried when those behind it are not free."""

    def failing(self, times: int) -> list[int]:
        """The ports of workers cannot be had so many times; gives the ports that are asked for."""
        asked: list[int] = []
        open_single = vars(module)["open_single"]

        def fail_first(host: str, port: int) -> socket.socket:
            asked.append(port)
            if len(asked) <= times:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            made: socket.socket = open_single(host, port)
            return made

        self.patch(module, "open_single", fail_first)
        return asked

    def test_it_is_tried_again(self) -> None:
        asked = self.failing(ATTEMPTS - 1)
        sockets = self.opened()
        self.assertEqual(asked[-2:], [sockets.port + 1, sockets.port + 2])
        self.assertEqual(len(sockets.all), 4)

    def test_but_not_for_ever(self) -> None:
        asked = self.failing(10 * ATTEMPTS)
        self.assertIn("Address already in use", self.refusal(self.make()))
        self.assertEqual(len(asked), ATTEMPTS)

    def test_a_port_that_was_chosen_is_tried_once(self) -> None:
        sockets = self.opened()
        port = sockets.port
        sockets.close()
        asked = self.failing(1)
        self.refusal(self.make(port=port))
        self.assertEqual(len(asked), 1)


class WithoutIpv6Tests(SocketsCase):
    """R3.1: a host without IPv6 is no reason not to start when "::" is one of several addresses."""

    def setUp(self) -> None:
        super().setUp()
        open_group = vars(module)["open_group"]

        def refuse(host: str, port: int, count: int) -> list[socket.socket]:
            if ":" in host:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            made: list[socket.socket] = open_group(host, port, count)
            return made

        self.patch(module, "open_group", refuse)

    def test_it_is_passed_over(self) -> None:
        sockets = self.opened(addresses=("0.0.0.0", "::"))
        self.assertEqual({place.host for place in sockets.places(0)}, {"0.0.0.0"})

    def test_unless_it_is_the_first_or_an_address_of_its_own(self) -> None:
        for addresses in (("::", "0.0.0.0"), (LOOPBACK, "::1")):
            self.assertIn("Address family not supported", self.refusal(self.make(addresses=addresses)))


def descriptors() -> set[str]:
    """The descriptors that this process has open."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}
