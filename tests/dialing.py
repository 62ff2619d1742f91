"""Connections of the client library on the simulated network, made by a ``dial`` as a ``ResilientConnection`` wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from tests.harness import RELAY_ADDRESS, World
from zrc_relay.client import ClientConnection, ConnectFailed, Identity, NoticeEvent, ResilientConnection, Trust
from zrc_relay.client.dial import Handlers
from zrc_relay.client.refresh import TokenSupplier
from zrc_relay.core.codes import Role
from zrc_relay.core.relay import Relay
from zrc_relay.core.token import RelayToken
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.settings import EndpointSettings

DIAL_TIMEOUT = 3.0


class Dialed(ClientConnection):
    """A connection that lives on the simulated network."""

    def __init__(self, world: World, identity: Identity, handlers: Handlers, trust: Trust) -> None:
        world.next_port += 1
        self.host = world.network.attach(("198.51.100.9", world.next_port), self)
        super().__init__(
            identity,
            trust,
            "relay.test",
            sender=self.host,
            remote=RELAY_ADDRESS,
            clock=world.clock,
            now=world.now,
            random=world.random,
            on_datagram=handlers.on_datagram,
            on_notice=handlers.on_notice,
            on_stream=handlers.on_stream,
        )

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class Dialer:
    """Makes ``Dialed`` connections and remembers them, with the times at which it was asked to."""

    def __init__(self, world: World, trust: Trust | None = None) -> None:
        self.world = world
        self.trust = trust or Trust(fingerprint=world.credentials.certificate_sha256)
        self.made: list[Dialed] = []
        self.times: list[float] = []
        self.tokens: list[RelayToken] = []

    async def dial(self, identity: Identity, handlers: Handlers) -> ClientConnection:
        """See ``zrc_relay.client.dial.Dial``."""
        self.times.append(self.world.now())
        self.tokens.append(identity.token)
        connection = Dialed(self.world, identity, handlers, self.trust)
        self.made.append(connection)
        timer: Any = self.world.clock.callLater(DIAL_TIMEOUT, connection.give_up, ConnectFailed("no answer"))
        try:
            connection.start()
            return await connection.established
        except BaseException:
            connection.close()
            raise
        finally:
            if timer.active():
                timer.cancel()


class Resilient(ResilientConnection):
    """One that keeps what it gets."""

    def __init__(
        self,
        world: World,
        role: Role,
        *,
        token: RelayToken | None = None,
        dialer: Dialer | None = None,
        random: Callable[[], float] = lambda: 1.0,
        supplier: TokenSupplier | None = None,
    ) -> None:
        self.dialer = dialer or Dialer(world)
        self.got: list[bytes] = []
        self.notices: list[NoticeEvent] = []
        key = world.device_key if role is Role.DEVICE else world.peer_key
        super().__init__(
            self.dialer.dial,
            Identity(token or world.token(), role, key),
            clock=world.clock,
            now=world.now,
            wall=world.wall,
            random=random,
            handlers=Handlers(self.got.append, self.notices.append),
            token_supplier=supplier,
        )
        self.opened: Deferred[None] = Deferred.fromCoroutine(self.open())

    def events(self, kind: type[Any]) -> list[Any]:
        """The events of one kind, in order."""
        return [event for event in self.notices if isinstance(event, kind)]


def restart(world: World, *, forget: bool = False) -> None:
    """The relay's process ends without a word and another takes its place; with the same secret unless it forgets."""
    old = vars(world.endpoint)
    if old["_timer"] is not None:
        old["_timer"].cancel()  # without its timer, and without a place on the network, it does nothing any more
    ids = old["_ids"]
    if forget:
        ids = type(ids)(world.random(32), world.random)
    world.relay = Relay(world.policy, world.keys, world.recorder, now=world.now())
    world.endpoint = Endpoint(
        world.relay, world.credentials, EndpointSettings(), ids,
        clock=world.clock, now=world.now, wall=world.wall, random=world.random,
    )
    world.network.attach(RELAY_ADDRESS, world.endpoint)


def cut(world: World) -> None:
    """Nothing arrives anywhere any more."""
    world.network.filter = lambda _data, _source, _to: None


def mend(world: World) -> None:
    """Everything arrives again."""
    world.network.filter = lambda data, _source, _to: data
