"""P6: an error in one allocation changes nothing in another (R5.6).

Two allocations have the same traffic at the same time, and the same expiry. In one of them something goes wrong: an exception is
raised at some call of some method that works for it, once or each time from then on, or its client does something that the
protocol forbids. Then the other's *transcript*, that is all that its ends have ever heard and when, must be that of a run in
which nothing went wrong, and so must be what it has used of its quota and its bandwidth after each step.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from tests.harness import RELAY_ADDRESS
from tests.properties.settings import EXAMPLES, PropertyTestCase, cases, explained
from tests.properties.traffic import End, Scene, payload
from tests.raw_quic import DEVICE, LIST_RELAYS, PEER, REFRESH, capsule, varint
from zrc_relay.core.allocation import Allocation
from zrc_relay.core.relay import Relay
from zrc_relay.core.session import Session
from zrc_relay.core.table import AllocationTable
from zrc_relay.quic.connection import Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.fastpath import FastPath
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.oversize import OversizeSender
from zrc_relay.quic.streams import Forwarder
from zrc_relay.quic.udp import Path

SCRIPTS: Final = 8
"""Different courses of traffic; what happens without an error is found out once for each."""
WRONG, CONCERNED = b"goes wrong......", b"is not concerned"
LIFE: Final = 4
"""Seconds that both allocations live."""
WRONG_LIMIT, CONCERNED_LIMIT = 20_000, 100_000
"""Bandwidths in bytes a second. The one that goes wrong is throttled, its burst used up, so that drops and delays can go wrong,
too; the other one never is, but anybody who touches its bucket is seen for most of a second."""
BATCH: Final = 0.0063
"""Seconds in which what both allocations send at a step gathers before the relay: longer than it is under way."""
SAME_TIME: Final = 0.001
"""Seconds: the simulated clock goes on by a millionth for each call that is made at once, and an error makes some."""

METHODS: Final[dict[type, tuple[str, ...]]] = {
    RelayConnection: ("receive", "receive_batch", "flush", "timed_out", "send_datagrams", "send_control", "wake", "close"),
    Session: (
        "control_received", "resume_control", "datagrams_received", "heard", "timed_out", "lost", "send", "terminate", "shut",
        "note_drop", "report_drops", "max_payload_changed",
    ),
    Allocation: ("forward", "grant_stream_bytes", "drop", "bind", "unbind", "change", "absence_deadline"),
    AllocationTable: ("remove", "absence_changed"),
    Relay: ("_end", "unbind", "refresh", "announce"),
    Forwarder: ("data", "reset", "stop_sending", "pump", "lost", "open", "mirrored", "answered", "target_lost"),
    Connection: (
        "receive_datagram", "datagrams_to_send", "handle_timer", "get_timer", "next_event", "send_stream_data", "open_stream",
        "consume", "send_payloads", "close",
    ),
    EgressQueue: ("extend", "expire", "popleft"),
    FastPath: ("receive", "seal"),
    OversizeSender: ("push", "pump"),
}
"""What works for one allocation, or for one of its connections, or is told which one it is for."""


class Injected(Exception):
    """The error that a test puts in."""


@dataclass(frozen=True, slots=True, repr=False)
class Fault:
    """An exception at call number ``after`` of a method, and at all later ones if it ``stays``."""

    owner: type
    method: str
    after: int
    stays: bool

    def __repr__(self) -> str:
        return f"{self.owner.__name__}.{self.method}, call {self.after}{' and all later ones' if self.stays else ''}"


class Injector:
    """Raises ``Injected`` where a fault says, in whatever concerns ``victims``; does nothing until they are known."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._calls = 0
        self.victims: list[object] = []
        self.times_raised = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts, the method is watched."""
        original = getattr(self._fault.owner, self._fault.method)

        @functools.wraps(original)
        def watched(this: object, *arguments: Any, **keywords: Any) -> Any:
            if any(one is victim for one in (this, *arguments) for victim in self.victims):
                self._called()
            return original(this, *arguments, **keywords)

        setattr(self._fault.owner, self._fault.method, watched)
        try:
            yield
        finally:
            setattr(self._fault.owner, self._fault.method, original)

    def _called(self) -> None:
        number, self._calls = self._calls, self._calls + 1
        if number == self._fault.after or (self._fault.stays and number > self._fault.after):
            self.times_raised += 1
            raise Injected(repr(self._fault))


def _flood(end: End) -> None:
    end.send_control(100 * capsule(0x3F))


MISDEEDS: Final[dict[str, Callable[[End], None]]] = {
    "garbage on the control stream": lambda end: end.send_control(b"\x01\x05hello"),
    "a capsule that is too large": lambda end: end.send_control(varint(1) + varint(5000)),
    "too many capsules": _flood,
    "the control stream is closed": lambda end: end.send_control(b"", end=True),
    "a frame that does not exist": lambda end: end.send_frames(b"\x3f\x00"),
    "a stream beyond the limit": lambda end: end.send_frames(b"\x0a" + varint(4 * 1000) + b"\x01\x00"),
    "more bytes than there is credit for": lambda end: end.send_frames(b"\x0e" + varint(400) + varint(1 << 30) + b"\x01\x00"),
    "an oversize record that is too long": lambda end: end.send_frames(b"\x0a" + varint(402) + b"\x05\x01" + varint(70_000)),
    "a stream of another type": lambda end: end.send_frames(b"\x0a" + varint(402) + b"\x01\x07"),
    "silence": lambda end: end.silence(),
}


class Gathering:
    """A ``Receiver`` that only keeps what comes."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, Path]] = []

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        self.packets.append((data, path))

    def batch_done(self) -> None:
        """See ``Receiver``."""

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class Watched(Scene):
    """A scene whose sweeper goes on after an exception, as the service's does."""

    def __init__(self) -> None:
        self.sweep_failures = 0
        super().__init__()

    def run_in_one_batch(self, seconds: float) -> None:
        """Run, and let all that arrives at the relay meanwhile be one batch in the end."""
        relay = self.network.hosts[RELAY_ADDRESS]
        gathering = relay.receiver = Gathering()
        self.run(seconds)
        relay.receiver = self.endpoint
        for data, path in gathering.packets:
            self.endpoint.datagram_received(data, path)
        self.endpoint.batch_done()

    def _sweep(self) -> None:
        try:
            self.endpoint.sweep()
        except Injected:
            self.sweep_failures += 1
        self.clock.callLater(0.25, self._sweep)


class Witness:
    """Notes when an end hears how much of what."""

    def __init__(self, scene: Scene, end: End) -> None:
        self._scene = scene
        self._end = end
        self.times: list[float] = []
        self.heard: list[object] = []
        deliver = end.batch_done

        def batch_done() -> None:
            deliver()
            self._look()

        end.batch_done = batch_done  # type: ignore[method-assign]

    def _look(self) -> None:
        end = self._end
        state = (
            len(end.datagrams),
            {i: len(data) for i, data in end.streams.items()},
            sorted(end.finished),
            end.closed and end.closed.error_code,
        )
        if not self.heard or self.heard[-1] != state:
            self.heard.append(state)
            self.times.append(self._scene.now())


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that can be told of an allocation afterwards."""

    transcripts: list[dict[str, object]]
    heard: list[list[object]]
    ended: list[tuple[object, object]]
    times: list[list[float]]
    used: list[tuple[int, float]]
    """After each step: bytes transferred, and what is left of the bandwidth's burst."""


def play(script: int, *, wrong: Fault | str | None) -> tuple[Outcome, int]:
    """Let two allocations have the traffic of ``script`` while ``wrong`` happens in the first; what became of the second.

    Also returns how often the fault was met.
    """
    injector = Injector(wrong) if isinstance(wrong, Fault) else None
    with ExitStack() as stack:
        if injector is not None:
            stack.enter_context(injector.installed())
        scene = Watched()
        pairs = [Pair(scene, WRONG, bandwidth_limit=WRONG_LIMIT)]
        scene.use_up_bursts()
        pairs.append(Pair(scene, CONCERNED, bandwidth_limit=CONCERNED_LIMIT))
        used: list[tuple[int, float]] = []
        witnesses = [Witness(scene, end) for end in pairs[1].ends]
        rng = random.Random(script)  # noqa: S311 - a script is the same each time
        ways = rng.sample(range(len(Pair.WAYS)), len(Pair.WAYS))
        at, culprit = rng.randrange(len(ways)), rng.randrange(2)
        for step, way in enumerate(ways):
            if isinstance(wrong, str) and step == at:
                MISDEEDS[wrong](pairs[0].ends[culprit])
            if injector is not None:
                injector.victims = pairs[0].concerned()
            side, size = rng.randrange(2), rng.choice((0, 10, 1000, 4000))
            for pair in pairs:
                pair.send(way, side, payload(script, step, size))
            scene.run_in_one_batch(BATCH)
            scene.run(rng.choice((0.0, 0.001, 0.0113, 0.3)))
            for pair in pairs:
                pair.go_on()
            used += pairs[1].used()
        scene.run(pairs[1].expires_at + 1.0 - scene.wall())
        ended = [
            (fields["reason"], fields["bytes_transferred"])
            for name, fields in scene.recorder.events
            if name == "allocation.ended" and fields["allocation"] == CONCERNED.hex()
        ]
    outcome = Outcome(
        [end.transcript for end in pairs[1].ends],
        [witness.heard for witness in witnesses],
        ended,
        [witness.times for witness in witnesses],
        used,
    )
    return outcome, injector.times_raised if injector is not None else 1


class Pair:
    """Both ends of an allocation, a third connection that comes and goes, and every way to keep the relay busy."""

    WAYS = ("datagram", "datagram", "record", "stream", "stream", "reset", "stop", "stop", "list", "refresh", "join", "leave")

    def __init__(self, scene: Scene, name: bytes, **token: Any) -> None:
        self._scene = scene
        self.expires_at = int(scene.wall()) + LIFE
        self._token = scene.token(allocation_id=name, expires_at=self.expires_at, **token)
        self._key = (self._token.device_id, name)
        self._data = self._token.encode()
        self.ends = (End(scene), End(scene))
        device, peer = self.ends
        scene.run(0.05)
        device.allocate(self._data, role=DEVICE)
        scene.run(0.05)
        for _ in range(2):
            device.send_datagram(b"nobody is there yet")  # it hears of the first drop at once, and of the other one later
        scene.run(0.05)
        peer.allocate(self._data, role=PEER)
        scene.run(0.05)
        self._third: End | None = None
        self._third_asked = False

    def send(self, way: int, side: int, data: bytes) -> None:
        """Do something, if the end still can."""
        end = self.ends[side]
        if end.closed is not None or not end.is_established:
            return
        match self.WAYS[way]:
            case "datagram":
                end.datagram(data[:1100])
            case "record":
                end.record(data)
            case "stream":
                end.stream(data, bidirectional=way % 2 == 0)
            case "reset":
                end.break_off(data)
            case "stop":
                end.stop_reading()
            case "list":
                end.control(capsule(LIST_RELAYS))
            case "refresh":
                end.control(capsule(REFRESH, self._data))
            case "join":
                self._third = self._third or End(self._scene)
            case _:
                if self._third is not None:
                    self._third.quic.close()
                    self._third.flush()

    def go_on(self) -> None:
        """Answer what asks for it."""
        for end in self.ends:
            if end.closed is None:
                end.reply(lambda data: data[::-1])
        third = self._third
        if third is not None and third.is_established and third.closed is None and not self._third_asked:
            self._third_asked = True
            third.allocate(self._data)

    def used(self) -> list[tuple[int, float]]:
        """The bytes that it has transferred, and those that it could at once, if it lives."""
        allocation = self._scene.relay.table.get(self._key)
        if allocation is None or allocation.bucket is None:
            return []
        return [(allocation.bytes_transferred, allocation.bucket.available(self._scene.now()))]

    def concerned(self) -> list[object]:
        """Every object of the relay that works for this allocation alone."""
        allocation = self._scene.relay.table.get(self._key)
        found: list[object] = [] if allocation is None else [allocation]
        sockaddrs = [end.sockaddr for end in (*self.ends, self._third) if end is not None]
        for connection in self._scene.endpoint.all_connections():
            if vars(connection)["_first_path"][0] in sockaddrs:
                oversize = vars(connection)["_oversize"]
                found += [connection, connection.session, connection.streams, connection.quic, connection.quic.egress, oversize]
                found.append(vars(oversize)["_queue"])
        return found


@functools.cache
def undisturbed(script: int) -> Outcome:
    """What becomes of the second allocation when nothing goes wrong in the first."""
    return play(script, wrong=None)[0]


_faults: Final = st.builds(
    lambda place, after, stays: Fault(place[0], place[1], after, stays),
    st.sampled_from([(owner, method) for owner, methods in METHODS.items() for method in methods]),
    st.integers(0, 6),
    st.booleans(),
)


class IsolationTests(PropertyTestCase):
    """P6: the other allocation's ends hear the same at the same time, and it ends when it should (R5.6)."""

    def check(self, script: int, wrong: Fault | str) -> int:
        expected = undisturbed(script)
        outcome, times_raised = play(script, wrong=wrong)
        self.flushLoggedErrors()  # of the injected error and what came of it, where it was injected
        self.assertEqual(outcome.transcripts, expected.transcripts)
        self.assertEqual(outcome.heard, expected.heard)
        self.assertEqual(outcome.ended, expected.ended)
        for times, others in zip(outcome.times, expected.times, strict=True):
            for time, other in zip(times, others, strict=True):
                self.assertLessEqual(abs(time - other), SAME_TIME, f"something was heard at {time:.6f} instead of {other:.6f}")
        self.assertEqual([each for each, _ in outcome.used], [each for each, _ in expected.used])
        for (_, left), (_, other) in zip(outcome.used, expected.used, strict=True):
            self.assertLessEqual(abs(left - other), SAME_TIME * CONCERNED_LIMIT, f"{left:.0f} bytes left, not {other:.0f}")
        return times_raised

    def test_an_exception_in_one_allocation_changes_nothing_in_another(self) -> None:
        met = 0

        @cases()
        @given(script=st.integers(0, SCRIPTS - 1), fault=_faults)
        def holds(script: int, fault: Fault) -> None:
            nonlocal met
            met += self.check(script, fault) > 0

        with explained():
            holds()
        self.assertGreater(met, EXAMPLES // 3, "hardly any fault was met")

    def test_a_client_that_breaks_the_protocol_changes_nothing_in_another_allocation(self) -> None:
        for misdeed in MISDEEDS:
            for script in range(0, SCRIPTS, 2):
                self.check(script, misdeed)
