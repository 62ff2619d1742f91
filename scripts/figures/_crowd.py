"""Many clients on one UDP socket: stock QUIC connections that allocate, stay, and do nothing else.

A client of the library has a socket and timers of its own, which is what programs want and what ten thousand in one process do
not need. Each of these is told apart by its connection id, and gives way when the relay closes it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter
from typing import Any, Final

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall

from tests.raw_quic import ALLOCATED, Allocation, varint
from zrc_relay.core.deadlines import Deadlines
from zrc_relay.quic.udp import SOCKET_BUFFER

TICK: Final = 0.02
"""Seconds between looks at the timers."""
_CID: Final = 8


class Member:
    """One client, with the token it allocates with."""

    def __init__(self, token: bytes, idle_timeout: float) -> None:
        self.token = token
        self.quic = QuicConnection(
            configuration=QuicConfiguration(
                is_client=True, alpn_protocols=["zrc-relay"], verify_mode=ssl.CERT_NONE, max_datagram_frame_size=65535,
                max_datagram_size=1232, idle_timeout=idle_timeout,
            )
        )
        self.has_asked = False
        self.is_allocated = False


class Crowd(DatagramProtocol):
    """All of them. ``closed`` counts close codes; those that are closed are forgotten.

    They send nothing while they stay, so who does not hear of the end notices after ``idle_timeout`` seconds.
    """

    def __init__(self, reactor: Any, port: int, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._relay = ("127.0.0.1", port)
        self._members: dict[bytes, Member] = {}
        self._deadlines: Deadlines[Member] = Deadlines()
        self.allocated = 0
        self.present = 0
        self.closed: Counter[int] = Counter()
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor

    def startProtocol(self) -> None:
        """The socket is there."""
        transport: Any = self.transport
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        self._write = transport.write
        self._loop.start(TICK)

    def stopProtocol(self) -> None:
        """It is gone."""
        self._loop.stop()

    def is_over(self) -> bool:
        """Whether all have come and gone."""
        return not self.present

    def join(self, token: bytes) -> None:
        """One more client."""
        member = Member(token, self._idle_timeout)
        self._members[member.quic.host_cid] = member
        self.present += 1
        member.quic.connect(self._relay, time.monotonic())
        self._flush(member)

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        """A packet for one of them."""
        long_header = data[0] & 0x80
        member = self._members.get(data[6 : 6 + data[5]] if long_header else data[1 : 1 + _CID])
        if member is not None:
            member.quic.receive_datagram(data, addr, time.monotonic())
            self._look(member)

    def _tick(self) -> None:
        now = time.monotonic()
        for member in self._deadlines.due(now):
            member.quic.handle_timer(now)
            self._look(member)

    def _look(self, member: Member) -> None:
        quic = member.quic
        while (event := quic.next_event()) is not None:
            match event:
                case events.ConnectionIdIssued(connection_id=connection_id):
                    self._members[connection_id] = member
                case events.ConnectionIdRetired(connection_id=connection_id):
                    self._members.pop(connection_id, None)
                case events.StreamDataReceived(stream_id=0, data=data):
                    if not member.is_allocated and data.startswith(varint(ALLOCATED)):
                        member.is_allocated = True
                        self.allocated += 1
                case events.StreamDataReceived(stream_id=3) if not member.has_asked:
                    member.has_asked = True
                    quic.send_stream_data(0, Allocation(0, member.token).encode())
                case events.ConnectionTerminated(error_code=code):
                    self.closed[code] += 1
                    self._forget(member)
                    return
                case _:
                    pass
        self._flush(member)

    def _flush(self, member: Member) -> None:
        for data, _ in member.quic.datagrams_to_send(time.monotonic()):
            self._write(data, self._relay)
        self._deadlines.set(member, member.quic.get_timer())

    def _forget(self, member: Member) -> None:
        self.present -= 1
        self._deadlines.set(member, None)
        for connection_id in [known for known, other in self._own_ids(member) if other is member]:
            del self._members[connection_id]

    def _own_ids(self, member: Member) -> list[tuple[bytes, Member | None]]:
        ids = [one.cid for one in vars(member.quic)["_host_cids"]]
        return [(connection_id, self._members.get(connection_id)) for connection_id in ids]
