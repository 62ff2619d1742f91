"""A client of another QUIC stack handshakes, allocates, exchanges datagrams and releases; at a relay of 4 workers, too.

That client cannot choose the connection id of its first packet, so it comes to any of the workers, and is sent to the one that
has its allocation (REDIRECT, reason 3). Both ends of every allocation must meet there.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

from figures._common import Program, Relay, Verdict, relay_process
from figures._workers import REPORTED, Crew, crew_process
from tests import quicgo
from zrc_relay.core.codes import RedirectReason, Role

COUNT: Final = 2000
SIZE: Final = 1100
RATE: Final = 500
PATIENCE: Final = 60.0
WORKERS: Final = 4
ALLOCATIONS: Final = 40
AT_ONCE: Final = 8
PINGS: Final = 50


def prove() -> Verdict:
    """Measure, with peers in Go that echo and devices in Go that send."""
    lacking = quicgo.missing()
    if lacking is not None:
        return Verdict(kept=False, figure=lacking)
    quicgo.program()
    one = one_pair()
    with crew_process(WORKERS) as crew:
        many = at_workers(crew)
    return Verdict(one.kept and many.kept, f"{one.figure}; {many.figure}")


def flags_of(relay: Relay, token: str) -> dict[Role, dict[str, object]]:
    """What the programs have to be told for both ends of a token's allocation."""
    shared = {"addr": f"127.0.0.1:{relay.port}", "cert_sha256": relay.made.fingerprint.hex(), "token": token}
    keys = {Role.DEVICE: relay.made.device_key, Role.PEER: relay.made.peer_key}
    return {role: {**shared, "role": role.name.lower(), "key": key} for role, key in keys.items()}


def one_pair() -> Verdict:
    """Many datagrams between one pair, at a relay of one process."""
    with relay_process() as relay:
        roles = flags_of(relay, relay.token.to_text())
        echo = Program("echo", quicgo.command("echo", **roles[Role.PEER]), relay.made.directory)
        with echo.child:
            echo.child.wait_for('"event":"allocated"', timeout=PATIENCE)
            ping = Program(
                "ping", quicgo.command("ping", **roles[Role.DEVICE], count=COUNT, size=SIZE, rate=RATE), relay.made.directory
            )
            with ping.child:
                status = ping.wait(PATIENCE)
                events = {line["event"]: line for line in ping.lines()}
                if status != 0 or "result" not in events:
                    return Verdict(kept=False, figure=f"quicgo ended with status {status}: {ping.child.tail}")
    result = events["result"]
    close = events["closed"]["name"]
    kept = "released" in events and close == "NO_ERROR" and result["received"] >= 0.99 * COUNT
    return Verdict(kept, (
        f"{result['received']} of {COUNT} datagrams of {SIZE} bytes came back right from one quic-go client through another, "
        f"round trip p50 {result['rtt_p50_ms']:.2f} ms, p99 {result['rtt_p99_ms']:.2f} ms; RELEASED, closed with {close}"
    ))


def at_workers(crew: Crew) -> Verdict:
    """Many pairs, some at a time, at a relay of several workers."""
    met, redirected, problems = 0, 0, []
    for first in range(0, ALLOCATIONS, AT_ONCE):
        for seen in some_pairs(crew, range(first, first + AT_ONCE)):
            redirects = [event for event in seen if event["event"] == "redirect"]
            results = [event for event in seen if event["event"] == "result" and event["mode"] == "ping"]
            redirected += len(redirects)
            met += any(result["received"] == PINGS for result in results)
            problems += [event for event in redirects if event["reason"] != RedirectReason.OTHER_WORKER]
            problems += [event for event in seen if event["event"] == "closed" and event["name"] != "NO_ERROR"]
    time.sleep(REPORTED)
    counted = crew.metrics()["redirects_total"]
    expected = 2 * ALLOCATIONS * (WORKERS - 1) / WORKERS
    kept = met == ALLOCATIONS and not problems and redirected == counted and 0 < redirected < 2 * ALLOCATIONS
    return Verdict(kept, (
        f"at {WORKERS} workers both ends of {met} of {ALLOCATIONS} allocations met and all of {PINGS} datagrams came back; of "
        f"{2 * ALLOCATIONS} clients {redirected} were sent to another worker ({expected:g} are to be expected; the relay counted "
        f"{counted}); other ends and reasons: {problems or 'none'}"
    ))


def some_pairs(crew: Crew, numbers: range) -> list[list[dict[str, Any]]]:
    """Let the pairs with these numbers exchange something, all at once; all that both ends of each printed."""
    with contextlib.ExitStack() as children:
        pairs = []
        for number in numbers:
            roles = flags_of(crew.relay, crew.relay.token_for(number.to_bytes(16, "big")).to_text())
            commands = {
                Role.PEER: quicgo.command("echo", **roles[Role.PEER]),
                Role.DEVICE: quicgo.command("ping", **roles[Role.DEVICE], count=PINGS, size=SIZE, rate=RATE / AT_ONCE),
            }
            programs = [
                Program(f"{role.name.lower()}-{number}", command, crew.relay.made.directory) for role, command in commands.items()
            ]
            for program in programs:
                children.enter_context(program.child)
            pairs.append(programs)
        for programs in pairs:
            for program in reversed(programs):
                program.wait(PATIENCE)
        return [[line for program in programs for line in program.lines()] for programs in pairs]
