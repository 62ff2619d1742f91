"""A relay on real loopback sockets, in this process or in one of its own, and clients for it.

With ``ZRC_RELAY_TEST_WORKERS`` in the environment the relays that tests make by ``Setup.front``, or start as programs, have so
many workers. What such a test looks at is what an operator has of a relay (``Front``), which is the same with and without them.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from zrc_relay.cli.dev_setup import DevSetup, make_dev_setup
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.client.connect import connect
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.notices import NoticeEvent
from zrc_relay.client.trust import Trust
from zrc_relay.config import Config, load_config
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken
from zrc_relay.engine import Surroundings
from zrc_relay.front import Front
from zrc_relay.service import RelayService
from zrc_relay.workers.parent import ParentService

reactor: Any = installed_reactor
PATIENCE = 30.0
"""Seconds that a test waits for what comes at once on an idle machine."""
POLL_INTERVAL = 0.01
WORKERS = int(os.environ.pop("ZRC_RELAY_TEST_WORKERS", "1"))
"""How many workers the relays have that may have any; 1 is none."""


async def eventually(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until ``condition`` holds; ``AssertionError`` naming ``what`` if it does not within ``patience`` seconds."""
    waited = 0.0
    while not condition():
        if waited > patience:
            msg = f"still not after {patience:g} s: {what}"
            raise AssertionError(msg)
        await deferLater(reactor, POLL_INTERVAL)
        waited += POLL_INTERVAL


async def eventually_answers(question: Callable[[], Awaitable[object]], answer: object, what: str) -> None:
    """Ask until that is the answer; ``AssertionError`` naming ``what`` if it is not within ``PATIENCE`` seconds."""
    deadline = reactor.seconds() + PATIENCE
    while (said := await question()) != answer:
        if reactor.seconds() > deadline:
            msg = f"{what} is still {said} after {PATIENCE:g} s"
            raise AssertionError(msg)
        await deferLater(reactor, POLL_INTERVAL)


class Client:
    """A connected client of the library that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.notices: list[NoticeEvent] = []
        self.relay: ClientConnection = None  # type: ignore[assignment]  # set by ``Setup.connect``, before anyone sees this


class Setup:
    """The files of a first relay and its first two clients, and ways to connect as them."""

    def __init__(
        self, case: TestCase, *, listen: Sequence[str] = ("127.0.0.1",), settings: Mapping[str, str] | None = None
    ) -> None:
        self._case = case
        changes = {"drain_timeout": "0s", **({"workers": str(WORKERS)} if WORKERS > 1 else {}), **(settings or {})}
        self.made: DevSetup = make_dev_setup(Path(case.mktemp()), listen=listen, port=0, settings=changes)
        self.trust = Trust(fingerprint=self.made.fingerprint)
        self.token = RelayToken.from_text(self.made.token.read_text())
        self.keys: dict[Role, SigningKey] = {Role.DEVICE: read_key(self.made.device_key), Role.PEER: read_key(self.made.peer_key)}
        self.host, self.port = "127.0.0.1", 0
        self.front_service: Front | None = None

    def another_token(self, **changes: Any) -> RelayToken:
        """The token with ``changes``, signed."""
        return replace(self.token, **changes).sign(self.keys[Role.DEVICE])

    def load(self) -> Config:
        """The settings of the file."""
        return load_config(path=self.made.config, environ={}, options={})

    def service(self) -> RelayService:
        """Start the relay in this process and without workers; it is stopped when the test ends."""
        service = RelayService(self.load(), Surroundings(reactor), self.load)
        self._start(service)
        return service

    def front(self, load: Callable[[], Config] | None = None) -> Front:
        """Start the relay, with workers if there are to be any; it is stopped when the test ends. See ``ready``."""
        service = self.new_front(load or self.load)
        self._start(service)
        return service

    def new_front(self, load: Callable[[], Config]) -> Front:
        """The same, not started yet."""
        config = load()
        count = config.worker_count()
        if count == 1:
            return RelayService(config, Surroundings(reactor), load)
        return ParentService(config, Surroundings(reactor), load, count=count)

    def _start(self, service: Front) -> None:
        service.startService()
        self._case.addCleanup(service.stopService)
        self.front_service = service
        if isinstance(service, RelayService):
            self.port = service.quic.ports[0].local.port
        elif isinstance(service, ParentService):
            self.port = service.crew.sockets.port

    async def ready(self) -> None:
        """Wait until the relay is ready, or has been: workers take a moment to start."""
        front = self.front_service
        if front is not None:
            await eventually(lambda: front.ready or front.drain_deadline is not None, "a relay that is ready")

    async def connect(self, role: Role, *, host: str | None = None, token: RelayToken | None = None, **changes: Any) -> Client:
        """An allocated client; it leaves when the test ends."""
        client = Client()
        arguments: dict[str, Any] = {"trust": self.trust, "timeout": PATIENCE, **changes}
        client.relay = await connect(
            reactor, host or self.host, self.port,
            token=token or self.token, key=self.keys[role],
            on_datagram=client.got.append, on_notice=client.notices.append, **arguments,
        )
        self._case.addCleanup(client.relay.close)
        return client

    async def pair(self, **arguments: Any) -> tuple[Client, Client]:
        """Device and peer, both allocated."""
        return await self.connect(Role.DEVICE, **arguments), await self.connect(Role.PEER, **arguments)


async def exchange(device: Client, peer: Client, what: bytes = b"hello") -> None:
    """Both send to each other until both have heard; loopback may lose a datagram when its buffers are full."""
    device.relay.send(what + b" from the device")
    peer.relay.send(what + b" from the peer")
    await eventually(lambda: what + b" from the device" in peer.got, "the device's datagram at the peer")
    await eventually(lambda: what + b" from the peer" in device.got, "the peer's datagram at the device")


def ended(client: Client) -> Deferred[None]:
    """Fires when the connection has ended, however."""
    return Deferred.fromCoroutine(eventually(lambda: client.relay.is_closed, "the end of the connection"))
