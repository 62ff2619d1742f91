"""Packets gather where they come densely, and only there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import RELAY_ADDRESS, World
from tests.real_relay import eventually
from tests.test_udp import Collector, UdpCase
from zrc_relay.quic import endpoint as endpoint_module
from zrc_relay.quic.gather import PACKETS, SLACK, SOON, WINDOW, WORTH, Gather
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.quic.udp import MAX_STAY, SMALL_BATCH, Path

PAUSE = 0.0005
DENSE = PACKETS / PAUSE
"""Packets a second of which just so many come within ``PAUSE`` as are worth a wake-up."""


class Machine:
    """A clock that stands still but for what is worked, slept and waited; packets come at ``rate`` a second."""

    def __init__(self, pause: float = PAUSE) -> None:
        self.time = 100.0
        self.slept: list[float] = []
        self.gather = Gather(pause, now=lambda: self.time, sleep=self._sleep)
        self._read_until = self.time

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds + SLACK

    def batch(self, rate: float, work: float = 0.0) -> int:
        """One batch: a packet is there, and what has come by the time that it is read; it takes ``work`` seconds."""
        self.time = max(self.time, self._read_until + 1 / rate)
        self.gather.begin()
        packets = int((self.time - self._read_until) * rate + 1e-6)
        self._read_until += packets / rate
        self.time += work
        self.gather.end(packets)
        return packets

    def run(self, rate: float, work: float = 0.0, *, seconds: float = 3 * WINDOW) -> list[int]:
        """The sizes of the batches in so many seconds."""
        end = self.time + seconds
        sizes = []
        while self.time < end:
            sizes.append(self.batch(rate, work))
        return sizes


class GatherTests(SynchronousTestCase):
    """Where packets come densely, batches are held apart (docs/performance.md)."""

    def test_as_many_gather_as_are_worth_a_wake_up_and_no_more(self) -> None:
        for rate in (DENSE, 2 * DENSE, 4 * DENSE):
            machine = Machine()
            machine.run(rate)
            sizes = machine.run(rate)
            self.assertEqual(set(sizes[2:]) - {PACKETS - 1, PACKETS, PACKETS + 1}, set(), rate)

    def test_none_waits_longer_than_it_may(self) -> None:
        machine = Machine()
        machine.run(DENSE * 0.7)
        machine.slept.clear()
        sizes = machine.run(DENSE * 0.7)
        self.assertGreater(min(sizes), 1)
        self.assertLessEqual(max(machine.slept) + SLACK, PAUSE)

    def test_where_too_few_would_gather_each_is_read_at_once(self) -> None:
        machine = Machine()
        self.assertEqual(set(machine.run(0.9 * WORTH / PAUSE)), {1})
        self.assertEqual(machine.slept, [])
        self.assertFalse(machine.gather.is_dense)

    def test_the_time_for_the_work_on_a_batch_is_not_waited_again(self) -> None:
        machine = Machine()
        machine.run(DENSE, work=PAUSE / 2)
        machine.slept.clear()
        machine.run(DENSE, work=PAUSE / 2)
        self.assertLessEqual(max(machine.slept) + SLACK, PAUSE / 2 + 1e-9)

    def test_who_works_longer_than_that_does_not_wait_at_all(self) -> None:
        machine = Machine()
        machine.run(DENSE, work=PAUSE)
        machine.slept.clear()
        machine.run(DENSE, work=PAUSE)
        self.assertEqual(machine.slept, [])

    def test_it_stops_when_less_comes(self) -> None:
        machine = Machine()
        machine.run(DENSE)
        self.assertTrue(machine.gather.is_dense)
        machine.run(WORTH / PAUSE / 2)
        machine.slept.clear()
        machine.run(WORTH / PAUSE / 2)
        self.assertEqual(machine.slept, [])

    def test_after_a_silence_the_first_packet_is_read_at_once(self) -> None:
        machine = Machine()
        machine.run(DENSE)
        machine.time += 10 * WINDOW
        machine.slept.clear()
        machine.batch(DENSE)
        self.assertEqual(machine.slept, [])

    def test_the_reactor_has_its_turn_where_the_pause_is_long(self) -> None:
        for pause, stays in ((SOON, True), (2 * SOON, False)):
            machine = Machine(pause)
            machine.run(PACKETS / pause)
            self.assertEqual(machine.gather.is_dense, stays)
            self.assertNotEqual(machine.slept, [])

    def test_zero_is_never(self) -> None:
        machine = Machine(0.0)
        machine.run(100 * DENSE)
        self.assertEqual(machine.slept, [])


class Noted:
    """Stands in for a ``Gather``, and notes when it was asked."""

    def __init__(self, seconds: float, *, now: Callable[[], float]) -> None:
        self.seconds = seconds
        self.asked: list[str] = []
        del now

    def begin(self) -> None:
        self.asked.append("begin")

    def end(self, packets: int) -> None:
        self.asked.append(f"end of {packets}")

    @property
    def is_dense(self) -> bool:
        return True


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
        for size in (2, 1):
            endpoint.batch_begins()
            for _ in range(size):
                endpoint.datagram_received(b"", Path(RELAY_ADDRESS, self.world.network.hosts[RELAY_ADDRESS]))
            endpoint.batch_done()
        self.assertEqual([each.asked for each in self.made], [["begin", "end of 2", "begin", "end of 1"]])
        self.assertEqual(self.made[0].seconds, PAUSE)
        self.assertTrue(endpoint.stays())

    def test_a_reload_changes_it_from_the_next_batch_on(self) -> None:
        endpoint = self.world.endpoint
        endpoint.reconfigure(self.world.credentials, replace(self.settings, gather_time=2 * PAUSE))
        endpoint.batch_begins()
        self.assertEqual([(each.seconds, each.asked) for each in self.made], [(PAUSE, []), (2 * PAUSE, ["begin"])])

    def test_a_reload_of_something_else_leaves_it_as_it_is(self) -> None:
        self.world.endpoint.reconfigure(self.world.credentials, replace(self.settings, max_streams=8))
        self.assertEqual(len(self.made), 1)


class Patient(Collector):
    """A receiver that puts packets on their way before it lets the port read: ``more`` for each of ``rounds`` batches."""

    def __init__(self, late: socket.socket, *, rounds: int = 1, more: int = 1, stays: bool = False) -> None:
        super().__init__()
        self.late = late
        self.to = ("127.0.0.1", 0)
        self.rounds = rounds
        self.more = more
        self.is_staying = stays
        self.turns: list[int] = []
        """How many batches there were when the reactor had its turn."""

    def batch_begins(self) -> None:
        if self.rounds:
            self.rounds -= 1
            for _ in range(self.more):
                self.late.sendto(b"late", self.to)

    def stays(self) -> bool:
        return self.is_staying


class PortGatherTests(UdpCase):
    """What arrives while packets gather is read with them, in one batch; while batches are held apart the port stays."""

    async def patient(self, **options: Any) -> Patient:
        sender = self.plain("127.0.0.1")
        receiver = Patient(sender, **options)
        port = self.listen("127.0.0.1", receiver)
        receiver.to = ("127.0.0.1", port.local.port)
        read = port.doRead

        def turn() -> None:
            read()
            receiver.turns.append(len(receiver.batches))

        self.patch(port, "doRead", turn)
        sender.sendto(b"early", receiver.to)
        await eventually(lambda: receiver.turns, "the batch")
        return receiver

    async def test_a_packet_that_comes_while_the_receiver_waits_is_of_the_same_batch(self) -> None:
        receiver = await self.patient()
        self.assertEqual([data for data, _ in receiver.got], [b"early", b"late"])
        self.assertEqual((receiver.batches, receiver.turns), ([2], [1]))

    async def test_the_next_batch_is_read_without_a_turn_of_the_reactor_but_not_for_ever(self) -> None:
        receiver = await self.patient(rounds=10, stays=True)
        self.assertEqual((receiver.batches, receiver.turns), ([2, 1, 1, 1], [MAX_STAY]))

    async def test_it_stays_no_longer_than_there_is_something(self) -> None:
        receiver = await self.patient(rounds=2, stays=True)
        self.assertEqual(receiver.batches, [2, 1, 0])

    async def test_a_large_batch_is_worth_a_turn(self) -> None:
        receiver = await self.patient(rounds=1, more=SMALL_BATCH, stays=True)
        self.assertEqual((sum(receiver.batches), receiver.turns), (SMALL_BATCH + 1, [1]))
