"""A relay that says what a test wants: stock QUIC and a script, for what a real relay would never do.

It is a ``Receiver`` like the real endpoint, so it lives on the simulated network (``world.network.attach``) or behind a real
socket (``FakeRelay.listen``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from twisted.internet.defer import Deferred, maybeDeferred

from tests import raw_quic as raw
from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.quic.udp import Path, SocketAddress, UdpPort

RELAY_ID = bytes(range(16))
LOCALHOST = b"\x04\x7f\x00\x00\x01"


@cache
def server_configuration(name: str = "localhost") -> QuicConfiguration:
    """A QUIC server's configuration with a self-signed certificate of its own."""
    with TemporaryDirectory() as directory:
        paths = FilePath(directory, "cert.pem"), FilePath(directory, "key.pem")
        for path, data in zip(paths, make_self_signed([name, "127.0.0.1"]), strict=True):
            path.write_bytes(data)
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["zrc-relay"], max_datagram_frame_size=65535)
        configuration.load_cert_chain(*paths)
    return configuration


def fingerprint(configuration: QuicConfiguration) -> bytes:
    """SHA-256 of a server's certificate."""
    certificate: x509.Certificate = configuration.certificate
    return certificate.fingerprint(SHA256())


def address(port: int, ip: bytes = LOCALHOST) -> bytes:
    """An address as it is in capsules; 127.0.0.1 unless told."""
    return ip + port.to_bytes(2, "big")


def allocated(*, keepalive: int = 0, peer_present: bool = False) -> bytes:
    """An ALLOCATED capsule."""
    limits = b"".join(number.to_bytes(8, "big") for number in (2_000_000_000, 1000, 2000, 30))
    tail = keepalive.to_bytes(2, "big") + (30).to_bytes(2, "big") + bytes((peer_present,)) + (1100).to_bytes(2, "big")
    return raw.capsule(raw.ALLOCATED, bytes(16) + address(1) + limits + address(2) + tail)


def redirect(*ports: int) -> bytes:
    """A REDIRECT to ports of 127.0.0.1."""
    return raw.capsule(0x14, b"\x01\x00" + bytes((len(ports),)) + b"".join(map(address, ports)))


class FakeSession:
    """One client's connection: the capsules it sent so far, and ways to answer."""

    def __init__(self, relay: FakeRelay, quic: QuicConnection, path: Path) -> None:
        self._relay = relay
        self.quic = quic
        self.path = path
        self.timer: Any = None
        self.requests: list[tuple[int, bytes]] = []
        self.datagrams: list[bytes] = []
        self.challenge = bytes((len(relay.sessions),)) * 32
        self.received = bytearray()
        self.closed: events.ConnectionTerminated | None = None

    def send(self, *capsules: bytes) -> None:
        """Send on the control stream."""
        self.quic.send_stream_data(0, b"".join(capsules))
        self.flush()

    def send_datagram(self, payload: bytes) -> None:
        """Send a DATAGRAM."""
        self.quic.send_datagram_frame(payload)
        self.flush()

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection."""
        self.quic.close(error_code=code, reason_phrase=reason)
        self.flush()

    def flush(self) -> None:
        """Send what there is and wake up when QUIC wants to."""
        to, sender = self.path
        for data, _ in self.quic.datagrams_to_send(self._relay.now()):
            sender.send(data, to)
        self.stop()
        at = self.quic.get_timer()
        if at is not None:
            self.timer = self._relay.clock.callLater(max(0.0, at - self._relay.now()), self._timed_out)

    def stop(self) -> None:
        """Let the timer go."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def _timed_out(self) -> None:
        self.quic.handle_timer(self._relay.now())
        self.take_events()
        self.flush()

    def take_events(self) -> None:
        """Say HELLO, and call the script for each capsule of the client."""
        while (event := self.quic.next_event()) is not None:
            match event:
                case events.ProtocolNegotiated():
                    hello = b"\x01" + RELAY_ID + self.challenge + self._relay.features.to_bytes(4, "big")
                    self.quic.send_stream_data(3, raw.capsule(raw.HELLO, hello), end_stream=True)
                case events.StreamDataReceived(stream_id=0, data=data):
                    self.received += data
                    self._take_capsules()
                case events.DatagramFrameReceived(data=data):
                    self.datagrams.append(data)
                case events.ConnectionTerminated():
                    self.closed = event
                case _:
                    pass

    def _take_capsules(self) -> None:
        found = raw.split_capsules(bytes(self.received))
        new = found[len(self.requests) :]
        for kind, value in new:
            self.requests.append((kind, value))
            self._relay.script(self, kind, value)


Script = Callable[[FakeSession, int, bytes], None]


class FakeRelay:
    """See the module's docstring. ``script`` is called with each capsule that a client sends."""

    def __init__(
        self,
        clock: Any,
        now: Callable[[], float],
        script: Script,
        *,
        configuration: QuicConfiguration | None = None,
        features: int = 5,
    ) -> None:
        self.clock = clock
        self.now = now
        self.script = script
        self.features = features
        self.sessions: list[FakeSession] = []
        self._configuration = configuration or server_configuration()
        self._by_address: dict[SocketAddress, FakeSession] = {}
        self._touched: set[FakeSession] = set()
        self._port: UdpPort | None = None

    def listen(self, reactor: Any) -> int:
        """Listen on 127.0.0.1; returns the port."""
        self._port = UdpPort("127.0.0.1", 0, self, reactor)
        self._port.startListening()
        return self._port.local.port

    def stop(self) -> Deferred[object]:
        """Stop listening; fires when the socket is closed."""
        for session in self.sessions:
            session.stop()
        return maybeDeferred(self._port.stopListening) if self._port is not None else maybeDeferred(lambda: None)

    # Receiver

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        session = self._by_address.get(path[0])
        if session is None:
            # The Destination Connection ID of the client's first packet.
            dcid = data[6 : 6 + data[5]]
            quic = QuicConnection(configuration=self._configuration, original_destination_connection_id=dcid)
            session = self._by_address[path[0]] = FakeSession(self, quic, path)
            self.sessions.append(session)
        session.quic.receive_datagram(data, path[0], self.now())
        self._touched.add(session)

    def batch_done(self) -> None:
        """See ``Receiver``."""
        touched, self._touched = self._touched, set()
        for session in touched:
            session.take_events()
            session.flush()

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""
