"""A relay on stock aioquic: one event at a time in a Twisted ``DatagramProtocol``, as the two libraries' examples have it.

It pairs connections two by two, in the order in which they come, and passes each one's DATAGRAMs on to the other. This is what a
relay in Python costs before anybody has thought about it, and its handshake is the bare one.

Usage: ``python -m bench.peers.aioquic_relay PORT CERTIFICATE.pem KEY.pem``; prints the address it listens on.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from twisted.internet import reactor as installed_reactor
from twisted.internet.protocol import DatagramProtocol

reactor: Any = installed_reactor


class Session:
    """One connection, its timer and the other end of its pair."""

    def __init__(self, quic: QuicConnection) -> None:
        self.quic = quic
        self.other: Session | None = None
        self.timer: Any = None


class PairingRelay(DatagramProtocol):
    """All connections."""

    def __init__(self, configuration: QuicConfiguration) -> None:
        self._configuration = configuration
        self._sessions: dict[bytes, Session] = {}
        self._waiting: Session | None = None

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        """One packet: find or make its connection, and do what it asks for."""
        header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        session = self._sessions.get(header.destination_cid)
        if session is None:
            if header.packet_type is not QuicPacketType.INITIAL:
                return
            quic = QuicConnection(
                configuration=self._configuration, original_destination_connection_id=header.destination_cid
            )
            session = Session(quic)
            self._sessions[header.destination_cid] = self._sessions[quic.host_cid] = session
        session.quic.receive_datagram(data, addr, time.monotonic())
        self._act(session)

    def _act(self, session: Session) -> None:
        other = session.other
        while (event := session.quic.next_event()) is not None:
            if isinstance(event, events.DatagramFrameReceived):
                if other is not None:
                    other.quic.send_datagram_frame(event.data)
            elif isinstance(event, events.HandshakeCompleted):
                if self._waiting is None:
                    self._waiting = session
                else:
                    session.other, self._waiting.other = self._waiting, session
                    self._waiting = None
            elif isinstance(event, events.ConnectionIdIssued):
                self._sessions[event.connection_id] = session
            elif isinstance(event, events.ConnectionTerminated):
                self._forget(session)
        self._transmit(session)
        if other is not None:
            self._transmit(other)

    def _transmit(self, session: Session) -> None:
        transport: Any = self.transport
        for data, to in session.quic.datagrams_to_send(time.monotonic()):
            transport.write(data, to)
        if session.timer is not None and session.timer.active():
            session.timer.cancel()
        deadline = session.quic.get_timer()
        if deadline is not None:
            session.timer = reactor.callLater(max(0.0, deadline - time.monotonic()), self._timed_out, session)

    def _timed_out(self, session: Session) -> None:
        session.quic.handle_timer(time.monotonic())
        self._act(session)

    def _forget(self, session: Session) -> None:
        if self._waiting is session:
            self._waiting = None
        self._sessions = {cid: each for cid, each in self._sessions.items() if each is not session}


def main(port: str, certificate: str, key: str) -> None:
    """Run until a signal comes."""
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=["zrc-relay"], max_datagram_frame_size=65535, idle_timeout=60.0
    )
    configuration.load_cert_chain(certificate, key)
    listening = reactor.listenUDP(int(port), PairingRelay(configuration), interface="127.0.0.1", maxPacketSize=65535)
    sys.stdout.write(f"listening on 127.0.0.1:{listening.getHost().port}\n")
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
