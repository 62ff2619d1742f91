"""The UDP program that the demo sends through the relay: requests with responses, and a bulk transfer; encrypted end to end.

Theory of operation
-------------------
``Server`` and ``Client`` share a key that nobody else has; each datagram is a sealed box (XSalsa20 and Poly1305, PyNaCl's
``SecretBox``), so whoever carries it sees ciphertext, and a byte that changed on the way shows. They know nothing of relays: the
client talks to one UDP address, the server answers whoever asks.

UDP loses datagrams, so the client asks again when no response comes, and the bulk transfer is a small reliable protocol:
numbered chunks, selective acknowledgements, and a ``Window`` of what may be under way. At the end the server sends the SHA-256 of
what it has put together.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from zrc_relay.cli.demo_window import SACK_BITS, Window

DATAGRAM: Final = 1200
"""Bytes of a full datagram: what QUIC programs need of a path (RFC 9000 §14.1)."""
_HEADER: Final = struct.Struct("!BII")  # kind, number, total
MAX_BODY: Final = DATAGRAM - SecretBox.NONCE_SIZE - SecretBox.MACBYTES - _HEADER.size
MAX_PLAIN: Final = 65535
ANSWER_PATIENCE: Final = 0.5
"""Seconds until a request is taken for lost."""
MAX_TRIES: Final = 20
STALLED: Final = 10.0
"""Seconds without progress after which a transfer is given up."""
ACK_EVERY: Final = 4
"""Data datagrams for one acknowledgement."""
ACK_DELAY: Final = 0.002
_POLL: Final = 0.05


class TrafficFailed(Exception):
    """The traffic did not get through; the message says what happened."""


@unique
class Kind(IntEnum):
    """What a datagram is."""

    ASK = 1
    ANSWER = 2
    DATA = 3
    ACK = 4
    DONE = 5


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram's plain text."""

    kind: int
    number: int
    total: int
    body: bytes


@dataclass(slots=True)
class Tally:
    """Datagrams, and their bytes as UDP payload, at one end."""

    sent: int = 0
    received: int = 0
    bytes: int = 0
    forged: int = 0

    def copy(self) -> Tally:
        """As it is now."""
        return Tally(self.sent, self.received, self.bytes, self.forged)


class Codec:
    """Seals and opens datagrams, and counts them."""

    def __init__(self, key: bytes) -> None:
        self._box = SecretBox(key)
        self.tally = Tally()

    def seal(self, kind: Kind, number: int, total: int, body: bytes) -> bytes:
        """The bytes to send."""
        data = bytes(self._box.encrypt(_HEADER.pack(kind, number, total) + body))
        self.tally.sent += 1
        self.tally.bytes += len(data)
        return data

    def open(self, data: bytes) -> Datagram | None:
        """What was received; None if it is not what the other end has sent."""
        self.tally.received += 1
        try:
            plain = self._box.decrypt(data)
        except (CryptoError, ValueError):
            self.tally.forged += 1
            return None
        kind, number, total = _HEADER.unpack_from(plain)
        return Datagram(kind, number, total, plain[_HEADER.size :])


class Server(threading.Thread):
    """Answers requests with what they hold, and puts a bulk transfer together; on a UDP port of 127.0.0.1, until ``stop``."""

    def __init__(self, key: bytes) -> None:
        super().__init__(name="demo server", daemon=True)
        self._codec = Codec(key)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._stopping = threading.Event()
        self._pieces: dict[int, bytes] = {}
        self._next = 0
        self._unacknowledged = 0
        self._client: tuple[str, int] | None = None
        self._digest = b""

    @property
    def port(self) -> int:
        """Its UDP port."""
        return int(self._socket.getsockname()[1])

    @property
    def tally(self) -> Tally:
        """What it has sent and received."""
        return self._codec.tally

    def run(self) -> None:
        """See ``threading.Thread``."""
        with self._socket:
            while not self._stopping.is_set():
                self._socket.settimeout(ACK_DELAY if self._unacknowledged else _POLL)
                try:
                    data, client = self._socket.recvfrom(MAX_PLAIN)
                except TimeoutError:
                    self._acknowledge()
                except ConnectionError:
                    continue  # an ICMP error of an earlier answer
                else:
                    self._client = client
                    self._handle(self._codec.open(data))

    def stop(self) -> None:
        """End the thread and close the socket."""
        self._stopping.set()
        self.join()

    def _handle(self, datagram: Datagram | None) -> None:
        if datagram is None:
            return
        if datagram.kind == Kind.ASK:
            self._send(Kind.ANSWER, datagram.number, 0, datagram.body)
        elif datagram.kind == Kind.DATA:
            self._take(datagram)

    def _take(self, datagram: Datagram) -> None:
        in_order = datagram.number == self._next
        if datagram.number >= self._next and not self._digest:
            self._pieces[datagram.number] = datagram.body
            while self._next in self._pieces:
                self._next += 1
        self._unacknowledged += 1
        if self._next == datagram.total and not self._digest:
            digest = hashlib.sha256()
            for number in range(datagram.total):
                digest.update(self._pieces.pop(number))
            self._digest = digest.digest()
        if self._digest or not in_order or self._unacknowledged >= ACK_EVERY:
            self._acknowledge()

    def _acknowledge(self) -> None:
        if not self._unacknowledged:
            return
        self._unacknowledged = 0
        if self._digest:
            self._send(Kind.DONE, self._next, self._next, self._digest)
            return
        beyond = sum(1 << i for i in range(SACK_BITS) if self._next + i in self._pieces)
        self._send(Kind.ACK, self._next, 0, beyond.to_bytes(SACK_BITS // 8, "little"))

    def _send(self, kind: Kind, number: int, total: int, body: bytes) -> None:
        if self._client is not None:
            with suppress(TimeoutError, ConnectionError):  # lost on the way, as far as this protocol is concerned
                self._socket.sendto(self._codec.seal(kind, number, total, body), self._client)


class Client:
    """Asks, and sends in bulk, to the server that is reached at UDP port ``port`` of 127.0.0.1.

    ``check`` is called now and then and may raise: whoever carries the datagrams may be gone. ``patience`` is how many seconds a
    response may take.
    """

    def __init__(self, key: bytes, port: int, check: Callable[[], None], *, patience: float = ANSWER_PATIENCE) -> None:
        self._codec = Codec(key)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))
        self._socket.settimeout(0)
        self._check = check
        self._patience = patience

    @property
    def tally(self) -> Tally:
        """What it has sent and received."""
        return self._codec.tally

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, count: int, progress: Callable[[int], None]) -> list[float]:
        """Make ``count`` requests of random size and content, one after the other; returns seconds from request to response."""
        times: list[float] = []
        number = 0
        for done in range(1, count + 1):
            body = os.urandom(random.randint(0, MAX_BODY))  # noqa: S311 - any sizes will do
            for _ in range(MAX_TRIES):
                number += 1
                started = time.monotonic()
                self._send(Kind.ASK, number, 0, body)
                if self._await_answer(number, body, started + self._patience):
                    times.append(time.monotonic() - started)
                    break
                self._check()
            else:
                msg = f"request {done} got no response in {MAX_TRIES} tries"
                raise TrafficFailed(msg)
            progress(done)
        return times

    def transfer(self, data: bytes, progress: Callable[[int], None]) -> bytes:
        """Send ``data`` reliably; returns the SHA-256 of what the server has put together."""
        total = -(-len(data) // MAX_BODY)
        window = Window(total)
        progressed = time.monotonic()
        while True:
            now = time.monotonic()
            while (chunk := window.choose(now)) is not None:
                self._send(Kind.DATA, chunk, total, data[chunk * MAX_BODY : (chunk + 1) * MAX_BODY])
            heard = self._receive(_POLL)
            now = time.monotonic()
            if heard is None:
                window.expire(now)
                self._check()
                if now - progressed > STALLED:
                    msg = f"the transfer stalled at {window.first_unknown} of {total} chunks"
                    raise TrafficFailed(msg)
            elif heard.kind == Kind.DONE:
                progress(len(data))
                return heard.body
            elif heard.kind == Kind.ACK and window.acknowledged(heard.number, int.from_bytes(heard.body, "little"), now):
                progressed = now
                progress(min(window.first_unknown * MAX_BODY, len(data)))

    def settle(self, is_settled: Callable[[], bool]) -> None:
        """Receive what is still under way, until ``is_settled`` or for a short while."""
        deadline = time.monotonic() + self._patience
        while not is_settled() and time.monotonic() < deadline:
            self._receive(_POLL)

    def _await_answer(self, number: int, body: bytes, deadline: float) -> bool:
        while (left := deadline - time.monotonic()) > 0:
            heard = self._receive(left)
            if heard is not None and heard.kind == Kind.ANSWER and heard.number == number:
                if heard.body != body:
                    msg = f"the response to request {number} is not what was asked"
                    raise TrafficFailed(msg)
                return True
        return False

    def _receive(self, timeout: float) -> Datagram | None:
        if select.select([self._socket], [], [], timeout)[0]:
            try:
                return self._codec.open(self._socket.recv(MAX_PLAIN))
            except (BlockingIOError, ConnectionError):
                pass  # a bad checksum, or nobody at the port: as if nothing had come
        return None

    def _send(self, kind: Kind, number: int, total: int, body: bytes) -> None:
        data = self._codec.seal(kind, number, total, body)
        with suppress(BlockingIOError, ConnectionError):  # lost on the way, as far as this protocol is concerned
            self._socket.send(data)
