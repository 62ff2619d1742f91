"""``Tunnel``: a local UDP port carried over an allocation; what ``zrc-relay tunnel`` runs.

Theory of operation
-------------------
Between a ``LocalPort`` and a connection each datagram becomes one payload and each payload one datagram, unchanged, at once and
in order: there is no queue here, so nothing can be reordered. Only datagrams that are too long for one packet take a way of their
own through the relay, on which shorter ones may overtake them.

With a channel (PROTOCOL §7) the datagrams go beside QUIC. What was read from the local port in one go is sent in one go, so that
it can stay together as a train all the way. Datagrams that do not fit the channel, and those that come before it is open, go as
without one, and what comes either way is taken.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from zrc_relay.cli.console import size
from zrc_relay.cli.local_port import LocalPort
from zrc_relay.cli.relay_end import WARNING_INTERVAL, RelayEnd, RelayLink, by_cause
from zrc_relay.client.channel import Channel
from zrc_relay.client.connect import CONNECT_TIMEOUT
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.errors import PayloadTooLarge

SILENCE: Final = 5.0
"""Seconds of sending on a channel, to an end that is there, after which it is told that nothing has ever come back."""

__all__ = ["WARNING_INTERVAL", "Flow", "RelayLink", "Statistics", "Tunnel"]


@dataclass(slots=True)
class Flow:
    """What passed in one direction."""

    datagrams: int = 0
    volume: int = 0
    """Bytes."""

    def count(self, payload: bytes) -> None:
        """One more."""
        self.datagrams += 1
        self.volume += len(payload)

    def __str__(self) -> str:
        return f"{self.datagrams} datagrams ({size(self.volume)})"


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a tunnel carried, and what it had to drop, by cause."""

    sent: Flow
    received: Flow
    dropped: Counter[str]

    def __str__(self) -> str:
        return f"sent {self.sent}, received {self.received}; dropped: {by_cause(self.dropped)}"


class Tunnel(RelayEnd):
    """See the module's docstring, and ``RelayEnd``. ``by_channel`` says whether to use one; the other end must, too."""

    def __init__(
        self,
        *,
        tell: Callable[[str], None],
        warn: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
        by_channel: bool = False,
    ) -> None:
        super().__init__(tell=tell, warn=warn, now=now)
        self._by_channel = by_channel
        self._channel: Channel | None = None
        self._batch: list[bytes] = []
        self._unheard_since: float | None = None
        self._is_heard = False
        self._sent = Flow()
        self._received = Flow()
        self._local: LocalPort | None = None

    async def open(self, reactor: Any, link: RelayLink, local: LocalPort, *, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect and allocate; raises what ``connect`` and ``open_channel`` do.

        The tunnel owns ``local`` from here on, also when this fails.
        """
        self._local = local
        await self.connect(reactor, link, timeout=timeout, on_datagram=self._from_relay)
        connection = self._connection
        if not self._by_channel or connection is None:
            return
        try:
            self._channel = await connection.open_channel(self._from_channel)
        except BaseException:  # cancelled, too
            self.ended.addErrback(lambda _: None)
            self.close()
            raise
        local.on_pause = self._send_batch
        self._tell(f"the channel is open: datagrams of up to {self._channel.max_payload} bytes go beside QUIC")

    def release_local(self) -> None:
        """See ``RelayEnd``."""
        if self._local is not None:
            self._local.stop()

    @property
    def statistics(self) -> Statistics:
        """What was carried and dropped until now."""
        if self._connection is not None:
            self.dropped["waited too long here"] = self._connection.dropped
        if self._local is not None:
            self.dropped["from strangers"] = self._local.strangers
            self.dropped["not taken by this host"] = self._local.blocked
        return Statistics(self._sent, self._received, self.dropped)

    def describe(self, max_payload: int) -> str:
        """See ``RelayEnd``."""
        return f"; it takes datagrams of up to {max_payload} bytes in one packet"

    # -- payloads

    def from_local(self, payload: bytes) -> None:
        """A datagram of the local program; what ``LocalPort`` calls."""
        connection = self.open_connection
        if connection is None:
            self.dropped["without a relay"] += 1
            return
        if self._channel is None:
            self._send(connection, payload)
        else:
            self._batch.append(payload)

    def _send(self, connection: ClientConnection, payload: bytes) -> None:
        try:
            connection.send(payload)
        except PayloadTooLarge as error:
            self.dropped["too large"] += 1
            self.warn_sometimes("too large", f"a datagram was dropped: {error}")
        else:
            self._sent.count(payload)

    def _send_batch(self) -> None:
        batch, self._batch = self._batch, []
        connection, channel = self.open_connection, self._channel
        if connection is None or channel is None or not batch:
            return
        limit = channel.max_payload
        beside = [payload for payload in batch if len(payload) <= limit]
        for payload in batch:
            if len(payload) > limit:
                self._send(connection, payload)
        if beside:
            channel.send_many(beside)
            for payload in beside:
                self._sent.count(payload)
            self._listen_for_answer(connection)

    def _listen_for_answer(self, connection: ClientConnection) -> None:
        """Tell, once, when nothing ever comes back: an end without a channel cannot be told from one that says nothing."""
        if self._is_heard:
            return
        now = self._now()
        if not connection.peer_present:
            self._unheard_since = None
        elif self._unheard_since is None:
            self._unheard_since = now
        elif now - self._unheard_since >= SILENCE:
            self._is_heard = True
            self._warn(f"nothing has come through the channel yet; does the {self._other_end} say --channel, too?")

    def _from_channel(self, payload: bytes) -> None:
        self._is_heard = True
        self._from_relay(payload)

    def _from_relay(self, payload: bytes) -> None:
        if self._local is not None and self._local.send(payload):
            self._received.count(payload)
        else:
            self.dropped["for no local program yet"] += 1
            self.warn_sometimes("for no local program yet", "what arrives is dropped until a local program has sent something")
