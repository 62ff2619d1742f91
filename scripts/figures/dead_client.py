"""A client killed with SIGKILL: the other side hears PEER_LEFT within quic_idle_timeout, the allocation goes after idle_timeout.

The other side goes on sending to the dead client all the time, which must not keep its connection alive.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Final

from figures._common import Program, Relay, Verdict, eventually, python_program, relay_process, run
from zrc_relay.client.errors import AllocationIdle
from zrc_relay.client.notices import NoticeEvent, PeerLeft
from zrc_relay.core.codes import Role

QUIC_IDLE: Final = 5.0
IDLE: Final = 4.0
SLACK: Final = 0.25
"""Seconds for what a busy machine and the relay's sweep, four times a second, may add."""
END_SLACK: Final = 1.0 + SLACK
"""An end is at most 1 s late (R2.5)."""


def prove() -> Verdict:
    """Measure."""
    settings = {"quic_idle_timeout": f"{QUIC_IDLE:g}s", "idle_timeout": f"{IDLE:g}s", "keepalive_interval": "1s"}
    with relay_process(settings) as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Kill the peer and look at the clock."""
    heard: dict[type, float] = {}
    echoed: list[bytes] = []

    def notice(event: NoticeEvent) -> None:
        heard.setdefault(type(event), time.monotonic())

    device = await relay.connect(reactor, Role.DEVICE, on_datagram=echoed.append, on_notice=notice)
    command = python_program("tests.client_process", relay.made.directory, relay.port, "peer")
    with Program("peer", command, relay.made.directory).child as child:
        await eventually(reactor, lambda: "allocated" in child.output, 30)
        while not echoed:
            device.send(b"ping")
            await eventually(reactor, lambda: echoed, 0.5)
        os.kill(child.pid, signal.SIGKILL)
        killed_at = time.monotonic()

        def sending() -> bool:
            if not device.is_closed:
                device.send(b"are you there?")
            return PeerLeft in heard

        left = await eventually(reactor, sending, 3 * QUIC_IDLE)
        ended = await eventually(reactor, lambda: device.is_closed, 3 * IDLE)
        ended_at = time.monotonic()
    left_after = heard.get(PeerLeft, ended_at) - killed_at
    gone_after = ended_at - killed_at - left_after
    because = type(device.error).__name__
    kept = left and ended and isinstance(device.error, AllocationIdle)
    kept = kept and left_after <= QUIC_IDLE + SLACK and IDLE - SLACK <= gone_after <= IDLE + END_SLACK
    device.close()
    return Verdict(kept, (
        f"PEER_LEFT {left_after:.2f} s after SIGKILL (quic_idle_timeout {QUIC_IDLE:g} s), the allocation gone {gone_after:.2f} s "
        f"later (idle_timeout {IDLE:g} s), for the other side {because}"
    ))
