"""``zrc-relay bench``: what a relay carries between a device and a peer that both are here, at a rate that hurts nobody.

Theory of operation
-------------------
One process is both ends, so that one clock tells when a payload left and when it arrived. Ends send by a schedule counted from
the beginning: who is late catches up, so the average is the rate that was asked for, and a rate that this machine cannot make
takes longer. ``bench_traffic`` has the payloads and the judgement on what arrives.

The latency is that of the whole way: client, relay, client. The processor of this machine has a part in it. What a relay costs
its own machine is measured by ``make bench``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click
from nacl.signing import SigningKey
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import deferLater

from zrc_relay.cli.bench_traffic import DEFAULTS, MAX_SIZE, MIN_SIZE, Direction, Plan, Tally
from zrc_relay.cli.console import print_fields, print_json
from zrc_relay.cli.errors import RELAY_TROUBLE, BadInput, EndedByRelay, Failure, trouble
from zrc_relay.cli.params import (
    RELAY_ADDRESS,
    HostPort,
    amount,
    hex_bytes,
    key_file,
    make_trust,
    timeout_option,
    token_text,
    trust_options,
)
from zrc_relay.cli.relay_end import by_cause
from zrc_relay.cli.running import run
from zrc_relay.cli.tokens import make_token
from zrc_relay.client.connect import CONNECT_TIMEOUT, connect
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.identity import Identity
from zrc_relay.client.notices import DatagramsDropped, NoticeEvent
from zrc_relay.client.trust import Trust
from zrc_relay.config_units import Duration
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken, key_id

MAX_RATE: Final = 20_000
"""Datagrams a second: more than the client library sends from one core."""
MINTED_LIFETIME: Final = 600
"""Seconds that a token which we mint outlives the measurement."""
LAST_ARRIVALS: Final = 1.0
"""Seconds to wait, at the end, for what is under way."""
POLL_INTERVAL: Final = 0.01


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of one allocation: the token that each shows, and the keys that prove who they are (None: no proof is given).

    ``is_ours``: the allocation was made for this and is released at the end.
    """

    device_token: RelayToken
    peer_token: RelayToken
    device_key: SigningKey | None
    peer_key: SigningKey | None
    is_ours: bool


@click.command()
@click.argument("relay", metavar="HOST[:PORT]", type=RELAY_ADDRESS)
@click.option("--token", metavar="TEXT|@FILE", type=token_text, help="The token, of device and peer.")
@click.option("--peer-token", metavar="TEXT|@FILE", type=token_text, help="The peer's token, if it has another one.")
@click.option("--device-key", metavar="FILE", type=key_file, help="The device's key file.")
@click.option("--peer-key", metavar="FILE", type=key_file, help="The peer's key file.")
@click.option(
    "--relay-id", metavar="HEX", type=hex_bytes(16), help="In place of --token: mint one for the relay with this id.",
)
@click.option(
    "--rate", type=click.IntRange(1, MAX_RATE), default=DEFAULTS.rate, show_default=True, help="Datagrams a second, each way.",
)
@click.option(
    "--size", type=click.IntRange(MIN_SIZE, MAX_SIZE), default=DEFAULTS.size, show_default=True, help="Bytes of each datagram.",
)
@click.option(
    "--duration", metavar="DURATION", type=amount(Duration("100ms", "10min")), default=f"{DEFAULTS.seconds:g}s",
    show_default=True, help="How long to send.",
)
@click.option("--both", is_flag=True, help="The peer sends as well.")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; latencies are in milliseconds.")
@trust_options
def bench(
    *,
    relay: HostPort,
    token: RelayToken | None,
    peer_token: RelayToken | None,
    device_key: SigningKey | None,
    peer_key: SigningKey | None,
    relay_id: bytes | None,
    rate: int,
    size: int,
    duration: float,
    both: bool,
    timeout: float,
    as_json: bool,
    **trust: Any,
) -> None:
    """Measure what a relay carries, with a device and a peer in this process.

    Shows how many datagrams arrive and how long they take from end to end. The load is modest unless told otherwise: 1.6 Mbit/s.
    The allocation's bandwidth limit and quota hold as for anybody.

    With --relay-id, --device-key and --peer-key the allocation is a new one, which is released at the end. With --token it is the
    token's; the keys prove that device and peer are who it names, to a relay that wants to know.
    """
    plan = Plan(rate, size, duration, both)
    ends = choose_ends(token, peer_token, device_key, peer_key, relay_id=relay_id, seconds=duration)
    checked = make_trust(**trust)
    result = run(lambda reactor: measure(reactor, relay, checked, ends, plan, timeout=timeout))
    if as_json:
        print_json(result.as_dict())
    else:
        print_fields(result.as_rows())
    if not any(tally.arrived for tally in result.directions.values()):
        msg = "nothing arrived"
        raise Failure(msg)


def choose_ends(
    token: RelayToken | None,
    peer_token: RelayToken | None,
    device_key: SigningKey | None,
    peer_key: SigningKey | None,
    *,
    relay_id: bytes | None,
    seconds: float,
) -> Ends:
    """The ends that the options mean, for a measurement of so many seconds; ``BadInput`` when they do not go together."""
    if token is None:
        if relay_id is None or device_key is None or peer_key is None or peer_token is not None:
            msg = "give --token, or --relay-id, --device-key and --peer-key to mint one"
            raise BadInput(msg)
        minted = make_token(
            device_key,
            relay_id=relay_id,
            peer_id=key_id(bytes(peer_key.verify_key)),
            expires_at=int(time.time() + seconds) + MINTED_LIFETIME,
        )
        return Ends(minted, minted, device_key, peer_key, is_ours=True)
    if relay_id is not None:
        msg = "--relay-id is for minting a token, and --token gives one"
        raise BadInput(msg)
    other = peer_token or token
    if (other.device_id, other.allocation_id, other.peer_id) != (token.device_id, token.allocation_id, token.peer_id):
        msg = "--token and --peer-token are for different allocations"
        raise BadInput(msg)
    try:
        Identity.of(token, device_key, Role.DEVICE)
        Identity.of(other, peer_key, Role.PEER)
    except ValueError as error:
        raise BadInput(str(error)) from error
    return Ends(token, other, device_key, peer_key, is_ours=False)


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured, by who sent, and what the relay or this end said was dropped, by cause."""

    relay: HostPort
    plan: Plan
    directions: dict[Role, Tally]
    dropped: Counter[str]

    def as_rows(self) -> dict[str, str]:
        """For people."""
        plan = self.plan
        rows = {"relay": str(self.relay), "load": f"{plan.rate} datagrams a second of {plan.size} bytes, {plan.seconds:g} s"}
        for role, tally in self.directions.items():
            name = f"{role.name.lower()} to {role.other.name.lower()}"
            rows[name] = (
                f"{tally.arrived} of {tally.sent} arrived, {100 * tally.lost:.2f} % lost, {tally.per_second:.1f} a second, "
                f"{8 * tally.per_second * plan.size / 1e6:.2f} Mbit/s"
            )
            if tally.wrong:
                rows[name] += f"; {tally.wrong} WRONG"
            if tally.arrived:
                shown = [f"{what} {_ms(tally.latency(fraction))}" for what, fraction in _FRACTIONS.items()]
                rows[f"{name}, latency"] = f"{', '.join(shown)} ms"
        return {**rows, "dropped": by_cause(self.dropped)}

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "relay": str(self.relay),
            "rate": self.plan.rate,
            "size": self.plan.size,
            "directions": {
                role.name.lower(): {
                    "sent": tally.sent,
                    "arrived": tally.arrived,
                    "wrong": tally.wrong,
                    "lost": round(tally.lost, 6),
                    "seconds": round(tally.seconds, 3),
                    "per_second": round(tally.per_second, 1),
                    **(
                        {f"{what}_ms": _ms(tally.latency(fraction)) for what, fraction in _FRACTIONS.items()}
                        if tally.arrived else {}
                    ),
                }
                for role, tally in self.directions.items()
            },
            "dropped": dict(self.dropped),
        }


_FRACTIONS: Final = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


async def measure(
    reactor: Any, relay: HostPort, trust: Trust, ends: Ends, plan: Plan, *, timeout: float = CONNECT_TIMEOUT
) -> BenchResult:
    """Connect both ends, send, and wait for what arrives.

    ``Failure`` when one of them cannot connect within ``timeout`` seconds, or loses its connection.
    """
    ways = {role: Direction(plan.size, time.monotonic_ns) for role in Role}
    dropped: Counter[str] = Counter()

    def noticed(event: NoticeEvent) -> None:
        if isinstance(event, DatagramsDropped):
            why = "unknown cause" if event.cause is None else event.cause.name.lower().replace("_", " ")
            dropped[f"at the relay ({why})"] += event.packets

    tokens = {Role.DEVICE: (ends.device_token, ends.device_key), Role.PEER: (ends.peer_token, ends.peer_key)}
    connections: dict[Role, ClientConnection] = {}
    try:
        for role, (token, key) in tokens.items():
            connections[role] = await connect(
                reactor, relay.host, relay.port, token=token, key=key, role=role, trust=trust, timeout=timeout,
                on_datagram=ways[role.other].take, on_notice=noticed,
            )
        device, peer = connections[Role.DEVICE], connections[Role.PEER]
        if not await _eventually(reactor, lambda: device.peer_present and peer.peer_present, timeout):
            msg = f"{relay} does not join the two ends"
            raise Failure(msg)
        senders = [(connections[role], ways[role]) for role in (Role if plan.both else (Role.DEVICE,))]
        await _send(reactor, senders, plan)
        await _eventually(reactor, lambda: all(way.tally.arrived == way.tally.sent for _, way in senders), LAST_ARRIVALS)
        for each in connections.values():
            if each.is_closed:
                raise each.error or EndedByRelay("the relay closed the connection")
        dropped["waited too long here"] = sum(each.dropped for each in connections.values())
        if ends.is_ours:
            await device.release().addTimeout(timeout, reactor)
    except DeferredTimeoutError as error:
        msg = f"{relay} has stopped answering"
        raise Failure(msg) from error
    except RELAY_TROUBLE as error:
        raise trouble(error, relay) from error
    finally:
        for each in connections.values():
            each.close()
    return BenchResult(relay, plan, {role: way.tally for role, way in ways.items() if way.tally.sent}, +dropped)


async def _send(reactor: Any, senders: list[tuple[ClientConnection, Direction]], plan: Plan) -> None:
    """Send what the plan says, each payload when it is due; raises what ``ClientConnection.send`` does."""
    began = time.monotonic()
    for number in range(plan.count):
        wait = began + number / plan.rate - time.monotonic()
        if wait > 0:
            await deferLater(reactor, wait)
        for connection, way in senders:
            connection.send(way.make())
            way.tally.seconds = time.monotonic() - began + 1 / plan.rate


async def _eventually(reactor: Any, condition: Callable[[], bool], patience: float) -> bool:
    """Wait until ``condition`` holds, at most ``patience`` seconds; whether it does."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        await deferLater(reactor, POLL_INTERVAL)
    return True
