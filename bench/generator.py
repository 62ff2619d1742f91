"""Runs the load generator of ``load/`` against a relay and reads what it found."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

from bench import build
from bench.outcome import WRONG, Sample
from bench.scenarios import Kind, Load
from bench.systems import Running

PATIENCE: Final = 180.0
"""Seconds beyond those of the measurement: a thousand pairs connect first."""
STATUS_UNSUPPORTED: Final = 3
FEW_WAKEUPS: Final = 10
"""A second: a relay that sleeps less often is never idle, and then the number says nothing."""
KILOBYTE: Final = 1000
MICROSECONDS: Final = 1e6


class MeasurementFailed(Exception):
    """A measurement did not come to its end; the message says why."""


class NotOffered(MeasurementFailed):
    """The relay does not do what was to be measured."""


def measure(running: Running, load: Load, *, warm_up: float, seconds: float) -> Sample:
    """One measurement; times in seconds. ``MeasurementFailed`` when there is none."""
    command = [str(build.load_generator()), *load.arguments(warm_up=warm_up, seconds=seconds), *running.load_arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command, capture_output=True, text=True, check=False, timeout=warm_up + seconds + PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        msg = f"the load generator did not end within {error.timeout:g} s"
        raise MeasurementFailed(msg) from error
    if done.returncode != 0:
        kind = NotOffered if done.returncode == STATUS_UNSUPPORTED else MeasurementFailed
        said = [line.removeprefix("load: ") for line in done.stderr.splitlines() if line.startswith("load: ")]
        raise kind("; ".join(said) or f"the load generator ended with status {done.returncode}")
    found = json.loads(done.stdout)
    return _READERS.get(load.kind, datagrams)(found, load)


def datagrams(found: dict[str, Any], load: Load) -> Sample:
    """A sample from what the load generator prints about datagrams."""
    delivered = found["delivered"]
    if not delivered:
        ended = "; ".join(found["ended"])
        msg = "nothing arrived" + (f": {ended}" if ended else "")
        raise MeasurementFailed(msg)
    cpu = found["relay_cpu"]
    return Sample(
        cost=MICROSECONDS * cpu / delivered if cpu else None,
        rate=delivered / found["seconds"],
        loss=found["lost"] / found["sent"] if found["sent"] else None,
        per_wakeup=delivered / wakeups if (wakeups := found["relay_wakeups"]) > FEW_WAKEUPS * found["seconds"] else None,
        train=found["received_train"] or None,
        load_cost=MICROSECONDS * found["load_cpu"] / delivered,
        p50=found["latency_p50_us"] / 1000,
        p90=found["latency_p90_us"] / 1000,
        p99=found["latency_p99_us"] / 1000,
        memory=(found["memory_after"] - found["memory_before"]) / KILOBYTE / load.pairs if load.kind is Kind.MEMORY else None,
        remarks={
            **{what: found[name] for name, what in _UNWANTED.items() if found[name]},
            **{f"connections that ended: {why}": 1 for why in found["ended"]},
            **{f"datagrams that the relay says it dropped: {name}": count for name, count in found["notices"].items()},
        },
    )


_UNWANTED: Final = {
    "wrong": f"payloads that arrived {WRONG}",
    "twice": "payloads that arrived twice",
    "skipped": "payloads that could not be sent in time",
    "silent": "directions of pairs in which nothing arrived",
    "faults": "packets that could not be read",
}


def streams(found: dict[str, Any], load: Load) -> Sample:
    """A sample from what the load generator prints about streams."""
    del load
    kilobytes = found["bytes"] / KILOBYTE
    return Sample(
        cost=MICROSECONDS * found["relay_cpu"] / kilobytes,
        rate=kilobytes / found["seconds"],
        load_cost=MICROSECONDS * found["load_cpu"] / kilobytes,
        remarks={f"bytes that arrived {WRONG}": found["wrong"]} if found["wrong"] else {},
    )


def handshakes(found: dict[str, Any], load: Load) -> Sample:
    """A sample from what the load generator prints about handshakes."""
    del load
    count = found["handshakes"]
    return Sample(
        cost=MICROSECONDS * found["relay_cpu"] / count,
        rate=count / found["seconds"],
        load_cost=MICROSECONDS * found["load_cpu"] / count,
    )


_READERS: Final = {Kind.STREAMS: streams, Kind.HANDSHAKES: handshakes}
