"""A new certificate for a relay that runs: who sees which (R8, PROTOCOL §4)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import FAST_PATH, TestClient, World
from tests.relay_view import relay_end
from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.core.codes import Role
from zrc_relay.credentials import load_credentials
from zrc_relay.quic.settings import Credentials, EndpointSettings


def another() -> Credentials:
    """Another certificate, with windows of its own."""
    with TemporaryDirectory() as directory:
        paths = Path(directory, "cert.pem"), Path(directory, "key.pem")
        for path, pem in zip(paths, make_self_signed(["relay.test"]), strict=True):
            path.write_bytes(pem)
        return load_credentials(*paths, idle_timeout=20.0, udp_payload=1232, stream_window=64 * 1024, max_streams=8)


class RotationTests(SynchronousTestCase):
    """Issue "reload": new handshakes use the new certificate, running sessions are not touched."""

    def setUp(self) -> None:
        self.world = World()
        self.old = self.world.credentials
        self.new = another()

    def rotate(self) -> None:
        self.world.endpoint.reconfigure(self.new, EndpointSettings(fast_path=FAST_PATH, max_streams=8))

    def newcomer(self, role: Role, *, trust: Credentials) -> TestClient:
        self.world.credentials = trust  # what the next client expects to see
        client = self.world.client(role)
        self.world.run(0.5)
        return client

    def test_running_sessions_go_on_and_newcomers_see_the_new_one(self) -> None:
        device, peer = self.world.pair()
        self.rotate()
        device.send(b"after the rotation")
        self.world.run(0.5)
        self.assertEqual(peer.got, [b"after the rotation"])
        self.assertIsNone(self.newcomer(Role.PEER, trust=self.old).allocated)
        newcomer = self.newcomer(Role.PEER, trust=self.new)
        self.assertIsNotNone(newcomer.allocated)
        device.send(b"to the newcomer")
        self.world.run(0.5)
        self.assertEqual(newcomer.got, [b"to the newcomer"])
        self.assertFalse(peer.is_closed)

    def test_a_handshake_that_is_under_way_ends_with_what_it_began_with(self) -> None:
        device = self.world.client(Role.DEVICE)
        self.world.run(0.007)  # the ClientHello is there, its answer on the way
        self.assertEqual(self.world.endpoint.connections, 1)
        self.rotate()
        self.world.run(0.5)
        self.assertIsNotNone(device.allocated)

    def test_a_proof_covers_the_certificate_that_its_connection_showed(self) -> None:
        early = self.world.client(Role.DEVICE, start=False)
        late = self.world.client(Role.PEER, start=False)
        early.start()
        self.world.run(0.007)
        self.rotate()
        late.start()
        self.world.run(0.5)
        self.assertIsNotNone(early.allocated, "it proved over the old one, which it was shown")
        self.assertIsNone(late.allocated, "it expects the old one")
        shown = relay_end(self.world, early).certificate_sha256
        self.assertEqual(shown, self.old.certificate_sha256)
        self.assertNotEqual(shown, self.new.certificate_sha256)
        self.assertEqual(len(self.world.recorder.named("session.refused")), 0)

    def test_sessions_of_both_generations_refresh(self) -> None:
        device, peer = self.world.pair()
        self.rotate()
        newcomer = self.newcomer(Role.PEER, trust=self.new)
        device.refresh(self.world.token(expires_at=int(self.world.wall()) + 7200))
        self.world.run(0.5)
        for client in (device, peer, newcomer):
            self.assertEqual(client.limits.expires_at if client.limits else 0, int(self.world.wall()) + 7200)

    def test_what_else_is_agreed_in_the_handshake_is_the_new_settings_for_newcomers_only(self) -> None:
        device, _ = self.world.pair()
        self.rotate()
        newcomer = self.newcomer(Role.PEER, trust=self.new)
        windows = [relay_end(self.world, client).quic.configuration.max_stream_data for client in (device, newcomer)]
        self.assertEqual(windows, [256 * 1024, 64 * 1024])
        idle = [relay_end(self.world, client).quic.configuration.idle_timeout for client in (device, newcomer)]
        self.assertEqual(idle, [30.0, 20.0])

    def test_again_and_again(self) -> None:
        device, _ = self.world.pair()
        for _ in range(5):
            self.new = another()
            self.rotate()
            newcomer = self.newcomer(Role.PEER, trust=self.new)
            self.assertIsNotNone(newcomer.allocated)
            newcomer.close()
            self.world.run(0.5)
        self.assertFalse(device.is_closed)
