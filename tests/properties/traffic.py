"""Weather and traffic for properties that are shown on whole connections: what the network does, and ends that keep accounts.

``Weather`` is a filter of the simulated network that loses, delays and repeats packets. ``End`` is a stock QUIC client with every
way to send that PROTOCOL §6 knows; it remembers what it has sent and sorts what it has got by carrier.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tests.harness import OPEN_TIER, RELAY_ID, World
from tests.raw_quic import DEVICE, PEER, ScriptedClient, varint
from zrc_relay.core.records import RecordDecoder
from zrc_relay.core.relay import Policy
from zrc_relay.core.tiers import Tier
from zrc_relay.quic.udp import SocketAddress

MAX_DELAY: Final = 0.05
"""Seconds by which a packet that is late is later than others: several round trips of the simulated network."""
CONTROL: Final = 0
FORWARDED, OVERSIZE = 0, 1
"""Stream types (PROTOCOL §6)."""


class Weather:
    """What the network does to packets: each is lost, late or doubled with these probabilities."""

    def __init__(self, world: World, seed: int, *, loss: float, late: float, twice: float) -> None:
        self._world = world
        self._rng = random.Random(seed)  # noqa: S311 - a case is the same each time
        self._loss, self._late, self._twice = loss, late, twice
        self._is_settled = False

    def __call__(self, data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
        """See ``Filter``."""
        if self._is_settled:
            return data
        rng = self._rng
        if rng.random() < self._loss:
            return None
        if rng.random() < self._twice:
            self._later(data, source, to)
        if rng.random() < self._late:
            self._later(data, source, to)
            return None
        return data

    def _later(self, data: bytes, source: SocketAddress, to: SocketAddress) -> None:
        self._world.clock.callLater(self._rng.uniform(0, MAX_DELAY), self._send, data, source, to)

    def _send(self, data: bytes, source: SocketAddress, to: SocketAddress) -> None:
        self._is_settled = True
        self._world.network.send(data, self._world.network.hosts[source], to)
        self._is_settled = False


@dataclass(frozen=True, slots=True)
class Sent:
    """What one end has sent on streams: the bytes behind the type, and whether the stream has two directions."""

    data: bytes
    is_bidirectional: bool


class End(ScriptedClient):
    """One end of an allocation that keeps accounts of everything."""

    def __init__(self, world: World, **changes: Any) -> None:
        super().__init__(world, **changes)
        self.sent_datagrams: list[bytes] = []
        self.sent_records: list[bytes] = []
        self.sent_streams: list[Sent] = []
        self.replies: dict[int, bytes] = {}
        """By stream id, what was answered on streams that the other end opened."""
        self.refused: set[int] = set()
        """Streams that one side no longer wants."""
        self._record_stream: int | None = None

    # -- every way to send

    def datagram(self, payload: bytes) -> None:
        """In a DATAGRAM frame, so it must fit one."""
        self.sent_datagrams.append(payload)
        self.send_datagram(payload)

    def burst(self, payloads: Sequence[bytes]) -> None:
        """Several at once, as many to a packet as fit."""
        self.sent_datagrams += payloads
        for payload in payloads:
            self.quic.send_datagram_frame(payload)
        self.flush()

    def record(self, payload: bytes) -> None:
        """As an oversize record, of any size up to 65,535."""
        head = b""
        if self._record_stream is None:
            self._record_stream = self.quic.get_next_available_stream_id(is_unidirectional=True)
            head = varint(OVERSIZE)
        self.sent_records.append(payload)
        self._write(self._record_stream, head + varint(len(payload)) + payload)
        self.flush()

    def stream(self, data: bytes, *, bidirectional: bool) -> int:
        """On a stream of its own, with FIN; returns its id."""
        self.sent_streams.append(Sent(data, bidirectional))
        stream_id = self.quic.get_next_available_stream_id(is_unidirectional=not bidirectional)
        self._write(stream_id, varint(FORWARDED) + data, end=True)
        self.flush()
        return stream_id

    def reply(self, make: Any) -> None:
        """Answer streams of both directions that have ended, with what ``make`` gives for what came."""
        for stream_id in self._opened(FORWARDED):
            if stream_id % 4 == 1 and stream_id in self.finished and stream_id not in self.replies:
                self.replies[stream_id] = make(bytes(self.streams[stream_id][1:]))
                self._write(stream_id, self.replies[stream_id], end=True)
        self.flush()

    def control(self, data: bytes) -> None:
        """Capsules, if the control stream is still open."""
        self._write(CONTROL, data)
        self.flush()

    def break_off(self, data: bytes) -> None:
        """Begin a stream and reset it."""
        stream_id = self.stream(data, bidirectional=True)
        self.sent_streams.pop()
        self.quic.reset_stream(stream_id, 7)
        self.flush()

    def stop_reading(self) -> None:
        """Let the relay know that the latest stream it has opened is not wanted."""
        opened = [stream_id for stream_id in self._opened(FORWARDED) if stream_id not in self.finished | self.refused]
        if opened:
            self.refused.add(opened[-1])
            with suppress(ValueError):  # it was reset
                self.quic.stop_stream(opened[-1], 8)
            self.flush()

    def _write(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        try:
            self.quic.send_stream_data(stream_id, data, end_stream=end)
        except (RuntimeError, ValueError):
            self.refused.add(stream_id)  # the relay has stopped or reset it

    # -- what has come

    def _opened(self, kind: int) -> list[int]:
        """The streams of a type that the relay has opened, in order."""
        streams = self.streams
        return sorted(i for i in streams if i % 4 in (1, 3) and i != 3 and streams[i] and streams[i][0] == kind)

    @property
    def got_records(self) -> list[bytes]:
        """Payloads that came as oversize records."""
        return [payload for i in self._opened(OVERSIZE) for payload in RecordDecoder().feed(bytes(self.streams[i][1:]))]

    @property
    def got_streams(self) -> list[Sent]:
        """Streams that came whole."""
        return [Sent(bytes(self.streams[i][1:]), i % 4 == 1) for i in self._opened(FORWARDED) if i in self.finished]

    @property
    def transcript(self) -> dict[str, object]:
        """Everything that was ever heard."""
        return {
            "datagrams": self.datagrams,
            "streams": {i: bytes(data) for i, data in sorted(self.streams.items()) if i != 3},
            "finished": sorted(self.finished),
            "closed": self.closed and (self.closed.error_code, self.closed.reason_phrase),
        }


class Scene(World):
    """A world where no proofs are asked for, and ends are made in pairs."""

    def __init__(self, *, tier: Tier = OPEN_TIER, **policy: Any) -> None:
        super().__init__(
            policy=Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=tier, proving_roles=frozenset(), **policy)
        )

    def ends(self, **token: Any) -> tuple[End, End]:
        """Device and peer of one allocation, bound."""
        data = self.token(**token).encode()
        made = [End(self), End(self)]
        self.run(0.05)
        for role, end in zip((DEVICE, PEER), made, strict=True):
            end.allocate(data, role=role)
        self.run(0.05)
        return made[0], made[1]

    def use_up_bursts(self) -> None:
        """Leave allocations that have a bandwidth limit nothing but what they gain from now on."""
        for allocation in self.relay.table:
            if allocation.bucket is not None:
                allocation.bucket.take(allocation.bucket.burst, self.now())


def is_subsequence(part: Sequence[bytes], whole: Iterable[bytes]) -> bool:
    """Whether ``part`` is ``whole`` with some left out."""
    left = iter(whole)
    return all(any(one == other for other in left) for one in part)


def payload(case: int, number: int, size: int) -> bytes:
    """``size`` bytes that no other number has, but for very short ones."""
    return random.Random(f"{case}/{number}").randbytes(size)  # noqa: S311 - a case is the same each time

