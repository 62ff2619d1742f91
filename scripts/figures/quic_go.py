"""A client of another QUIC stack handshakes, allocates, exchanges datagrams and releases."""

from __future__ import annotations

from typing import Final

from figures._common import Program, Verdict, relay_process
from tests import quicgo
from zrc_relay.core.codes import Role

COUNT: Final = 2000
SIZE: Final = 1100
RATE: Final = 500
PATIENCE: Final = 60.0


def prove() -> Verdict:
    """Measure, with a peer in Go that echoes and a device in Go that sends."""
    lacking = quicgo.missing()
    if lacking is not None:
        return Verdict(kept=False, figure=lacking)
    quicgo.program()
    with relay_process() as relay:
        shared = {
            "addr": f"127.0.0.1:{relay.port}", "cert_sha256": relay.made.fingerprint.hex(), "token": relay.token.to_text(),
        }
        roles = {
            role: shared | {"role": role.name.lower(), "key": key}
            for role, key in ((Role.DEVICE, relay.made.device_key), (Role.PEER, relay.made.peer_key))
        }
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
