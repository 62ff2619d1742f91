"""100 MB through one stream whose reader pauses for 5 s twice: the bytes are the same, and the relay holds one window (R3.8).

Sender and reader are clients of the library, in this process, and hash what they send and get. The relay is a process of its own;
its resident memory is looked at all the while.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from typing import Any, Final

from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from figures._common import Relay, Verdict, eventually, relay_process, run
from zrc_relay.client.streams import RelayStream
from zrc_relay.core.codes import Role

TOTAL: Final = 100_000_000
PIECE: Final = 50_000
PAUSES: Final = (TOTAL // 3, 2 * TOTAL // 3)
"""After how many bytes the reader pauses."""
PAUSE: Final = 5.0
MAX_GROWTH: Final = 4_000_000
LOOK: Final = 0.05
"""Seconds between looks at the relay's memory."""
PATIENCE: Final = 400.0
MAX_AHEAD: Final = 1_000_000
"""Bytes: more than all windows and buffers on the way; a sender that gets further ahead of a paused reader is not stopped."""


@implementer(IPullProducer)
class Source:
    """Writes ``TOTAL`` bytes that look random, when it is asked to."""

    def __init__(self, stream: RelayStream) -> None:
        self._stream = stream
        self._rng = random.Random(1)  # noqa: S311 - the same bytes each time
        self.sent = 0
        self.hash = hashlib.sha256()

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Write one more piece, or end."""
        if self.sent == TOTAL:
            self._stream.unregisterProducer()
            self._stream.loseWriteConnection()
            return
        piece = self._rng.randbytes(min(PIECE, TOTAL - self.sent))
        self.sent += len(piece)
        self.hash.update(piece)
        self._stream.write(piece)

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Nobody wants more."""


class Reader(Protocol):
    """Hashes what comes, and pauses."""

    def __init__(self, reactor: Any, source: Source) -> None:
        self._reactor = reactor
        self._source = source
        self._pauses = list(PAUSES)
        self.got = 0
        self.hash = hashlib.sha256()
        self.ahead: list[int] = []
        self.has_ended = False

    def dataReceived(self, data: bytes) -> None:
        """Some bytes."""
        self.got += len(data)
        self.hash.update(data)
        if self._pauses and self.got >= self._pauses[0]:
            del self._pauses[0]
            self._stream.pauseProducing()
            self._reactor.callLater(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self.ahead.append(self._source.sent - self.got)
        self._stream.resumeProducing()

    @property
    def _stream(self) -> Any:
        return self.transport

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        del reason
        self.has_ended = True


def prove() -> Verdict:
    """Measure."""
    with relay_process({"default_bandwidth_limit": "none", "default_quota": "none"}) as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Send, and look at the relay's memory."""
    arrived: list[RelayStream] = []
    peer = await relay.connect(reactor, Role.PEER)
    peer.on_stream = arrived.append
    device = await relay.connect(reactor, Role.DEVICE)
    await deferLater(reactor, 1.0)
    memory = [relay.memory]
    looking = LoopingCall(lambda: memory.append(relay.memory))
    looking.start(LOOK, now=False)
    begun = time.monotonic()
    stream = device.open_stream(unidirectional=True)
    source = Source(stream)
    stream.registerProducer(source, False)  # noqa: FBT003 - Twisted's signature
    await eventually(reactor, lambda: arrived, PATIENCE)
    reader = Reader(reactor, source)
    arrived[0].attach(reader)
    done = await eventually(reactor, lambda: reader.has_ended, PATIENCE)
    seconds = time.monotonic() - begun - PAUSE * len(PAUSES)
    looking.stop()
    growth = max(memory) - memory[0]
    same = reader.got == TOTAL and source.hash.digest() == reader.hash.digest()
    device.close()
    peer.close()
    held = max(reader.ahead, default=TOTAL)
    kept = done and same and growth <= MAX_GROWTH and len(reader.ahead) == len(PAUSES) and held <= MAX_AHEAD
    sameness = "the same" if same else "DIFFERENT"
    return Verdict(kept, (
        f"{reader.got / 1e6:g} MB in {seconds:.1f} s and two pauses of {PAUSE:g} s, SHA-256 {sameness} "
        f"({reader.hash.hexdigest()[:16]}); the relay's memory grew by at most {growth / 1e6:.2f} MB (at most "
        f"{MAX_GROWTH / 1e6:g}) from {memory[0] / 1e6:.1f} MB; while the reader paused the sender got at most "
        f"{held / 1000:.0f} kB ahead; load of the machine {os.getloadavg()[0]:.1f}"
    ))
