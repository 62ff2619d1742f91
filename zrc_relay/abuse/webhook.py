"""Security events posted to a webhook, which may answer with sources to block (R6.6; docs/security-events.md has the format).

Theory of operation
-------------------
``offer`` puts a record into a bounded queue and nothing else. The loop sleeps until there is one, waits a moment for more, and
posts what there is as one batch, signed. A batch that was not taken (no answer, or a status that is not 2xx) is posted again,
the same bytes with a fresh timestamp, after a growing time; the receiver can tell by ``batch`` that it knows it. One that was
answered ``MAX_REFUSALS`` times, and not taken, is dropped: what the receiver chokes on must not hold up the rest. When the queue
is full the oldest record makes room. Whatever is dropped is counted, and the next batch says how many there were.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from twisted.logger import Logger

from zrc_relay.abuse.blocking import BlockList, in_slices, parse_network, parse_ttl
from zrc_relay.abuse.health import Health
from zrc_relay.abuse.http import HttpError, Requester
from zrc_relay.abuse.jsonstream import JsonError, array_items
from zrc_relay.abuse.loop import Loop
from zrc_relay.config_external import Secret
from zrc_relay.core.cidr import Network

MAX_QUEUED: Final = 5000
"""Records that wait, some 5 MB: a minute and a half of the most that the stream brings."""
BATCH: Final = 200
"""Records in one request: about 60 kB, encoded in less time than a datagram may be late."""
BATCH_DELAY: Final = 1.0
"""Seconds that the first record of a batch waits for others."""
MAX_REFUSALS: Final = 8
"""Times that a batch is refused before it is dropped: one or two minutes."""
TIMEOUT: Final = 10.0
"""Seconds within which the webhook must have answered."""
MAX_ANSWER: Final = 1024 * 1024
"""Longest answer in bytes: some 16,000 sources to block."""
SIGNATURE: Final = "Zrc-Relay-Signature"
"""The header with the timestamp and the signature."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is posted, and how many records that is."""

    body: bytes
    records: int


class Webhook(Loop):
    """Posts the records that it is offered; a ``Sink``.

    ``sender`` names this relay and run in what is posted, ``wall`` gives Unix seconds, ``random`` numbers from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        client: Requester,
        secret: Secret,
        block_list: BlockList,
        *,
        sender: Mapping[str, str],
        wall: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        super().__init__(clock, "webhook")
        self._reactor = clock
        self._client = client
        self._secret = secret
        self._block_list = block_list
        self._sender = dict(sender)
        self._wall = wall
        self._health = Health("the webhook", wall=wall, random=random)
        self._queue: deque[Mapping[str, object]] = deque()
        self._batch: _Batch | None = None
        self._batches = 0
        self._refusals = 0
        self.dropped = 0
        """Records that never reached the webhook."""
        self.blocked = 0
        """Answers' entries that were put on the blocklist."""
        self.rejected = 0
        """Answers' entries that were no such thing, and answers that could not be read."""

    @property
    def queued(self) -> int:
        """Records that wait, those under way included."""
        return len(self._queue) + (self._batch.records if self._batch else 0)

    @property
    def failures(self) -> int:
        """Requests that failed."""
        return self._health.failures

    @property
    def last_success(self) -> float | None:
        """When a batch was last taken, in Unix seconds."""
        return self._health.last_success

    def offer(self, record: Mapping[str, object]) -> None:
        """See ``Sink``."""
        if len(self._queue) >= MAX_QUEUED:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(record)
        self.wake(BATCH_DELAY)

    async def step(self) -> float | None:
        """Post one batch; see ``Loop``."""
        if self._batch is None:
            if not self._queue:
                return None
            self._batch = self._make_batch()
        try:
            response = await self._client.request("POST", headers=self._headers(self._batch.body), body=self._batch.body)
            if not 200 <= response.status < 300:
                self._refusals += 1
                msg = f"it answered with status {response.status}"
                raise HttpError(msg)
        except HttpError as error:
            self._health.failed(str(error))
            if self._refusals >= MAX_REFUSALS:
                self.dropped += self._batch.records
                self._batch = None
            return self._health.backoff()
        self._batch = None
        self._health.succeeded()
        await self._obey(response.body)
        return (0.0 if len(self._queue) >= BATCH else BATCH_DELAY) if self._queue else None

    def _make_batch(self) -> _Batch:
        records = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        self._batches += 1
        self._refusals = 0
        content = {**self._sender, "batch": self._batches, "dropped": self.dropped, "events": records}
        return _Batch(json.dumps(content, separators=(",", ":")).encode(), len(records))

    def _headers(self, body: bytes) -> dict[str, str]:
        timestamp = str(int(self._wall()))
        return {"Content-Type": "application/json", SIGNATURE: f"t={timestamp},v1={sign(self._secret, timestamp, body)}"}

    async def _obey(self, body: bytes) -> None:
        """Block what the answer names. An answer that is no JSON object, "ok" for instance, names nothing."""
        if not body.lstrip().startswith(b"{"):
            return
        wanted: list[tuple[Network, float]] = []
        try:
            await in_slices(array_items(body.decode(), ("block",)), lambda item: self._read(item[1], wanted), self._reactor)
        except (JsonError, UnicodeDecodeError) as error:
            self.rejected += 1
            self._log.warn(
                "the webhook's answer is not understood: {problem}", event="webhook.answer_invalid", problem=str(error)
            )
            return
        await in_slices(wanted, lambda entry: self._block(*entry), self._reactor)
        if wanted:
            self._log.info("the webhook named {count} sources to block", event="webhook.blocks", count=len(wanted))

    def _read(self, item: object, wanted: list[tuple[Network, float]]) -> None:
        try:
            entry = item if isinstance(item, dict) else {}
            wanted.append((parse_network(entry.get("cidr")), parse_ttl(entry.get("ttl"))))
        except ValueError:
            self.rejected += 1

    def _block(self, network: Network, ttl: float) -> None:
        if self._block_list.block(network, ttl):
            self.blocked += 1
        else:
            self.rejected += 1


def sign(secret: Secret, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over the timestamp, a dot and the body, in hexadecimal."""
    return hmac.new(secret.reveal(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
