"""Both ends of streams of the client library on a simulated network, and what tests attach to them."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from tests.harness import TestClient, World
from zrc_relay.client import RelayStream


class Gatherer(Protocol):
    """Keeps what arrives, and how it ended."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pieces: list[int] = []
        self.reason: BaseException | None = None
        self.ends = 0

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.pieces.append(len(data))

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 - as Twisted has it
        self.reason = reason.value
        self.ends += 1


@implementer(IHalfCloseableProtocol)
class HalfGatherer(Gatherer):
    """One that can be half closed, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.read_ends = 0
        self.write_ends = 0

    def readConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        self.read_ends += 1

    def writeConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        self.write_ends += 1


class Pusher:
    """A push producer that writes a piece whenever it is pumped and may."""

    def __init__(self, stream: RelayStream) -> None:
        self.stream = stream
        self.calls: list[str] = []
        self.paused = False
        self.written = 0

    def pump(self, piece: bytes) -> bool:
        if not self.paused:
            self.stream.write(piece)
            self.written += len(piece)
        return not self.paused

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.paused = True
        self.calls.append("pause")

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.paused = False
        self.calls.append("resume")

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.calls.append("stop")


class Scene(World):
    """A device and a peer that takes every stream, with a ``Gatherer`` attached unless ``attach`` is None."""

    def __init__(self, attach: type[Gatherer] | None = Gatherer, **changes: Any) -> None:
        super().__init__(**changes)
        self.accepted: list[RelayStream] = []
        self.attach = attach
        self.device, self.peer = self.pair()
        self.peer.on_stream = self.accept

    def accept(self, stream: RelayStream) -> None:
        self.accepted.append(stream)
        if self.attach is not None:
            stream.attach(self.attach())

    def open(self, protocol: Gatherer | None = None, *, unidirectional: bool = False) -> tuple[RelayStream, RelayStream]:
        """A stream of the device, and its other end at the peer."""
        count = len(self.accepted)
        stream = self.device.open_stream(unidirectional=unidirectional)
        if protocol is not None:
            stream.attach(protocol)
        self.run(0.05)
        if len(self.accepted) != count + 1:
            msg = f"{len(self.accepted) - count} streams have arrived"
            raise AssertionError(msg)
        return stream, self.accepted[-1]


def leftovers(client: TestClient) -> dict[str, int]:
    """Everything that the streams of a client still hold on to."""
    streams = vars(vars(client)["_streams"])
    waiting = sum(map(len, streams["_waiting"].values()))
    held = {name: len(streams[name]) for name in ("_streams", "_heads", "_records", "_done_with")} | {"_waiting": waiting}
    return {name: count for name, count in held.items() if count}
