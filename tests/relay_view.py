"""The relay's end of a client's connection, links that treat packets badly, and clients that move: for tests on ``World``."""

from __future__ import annotations

import random
from collections.abc import Callable

from aioquic._buffer import Buffer, BufferReadError

from tests.harness import Filter, Host, TestClient, World
from tests.raw_quic import ScriptedClient
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.udp import SocketAddress

UDP_OVER_IPV4, UDP_OVER_IPV6 = 20 + 8, 40 + 8
"""Bytes of header in front of a UDP payload."""
DATAGRAM_OVERHEAD = 1 + 8 + 2 + 16 + 1 + 2
"""What a packet adds to the longest payload that it holds: first byte, connection id, packet number, tag, frame type, length."""
OVERSIZE = 0x01
"""Type of the streams that carry oversize datagrams (PROTOCOL §6)."""


def relay_end(world: World, client: TestClient | ScriptedClient) -> RelayConnection:
    """The relay's end of ``client``'s connection, wherever the client is now."""
    wanted = client.quic.original_destination_connection_id
    connections = world.endpoint.all_connections()
    (found,) = [connection for connection in connections if connection.first_destination_id == wanted]
    return found


def host_of(client: TestClient | ScriptedClient) -> Host:
    """Where ``client`` lives."""
    host: Host = client.host if isinstance(client, TestClient) else vars(client)["_host"]
    return host


def move(world: World, client: TestClient | ScriptedClient, sockaddr: SocketAddress) -> None:
    """``client`` sends from ``sockaddr`` from now on, and nobody lives where it was: what is on its way there is lost."""
    host = host_of(client)
    world.network.attach(host.sockaddr)
    world.network.attach(sockaddr, client)
    host.sockaddr = sockaddr


def cut_off(world: World, client: TestClient | ScriptedClient) -> None:
    """Nothing reaches ``client`` or leaves it any more."""
    passed = world.network.filter

    def carry(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
        return None if host_of(client).sockaddr in (source, to) else passed(data, source, to)

    world.network.filter = carry


def narrow_link(client: SocketAddress, mtu: Callable[[], int]) -> Filter:
    """A filter: the link to and from the host at ``client`` drops IP packets above ``mtu()`` bytes, without a word."""
    overhead = UDP_OVER_IPV6 if ":" in client[0] else UDP_OVER_IPV4

    def carry(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
        return None if client in (source, to) and len(data) + overhead > mtu() else data

    return carry


def lossy(share: float, seed: int = 1) -> Filter:
    """A filter that loses a share of all packets, the same ones each time."""
    rng = random.Random(seed)  # noqa: S311 - the same losses each time

    def carry(data: bytes, _source: SocketAddress, _to: SocketAddress) -> bytes | None:
        return None if rng.random() < share else data

    return carry


def payloads(client: ScriptedClient) -> list[bytes]:
    """Every payload that ``client`` got, as a DATAGRAM or else as a record on a stream."""
    return client.datagrams + records(client)


def records(client: ScriptedClient) -> list[bytes]:
    """The payloads that came in records, cut out of the streams straight from PROTOCOL §6."""
    found: list[bytes] = []
    for stream_id, data in client.streams.items():
        if stream_id & 3 != 3 or data[:1] != bytes((OVERSIZE,)):  # unidirectional ones of the relay
            continue
        buf = Buffer(data=bytes(data[1:]))
        try:
            while not buf.eof():
                found.append(buf.pull_bytes(buf.pull_uint_var()))
        except BufferReadError:
            pass  # the rest is still to come
    return found




