"""``connect`` and its kin: from a relay's name and a token to an established connection."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final

from nacl.signing import SigningKey

from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.dial import Dial, Dialer, Handlers
from zrc_relay.client.identity import Identity
from zrc_relay.client.notices import NoticeEvent
from zrc_relay.client.patience import DEVICE_PATIENCE, patient
from zrc_relay.client.reconnect import ResilientConnection
from zrc_relay.client.refresh import TokenRefresher, TokenSupplier
from zrc_relay.client.streams import RelayStream
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken

DEFAULT_PORT: Final = 4433
CONNECT_TIMEOUT: Final = 10.0


async def connect(
    reactor: Any,
    host: str,
    port: int = DEFAULT_PORT,
    *,
    token: RelayToken | str,
    key: SigningKey | None,
    role: Role | None = None,
    trust: Trust | None = None,
    timeout: float = CONNECT_TIMEOUT,
    on_datagram: Callable[[bytes], None] | None = None,
    on_notice: Callable[[NoticeEvent], None] | None = None,
    on_stream: Callable[[RelayStream], None] | None = None,
    token_supplier: TokenSupplier | None = None,
    device_patience: float = DEVICE_PATIENCE,
) -> ClientConnection:
    """Connect to the relay at ``host``:``port`` and allocate with ``token``; returns the established connection.

    ``key`` is the Ed25519 key of the device or of the peer, whichever this end is (the role follows from it); with None, for
    relays that ask for no proof, ``role`` says it. ``timeout`` is in seconds and holds for each address that is tried.
    ``token_supplier`` is asked for a new token before the old one expires. A relay that learns devices' keys as they come may not
    know the token's yet: a peer waits for it for ``device_patience`` seconds. Raises a ``RelayError`` when the relay refuses,
    ``ConnectFailed`` when there is no connection, ``ValueError`` for a key that does not belong to the token.
    """
    identity = Identity.of(_parsed(token), key, role)
    dialer = Dialer(reactor, host, port, trust=trust, timeout=timeout)
    dial = _patient(reactor, dialer, device_patience)
    connection = await dial(identity, Handlers(on_datagram, on_notice, on_stream))
    if token_supplier is not None:
        TokenRefresher(connection, token_supplier, clock=reactor, wall=time.time).start()
    return connection


async def connect_resilient(
    reactor: Any,
    host: str,
    port: int = DEFAULT_PORT,
    *,
    token: RelayToken | str,
    key: SigningKey | None,
    role: Role | None = None,
    trust: Trust | None = None,
    timeout: float = CONNECT_TIMEOUT,
    on_datagram: Callable[[bytes], None] | None = None,
    on_notice: Callable[[NoticeEvent], None] | None = None,
    on_stream: Callable[[RelayStream], None] | None = None,
    token_supplier: TokenSupplier | None = None,
    device_patience: float = DEVICE_PATIENCE,
) -> ResilientConnection:
    """As ``connect``, but what is returned connects again when the connection is lost; see ``ResilientConnection``.

    The first connection is tried once, and raises what ``connect`` raises.
    """
    identity = Identity.of(_parsed(token), key, role)
    dialer = Dialer(reactor, host, port, trust=trust, timeout=timeout)
    resilient = ResilientConnection(
        _patient(reactor, dialer, device_patience),
        identity,
        clock=reactor,
        now=time.monotonic,
        wall=time.time,
        random=random.random,
        handlers=Handlers(on_datagram, on_notice, on_stream),
        token_supplier=token_supplier,
    )
    await resilient.open()
    return resilient


async def connect_unbound(
    reactor: Any, host: str, port: int = DEFAULT_PORT, *, trust: Trust | None = None, timeout: float = CONNECT_TIMEOUT
) -> ClientConnection:
    """Connect without a token, to measure a relay or to list relays; the relay closes it after some seconds."""
    return await Dialer(reactor, host, port, trust=trust, timeout=timeout).dial(None, Handlers())


def _patient(reactor: Any, dialer: Dialer, device_patience: float) -> Dial:
    return patient(dialer.dial, reactor, patience=device_patience, now=time.monotonic, random=random.random)


def _parsed(token: RelayToken | str) -> RelayToken:
    return RelayToken.from_text(token) if isinstance(token, str) else token
