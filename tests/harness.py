"""A relay and its clients without sockets: a simulated network on a ``Clock`` that joins them.

``World`` is a whole scene: time, network, a relay endpoint, keys. Packets take ``latency`` seconds, and a ``filter`` may lose or
change them. Nothing here sleeps: ``world.run(seconds)`` moves the clock in small steps.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

from nacl.signing import SigningKey
from twisted.internet.task import Clock

from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.client.connection import ClientConnection, Identity
from zrc_relay.client.notices import NoticeEvent
from zrc_relay.client.trust import Trust
from zrc_relay.core.admission import UNLIMITED, Admission, AdmissionSettings
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import Role
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.relay import Policy, Relay
from zrc_relay.core.tiers import Tier
from zrc_relay.core.token import RelayToken, key_id
from zrc_relay.core.wire import Address
from zrc_relay.credentials import load_credentials
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.ids import SECRET_SIZE, ConnectionIds
from zrc_relay.quic.settings import Credentials, EndpointSettings
from zrc_relay.quic.udp import Path, Receiver, SocketAddress

EPOCH = 1_800_000_000.0
"""Unix time at which every scene begins."""
RELAY_ID = bytes(range(16))
RELAY_ADDRESS = ("192.0.2.1", 4433)
FAST_PATH = os.environ.pop("ZRC_RELAY_TEST_FAST_PATH", "true") != "false"
"""Whether the relay of a scene takes the short way of a packet; false runs the suite without it."""
LATENESS = 1e-9
"""How late calls are made, in seconds."""
MAX_STEPS_WITHOUT_TIME = 20_000
OPEN_TIER = Tier("", None, None, None)


class Recorder:
    """An ``Observer`` that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def event(self, name: str, **fields: object) -> None:
        self.events.append((name, fields))

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def named(self, name: str) -> list[dict[str, object]]:
        return [fields for one, fields in self.events if one == name]


class Host:
    """One address on the network; a ``Sender`` for whoever lives there."""

    def __init__(self, network: Network, sockaddr: SocketAddress, receiver: Receiver | None = None) -> None:
        self.network = network
        self.sockaddr = sockaddr
        self.receiver = receiver
        self.address = Address.of(sockaddr[0], sockaddr[1])

    def send(self, data: bytes, to: SocketAddress) -> None:
        self.network.send(data, self, to)

    def send_train(self, train: bytes, size: int, to: SocketAddress) -> None:
        self.send_many([train[start : start + size] for start in range(0, len(train), size)], to)

    def send_many(self, packets: list[bytes], to: SocketAddress) -> None:
        for packet in packets:
            self.send(packet, to)


def _pass(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes:
    del source, to
    return data


Filter = Callable[[bytes, SocketAddress, SocketAddress], "bytes | None"]


class Network:
    """Carries packets between hosts, ``latency`` seconds each way; ``filter`` gives what arrives, or None for a loss."""

    def __init__(self, clock: Clock, latency: float = 0.005) -> None:
        self.clock = clock
        self.latency = latency
        self.hosts: dict[SocketAddress, Host] = {}
        self.filter: Filter = _pass
        self.sent: list[tuple[bytes, SocketAddress, SocketAddress]] = []
        self.record = False

    def attach(self, sockaddr: SocketAddress, receiver: Receiver | None = None) -> Host:
        host = self.hosts[sockaddr] = Host(self, sockaddr, receiver)
        return host

    def send(self, data: bytes, source: Host, to: SocketAddress) -> None:
        if self.record:
            self.sent.append((data, source.sockaddr, to))
        passed = self.filter(data, source.sockaddr, to)
        if passed is not None:
            self.clock.callLater(self.latency, self._arrive, passed, source.sockaddr, to)

    def _arrive(self, data: bytes, source: SocketAddress, to: SocketAddress) -> None:
        host = self.hosts.get(to)
        if host is not None and host.receiver is not None:
            path = Path(source, host)
            host.receiver.datagram_received(data, path)
            host.receiver.batch_done()


@cache
def certificate() -> Credentials:
    """One self-signed certificate for all tests of a run."""
    with TemporaryDirectory() as directory:
        paths = FilePath(directory, "cert.pem"), FilePath(directory, "key.pem")
        certificate_pem, key_pem = make_self_signed(["relay.test"])
        paths[0].write_bytes(certificate_pem)
        paths[1].write_bytes(key_pem)
        return load_credentials(*paths, idle_timeout=30.0, udp_payload=1232, stream_window=256 * 1024, max_streams=32)


class World:
    """A relay on a simulated network; see the module's docstring. Sources are held to ``limits`` and ``lists``, if given."""

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        settings: EndpointSettings | None = None,
        limits: AdmissionSettings = UNLIMITED,
        lists: AccessLists | None = None,
        latency: float = 0.005,
        seed: int = 1,
    ) -> None:
        self.clock = Clock()
        self.rng = random.Random(seed)  # noqa: S311 - a scene is the same each time
        self.device_key = self.signing_key()
        self.peer_key = self.signing_key()
        self.network = Network(self.clock, latency)
        self.recorder = Recorder()
        self.policy = policy or Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER)
        self.keys = DeviceKeys([Device(bytes(self.device_key.verify_key))])
        admission = Admission(limits, AccessLists() if lists is None else lists, now=self.now())
        self.relay = Relay(self.policy, self.keys, self.recorder, now=self.now(), admission=admission)
        self.credentials = certificate()
        self.endpoint = Endpoint(
            self.relay,
            self.credentials,
            settings or EndpointSettings(fast_path=FAST_PATH),
            ConnectionIds(self.random(SECRET_SIZE), self.random),
            clock=self.clock,
            now=self.now,
            wall=self.wall,
            random=self.random,
        )
        self.network.attach(RELAY_ADDRESS, self.endpoint)
        self.next_port = 10_000
        self._sweep()

    def _sweep(self) -> None:
        self.endpoint.sweep()
        self.clock.callLater(0.25, self._sweep)

    def now(self) -> float:
        return self.clock.seconds()

    def wall(self) -> float:
        return EPOCH + self.clock.seconds()

    def random(self, size: int) -> bytes:
        return self.rng.randbytes(size)

    def signing_key(self) -> SigningKey:
        return SigningKey(self.rng.randbytes(32))

    def run(self, seconds: float) -> None:
        """Let time pass; every call is made at its own time."""
        end = self.clock.seconds() + seconds
        stuck = 0
        while self.clock.seconds() < end:
            before = self.clock.seconds()
            calls: list[Any] = list(self.clock.getDelayedCalls())
            upcoming = min((call.getTime() for call in calls), default=end)
            # A real timer is always a little late. One that is exactly on time meets rounding errors: a packet that is lost
            # "at or before now - delay" is not when now was computed as its time + delay.
            self.clock.advance(max(0.0, min(upcoming, end) - before) + LATENESS)
            stuck = stuck + 1 if self.clock.seconds() - before < 1e-5 else 0
            if stuck > MAX_STEPS_WITHOUT_TIME:
                msg = "something calls itself again and again without waiting"
                raise AssertionError(msg)

    def token(self, **changes: Any) -> RelayToken:
        """A valid token of the device for the peer, with ``changes``, signed."""
        token = RelayToken(
            relay_id=RELAY_ID,
            allocation_id=hashlib.sha256(b"allocation").digest()[:16],
            device_id=key_id(bytes(self.device_key.verify_key)),
            peer_id=key_id(bytes(self.peer_key.verify_key)),
            expires_at=int(self.wall()) + 3600,
        )
        return replace(token, **changes).sign(self.device_key)

    def client(
        self,
        role: Role,
        token: RelayToken | None = None,
        *,
        key: SigningKey | None = None,
        sockaddr: SocketAddress | None = None,
        start: bool = True,
    ) -> TestClient:
        """A client of ``role``, on its way to an allocation."""
        if key is None:
            key = self.device_key if role is Role.DEVICE else self.peer_key
        identity = Identity(token or self.token(), role, key)
        return TestClient(self, identity, sockaddr, start=start)

    def pair(self, token: RelayToken | None = None) -> tuple[TestClient, TestClient]:
        """Device and peer, both allocated."""
        token = token or self.token()
        device, peer = self.client(Role.DEVICE, token), self.client(Role.PEER, token)
        self.run(0.5)
        for client in (device, peer):
            if client.allocated is None:
                msg = f"no allocation: {client.error}"
                raise AssertionError(msg)
        return device, peer


class TestClient(ClientConnection):
    """A client library connection on the simulated network that keeps what it gets."""

    __test__ = False

    def __init__(self, world: World, identity: Identity | None, sockaddr: SocketAddress | None, *, start: bool) -> None:
        world.next_port += 1
        self.host = world.network.attach(sockaddr or ("198.51.100.7", world.next_port), self)
        self.world = world
        self.got: list[bytes] = []
        self.notices: list[NoticeEvent] = []
        super().__init__(
            identity,
            Trust(fingerprint=world.credentials.certificate_sha256),
            "relay.test",
            sender=self.host,
            remote=RELAY_ADDRESS,
            clock=world.clock,
            now=world.now,
            random=world.random,
            on_datagram=self.got.append,
            on_notice=self.notices.append,
        )
        self.established.addErrback(lambda _: None)
        if start:
            self.start()

    def send_blocked(self) -> None:
        """Never happens here."""

    def makeConnection(self, transport: object) -> None:
        """Never happens here."""

    def doStop(self) -> None:
        """Never happens here."""
