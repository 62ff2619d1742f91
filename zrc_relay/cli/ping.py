"""``zrc-relay ping``: whether a relay is there, how far away it is, and which others it knows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import deferLater

from zrc_relay.cli.console import console, print_fields, print_json, printable
from zrc_relay.cli.errors import RELAY_TROUBLE, Failure, trouble
from zrc_relay.cli.params import RELAY_ADDRESS, HostPort, make_trust, timeout_option, trust_options
from zrc_relay.cli.running import run
from zrc_relay.client.connect import CONNECT_TIMEOUT, connect_unbound
from zrc_relay.client.trust import Trust
from zrc_relay.core.wire import RelayEntry

INTERVAL: Final = 0.1
"""Seconds between two pings."""
MAX_COUNT: Final = 50
"""Pings in one run."""
MAX_DURATION: Final = 8.0
"""Seconds of one run: a relay closes a connection that does not allocate 10 s after the handshake (PROTOCOL §4)."""


@dataclass(frozen=True, slots=True)
class PingResult:
    """What was measured, in seconds, and the relays that the relay told of."""

    handshake: float
    round_trips: tuple[float, ...]
    relays: tuple[RelayEntry, ...]

    @property
    def average(self) -> float:
        """Of the round trips."""
        return fmean(self.round_trips)


@click.command()
@click.argument("relay", metavar="HOST[:PORT]", type=RELAY_ADDRESS)
@click.option("--count", type=click.IntRange(1, MAX_COUNT), default=5, show_default=True, help="How many round trips to measure.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are in milliseconds.")
@trust_options
def ping(*, relay: HostPort, count: int, timeout: float, as_json: bool, **trust: Any) -> None:
    """Measure the way to a relay; needs no token.

    Connects, times the handshake (the look-up of the name included) and round trips, and shows which relays this one knows of,
    itself at least.
    """
    checked = make_trust(**trust)
    result = run(lambda reactor: measure(reactor, relay, checked, count=count, timeout=timeout))
    if as_json:
        print_json(as_dict(relay, result))
        return
    trips = result.round_trips
    print_fields({
        "relay": str(relay),
        "handshake": f"{_ms(result.handshake)} ms",
        "round trips": f"{len(trips)}, min/avg/max {_ms(min(trips))}/{_ms(result.average)}/{_ms(max(trips))} ms",
    })
    console().print(_relay_table(result.relays))


async def measure(
    reactor: Any,
    relay: HostPort,
    trust: Trust,
    *,
    count: int,
    timeout: float = CONNECT_TIMEOUT,
    duration: float = MAX_DURATION,
) -> PingResult:
    """Connect and measure ``count`` round trips, or as many as can be begun in ``duration`` seconds, at least one.

    ``Failure`` when the relay cannot be reached or stops answering within ``timeout`` seconds.
    """
    started = time.monotonic()
    try:
        connection = await connect_unbound(reactor, relay.host, relay.port, trust=trust, timeout=timeout)
    except RELAY_TROUBLE as error:
        raise trouble(error, relay) from error
    connected = time.monotonic()
    try:
        relays = await connection.list_relays().addTimeout(timeout, reactor)
        round_trips: list[float] = []
        while not round_trips or (len(round_trips) < count and time.monotonic() < connected + duration):
            if round_trips:
                await deferLater(reactor, INTERVAL)
            round_trips.append(await connection.ping().addTimeout(timeout, reactor))
    except DeferredTimeoutError as error:
        msg = f"{relay} has stopped answering"
        raise Failure(msg) from error
    except RELAY_TROUBLE as error:
        raise trouble(error, relay) from error
    finally:
        connection.close()
    return PingResult(connected - started, tuple(round_trips), relays)


def as_dict(relay: HostPort, result: PingResult) -> dict[str, object]:
    """The result as JSON has it."""
    trips = result.round_trips
    return {
        "relay": str(relay),
        "handshake_ms": _ms(result.handshake),
        "round_trips_ms": [_ms(trip) for trip in trips],
        "min_ms": _ms(min(trips)),
        "avg_ms": _ms(result.average),
        "max_ms": _ms(max(trips)),
        "relays": [
            {
                "instance_id": entry.instance_id.hex(),
                "address": str(entry.address),
                "load": entry.load,
                "draining": entry.draining,
                "region": entry.region,
            }
            for entry in result.relays
        ],
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _relay_table(relays: tuple[RelayEntry, ...]) -> Table:
    table = Table("known relay", "instance", "load", "region", "", box=None, padding=(0, 2, 0, 0))
    for entry in relays:
        cells = (
            str(entry.address), entry.instance_id.hex(), f"{entry.load} %", printable(entry.region) or "-",
            "draining" if entry.draining else "",
        )
        table.add_row(*map(Text, cells))
    return table
