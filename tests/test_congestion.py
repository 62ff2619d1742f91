"""How many bytes may be under way, and how fast they leave."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.quic.congestion import (
    BURST_TIME,
    INITIAL_WINDOW,
    MAX_BURST_PACKETS,
    MINIMUM_WINDOW,
    PACING_GAIN,
    RTT_SAMPLE_INTERVAL,
    RTT_SAMPLES,
    Congestion,
    Pacer,
    RttMonitor,
)
from zrc_relay.quic.onertt import SentPacket

SIZE = 1200


class WindowTests(SynchronousTestCase):
    """RFC 9002 §7: the window grows with what arrives, and halves once for what is lost in one flight."""

    def setUp(self) -> None:
        self.congestion = Congestion(max_datagram_size=SIZE)
        self.now = 10.0
        self.number = 0

    def send(self, count: int) -> list[SentPacket]:
        self.now += 0.01
        packets = []
        for _ in range(count):
            packets.append(SentPacket(self.number, self.now, SIZE, (), True))
            self.congestion.on_packet_sent(packet=packets[-1])
            self.number += 1
        return packets

    def arrive(self, packets: list[SentPacket]) -> None:
        for packet in packets:
            self.congestion.on_packet_acked(now=self.now, packet=packet)

    def lose(self, packets: list[SentPacket]) -> None:
        self.now += 0.01
        self.congestion.on_packets_lost(now=self.now, packets=packets)

    @property
    def window(self) -> int:
        """The window in datagrams."""
        return self.congestion.congestion_window // SIZE

    def test_in_slow_start_it_grows_by_what_arrives(self) -> None:
        self.assertEqual(self.window, INITIAL_WINDOW)
        self.arrive(self.send(7))
        self.assertEqual((self.window, self.congestion.bytes_in_flight), (INITIAL_WINDOW + 7, 0))

    def test_what_is_lost_in_one_flight_halves_it_once(self) -> None:
        flight = self.send(10)
        self.lose(flight[:1])
        self.assertEqual((self.window, self.congestion.ssthresh), (5, 5 * SIZE))
        self.lose(flight[1:3])
        self.assertEqual((self.window, self.congestion.bytes_in_flight), (5, 7 * SIZE))

    def test_what_left_before_the_loss_lets_nothing_grow(self) -> None:
        flight = self.send(10)
        self.lose(flight[:1])
        self.arrive(flight[1:])
        self.assertEqual(self.window, 5)

    def test_afterwards_it_grows_by_one_datagram_for_each_window(self) -> None:
        self.lose(self.send(1))
        self.arrive(self.send(4))
        self.assertEqual(self.window, 5)
        self.arrive(self.send(1))
        self.assertEqual(self.window, 6)

    def test_it_stays_above_the_minimum(self) -> None:
        for _ in range(5):
            self.lose(self.send(1))
        self.assertEqual(self.window, MINIMUM_WINDOW)

    def test_persistent_congestion_leaves_the_minimum(self) -> None:
        self.congestion.on_persistent_congestion()
        self.assertEqual(self.window, MINIMUM_WINDOW)

    def test_what_is_given_up_is_no_sign_of_congestion(self) -> None:
        flight = self.send(3)
        self.congestion.on_packets_expired(packets=flight)
        self.assertEqual((self.window, self.congestion.bytes_in_flight, self.congestion.ssthresh), (INITIAL_WINDOW, 0, None))

    def test_a_growing_rtt_ends_slow_start(self) -> None:
        for rtt in [0.01] * 20 + [0.02] * 20:
            self.now += 0.01
            self.congestion.on_rtt_measurement(now=self.now, rtt=rtt)
        self.assertEqual(self.congestion.ssthresh, self.congestion.congestion_window)
        self.arrive(self.send(4))
        self.assertEqual(self.window, INITIAL_WINDOW)

    def test_a_steady_one_does_not(self) -> None:
        for rtt in [0.01, 0.011] * 20:
            self.now += 0.01
            self.congestion.on_rtt_measurement(now=self.now, rtt=rtt)
        self.assertIsNone(self.congestion.ssthresh)


class MonitorTests(SynchronousTestCase):
    """HyStart: the RTT has grown when the least of the last samples is well above what it was, several times."""

    def test_samples_too_close_to_each_other_do_not_count(self) -> None:
        monitor = RttMonitor()
        now = 1.0
        for _ in range(100):
            now += RTT_SAMPLE_INTERVAL / 100
            self.assertFalse(monitor.is_growing(0.01, now))
        for _ in range(2 * RTT_SAMPLES - 3):  # one sample was taken above
            now += 2 * RTT_SAMPLE_INTERVAL
            self.assertFalse(monitor.is_growing(0.02, now))

    def test_one_late_packet_is_no_growth(self) -> None:
        monitor = RttMonitor()
        samples = ([0.01] * 9 + [0.1]) * 5
        self.assertFalse(any(monitor.is_growing(rtt, 1.0 + index) for index, rtt in enumerate(samples)))


class PacerTests(SynchronousTestCase):
    """RFC 9002 §7.7: a window leaves somewhat faster than in an RTT, in bursts that are bounded."""

    def setUp(self) -> None:
        self.pacer = Pacer(max_datagram_size=SIZE)

    def burst(self, now: float) -> int:
        """How many packets leave at once."""
        sent = 0
        while self.pacer.next_send_time(now) is None:
            self.pacer.update_after_send(now)
            sent += 1
        return sent

    def test_before_an_rtt_is_known_nothing_is_held_back(self) -> None:
        self.assertIsNone(self.pacer.next_send_time(1.0))
        self.pacer.update_after_send(1.0)
        self.assertIsNone(self.pacer.next_send_time(1.0))

    def test_over_time_it_is_the_windows_rate(self) -> None:
        self.pacer.update_rate(100 * SIZE, 0.1)  # a packet each 0.8 ms
        now, sent = 1.0, self.burst(1.0)
        while now < 2.0:
            now += 0.0008
            sent += self.burst(now)
        self.assertTrue(1000 * PACING_GAIN <= sent <= 1000 * PACING_GAIN + 20, sent)

    def test_when_it_may_go_on_it_is_said(self) -> None:
        self.pacer.update_rate(10 * SIZE, 0.1)
        self.burst(1.0)
        self.assertAlmostEqual(self.pacer.next_send_time(1.0) or 0.0, 1.0 + 0.1 / 10 / PACING_GAIN)

    def test_a_burst_is_two_milliseconds_and_no_more_than_one_call_sends(self) -> None:
        for packets_in_rtt, expected in ((1000, round(BURST_TIME / (0.1 / 1000 / PACING_GAIN))), (1_000_000, MAX_BURST_PACKETS)):
            pacer = self.pacer = Pacer(max_datagram_size=SIZE)
            pacer.update_rate(packets_in_rtt * SIZE, 0.1)
            self.assertIn(self.burst(100.0) - expected, (0, 1))
