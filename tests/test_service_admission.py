"""That the settings about sources reach the relay, on real loopback sockets."""

from __future__ import annotations

import json

from twisted.trial.unittest import TestCase

from tests.cli_support import UdpProgram
from tests.real_relay import PATIENCE, Setup, eventually, exchange, reactor
from zrc_relay.client.errors import Blocked, ConnectFailed, RateLimited
from zrc_relay.core.cidr import Access, Entry, Network
from zrc_relay.core.codes import Role
from zrc_relay.core.counters import Limit
from zrc_relay.core.stun import binding_request
from zrc_relay.service import RelayService, StartError


class SettingsTests(TestCase):
    """R8, R6.1-R6.4: each setting does what it says."""

    timeout = 2 * PATIENCE

    async def test_with_the_defaults_two_clients_are_not_disturbed(self) -> None:
        setup = Setup(self)
        setup.service()
        await exchange(*await setup.pair())

    async def test_connection_rate(self) -> None:
        setup = Setup(self, settings={"connection_rate": "2/h"})
        service = setup.service()
        await setup.pair()
        with self.assertRaises(ConnectFailed):
            await setup.connect(Role.DEVICE)
        self.assertEqual(service.relay.counters.connections_refused, 1)

    async def test_allocation_rate(self) -> None:
        setup = Setup(self, settings={"allocation_rate": "1/h"})
        setup.service()
        await setup.pair()
        with self.assertRaises(RateLimited) as caught:
            await setup.connect(Role.DEVICE, token=setup.another_token(allocation_id=bytes(16)))
        self.assertGreater(caught.exception.retry_after, 3500)

    async def test_rejoin_rate(self) -> None:
        setup = Setup(self, settings={"rejoin_rate": "1/h"})
        setup.service()
        await setup.pair()
        with self.assertRaises(RateLimited):
            await setup.connect(Role.PEER)

    async def test_handshake_pressure(self) -> None:
        setup = Setup(self, settings={"handshake_pressure": "0"})
        service = setup.service()
        await exchange(*await setup.pair())
        self.assertEqual(service.relay.counters.retries_sent, 2)

    async def test_stun_rate(self) -> None:
        setup = Setup(self, settings={"stun_rate": "2/h"})
        service = setup.service()
        program = UdpProgram(self)
        for _ in range(5):
            program.send(binding_request(bytes(12)), setup.port)
        await program.has(2)
        await eventually(lambda: service.relay.counters.limited[Limit.STUN_RATE] == 3, "three without an answer")
        self.assertEqual(len(program.got), 2)

    async def test_block_and_allow(self) -> None:
        setup = Setup(self, settings={"block": "127.0.0.0/8", "allow": "127.0.0.1"})
        setup.service()
        await exchange(*await setup.pair())
        setup = Setup(self, settings={"block": "127.0.0.0/8"})
        service = setup.service()
        with self.assertRaises(ConnectFailed):
            await setup.connect(Role.DEVICE, timeout=0.5)
        self.assertGreater(service.relay.counters.limited[Limit.BLOCKED], 0)


class StateTests(TestCase):
    """R6.3: what is blocked at run time ends sessions and is kept in state_dir."""

    timeout = 2 * PATIENCE

    def setUp(self) -> None:
        self.setup = Setup(self, settings={"state_dir": "state"})
        self.path = self.setup.made.directory / "state" / "access.json"

    def block(self, service: RelayService) -> None:
        entry = Entry(Network.parse("127.0.0.0/8"), Access.BLOCK, reactor.seconds() + 4e9, "a test")
        self.assertTrue(service.relay.admission.lists.add(entry, 0.0))

    async def test_a_session_is_ended_and_the_next_life_knows(self) -> None:
        service = self.setup.service()
        device, peer = await self.setup.pair()
        self.block(service)
        await eventually(lambda: device.relay.is_closed and peer.relay.is_closed, "the end of both")
        self.assertIsInstance(device.relay.error, Blocked)
        await eventually(self.path.exists, "the file, written by a thread")
        await service.stopService()
        again = self.setup.service()
        self.assertEqual([entry.note for entry in again.relay.admission.lists], ["a test"])
        with self.assertRaises(ConnectFailed):
            await self.setup.connect(Role.DEVICE, timeout=0.5)

    async def test_what_was_added_last_is_written_before_the_relay_stops(self) -> None:
        service = self.setup.service()
        self.block(service)
        await service.stopService()
        self.assertEqual([item["network"] for item in json.loads(self.path.read_text())["entries"]], ["127.0.0.0/8"])

    async def test_entries_go_when_their_time_is_over(self) -> None:
        service = self.setup.service()
        lists = service.relay.admission.lists
        lists.add(Entry(Network.parse("192.0.2.0/24"), Access.BLOCK, 1.0), 0.0)
        await eventually(lambda: lists.is_empty, "an empty list")

    def test_a_damaged_file_keeps_the_relay_from_starting(self) -> None:
        self.path.parent.mkdir()
        self.path.write_text("{")
        error = self.assertRaises(StartError, self.setup.service)
        self.assertIn(f"{self.path} is damaged", str(error))
