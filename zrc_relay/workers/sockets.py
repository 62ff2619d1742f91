"""The UDP sockets of a relay with workers, bound by the parent and kept as long as it lives.

For each address that is listened on there is a group, one socket for each worker, that shares the relay's port; and for each
worker a socket with a port that leads to it alone, where clients go on that came to the wrong one (PROTOCOL §5, REDIRECT 3).
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from twisted.logger import Logger

from zrc_relay.config_values import MAX_PORT
from zrc_relay.core.wire import Address
from zrc_relay.engine import StartError, cannot_listen, has_no_ipv6
from zrc_relay.quic.steering import open_group, open_single
from zrc_relay.workers.orders import FIRST_SOCKET_FD, SocketPlace

ATTEMPTS: Final = 20
"""How often another port is tried when any will do, and those behind it are not free."""


class Sockets:
    """Opens them for ``count`` workers.

    With ``port`` 0 any will do. ``first`` is the port that leads to worker 0 alone, None: the one behind ``port``.
    """

    _log = Logger()

    def __init__(self, addresses: tuple[str, ...], port: int, first: int | None, count: int) -> None:
        self._addresses = addresses
        self._port = port
        self._first = first
        self.count = count
        self.worker_port_base = 0
        """The port of worker 0 alone; 0 when there is but one worker."""
        self._of: list[list[socket.socket]] = []

    def open(self) -> None:
        """Bind them all; ``StartError`` when one cannot be had."""
        for attempt in range(ATTEMPTS):
            try:
                self._open()
            except BaseException:
                self.close()
                if self._port or attempt == ATTEMPTS - 1:
                    raise
            else:
                break
        for address in dict.fromkeys(str(_address(sock)) for sock in self.all):
            self._log.info("listening on UDP {address}", event="listen.udp", address=address)

    def _open(self) -> None:
        self._of = [[] for _ in range(self.count)]
        port, addresses = self._port, []
        for number, host in enumerate(self._addresses):
            try:
                group = open_group(host, port, self.count) if self.count > 1 else [open_single(host, port)]
            except OSError as error:
                if host == "::" and number and has_no_ipv6(error):
                    self._log.warn("this host has no IPv6; listening on IPv4 only", event="listen.ipv4_only")
                    continue
                raise cannot_listen(host, port, error) from error
            addresses.append(host)
            port = _address(group[0]).port
            for mine, sock in zip(self._of, group, strict=True):
                mine.append(sock)
        if self.count > 1:
            self.worker_port_base = self._first or port + 1
            for index, mine in enumerate(self._of):
                number = self.worker_port_base + index
                if number > MAX_PORT:  # getaddrinfo takes it modulo 65536
                    msg = f"cannot listen on UDP port {number} for worker {index}: ports end at {MAX_PORT}"
                    raise StartError(msg)
                for host in addresses:
                    try:
                        mine.append(open_single(host, number))
                    except OSError as error:
                        raise cannot_listen(host, number, error) from error

    @property
    def all(self) -> list[socket.socket]:
        """Every one of them, those of worker 0 first."""
        return [sock for mine in self._of for sock in mine]

    @property
    def port(self) -> int:
        """The port that they share."""
        return _address(self._of[0][0]).port

    def places(self, index: int) -> tuple[SocketPlace, ...]:
        """Those of a worker, as it finds them among ``all``."""
        first = FIRST_SOCKET_FD + sum(len(mine) for mine in self._of[:index])
        addresses = [_address(sock) for sock in self._of[index]]
        return tuple(SocketPlace(first + number, address.host, address.port) for number, address in enumerate(addresses))

    def close(self) -> None:
        """Close them."""
        for sock in self.all:
            with suppress(OSError):
                sock.close()
        self._of = []


def _address(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address.of(host, port)
