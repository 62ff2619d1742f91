"""What is measured.

A scenario has subjects, which take turns: A, B, A, B ... A subject is a relay under a load, so two subjects can also be one relay
under two loads. The base is what the budgets are about: 4 pairs, 1100-byte payloads, one direction, packets sent singly by a
quic-go client; each scenario changes one thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from bench.systems import AIOQUIC, COTURN, GENERAL, NO_RELAY, OURS, QUIC_GO, QUINN, SOURCE

BASE_PAIRS: Final = 4
BASE_SIZE: Final = 1100
QUICK_PAIRS: Final = 100
SETTLE: Final = 0.005
"""Seconds for each pair, after all are connected, in which relay and clients do what new connections need: connection ids,
probes of the path's MTU, the last acknowledgements of the handshake."""


class Kind(Enum):
    """What a scenario is about, and so what its numbers are."""

    DATAGRAMS = "datagrams"
    CHANNELS = "channels"
    STREAMS = "streams"
    HANDSHAKES = "handshakes"
    MEMORY = "memory"
    LATENCY = "latency"


class Engine(Enum):
    """Which client sends; see ``load/main.go``."""

    QUIC_GO = "quic-go"
    FAST = "fast"


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator is asked for. ``rate`` is in payloads a second over all pairs; 0 is as many as go through."""

    kind: Kind = Kind.DATAGRAMS
    engine: Engine = Engine.QUIC_GO
    pairs: int = BASE_PAIRS
    size: int = BASE_SIZE
    rate: float = 0
    train: int = 1
    both: bool = False

    def arguments(self, *, warm_up: float, seconds: float) -> list[str]:
        """Flags for the load generator; times in seconds."""
        mode = self.kind.value if self.kind in {Kind.CHANNELS, Kind.STREAMS, Kind.HANDSHAKES} else "datagrams"
        given = [
            f"-mode={mode}", f"-engine={self.engine.value}", f"-pairs={self.pairs}", f"-size={self.size}", f"-rate={self.rate:g}",
            f"-train={self.train}", f"-settle={self.pairs * SETTLE:g}s", f"-warm-up={warm_up:g}s", f"-seconds={seconds:g}s",
        ]
        return [*given, "-both"] if self.both else given


@dataclass(frozen=True, slots=True)
class Subject:
    """A relay under a load, and what it is called in its scenario."""

    label: str
    system: str
    load: Load


@dataclass(frozen=True, slots=True)
class Scenario:
    """Subjects that are compared.

    ``is_fresh``: each measurement has a relay of its own. ``half_of_capacity`` names the system whose throughput, halved, is the
    rate for all. ``is_quick``: part of ``--quick``. ``note`` is printed above the table. ``least_rounds`` and ``most_rounds``
    are kept however many are asked for: more where single rounds scatter, fewer where each takes long and is about no ratio.
    """

    name: str
    title: str
    kind: Kind
    subjects: tuple[Subject, ...]
    is_fresh: bool = False
    half_of_capacity: str | None = None
    is_quick: bool = False
    note: str = ""
    least_rounds: int = 1
    most_rounds: int | None = None

    def rounds(self, asked: int) -> int:
        """How many rounds are kept when ``asked`` are asked for."""
        return max(self.least_rounds, asked if self.most_rounds is None else min(asked, self.most_rounds))

    def quick(self) -> Scenario:
        """The same with fewer pairs and no more rounds than are asked for.

        Subjects that are about many pairs are left out, those that merely have many get fewer.
        """
        if self.kind is Kind.DATAGRAMS:
            subjects = [each for each in self.subjects if each.load.pairs <= QUICK_PAIRS]
        else:
            subjects = [
                replace(each, load=replace(each.load, pairs=min(each.load.pairs, QUICK_PAIRS))) for each in self.subjects
            ]
        return replace(self, subjects=tuple(subjects), least_rounds=1)


def _each(systems: Sequence[str], load: Load) -> tuple[Subject, ...]:
    return tuple(Subject(system, system, load) for system in systems)


def pairs_label(pairs: int, system: str = "") -> str:
    """What a subject is called that differs in its number of pairs; ``system`` if it is not this relay."""
    return f"{system}, " * bool(system) + f"{pairs} pair" + ("s" if pairs > 1 else "")


def growth(rate: int) -> str:
    """The name of the scenario that spreads ``rate`` over ever more pairs."""
    return f"growth-{rate // 1000}k"


def _growth(rate: int) -> Scenario:
    """The rate at which growth is judged has the others beside it, with one pair and with many, and numbers of pairs between."""
    load = Load(engine=Engine.FAST, rate=rate)
    is_judged = rate == GROWTH_RATE
    subjects = [Subject(pairs_label(pairs), OURS, replace(load, pairs=pairs)) for pairs in (GROWTH if is_judged else (1, MANY))]
    if is_judged:
        subjects += [
            Subject(pairs_label(pairs, rival), rival, replace(load, pairs=pairs))
            for rival in GROWTH_RIVALS for pairs in (1, MANY)
        ]
    return Scenario(
        growth(rate), f"{rate:,} datagrams a second over ever more pairs, from the fast client", Kind.DATAGRAMS, tuple(subjects),
        is_fresh=True, is_quick=is_judged, note=GROWTH_NOTE + GROWTH_WHY if is_judged else "",
        least_rounds=GROWTH_ROUNDS if is_judged else 1, most_rounds=None if is_judged else SIDE_ROUNDS,
    )


ALL: Final = (OURS, SOURCE, GENERAL, QUIC_GO, QUINN, AIOQUIC, COTURN)
FAST_ONES: Final = (OURS, SOURCE, QUIC_GO, QUINN)
MANY: Final = 1000
GROWTH: Final = (1, 4, 100, MANY)
"""Pairs over which one rate is spread."""
GROWTH_RATE: Final = 5_000
"""Datagrams a second at which growth is judged, and measured of others, too."""
GROWTH_ROUNDS: Final = 7
"""At least: the ratio of a single round lies anywhere between 1.15 and 1.7, as the scheduler has it."""
GROWTH_RATES: Final = (2_000, GROWTH_RATE, 10_000)
GROWTH_RIVALS: Final = (QUIC_GO, QUINN)
GROWTH_NOTE: Final = """\
The pairs send in turn, one packet at a time, evenly spread over time, and each client has a socket of its own and acknowledges as
RFC 9000 §13.2 wants: after two packets, or after 20 ms, so that with ever more pairs ever more packets are acknowledged one by
one, by the clients as by the relay. Each measurement has a relay of its own."""
GROWTH_WHY: Final = f"""

{GROWTH_RATE:,} a second is what this relay carries over {MANY:,} pairs without loss where it and its clients share two cores.
The budget is read off here: at a rate where much is lost, a relay that has time would be compared with one that has none. A row
that lost 0.5 % or more is not compared at all. Where packets come densely enough they gather (`gather_time`), which 1,000 pairs
cause at this rate and one pair does not; the other rates show it without."""
RATES: Final = (20_000, 5_000, 1_000)
SIZES: Final = (500, 100)
"""Payload bytes, beside those of the base."""
TRAINS: Final = (16, 44)
HANDSHAKES: Final = 1000
HANDSHAKE_ROUNDS: Final = 5
"""At least: the ratio of a single round lies anywhere between 1.3 and 1.9."""
SIDE_ROUNDS: Final = 1
"""At most, of what takes a fresh relay and a thousand pairs each time and is about no ratio."""
SATURATION: Final = "saturation"
HALF_A_CORE: Final = "latency-core"
HALF_RATE: Final = 55_000
"""Datagrams a second at which this relay, as it is installed, uses about half of a core."""


def paced(rate: int) -> str:
    """The name of the scenario that is paced at ``rate``."""
    return f"paced-{rate // 1000}k"


def _all() -> list[Scenario]:
    base = Load()
    fast = Load(engine=Engine.FAST)
    channels = Load(kind=Kind.CHANNELS, engine=Engine.FAST)
    found = [Scenario(SATURATION, "As many as go through", Kind.DATAGRAMS, _each(ALL, base), is_quick=True)]
    found += [
        Scenario(
            paced(rate), f"{rate:,} datagrams a second", Kind.DATAGRAMS, _each(ALL, replace(base, rate=rate)),
            is_quick=rate == 20_000,
        )
        for rate in RATES
    ]
    found += [
        Scenario("both-20k", "20,000 datagrams a second in both directions together", Kind.DATAGRAMS,
                 _each((*FAST_ONES, GENERAL), replace(base, rate=20_000, both=True))),
        *(
            Scenario(f"size-{size}", f"{size}-byte payloads, as many as go through", Kind.DATAGRAMS,
                     _each(FAST_ONES, replace(base, size=size)))
            for size in SIZES
        ),
        *map(_growth, GROWTH_RATES),
        Scenario(
            "growth-quic-go", "20,000 datagrams a second over more pairs of this relay, from quic-go clients", Kind.DATAGRAMS,
            tuple(Subject(pairs_label(pairs), OURS, replace(base, pairs=pairs, rate=20_000)) for pairs in GROWTH if pairs < MANY),
            most_rounds=SIDE_ROUNDS,
        ),
        Scenario("many-slow", "1,000 datagrams a second over 100 pairs", Kind.DATAGRAMS,
                 _each((*FAST_ONES, GENERAL), replace(base, pairs=100, rate=1_000))),
        Scenario("capacity", "As many as go through, from the fast client, packets singly", Kind.DATAGRAMS,
                 _each(FAST_ONES, fast), is_quick=True),
    ]
    found += [
        Scenario(f"trains-{train}", f"As many as go through, in trains of {train} from the fast client", Kind.DATAGRAMS,
                 _each(FAST_ONES, replace(fast, train=train)), is_quick=train == 16)
        for train in TRAINS
    ]
    found += [
        Scenario("latency", "Latency at half of this relay's capacity", Kind.LATENCY,
                 _each((NO_RELAY, *FAST_ONES), replace(fast, kind=Kind.LATENCY)), half_of_capacity=OURS, is_quick=True,
                 note="All get the same rate, which is half of what this relay carries as it is installed."),
        Scenario(HALF_A_CORE, f"Latency at {HALF_RATE:,} a second, where this relay uses about half of a core", Kind.LATENCY,
                 _each((NO_RELAY, *FAST_ONES), replace(fast, kind=Kind.LATENCY, rate=HALF_RATE))),
        Scenario("channels", "Channels, as many as go through, packets singly", Kind.CHANNELS,
                 (*_each((OURS, SOURCE), channels), Subject(COTURN, COTURN, base)), is_quick=True),
        Scenario("channels-20k", "Channels, 20,000 a second, packets singly", Kind.CHANNELS,
                 (*_each((OURS, SOURCE), replace(channels, rate=20_000)), Subject(COTURN, COTURN, replace(base, rate=20_000)))),
    ]
    found += [
        Scenario(f"channels-{train}", f"Channels, as many as go through, in trains of {train}", Kind.CHANNELS,
                 (Subject(OURS, OURS, replace(channels, train=train)), Subject(COTURN, COTURN, base)))
        for train in TRAINS
    ]
    handshakes = Load(kind=Kind.HANDSHAKES, pairs=HANDSHAKES)
    memory = Load(kind=Kind.MEMORY, pairs=MANY, rate=1_000)
    return [
        *found,
        Scenario("streams", "One forwarded stream for each of 4 pairs", Kind.STREAMS,
                 _each((OURS, QUIC_GO), Load(kind=Kind.STREAMS)), is_quick=True),
        Scenario("handshakes", "Handshakes; with this relay, ALLOCATE with proof as well", Kind.HANDSHAKES,
                 _each((OURS, AIOQUIC, SOURCE, QUIC_GO, QUINN), handshakes), is_quick=True, least_rounds=HANDSHAKE_ROUNDS),
        Scenario("memory", "Memory for each active pair", Kind.MEMORY, _each((OURS, AIOQUIC, QUIC_GO, QUINN), memory),
                 is_fresh=True, is_quick=True, most_rounds=SIDE_ROUNDS),
    ]


SCENARIOS: Final = _all()
