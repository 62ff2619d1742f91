"""``Tunnel``: a local UDP port carried over an allocation; what ``zrc-relay tunnel`` runs.

Theory of operation
-------------------
Between a ``LocalPort`` and a connection each datagram becomes one payload and each payload one datagram, unchanged, at once and
in order: there is no queue here, so nothing can be reordered. Only datagrams that are too long for one packet take a way of their
own through the relay, on which shorter ones may overtake them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zrc_relay.cli.console import size
from zrc_relay.cli.local_port import LocalPort
from zrc_relay.cli.relay_end import WARNING_INTERVAL, RelayEnd, RelayLink, by_cause
from zrc_relay.client.connect import CONNECT_TIMEOUT
from zrc_relay.client.errors import PayloadTooLarge

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
    """See the module's docstring, and ``RelayEnd``."""

    def __init__(
        self, *, tell: Callable[[str], None], warn: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(tell=tell, warn=warn, now=now)
        self._sent = Flow()
        self._received = Flow()
        self._local: LocalPort | None = None

    async def open(self, reactor: Any, link: RelayLink, local: LocalPort, *, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect and allocate; raises what ``connect`` does. The tunnel owns ``local`` from here on, also when this fails."""
        self._local = local
        await self.connect(reactor, link, timeout=timeout, on_datagram=self._from_relay)

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
        try:
            connection.send(payload)
        except PayloadTooLarge as error:
            self.dropped["too large"] += 1
            self.warn_sometimes("too large", f"a datagram was dropped: {error}")
        else:
            self._sent.count(payload)

    def _from_relay(self, payload: bytes) -> None:
        if self._local is not None and self._local.send(payload):
            self._received.count(payload)
        else:
            self.dropped["for no local program yet"] += 1
            self.warn_sometimes("for no local program yet", "what arrives is dropped until a local program has sent something")
