"""When the relay begins to search for the path MTU of a client."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import RELAY_ADDRESS, World
from zrc_relay.core.codes import Role
from zrc_relay.quic.outlet import PROBE_DELAY
from zrc_relay.quic.udp import SocketAddress


class ProbeTests(SynchronousTestCase):
    """R5.8: the search for the path's MTU begins by itself a moment after the handshake, if the client is still there."""

    def setUp(self) -> None:
        self.world = World()
        self.probes: list[float] = []
        self.world.network.filter = self.note
        self.client = self.world.client(Role.DEVICE)
        self.world.run(PROBE_DELAY - 0.01)
        self.assertIsNotNone(self.client.allocated)

    def note(self, data: bytes, source: SocketAddress, to: SocketAddress) -> bytes:
        """Remember when the relay sends a probe; everything passes."""
        del to
        if source == RELAY_ADDRESS and len(data) > self.client.quic.configuration.max_datagram_size:
            self.probes.append(self.world.now())
        return data

    def test_nothing_is_probed_before(self) -> None:
        self.client.send(b"and there is traffic")
        self.world.run(0.005)
        self.assertEqual(self.probes, [])

    def test_it_begins_without_anybody_sending(self) -> None:
        self.world.run(0.1)
        self.assertEqual(len(self.probes), 1)
        [link] = self.world.endpoint.all_connections()
        self.assertEqual(link.quic.udp_payload, 1452)

    def test_who_has_left_is_not_probed_and_not_woken_for(self) -> None:
        self.client.close()
        self.world.run(1)
        self.assertEqual((self.probes, self.world.endpoint.connections), ([], 0))
