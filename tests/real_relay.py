"""A relay on real loopback sockets, in this process or in one of its own, and clients for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from zrc_relay.service import RelayService

reactor: Any = installed_reactor
PATIENCE = 30.0
"""Seconds that a test waits for what comes at once on an idle machine."""
POLL_INTERVAL = 0.01


async def eventually(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until ``condition`` holds; ``AssertionError`` naming ``what`` if it does not within ``patience`` seconds."""
    waited = 0.0
    while not condition():
        if waited > patience:
            msg = f"still not after {patience:g} s: {what}"
            raise AssertionError(msg)
        await deferLater(reactor, POLL_INTERVAL)
        waited += POLL_INTERVAL


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
        changes = {"drain_timeout": "0s", **(settings or {})}
        self.made: DevSetup = make_dev_setup(Path(case.mktemp()), listen=listen, port=0, settings=changes)
        self.trust = Trust(fingerprint=self.made.fingerprint)
        self.token = RelayToken.from_text(self.made.token.read_text())
        self.keys: dict[Role, SigningKey] = {Role.DEVICE: read_key(self.made.device_key), Role.PEER: read_key(self.made.peer_key)}
        self.host, self.port = "127.0.0.1", 0

    def another_token(self, **changes: Any) -> RelayToken:
        """The token with ``changes``, signed."""
        return replace(self.token, **changes).sign(self.keys[Role.DEVICE])

    def service(self) -> RelayService:
        """Start the relay in this process; it is stopped when the test ends."""
        def load() -> Config:
            return load_config(path=self.made.config, environ={}, options={})

        service = RelayService(load(), reactor, load=load)
        service.startService()
        self._case.addCleanup(service.stopService)
        self.port = service.quic.ports[0].local.port
        return service

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
