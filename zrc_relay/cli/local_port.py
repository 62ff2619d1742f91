"""``LocalPort``: the UDP socket by which a program on this host uses a tunnel.

Theory of operation
-------------------
There are two kinds. A *listening* one is bound where local programs send to; what comes out of the tunnel goes to the address
that was heard last, so it serves one program at a time: a new one takes over by sending. A *targeting* one has a socket of its
own, on a port of the kernel's choice; it sends to one address and takes datagrams from that address only.

Datagrams are handed on one by one, in the order in which they arrived, empty ones too, and nothing is queued here.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import SOCK_DGRAM, gaierror, getaddrinfo
from typing import Any

from twisted.internet.error import CannotListenError

from zrc_relay.cli.errors import Failure
from zrc_relay.cli.params import HostPort
from zrc_relay.core.wire import Address
from zrc_relay.quic.udp import Path, SocketAddress, UdpPort


class LocalPort:
    """A UDP socket towards the local program; a ``Receiver``. ``on_payload`` is called with each datagram of the program.

    Made by ``listen`` or ``aim``; ``Failure`` from these when there is no such address, or it cannot be had.
    """

    def __init__(self, reactor: Any, interface: str, port: int, on_payload: Callable[[bytes], None]) -> None:
        self._on_payload = on_payload
        self.on_pause: Callable[[], None] | None = None
        """Called when no more datagrams of the program are there for now."""
        self._program: Path | None = None
        self._only_from: SocketAddress | None = None
        self.strangers = 0
        """Datagrams ignored because they came from elsewhere than the target."""
        self.blocked = 0
        """Datagrams lost because the socket's buffer was full."""
        self._udp = UdpPort(interface, port, self, reactor)
        try:
            self._udp.startListening()
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            msg = f"cannot listen on UDP {HostPort(interface, port)}: {reason}"
            raise Failure(msg) from error

    @classmethod
    def listen(cls, reactor: Any, where: HostPort, on_payload: Callable[[bytes], None]) -> LocalPort:
        """For programs that send to ``where`` (port 0: any free one)."""
        host, port = resolve(where)[:2]
        return cls(reactor, host, port, on_payload)

    @classmethod
    def aim(cls, reactor: Any, target: HostPort, on_payload: Callable[[bytes], None]) -> LocalPort:
        """For the program at ``target``."""
        address = resolve(target)
        made = cls(reactor, "::" if len(address) == 4 else "0.0.0.0", 0, on_payload)  # noqa: S104 - strangers are ignored
        made._only_from = address
        made._program = Path(address, made._udp.default_origin)
        return made

    @property
    def address(self) -> Address:
        """Where the socket is bound."""
        return self._udp.local

    @property
    def has_program(self) -> bool:
        """Whether it is known where to send to."""
        return self._program is not None

    def send(self, payload: bytes) -> bool:
        """Hand ``payload`` to the local program; False when none was heard yet."""
        if self._program is None:
            return False
        to, origin = self._program
        origin.send(payload, to)
        return True

    def stop(self) -> None:
        """Close the socket."""
        self._udp.stopListening()

    # Receiver

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        if self._only_from is None:
            self._program = path
        elif path[0] != self._only_from:
            self.strangers += 1
            return
        self._on_payload(data)

    def batch_done(self) -> None:
        """See ``Receiver``: datagrams were handed on already."""
        if self.on_pause is not None:
            self.on_pause()

    def send_blocked(self) -> None:
        """See ``Receiver``."""
        self.blocked += 1


def resolve(where: HostPort) -> SocketAddress:
    """The first address of ``where``; ``Failure`` when there is none."""
    try:
        return getaddrinfo(where.host, where.port, type=SOCK_DGRAM)[0][4]
    except (gaierror, UnicodeError) as error:
        msg = f"cannot find {where.host}: {getattr(error, 'strerror', None) or error}"
        raise Failure(msg) from error
