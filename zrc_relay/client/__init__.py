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

from zrc_relay.client.connect import connect, connect_unbound
from zrc_relay.client.connection import ClientConnection, Identity, Redirected
from zrc_relay.client.errors import ConnectFailed, ConnectionLost, PayloadTooLarge, RedirectLoop, RelayError, UnknownCode
from zrc_relay.client.notices import (
    AllocationTerminated,
    DatagramsDropped,
    MaxPayloadChanged,
    NoticeEvent,
    PeerJoined,
    PeerLeft,
    QuotaWarning,
    RateLimitedNotice,
    RelayDraining,
    Superseded,
)
from zrc_relay.client.trust import Trust

__all__ = [
    "AllocationTerminated",
    "ClientConnection", "ConnectFailed", "ConnectionLost", "DatagramsDropped", "Identity",
    "MaxPayloadChanged", "NoticeEvent", "PayloadTooLarge", "PeerJoined", "PeerLeft", "QuotaWarning", "RateLimitedNotice",
    "RedirectLoop", "Redirected", "RelayDraining", "RelayError", "Superseded", "Trust",
    "UnknownCode", "connect", "connect_unbound",
]
