"""What is wanted of the measurements: the table of budgets, and where each is read off.

A budget compares two subjects of one scenario, or one subject with a limit. ``must`` is kept or the report says that it is not;
``aim`` is what would be as good as the best. Both are meant for the relay as it is installed, compiled. After some rows comes the
same of the sources, held against the same numbers to show how far Python alone gets. Rows without a budget only inform.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from bench.scenarios import GROWTH_RATE, HALF_A_CORE, MANY, SATURATION, growth, paced, pairs_label
from bench.systems import AIOQUIC, COTURN, GENERAL, NO_RELAY, OURS, QUIC_GO, QUINN, SOURCE

MOST_LOSS: Final = 0.005
"""Of what was sent. Where growth is compared, a relay that loses more has been given more than it can do."""


class How(Enum):
    """How two numbers become one."""

    RATIO = "ratio"
    DIFFERENCE = "difference"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Budget:
    """One row: ``of`` against ``against`` (subjects of ``scenario``), by the field ``metric`` of their samples.

    Where one of them lost ``most_loss`` or more of what was sent, nothing is compared. Without ``must`` and ``aim`` the row only
    informs.
    """

    what: str
    scenario: str
    of: str
    against: str | None
    must: float | None
    aim: float | None
    metric: str = "cost"
    how: How = How.RATIO
    unit: str = "x"
    most_loss: float | None = None

    @property
    def is_of_source(self) -> bool:
        """Whether the row is of the sources as they are: its budget is meant for what is installed."""
        return self.of == SOURCE


def _and_of_source(*budgets: Budget) -> list[Budget]:
    """These budgets, each with the same of the sources after it."""
    return [
        row for budget in budgets for row in (budget, replace(budget, what=f"{budget.what}, not compiled", of=SOURCE))
    ]


def _datagrams(rival: str, called: str, must: float | None, aim: float | None) -> list[Budget]:
    return [
        Budget(f"QUIC datagrams, CPU, against {called}, {where}", scenario, OURS, rival, must, aim)
        for scenario, where in ((SATURATION, "at saturation"), (paced(20_000), "at 20,000 a second"))
    ]


BUDGETS: Final = (
    *_and_of_source(
        *_datagrams(QUIC_GO, f"the {QUIC_GO}", 0.6, 0.25),
        *_datagrams(QUINN, f"the {QUINN}", 2.5, 1.0),
        *_datagrams(COTURN, "coturn, which does not encrypt", 3.0, 1.0),
        *_datagrams(AIOQUIC, f"the {AIOQUIC}", 0.2, 0.08),
    ),
    *_datagrams(GENERAL, "this relay with fast_path = false", None, None),
    Budget("this relay compiled, CPU, against itself in Python, at saturation", SATURATION, OURS, SOURCE, 0.83, 0.6),
    *_and_of_source(
        Budget("channels, packets singly, CPU, against coturn, at saturation", "channels", OURS, COTURN, 1.3, 1.0),
        Budget("channels, packets singly, CPU, against coturn, at 20,000 a second", "channels-20k", OURS, COTURN, 1.3, 1.0),
    ),
    Budget("channels, trains of 16, CPU, against coturn", "channels-16", OURS, COTURN, 0.25, 0.12),
    Budget("channels, trains of 44, CPU, against coturn", "channels-44", OURS, COTURN, 0.1, 0.05),
    *_and_of_source(*(
        Budget(f"added latency at half of {half}, {part}", scenario, OURS, NO_RELAY, must, aim, part, How.DIFFERENCE, "ms")
        for half, scenario in (("the largest throughput", "latency"), ("a core's time", HALF_A_CORE))
        for part, must, aim in (("p50", 0.3, 0.1), ("p99", 2.0, 1.0))
    )),
    Budget(f"{MANY} active allocations against 1, same total rate, CPU", growth(GROWTH_RATE), pairs_label(MANY), pairs_label(1),
           1.5, 1.2, most_loss=MOST_LOSS),
    *_and_of_source(
        Budget("handshake + ALLOCATE with proof, CPU, against the bare stock handshake", "handshakes", OURS, AIOQUIC, 1.4, 1.1),
    ),
    Budget("memory per active allocation (two connections)", "memory", OURS, None, 200, 120, "memory", How.VALUE, "kB"),
)
