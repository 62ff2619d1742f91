"""Packets gather while the relay is busy, and only then."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import World
from tests.real_relay import eventually
from tests.test_udp import Collector, UdpCase
from zrc_relay.quic import endpoint as endpoint_module
from zrc_relay.quic.gather import BUSY, LONG, WINDOW, Gather
from zrc_relay.quic.settings import EndpointSettings

PAUSE = 0.0001
SHORT = LONG / 4


class Machine:
    """A clock that stands still but for what is worked, slept and waited."""

    def __init__(self, pause: float = PAUSE) -> None:
        self.time = 100.0
        self.slept: list[float] = []
        self.gather = Gather(pause, now=lambda: self.time, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds

    def batch(self, work: float, idle: float = 0.0) -> None:
        """One batch that takes ``work`` seconds, ``idle`` seconds after the one before."""
        self.time += idle
        self.gather.begin()
        self.time += work
        self.gather.end()

    def run(self, share: float, *, seconds: float = 2 * WINDOW) -> None:
        """Batches that take ``SHORT`` each, and ``share`` of the time."""
        end = self.time + seconds
        while self.time < end:
            self.batch(SHORT, SHORT / share - SHORT)


class GatherTests(SynchronousTestCase):
    """A busy relay reads more at a time (docs/performance.md)."""

    def test_a_relay_that_is_busy_waits_before_each_batch(self) -> None:
        machine = Machine()
        machine.run(0.9)
        machine.slept.clear()
        for _ in range(3):
            machine.batch(SHORT)
        self.assertEqual(machine.slept, [PAUSE] * 3)

    def test_one_that_is_not_reads_at_once(self) -> None:
        machine = Machine()
        machine.run(BUSY - 0.1, seconds=5 * WINDOW)
        self.assertEqual(machine.slept, [])

    def test_what_is_waited_is_not_work(self) -> None:
        machine = Machine(SHORT)
        machine.run(1.0)
        machine.slept.clear()
        end = machine.time + 2 * WINDOW
        while machine.time < end and len(machine.slept) < 1000:
            machine.batch(SHORT / 2)  # a third of the time is work then, the rest is waiting
        share = sum(machine.slept) / (2 * WINDOW)
        # Two thirds in one window, and none in the next.
        self.assertTrue(0.2 < share < 0.5, f"it has waited for {share:.0%} of the time")

    def test_it_stops_when_there_is_less_to_do(self) -> None:
        machine = Machine()
        machine.run(0.9)
        machine.run(0.3)
        machine.slept.clear()
        machine.batch(SHORT)
        self.assertEqual(machine.slept, [])

    def test_after_a_batch_that_took_long_the_next_is_read_at_once(self) -> None:
        machine = Machine()
        machine.run(0.9)
        machine.slept.clear()
        machine.batch(LONG)
        machine.batch(SHORT)
        self.assertEqual(machine.slept, [PAUSE])
        machine.batch(SHORT)
        self.assertEqual(machine.slept, [PAUSE] * 2)

    def test_a_long_silence_counts_as_idle(self) -> None:
        machine = Machine()
        machine.run(0.9)
        machine.batch(SHORT, 10 * WINDOW)
        machine.slept.clear()
        machine.batch(SHORT)
        self.assertEqual(machine.slept, [])

    def test_zero_is_never(self) -> None:
        machine = Machine(0.0)
        machine.run(1.0)
        self.assertEqual(machine.slept, [])


class Noted:
    """Stands in for a ``Gather``, and notes when it was asked."""

    def __init__(self, seconds: float, *, now: Callable[[], float]) -> None:
        self.seconds = seconds
        self.asked: list[str] = []
        del now

    def begin(self) -> None:
        self.asked.append("begin")

    def end(self) -> None:
        self.asked.append("end")


class EndpointGatherTests(SynchronousTestCase):
    """The endpoint gathers for as long as ``gather_time`` says, also when that changes (R8.5)."""

    def setUp(self) -> None:
        self.made: list[Noted] = []
        self.patch(endpoint_module, "Gather", self.make)
        self.settings = EndpointSettings(gather_time=PAUSE)
        self.world = World(settings=self.settings)

    def make(self, seconds: float, *, now: Callable[[], float]) -> Noted:
        self.made.append(Noted(seconds, now=now))
        return self.made[-1]

    def test_each_batch_begins_and_ends_once(self) -> None:
        endpoint = self.world.endpoint
        for _ in range(2):
            endpoint.batch_begins()
            endpoint.batch_done()
        self.assertEqual([each.asked for each in self.made], [["begin", "end"] * 2])
        self.assertEqual(self.made[0].seconds, PAUSE)

    def test_a_reload_changes_it_from_the_next_batch_on(self) -> None:
        endpoint = self.world.endpoint
        endpoint.reconfigure(self.world.credentials, replace(self.settings, gather_time=2 * PAUSE))
        endpoint.batch_begins()
        self.assertEqual([(each.seconds, each.asked) for each in self.made], [(PAUSE, []), (2 * PAUSE, ["begin"])])

    def test_a_reload_of_something_else_leaves_it_as_it_is(self) -> None:
        self.world.endpoint.reconfigure(self.world.credentials, replace(self.settings, max_streams=8))
        self.assertEqual(len(self.made), 1)


class Patient(Collector):
    """A receiver that puts a packet on its way before it lets the port read."""

    def __init__(self, late: socket.socket) -> None:
        super().__init__()
        self.late = late
        self.to = ("127.0.0.1", 0)

    def batch_begins(self) -> None:
        if not self.got:
            self.late.sendto(b"late", self.to)


class PortGatherTests(UdpCase):
    """What arrives while packets gather is read with them, in one batch."""

    async def test_a_packet_that_comes_while_the_receiver_waits_is_of_the_same_batch(self) -> None:
        sender = self.plain("127.0.0.1")
        receiver = Patient(sender)
        port = self.listen("127.0.0.1", receiver)
        receiver.to = ("127.0.0.1", port.local.port)
        sender.sendto(b"early", receiver.to)
        await eventually(lambda: receiver.batches, "the batch")
        self.assertEqual([data for data, _ in receiver.got], [b"early", b"late"])
        self.assertEqual(receiver.batches[0], 2)
