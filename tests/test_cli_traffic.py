"""The UDP program of the demo: its window, its encryption, and that it notices what a relay could do to its traffic."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.cli.demo_program import DATAGRAM, Client, Codec, Kind, Server, TrafficFailed
from zrc_relay.cli.demo_window import MAX_WINDOW, MIN_WINDOW, SACK_BITS, Window

KEY = bytes(range(32))
MAX_DATAGRAM = 65535


def transfer(total: int, loss: float, seed: int) -> tuple[Window, list[int], set[int]]:
    """Send ``total`` chunks over a simulated way that loses ``loss`` of all datagrams; what was sent, and what has arrived."""
    rng = random.Random(seed)  # noqa: S311 - a run is the same each time
    window, sent, arrived, now = Window(total), [], set[int](), 0.0
    while len(arrived) < total:
        batch = []
        while (chunk := window.choose(now)) is not None:
            batch.append(chunk)
            if chunk >= window.first_unknown + SACK_BITS or len(window.under_way) > MAX_WINDOW:
                message = "the window does not hold"
                raise AssertionError(message)
        sent += batch
        now += 0.01
        heard = False
        for chunk in batch:
            if rng.random() >= loss:
                arrived.add(chunk)
            if rng.random() >= loss:
                following = next(number for number in range(total + 1) if number not in arrived)
                beyond = sum(1 << bit for bit in range(SACK_BITS) if following + bit in arrived)
                window.acknowledged(following, beyond, now)
                heard = True
        if not heard:
            now += 0.2
            window.expire(now)
    return window, sent, arrived


class WindowTests(SynchronousTestCase):
    """Issue 2: the demo's bulk transfer arrives whole over a way that loses datagrams."""

    def test_everything_arrives_at_every_rate_of_loss(self) -> None:
        for loss in (0.0, 0.01, 0.1, 0.3, 0.6):
            for seed in range(5):
                _, sent, arrived = transfer(400, loss, seed)
                self.assertEqual(arrived, set(range(400)))
                self.assertLessEqual(len(sent), 400 * 40)

    def test_without_loss_every_chunk_is_sent_once_in_order_and_the_window_grows(self) -> None:
        window, sent, _ = transfer(1000, 0.0, 1)
        self.assertEqual(sent, list(range(1000)))
        self.assertEqual(window.size, MAX_WINDOW)

    def test_a_chunk_that_three_later_ones_overtook_is_sent_again_and_no_other(self) -> None:
        window = Window(100)
        for _ in range(10):
            window.choose(0.0)
        window.acknowledged(0, 0b0110, 0.01)
        self.assertNotIn(0, window.missing)
        window.acknowledged(0, 0b1110, 0.02)
        self.assertEqual(list(window.missing), [0])
        self.assertEqual(window.choose(0.03), 0)

    def test_what_is_lost_together_halves_the_window_once(self) -> None:
        window = Window(1000, size=40.0)
        for _ in range(40):
            window.choose(0.0)
        window.acknowledged(0, 0b1111 << 20, 0.01)
        self.assertEqual(len(window.missing), 20)
        self.assertTrue(20 <= window.size < 23, window.size)

    def test_the_window_never_closes(self) -> None:
        window = Window(1000)
        for round_ in range(1, 20):
            while window.choose(10.0 * round_) is not None:
                pass
            window.expire(10.0 * round_ + 5)
        self.assertEqual(window.size, MIN_WINDOW)

    def test_nothing_is_taken_for_lost_before_the_timeout(self) -> None:
        window = Window(10)
        window.choose(0.0)
        window.expire(0.99 * window.timeout)
        self.assertEqual(list(window.missing), [])
        window.expire(window.timeout)
        self.assertEqual(list(window.missing), [0])

    def test_an_acknowledgement_that_is_late_changes_nothing(self) -> None:
        window = Window(100)
        for _ in range(10):
            window.choose(0.0)
        self.assertTrue(window.acknowledged(8, 0, 0.01))
        self.assertFalse(window.acknowledged(3, 0b1111, 0.02))
        self.assertEqual((window.first_unknown, set(window.under_way)), (8, {8, 9}))


class Forwarder(threading.Thread):
    """Stands where the relay is: forwards between a client and a server, and does ``change`` to each datagram (None: lost)."""

    def __init__(self, server_port: int, change: Callable[[bytes], bytes | None]) -> None:
        super().__init__(daemon=True)
        self._server = ("127.0.0.1", server_port)
        self._change = change
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._stopping = threading.Event()
        self.seen: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def run(self) -> None:
        client = None
        with self._socket:
            while not self._stopping.is_set():
                try:
                    data, sender = self._socket.recvfrom(MAX_DATAGRAM)
                except TimeoutError:
                    continue
                if sender != self._server:
                    client = sender
                self.seen.append(data)
                changed = self._change(data)
                to = client if sender == self._server else self._server
                if changed is not None and to is not None:
                    self._socket.sendto(changed, to)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def unchanged(data: bytes) -> bytes:
    """A relay that does what it should."""
    return data


class ProgramTests(SynchronousTestCase):
    """Issue 2 and R3.2: requests, responses and bulk arrive byte for byte, and whoever carries them sees ciphertext."""

    def start(self, change: Callable[[bytes], bytes | None] = unchanged, *, server_key: bytes = KEY) -> Client:
        self.server = Server(server_key)
        self.server.start()
        self.addCleanup(self.server.stop)
        self.forwarder = Forwarder(self.server.port, change)
        self.forwarder.start()
        self.addCleanup(self.forwarder.stop)
        return self.client(self.forwarder.port)

    def client(self, port: int, check: Callable[[], None] = lambda: None) -> Client:
        client = Client(KEY, port, check, patience=0.1)
        self.addCleanup(client.close)
        return client

    def test_every_request_gets_its_response(self) -> None:
        client = self.start()
        progress: list[int] = []
        times = client.ask(50, progress.append)
        self.assertEqual(len(times), 50)
        self.assertEqual(progress, list(range(1, 51)))
        self.assertGreaterEqual(client.tally.received, 50)

    def test_a_transfer_ends_with_the_hash_of_what_the_server_has(self) -> None:
        for size in (1, 1151, 1152, 200_000):
            client = self.start()
            data = os.urandom(size)
            progress: list[int] = []
            self.assertEqual(client.transfer(data, progress.append), hashlib.sha256(data).digest())
            self.assertEqual(progress[-1], size)
            self.assertEqual(progress, sorted(progress))

    def test_bulk_datagrams_are_as_long_as_quic_programs_need(self) -> None:
        client = self.start()
        client.transfer(bytes(100_000), lambda _: None)
        self.assertEqual(max(map(len, self.forwarder.seen)), DATAGRAM)

    def test_losses_are_made_good_and_counted(self) -> None:
        seen = [0]

        def lose_every_seventh(data: bytes) -> bytes | None:
            seen[0] += 1
            return data if seen[0] % 7 else None

        client = self.start(lose_every_seventh)
        data = os.urandom(100_000)
        client.ask(10, lambda _: None)
        self.assertEqual(client.transfer(data, lambda _: None), hashlib.sha256(data).digest())
        lost = client.tally.sent + self.server.tally.sent - client.tally.received - self.server.tally.received
        self.assertGreaterEqual(lost, seen[0] // 7 - 1)

    def test_a_changed_byte_is_noticed_and_does_no_harm(self) -> None:
        seen = [0]

        def change_every_fifth(data: bytes) -> bytes:
            seen[0] += 1
            return data if seen[0] % 5 else data[:-1] + bytes((data[-1] ^ 1,))

        client = self.start(change_every_fifth)
        data = os.urandom(50_000)
        client.ask(10, lambda _: None)
        self.assertEqual(client.transfer(data, lambda _: None), hashlib.sha256(data).digest())
        self.assertGreater(client.tally.forged + self.server.tally.forged, 0)

    def test_who_carries_the_traffic_sees_nothing_of_it(self) -> None:
        client = self.start()
        data = b"the very same sixteen bytes over and over" * 1000
        client.transfer(data, lambda _: None)
        self.assertEqual([seen for seen in self.forwarder.seen if b"sixteen" in seen], [])
        self.assertEqual(len(set(self.forwarder.seen)), len(self.forwarder.seen))

    def test_without_the_key_there_is_no_answer(self) -> None:
        client = self.start(server_key=bytes(32))
        with self.assertRaises(TrafficFailed) as caught:
            client.ask(1, lambda _: None)
        self.assertIn("request 1 got no response", str(caught.exception))
        self.assertEqual(self.server.tally.forged, self.server.tally.received)

    def test_a_response_that_is_not_what_was_asked_is_a_failure(self) -> None:
        codec = Codec(KEY)

        def answer_wrongly(data: bytes) -> bytes | None:
            datagram = codec.open(data)
            if datagram is None or datagram.kind != Kind.ANSWER:
                return data
            return codec.seal(Kind.ANSWER, datagram.number, 0, b"something else" + bytes(1200))

        client = self.start(answer_wrongly)
        with self.assertRaises(TrafficFailed) as caught:
            client.ask(1, lambda _: None)
        self.assertIn("not what was asked", str(caught.exception))

    def test_what_the_check_raises_ends_requests_and_transfers(self) -> None:
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))

        def check() -> None:
            raise ZeroDivisionError

        client = self.client(silent.getsockname()[1], check)
        self.assertRaises(ZeroDivisionError, client.ask, 1, lambda _: None)
        self.assertRaises(ZeroDivisionError, client.transfer, b"data", lambda _: None)
