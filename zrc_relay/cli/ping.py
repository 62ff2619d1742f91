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
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater

from zrc_relay.cli.console import console, print_fields, print_json, printable
from zrc_relay.cli.errors import RELAY_TROUBLE, Failure, trouble
from zrc_relay.cli.params import RELAY_ADDRESS, HostPort, make_trust, timeout_option, trust_options
from zrc_relay.cli.running import run
from zrc_relay.client.connect import CONNECT_TIMEOUT, connect_unbound
from zrc_relay.client.stun import StunClient
from zrc_relay.client.trust import Trust
from zrc_relay.core.wire import Address, RelayEntry

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
@click.option("--stun", is_flag=True, help="Ask by STUN, without a handshake, and show the address that the relay sees us at.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are in milliseconds.")
@trust_options
def ping(*, relay: HostPort, count: int, timeout: float, stun: bool, as_json: bool, **trust: Any) -> None:
    """Measure the way to a relay; needs no token.

    Connects, times the handshake (the look-up of the name included) and round trips, and shows which relays this one knows of,
    itself at least. With --stun it only asks for our own address, and measures that; nobody's certificate is looked at.
    """
    checked = make_trust(**trust)
    if stun:
        _show_stun(relay, run(lambda reactor: measure_stun(reactor, relay, count=count, timeout=timeout)), as_json=as_json)
        return
    result = run(lambda reactor: measure(reactor, relay, checked, count=count, timeout=timeout))
    if as_json:
        print_json(as_dict(relay, result))
        return
    print_fields({
        "relay": str(relay), "handshake": f"{_ms(result.handshake)} ms", "round trips": _trips_text(result.round_trips),
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


@dataclass(frozen=True, slots=True)
class StunResult:
    """What was measured by STUN, in seconds, and our address as the relay sees it."""

    address: Address
    round_trips: tuple[float, ...]


async def measure_stun(reactor: Any, relay: HostPort, *, count: int, timeout: float = CONNECT_TIMEOUT) -> StunResult:
    """Ask ``count`` times for our address; ``Failure`` when an answer takes longer than ``timeout`` seconds."""
    try:
        client = await StunClient.open(reactor, relay.host, relay.port)
    except RELAY_TROUBLE as error:
        raise trouble(error, relay) from error
    try:
        answers = [await client.ask(timeout)]
        while len(answers) < count:
            await deferLater(reactor, INTERVAL)
            answers.append(await client.ask(timeout))
    except RELAY_TROUBLE as error:
        raise trouble(error, relay) from error
    finally:
        await maybeDeferred(client.close)
    return StunResult(answers[-1].address, tuple(answer.round_trip for answer in answers))


def _show_stun(relay: HostPort, result: StunResult, *, as_json: bool) -> None:
    trips = result.round_trips
    if as_json:
        print_json({"relay": str(relay), "address": str(result.address), **_trips_dict(trips)})
        return
    print_fields({"relay": str(relay), "our address": str(result.address), "round trips": _trips_text(trips)})


def as_dict(relay: HostPort, result: PingResult) -> dict[str, object]:
    """The result as JSON has it."""
    return {
        "relay": str(relay),
        "handshake_ms": _ms(result.handshake),
        **_trips_dict(result.round_trips),
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


def _trips_dict(trips: tuple[float, ...]) -> dict[str, object]:
    return {
        "round_trips_ms": [_ms(trip) for trip in trips],
        "min_ms": _ms(min(trips)), "avg_ms": _ms(fmean(trips)), "max_ms": _ms(max(trips)),
    }


def _trips_text(trips: tuple[float, ...]) -> str:
    return f"{len(trips)}, min/avg/max {_ms(min(trips))}/{_ms(fmean(trips))}/{_ms(max(trips))} ms"


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
