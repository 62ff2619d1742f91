"""A relay that is several workers: on the simulated network, and on real sockets in one process.

The workers have one identity and one secret, and share an address; ``steer`` says, as the kernel would, which of them gets a
packet that is sent there. Each has a port of its own besides.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from nacl.signing import SigningKey
from twisted.internet import reactor as installed_reactor
from twisted.trial.unittest import TestCase

from tests.harness import FAST_PATH, OPEN_TIER, RELAY_ADDRESS, RELAY_ID, Recorder, World, certificate
from zrc_relay.client import ClientConnection, Identity, Trust
from zrc_relay.client.notices import NoticeEvent
from zrc_relay.core.admission import UNLIMITED, Admission, AdmissionSettings
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import Role
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.relay import Policy, Relay
from zrc_relay.core.routing import Share
from zrc_relay.core.token import RelayToken, key_id, routing_byte
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.ids import SECRET_SIZE, ConnectionIds
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.quic.steering import open_group, open_single
from zrc_relay.quic.udp import Path, SocketAddress, UdpPort

reactor: Any = installed_reactor
PORT_BASE = 5000
LOOPBACK = "127.0.0.1"


def steer(packet: bytes, count: int) -> int:
    """Which of ``count`` sockets gets ``packet``: by byte 6 of a long header, 1 of a short one or of channel data."""
    first = packet[0] if packet else 0
    place = 6 if first >= 0x80 else 1 if first >= 0x40 or first == 5 else 8 if first < 4 else len(packet)
    return packet[place] % count if place < len(packet) else 0


class Steering:
    """The ``Receiver`` at the shared address."""

    def __init__(self, endpoints: list[Endpoint]) -> None:
        self._endpoints = endpoints

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        self._endpoints[steer(data, len(self._endpoints))].datagram_received(data, path)

    def batch_done(self) -> None:
        """See ``Receiver``."""
        for endpoint in self._endpoints:
            endpoint.batch_done()

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class Visitor(ClientConnection):
    """A client at an address of its choice; with ``first_byte`` its first connection id begins with that one."""

    def __init__(
        self,
        world: World,
        identity: Identity,
        *,
        remote: SocketAddress = RELAY_ADDRESS,
        first_byte: int | None = None,
    ) -> None:
        world.next_port += 1
        self.host = world.network.attach(("198.51.100.8", world.next_port), self)
        self.got: list[bytes] = []
        self.notices: list[NoticeEvent] = []
        super().__init__(
            identity, Trust(fingerprint=world.credentials.certificate_sha256), "relay.test",
            sender=self.host, remote=remote, clock=world.clock, now=world.now, random=world.random,
            on_datagram=self.got.append, on_notice=self.notices.append,
        )
        self.established.addErrback(lambda _: None)
        if first_byte is not None:
            self.quic.set_first_destination_id(bytes((first_byte,)) + world.random(8))
        self.start()

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class Workers(World):
    """A relay of ``count`` workers on the simulated network; ``relay`` and ``endpoint`` are the first one's."""

    def __init__(self, count: int = 2, *, limits: AdmissionSettings = UNLIMITED, **policy: Any) -> None:
        self.relays: list[Relay] = []
        self.endpoints: list[Endpoint] = []
        settings: dict[str, Any] = {
            "relay_id": RELAY_ID, "instance_id": bytes(8), "default_tier": OPEN_TIER, "worker_port_base": PORT_BASE,
        }
        super().__init__(policy=Policy(**settings | policy))
        secret = self.random(SECRET_SIZE)
        for index in range(count):
            share = Share(index, count)
            admission = Admission(limits, AccessLists(), now=self.now())
            relay = Relay(self.policy, self.keys, self.recorder, now=self.now(), admission=admission, share=share)
            endpoint = Endpoint(
                relay, self.credentials, EndpointSettings(fast_path=FAST_PATH), ConnectionIds(secret, self.random, share),
                clock=self.clock, now=self.now, wall=self.wall, random=self.random,
            )
            self.network.attach(self.own_address(index), endpoint)
            self.relays.append(relay)
            self.endpoints.append(endpoint)
        self.network.attach(RELAY_ADDRESS, Steering(self.endpoints))
        self.relay, self.endpoint = self.relays[0], self.endpoints[0]

    def _sweep(self) -> None:
        for endpoint in self.endpoints:
            endpoint.sweep()
        self.clock.callLater(0.25, self._sweep)

    @staticmethod
    def own_address(index: int) -> SocketAddress:
        """Where only one of them is."""
        return RELAY_ADDRESS[0], PORT_BASE + index

    def token_for(self, index: int, number: int = 0) -> RelayToken:
        """A token whose allocation is that worker's; another one for each ``number``."""
        return self.token(allocation_id=allocation_of(index, len(self.relays), number))

    def visitor(self, role: Role, token: RelayToken, **options: Any) -> Visitor:
        """A client of ``role``; see ``Visitor``."""
        return Visitor(self, Identity(token, role, self.device_key if role is Role.DEVICE else self.peer_key), **options)


def allocation_of(index: int, count: int, number: int = 0) -> bytes:
    """The allocation id with that ``number`` of those that belong to worker ``index`` of ``count``."""
    found = 0
    attempt = 0
    while True:
        allocation_id = hashlib.sha256(b"allocation %d" % attempt).digest()[:16]
        attempt += 1
        if routing_byte(allocation_id) % count == index:
            if found == number:
                return allocation_id
            found += 1


class RealWorkers:
    """The same on loopback sockets, steered by the kernel; all of it goes when the test ends."""

    def __init__(self, case: TestCase, count: int = 2) -> None:
        self.count = count
        self.device_key, self.peer_key = SigningKey.generate(), SigningKey.generate()
        self.credentials = certificate()
        self.trust = Trust(fingerprint=self.credentials.certificate_sha256)
        self.recorder = Recorder()
        self.relays: list[Relay] = []
        self.endpoints: list[Endpoint] = []
        group = open_group(LOOPBACK, 0, count)
        own = list(_in_a_row(count))
        self.port, self.base = group[0].getsockname()[1], own[0].getsockname()[1]
        policy = Policy(
            relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, worker_port_base=self.base,
        )
        keys = DeviceKeys([Device(bytes(self.device_key.verify_key))])
        secret = os.urandom(SECRET_SIZE)
        for index in range(count):
            share = Share(index, count)
            relay = Relay(policy, keys, self.recorder, now=time.monotonic(), share=share)
            endpoint = Endpoint(
                relay, self.credentials, EndpointSettings(), ConnectionIds(secret, os.urandom, share),
                clock=reactor, now=time.monotonic, wall=time.time, random=os.urandom,
            )
            for sock in (group[index], own[index]):
                port = UdpPort(LOOPBACK, 0, endpoint, reactor, sock=sock)
                port.startListening()
                case.addCleanup(port.stopListening)
            case.addCleanup(endpoint.stop)
            self.relays.append(relay)
            self.endpoints.append(endpoint)

    def token_for(self, index: int, number: int = 0) -> RelayToken:
        """A token whose allocation is that worker's."""
        token = RelayToken(
            relay_id=RELAY_ID, allocation_id=allocation_of(index, self.count, number),
            device_id=key_id(bytes(self.device_key.verify_key)), peer_id=key_id(bytes(self.peer_key.verify_key)),
            expires_at=int(time.time()) + 3600,
        )
        return replace(token).sign(self.device_key)

    def allocations(self) -> list[int]:
        """How many each of them has."""
        return [len(relay.table) for relay in self.relays]


def _in_a_row(count: int) -> Iterator[socket.socket]:
    """Sockets on ports that follow each other."""
    while True:
        with ExitStack() as stack, suppress(OSError, OverflowError):
            first = stack.enter_context(open_single(LOOPBACK, 0))
            port = first.getsockname()[1]
            found = [first, *(stack.enter_context(open_single(LOOPBACK, port + number)) for number in range(1, count))]
            stack.pop_all()
            yield from found
            return
