"""Who a client is: the role that follows from its key, and what a relay says to one that is nobody."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import TestClient, World
from zrc_relay.client.connection import Identity
from zrc_relay.client.errors import DeviceUnknown, ProofRequired
from zrc_relay.core.codes import Role


class IdentityTests(SynchronousTestCase):
    """Issue "client": the role follows from the key."""

    def setUp(self) -> None:
        self.world = World()
        self.token = self.world.token()

    def test_the_key_says_which_end_it_is(self) -> None:
        self.assertIs(Identity.of(self.token, self.world.device_key).role, Role.DEVICE)
        self.assertIs(Identity.of(self.token, self.world.peer_key).role, Role.PEER)

    def test_a_key_that_has_no_part_in_the_token_is_refused(self) -> None:
        device, peer = self.world.device_key, self.world.peer_key
        for key, role in ((self.world.signing_key(), None), (device, Role.PEER), (peer, Role.DEVICE), (None, None)):
            with self.assertRaises(ValueError):
                Identity.of(self.token, key, role)

    def test_a_device_that_is_its_own_peer_may_choose(self) -> None:
        own = self.world.token(peer_id=self.token.device_id)
        self.assertIs(Identity.of(own, self.world.device_key).role, Role.DEVICE)
        self.assertIs(Identity.of(own, self.world.device_key, Role.PEER).role, Role.PEER)
        self.assertIs(Identity.of(own, None, Role.PEER).role, Role.PEER)

    def test_without_its_key_a_client_is_refused_by_a_relay_that_wants_proof(self) -> None:
        class Bold(TestClient):
            """Does not look whether a proof is wanted."""

            def _allocate(self, hello: object) -> None:
                del hello
                token = self.world.token()
                self.quic.send_stream_data(0, raw.Allocation(raw.DEVICE, token.encode()).encode())

        client = Bold(self.world, Identity(self.token, Role.DEVICE, None), None, start=True)
        self.world.run(1)
        self.assertIsInstance(client.error, ProofRequired)

    def test_an_unknown_device_is_told_so(self) -> None:
        stranger = self.world.signing_key()
        token = raw.mint(
            Ed25519PrivateKey.from_private_bytes(bytes(stranger)),
            relay_id=self.token.relay_id, allocation_id=bytes(16), peer_id=self.token.peer_id, expires_at=self.token.expires_at,
        )
        client = self.world.client(Role.DEVICE, type(self.token).parse(token), key=stranger)
        self.world.run(1)
        self.assertIsInstance(client.error, DeviceUnknown)

