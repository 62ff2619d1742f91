"""The certificate is replaced under load: no session ends, no datagram is lost, and whoever comes sees the new one (R8).

A relay process forwards datagrams of ``PAIRS`` allocations both ways while its certificate is replaced ``ROTATIONS`` times by
writing other files and sending SIGHUP. After each time a newcomer that accepts nothing but the new certificate gets an
allocation, and one that accepts nothing but the one before does not. Every datagram is numbered, and knows when it was sent.
"""

from __future__ import annotations

import hashlib
import os
import signal
import ssl
import struct
import time
from typing import Any, Final

from twisted.internet.task import deferLater

from figures._common import Relay, Verdict, eventually, percentile, relay_process, run
from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.client.connect import connect
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.errors import ConnectFailed
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import Role

PAIRS: Final = 10
TICK: Final = 0.01
"""Seconds between two datagrams of each end: 2000 a second in all."""
SIZE: Final = 1100
ROTATIONS: Final = 10
BETWEEN: Final = 0.5
PATIENCE: Final = 20.0
_HEAD: Final = struct.Struct("!IQ")


class End:
    """One end of an allocation: what it has sent, and the delay of each datagram that came."""

    def __init__(self) -> None:
        self.relay: ClientConnection
        self.sent = 0
        self.delays: dict[int, float] = {}

    def send(self) -> None:
        """Send the next one."""
        self.relay.send(_HEAD.pack(self.sent, time.monotonic_ns()) + bytes(SIZE - _HEAD.size))
        self.sent += 1

    def take(self, payload: bytes) -> None:
        """One came."""
        number, sent_at = _HEAD.unpack_from(payload)
        self.delays[number] = (time.monotonic_ns() - sent_at) / 1e6


def prove() -> Verdict:
    """Measure."""
    with relay_process() as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Replace the certificate again and again while datagrams flow."""
    pairs = [(End(), End()) for _ in range(PAIRS)]
    for number, pair in enumerate(pairs):
        token = relay.token_for(number.to_bytes(16, "big"))
        for end, role in zip(pair, (Role.DEVICE, Role.PEER), strict=True):
            end.relay = await relay.connect(reactor, role, token=token, on_datagram=end.take)
    ends = [end for pair in pairs for end in pair]
    flowing = [True]

    def flow() -> None:
        for end in ends:
            end.send()
        if flowing:
            reactor.callLater(TICK, flow)

    flow()
    await deferLater(reactor, 2 * BETWEEN)
    fingerprints = [relay.trust.fingerprint]
    saw_new = saw_old = 0
    for number in range(ROTATIONS):
        fingerprints.append(await rotate(reactor, relay, number + 1))
        saw_new += await is_accepted(reactor, relay, number, Trust(fingerprint=fingerprints[-1]))
        saw_old += await is_accepted(reactor, relay, number, Trust(fingerprint=fingerprints[-2]))
        await deferLater(reactor, BETWEEN)
    flowing.clear()
    sent = sum(end.sent for end in ends)
    await eventually(reactor, lambda: sum(len(end.delays) for end in ends) == sent, 2.0)
    lost = sent - sum(len(end.delays) for end in ends)
    alive = sum(not end.relay.is_closed for end in ends)
    delays = [delay for end in ends for delay in end.delays.values()]
    for end in ends:
        end.relay.close()
    kept = not lost and alive == len(ends) and saw_new == ROTATIONS and saw_old == 0
    return Verdict(kept, (
        f"certificate replaced {ROTATIONS} times while {PAIRS} allocations exchanged {sent} datagrams: {alive} of {len(ends)} "
        f"sessions alive, {lost} datagrams lost, {saw_new} of {ROTATIONS} newcomers saw the new one and {saw_old} the one "
        "before; "
        f"delay p50 {percentile(delays, 0.5):.2f} ms, p99 {percentile(delays, 0.99):.2f} ms, at most {max(delays):.1f} ms"
    ))


async def rotate(reactor: Any, relay: Relay, number: int) -> bytes:
    """Give the relay another certificate, the ``number``-th; returns its fingerprint when it is in force."""
    certificate, key = make_self_signed(["localhost"])
    (relay.made.directory / "key.pem").write_bytes(key)
    (relay.made.directory / "cert.pem").write_bytes(certificate)
    os.kill(relay.child.pid, signal.SIGHUP)
    if not await eventually(reactor, lambda: relay.child.output.count('"reload.done"') >= number, PATIENCE):
        msg = f"the relay did not reload: {relay.child.output[-1000:]}"
        raise RuntimeError(msg)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).digest()


async def is_accepted(reactor: Any, relay: Relay, number: int, trust: Trust) -> bool:
    """Whether a client that trusts nothing else gets an allocation of its own."""
    token = relay.token_for(b"newcomer" + number.to_bytes(8, "big"))
    try:
        client = await connect(
            reactor, "127.0.0.1", relay.port, token=token, key=relay.keys[Role.DEVICE], trust=trust, timeout=PATIENCE
        )
    except ConnectFailed:
        return False
    client.close()
    return True
