"""What tests of the external abuse systems share: a scripted server behind the seam, and a blocklist that says what it heard."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.abuse.http import HttpError, Response
from zrc_relay.core.cidr import Network

Result = TypeVar("Result")
NOON = 1795348800.0
"""2026-11-22T12:00:00Z"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the code under test made."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class ScriptedClient:
    """A ``Requester``: each request waits until the test answers it, unless there is an ``automatic`` answer."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled = 0
        self.automatic: Callable[[Request], Response] | None = None
        self._waiting: list[Deferred[Response]] = []

    async def request(self, method: str, path: str = "", headers: Mapping[str, str] | None = None, body: bytes = b"") -> Response:
        self.requests.append(Request(method, path, dict(headers or {}), body))
        if self.automatic is not None:
            return self.automatic(self.requests[-1])
        waiting: Deferred[Response] = Deferred(self._cancel)
        self._waiting.append(waiting)
        return await waiting

    def _cancel(self, waiting: Deferred[Response]) -> None:
        self._waiting.remove(waiting)
        self.cancelled += 1

    @property
    def is_asked(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self._waiting)

    def answer(self, body: bytes = b"", status: int = 200) -> None:
        """Answer the request that waits longest."""
        self._waiting.pop(0).callback(Response(status, body))

    def fail(self, problem: str = "Connection refused", error: type[Exception] = HttpError) -> None:
        """Let it fail."""
        self._waiting.pop(0).errback(error(problem))


@dataclass
class FakeBlocks:
    """A ``BlockList`` without end, or with ``room`` for so many entries."""

    entries: dict[str, float] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    room: int = 1_000_000

    def block(self, network: Network, ttl: float) -> bool:
        self.calls.append(("block", str(network)))
        if len(self.entries) >= self.room and str(network) not in self.entries:
            return False
        self.entries[str(network)] = ttl
        return True

    def networks(self) -> list[Network]:
        return [Network.parse(text) for text in self.entries]

    def unblock(self, network: Network) -> None:
        self.calls.append(("unblock", str(network)))
        self.entries.pop(str(network), None)


class AbuseCase(SynchronousTestCase):
    """A clock, a scripted client and a blocklist."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.client = ScriptedClient()
        self.blocks = FakeBlocks()

    def wall(self) -> float:
        """Unix time, by the clock."""
        return NOON + self.clock.seconds()

    def settle(self) -> None:
        """Let everything happen that waits for nothing but its turn."""
        self.clock.advance(0)

    def run_to_end(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine that waits for nothing but its turn."""
        running = Deferred.fromCoroutine(coroutine)
        self.settle()
        return self.successResultOf(running)
