"""2000 packets each way through a channel, over real sockets, a rebinding, and 2000 more: all right (PROTOCOL §7).

The relay is a process of its own, both clients are in this one. Between the device and the relay is an
address translator, which forgets its mapping half-way, as those of homes do: from then on the relay sees the device at another
port, and the device does not know. What is sent until QUIC has validated the new path is lost, by design. Packets carry their
number and bytes that follow from it, so that each is known to be right.
"""

from __future__ import annotations

import random
import time
from typing import Any, Final

from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater

from figures._common import Relay, Verdict, eventually, relay_process, run
from zrc_relay.client import Channel, ClientConnection, connect
from zrc_relay.core.codes import Role

COUNT: Final = 2000
TRAIN: Final = 20
SIZE: Final = 1000
PAUSE: Final = 0.004
"""Seconds between two trains: 5,000 packets a second each way, far below what any of the programs can do."""
MAX_OUTAGE: Final = 2.0
"""Seconds without the channel after a rebinding: one of silence, then a PING, then the path is validated."""
QUIET: Final = 2.0
"""Seconds of silence before and after the rebinding, so that nothing of before helps."""
PATIENCE: Final = 20.0


class Mapping(DatagramProtocol):
    """One outer port of the translator."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """From the relay."""
        if address == self._translator.relay and self._translator.mapping is self:
            self._translator.inwards(data)


class Translator(DatagramProtocol):
    """The client sends to it, the relay sees it; ``rebind`` gives it another port there, and the old one is deaf."""

    def __init__(self, reactor: Any, relay: tuple[str, int]) -> None:
        self.relay = relay
        self._reactor = reactor
        self._client: Any = None
        self._inner = reactor.listenUDP(0, self, interface="127.0.0.1", maxPacketSize=65535)
        self._outer: list[Any] = []
        self.rebind()

    @property
    def port(self) -> int:
        """Where the client sends to."""
        return int(self._inner.getHost().port)

    def rebind(self) -> None:
        """Forget the mapping, and make another."""
        self.mapping = Mapping(self)
        self._outer.append(self._reactor.listenUDP(0, self.mapping, interface="127.0.0.1", maxPacketSize=65535))

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """From the client."""
        self._client = address
        self._outer[-1].write(data, self.relay)

    def inwards(self, data: bytes) -> None:
        """To the client."""
        self._inner.write(data, self._client)


class End:
    """One end of the channel, and what came out of it."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.numbers: list[int] = []
        self.wrong = 0
        self.is_heard = False
        self.channel: Channel = None  # type: ignore[assignment]  # set by ``open``, before anyone sends

    async def open(self) -> None:
        """Open the channel."""
        self.channel = await self.connection.open_channel(self._received)

    def _received(self, payload: bytes) -> None:
        number = int.from_bytes(payload[:4], "big")
        self.wrong += payload != packet(number)
        self.numbers.append(number)
        self.is_heard = True

    def in_order(self, first: int) -> int:
        """How many of ``COUNT`` packets from ``first`` on came; 0 when they were not in order, or others came, too."""
        expected = set(range(first, first + COUNT))
        return len(self.numbers) if self.numbers == sorted(expected.intersection(self.numbers)) else 0


def packet(number: int) -> bytes:
    """The packet with that number."""
    return number.to_bytes(4, "big") + random.Random(number).randbytes(SIZE - 4)  # noqa: S311 - the same bytes at both ends


def prove() -> Verdict:
    """Measure."""
    with relay_process() as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Send all of them, rebind, wait until it passes again, send all of them once more."""
    translator = Translator(reactor, ("127.0.0.1", relay.port))
    key = relay.keys[Role.DEVICE]
    device = await connect(reactor, "127.0.0.1", translator.port, token=relay.token, key=key, trust=relay.trust)
    ends = End(device), End(await relay.connect(reactor, Role.PEER))
    for end in ends:
        await end.open()
    before = await exchange(reactor, ends, 0)
    await deferLater(reactor, QUIET)
    translator.rebind()
    outage = await outage_of(reactor, ends)
    await deferLater(reactor, QUIET)
    after = await exchange(reactor, ends, COUNT)
    wrong = sum(end.wrong for end in ends)
    kept = before == after == [COUNT, COUNT] and not wrong and outage <= MAX_OUTAGE
    kept = kept and not any(end.connection.is_closed for end in ends)
    for end in ends:
        end.connection.close()
    return Verdict(kept, (
        f"of {COUNT} packets each way {before[0]} and {before[1]} arrived in order before a rebinding, {after[0]} and {after[1]} "
        f"after it; {wrong} had a wrong byte; it passed again after {outage:.2f} s (at most {MAX_OUTAGE:g})"
    ))


async def exchange(reactor: Any, ends: tuple[End, End], first: int) -> list[int]:
    """Send ``COUNT`` packets each way, numbered from ``first``; how many arrived at each end."""
    for end in ends:
        end.numbers.clear()
    for start in range(first, first + COUNT, TRAIN):
        train = [packet(number) for number in range(start, start + TRAIN)]
        for end in ends:
            end.channel.send_many(train)
        await deferLater(reactor, PAUSE)
    await eventually(reactor, lambda: all(len(end.numbers) >= COUNT for end in ends), PATIENCE)
    return [end.in_order(first) for end in ends]


async def outage_of(reactor: Any, ends: tuple[End, End]) -> float:
    """Send a packet each way every few milliseconds; after how many seconds both arrived again."""
    begun = time.monotonic()
    for end in ends:
        end.is_heard = False
    while not all(end.is_heard for end in ends) and time.monotonic() < begun + PATIENCE:
        for end in ends:
            end.channel.send(packet(2 * COUNT))
        await deferLater(reactor, PAUSE)
    return time.monotonic() - begun
