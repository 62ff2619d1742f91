"""The client library: from a token to payloads that reach the other end.

::

    from twisted.internet.task import react
    from zrc_relay.client import Trust, connect

    async def main(reactor):
        relay = await connect(reactor, "relay.example", token=token, key=key)
        relay.send(b"hello")
        async for payload in relay.datagrams():
            print(payload)

    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""

from zrc_relay.client.channel import Channel
from zrc_relay.client.connect import connect, connect_resilient, connect_unbound
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.errors import (
    ChannelClosed,
    ChannelRefused,
    ConnectFailed,
    ConnectionLost,
    NotConnected,
    PayloadTooLarge,
    Redirected,
    RedirectLoop,
    RelayError,
    StreamFailure,
    StreamReset,
    StreamStopped,
    TooManyStreams,
    UnknownCode,
)
from zrc_relay.client.identity import Identity
from zrc_relay.client.notices import (
    AllocationTerminated,
    DatagramsDropped,
    MaxPayloadChanged,
    NoticeEvent,
    PeerJoined,
    PeerLeft,
    QuotaWarning,
    RateLimitedNotice,
    Reconnected,
    Reconnecting,
    RefreshFailed,
    RelayDraining,
    Superseded,
)
from zrc_relay.client.reconnect import ResilientConnection
from zrc_relay.client.refresh import TokenRefresher, TokenSupplier
from zrc_relay.client.stats import RelayStats
from zrc_relay.client.stream_halves import StreamCode
from zrc_relay.client.streams import RelayAddress, RelayStream
from zrc_relay.client.trust import Trust

__all__ = [
    "AllocationTerminated",
    "Channel",
    "ChannelClosed",
    "ChannelRefused",
    "ClientConnection",
    "ConnectFailed",
    "ConnectionLost",
    "DatagramsDropped",
    "Identity",
    "MaxPayloadChanged",
    "NotConnected",
    "NoticeEvent",
    "PayloadTooLarge",
    "PeerJoined",
    "PeerLeft",
    "QuotaWarning",
    "RateLimitedNotice",
    "Reconnected",
    "Reconnecting",
    "RedirectLoop",
    "Redirected",
    "RefreshFailed",
    "RelayAddress",
    "RelayDraining",
    "RelayError",
    "RelayStats",
    "RelayStream",
    "ResilientConnection",
    "StreamCode",
    "StreamFailure",
    "StreamReset",
    "StreamStopped",
    "Superseded",
    "TokenRefresher",
    "TokenSupplier",
    "TooManyStreams",
    "Trust",
    "UnknownCode",
    "connect",
    "connect_resilient",
    "connect_unbound",
]
