"""P5: what arrives is what was sent (R3.1, R3.4, R3.8, PROTOCOL §6), whatever the network does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from tests.properties.settings import PropertyTestCase, cases, explained
from tests.properties.traffic import End, Scene, Weather, is_subsequence, payload
from zrc_relay.core.tiers import Tier

FITS: Final = 1100
"""Bytes that fit a DATAGRAM on every path here."""
MAX_PAYLOAD: Final = 65_535
PATIENCE: Final = 25.0
"""Virtual seconds within which every stream must have arrived: several times what the worst weather here costs, and less than
quic_idle_timeout."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that one end sends, and the seconds until the next."""

    end: int
    way: str
    size: int
    gap: float


_ends: Final = st.integers(0, 1)
_datagrams: Final = st.builds(Step, _ends, st.just("datagram"), st.integers(0, FITS), st.sampled_from((0.0, 0.001, 0.02)))
_bursts: Final = st.builds(Step, _ends, st.just("burst"), st.integers(0, 2 * FITS), st.sampled_from((0.0, 0.02)))
_records: Final = st.builds(
    Step,
    _ends,
    st.just("record"),
    st.one_of(st.integers(0, 2000), st.integers(0, 12_000), st.integers(0, MAX_PAYLOAD), st.just(MAX_PAYLOAD)),
    st.sampled_from((0.0, 0.02, 0.3)),
)
_streams: Final = st.builds(
    Step, _ends, st.sampled_from(("one way", "both ways")), st.integers(0, 20_000), st.sampled_from((0.0, 0.05))
)
_steps: Final = st.lists(st.one_of(_datagrams, _bursts, _records, _streams), min_size=1, max_size=12)
_weather: Final = st.fixed_dictionaries({
    "loss": st.sampled_from((0.0, 0.02, 0.2)), "late": st.sampled_from((0.0, 0.1, 0.5)), "twice": st.sampled_from((0.0, 0.1)),
})


class ContentTests(PropertyTestCase):
    """P5: streams byte for byte; datagrams whole, at most once, and in order on each carrier (R3.1, R3.4, R3.8)."""

    def test_what_arrives_is_what_was_sent(self) -> None:
        @cases()
        @given(seed=st.integers(0, 2**32), weather=_weather, limit=st.sampled_from((None, None, 60_000)), steps=_steps)
        def holds(seed: int, weather: dict[str, float], limit: int | None, steps: list[Step]) -> None:
            scene = Scene(tier=Tier("", limit, None, None))
            ends = scene.ends()
            scene.use_up_bursts()
            scene.network.filter = Weather(scene, seed, **weather)
            for number, step in enumerate(steps):
                self.send(ends[step.end], step, payload(seed, number, step.size))
                scene.run(step.gap)
            self.wait(scene, ends)
            for sender, receiver in (ends, ends[::-1]):
                self.check_streams(sender, receiver)
                self.check_datagrams(sender, receiver, is_ordered=not weather["late"])
            self.assertEqual(self.left_behind(scene), [])
            if not weather["loss"] and not weather["late"]:  # QUIC takes what comes very late for a duplicate
                self.check_counted(scene, ends)

        with explained():
            holds()

    def send(self, end: End, step: Step, data: bytes) -> None:
        match step.way:
            case "datagram":
                end.datagram(data)
            case "burst":
                end.burst([data[begin : begin + FITS // 4] for begin in range(0, len(data), FITS // 4)])
            case "record":
                end.record(data)
            case way:
                end.stream(data, bidirectional=way == "both ways")

    def wait(self, scene: Scene, ends: tuple[End, End]) -> None:
        """Until all that must arrive has, and is over for the relay, and for a while after that."""
        until = scene.now() + PATIENCE
        while scene.now() < until and not self.is_done(scene, ends):
            scene.run(0.25)
            for end in ends:
                end.reply(lambda data: data[::-1] + b"!")
        scene.run(1.0)

    def is_done(self, scene: Scene, ends: tuple[End, End]) -> bool:
        return all(self.is_complete(*pair) for pair in (ends, ends[::-1])) and not self.left_behind(scene)

    @staticmethod
    def is_complete(sender: End, receiver: End) -> bool:
        answered = sum(stream.is_bidirectional for stream in sender.sent_streams)
        answers = [i for i in sender.finished if i % 4 == 0]
        return len(receiver.got_streams) == len(sender.sent_streams) and len(answers) == answered

    def check_streams(self, sender: End, receiver: End) -> None:
        self.assertIsNone(sender.close_code)
        self.assertEqual(Counter(receiver.got_streams), Counter(sender.sent_streams))
        answers = Counter(bytes(sender.streams[i]) for i in sender.finished if i % 4 == 0)
        wanted = Counter(stream.data[::-1] + b"!" for stream in sender.sent_streams if stream.is_bidirectional)
        self.assertEqual(answers, wanted)

    def check_datagrams(self, sender: End, receiver: End, *, is_ordered: bool) -> None:
        sent = Counter(sender.sent_datagrams + sender.sent_records)
        got = Counter(receiver.datagrams + receiver.got_records)
        self.assertEqual(got - sent, Counter(), "something has arrived that was not sent, or not so often")
        # Oversize records come in reliably, and leave so when they do not fit, so their order is that of sending in any weather.
        self.assertTrue(is_subsequence(receiver.got_records, sender.sent_records))
        if is_ordered:
            for carrier, other in ((sender.sent_datagrams, sender.sent_records), (sender.sent_records, sender.sent_datagrams)):
                only = set(carrier) - set(other)  # very short ones may be on both
                in_order = [one for one in receiver.datagrams if one in only]
                self.assertTrue(is_subsequence(in_order, carrier), "the order on one carrier has changed")

    @staticmethod
    def left_behind(scene: Scene) -> list[str]:
        """What the relay keeps of streams that are over. Those of oversize datagrams stay open, one for each connection."""
        found = []
        for connection in scene.endpoint.all_connections():
            tables = {name: table for name, table in vars(connection.streams).items() if isinstance(table, Sized)}
            found += [f"{name}: {table}" for name, table in tables.items() if len(table) and name not in ("_records", "_mirrors")]
            records = vars(connection.streams)["_records"]
            found += [f"stream {stream_id}" for stream_id in vars(connection.streams)["_mirrors"] if stream_id not in records]
        return found

    def check_counted(self, scene: Scene, ends: tuple[End, End]) -> None:
        """On a network that loses nothing, what did not arrive was dropped by the relay, and counted."""
        sent = sum(len(end.sent_datagrams) + len(end.sent_records) for end in ends)
        got = sum(len(end.datagrams) + len(end.got_records) for end in ends)
        self.assertEqual(sent - got, sum(scene.relay.counters.dropped_packets.values()))
