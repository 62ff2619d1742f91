"""A client of another QUIC stack, which cannot choose its first connection id, against a relay of four workers.

As in ``test_interop``, the tests exist where Go and quic-go are installed; elsewhere the module says that it has none.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests import quicgo
from tests.real_relay import PATIENCE, eventually
from tests.test_interop import GoProcess
from tests.two_workers import LOOPBACK, RealWorkers
from zrc_relay.cli.keyfiles import write_key
from zrc_relay.cli.processes import Child, child_environment
from zrc_relay.core.codes import Role
from zrc_relay.core.counters import InputDrop
from zrc_relay.core.token import RelayToken

WORKERS = 4


class GoWorkersTests(TestCase):
    """Issue "all cores", PROTOCOL §1: who cannot send the routing byte is served too, after one REDIRECT at most."""

    timeout = 4 * PATIENCE

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.workers = RealWorkers(self, WORKERS)
        self.started = 0

    def go(self, mode: str, role: Role, token: RelayToken, port: int, **flags: object) -> GoProcess:
        """Start it as that end of the token's allocation."""
        self.started += 1
        key = self.directory / f"{self.started}.key"
        write_key(key, self.workers.device_key if role is Role.DEVICE else self.workers.peer_key)
        given = {
            "addr": f"{LOOPBACK}:{port}", "cert_sha256": self.workers.credentials.certificate_sha256.hex(),
            "token": token.to_text(), "role": role.name.lower(), "key": key, **flags,
        }
        child = Child(f"quicgo-{self.started}", quicgo.command(mode, **given), self.directory, child_environment())
        self.addCleanup(child.stop)
        return GoProcess(child)

    async def check(self, owner: int, ports: dict[Role, int]) -> dict[Role, int]:
        """Both ends reach the worker that has the allocation, from these ports; returns how often each was redirected."""
        token = self.workers.token_for(owner)
        peer = self.go("echo", Role.PEER, token, ports[Role.PEER])
        await peer.event("allocated")
        self.assertEqual([index for index, count in enumerate(self.workers.allocations()) if count], [owner])
        device = self.go("ping", Role.DEVICE, token, ports[Role.DEVICE], count=50, size=1000, rate=500)
        self.assertEqual(await device.gone(), 0, device.said)
        (result,) = device.events("result")
        self.assertEqual((result["sent"], result["received"]), (50, 50), result)
        await peer.gone()
        await eventually(lambda: not any(self.workers.allocations()), "the end of the allocation")
        for go in (device, peer):
            for redirect in go.events("redirect"):
                self.assertEqual(redirect["reason"], 3)
        return {Role.DEVICE: len(device.events("redirect")), Role.PEER: len(peer.events("redirect"))}

    async def test_by_the_shared_port_one_redirect_at_most(self) -> None:
        for owner in range(WORKERS):
            ports = dict.fromkeys(Role, self.workers.port)
            self.assertLessEqual(max((await self.check(owner, ports)).values()), 1)
        self.assertEqual([relay.counters.session_errors for relay in self.workers.relays], [0] * WORKERS)
        self.assertEqual([relay.counters.input_dropped[InputDrop.MISROUTED] for relay in self.workers.relays], [0] * WORKERS)

    async def test_at_the_port_of_a_wrong_worker_exactly_one(self) -> None:
        for owner in range(WORKERS):
            ports = {Role.DEVICE: self.workers.base + (owner + 1) % WORKERS, Role.PEER: self.workers.base + (owner + 2) % WORKERS}
            self.assertEqual(await self.check(owner, ports), {Role.DEVICE: 1, Role.PEER: 1})
        self.assertEqual([relay.counters.redirected for relay in self.workers.relays], [2] * WORKERS)


if (_missing := quicgo.missing()) is not None:
    sys.stderr.write(f"tests.test_interop_workers has no tests here: {_missing}\n")
    del GoWorkersTests
