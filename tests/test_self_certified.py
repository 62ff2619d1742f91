"""Trust in devices that nobody has pinned: they show the key that their id is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import ALLOCATION_ID, DEVICE, EPOCH, PEER, STRANGER, FakeClient, Scene, id_of, make_token, public
from zrc_relay.core import remembered as remembered_module
from zrc_relay.core.authorisation import UNKNOWN_RETRY_AFTER
from zrc_relay.core.codes import ErrorCode, HelloFeature, Role
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.tiers import BUILT_IN_TIERS, Tier

STRANGERS = make_token(STRANGER)
"""A token of a device that nobody has pinned, for ``PEER``."""


def open_scene(**policy: Any) -> Scene:
    """A relay that admits devices whose keys are not pinned, in the tier "free"."""
    return Scene(self_certified_tier="free", tiers=BUILT_IN_TIERS, **policy)


class SelfCertifiedTestCase(SynchronousTestCase):
    """Helpers."""

    def setUp(self) -> None:
        self.scene = open_scene()

    def attempt(self, role: Role, *, prove: bool = True) -> FakeClient:
        """A connection that asks for the stranger's allocation."""
        client = self.scene.connect()
        client.allocate(role, STRANGERS, prove=prove)
        return client

    def remembered(self) -> int:
        """How many devices are known that are not pinned."""
        return len(vars(vars(self.scene.relay)["_authoriser"])["_remembered"])


class DeviceTests(SelfCertifiedTestCase):
    """R8 trust, issue "proof of possession": a device that proves the key its id hashes to is admitted without being pinned."""

    def test_it_is_admitted_in_the_tier_for_such_devices(self) -> None:
        device = self.attempt(Role.DEVICE)
        self.assertTrue(device.is_bound, device.link.closes)
        free = BUILT_IN_TIERS["free"]
        self.assertEqual((device.allocated.bandwidth_limit, device.allocated.quota_bytes), (free.bandwidth_limit, free.quota))

    def test_by_default_it_is_unknown(self) -> None:
        self.scene = Scene()
        device = self.attempt(Role.DEVICE)
        self.assertEqual(device.link.closes, [(ErrorCode.DEVICE_UNKNOWN, "the device's key is not pinned here")])

    def test_a_pinned_device_keeps_its_own_tier(self) -> None:
        gold = Tier("gold", 1_000_000, 7_000_000, None)
        keys = DeviceKeys([Device(public(DEVICE), "gold")])
        self.scene = Scene(keys=keys, self_certified_tier="free", tiers={**BUILT_IN_TIERS, "gold": gold})
        device = self.scene.bind(Role.DEVICE)
        self.assertEqual(device.allocated.quota_bytes, 7_000_000)

    def test_without_a_proof_it_is_unknown_even_where_none_is_asked_for(self) -> None:
        self.scene = open_scene(proving_roles=frozenset())
        self.assertEqual(self.attempt(Role.DEVICE, prove=False).close_code, ErrorCode.DEVICE_UNKNOWN)
        self.assertTrue(self.attempt(Role.DEVICE).is_bound)
        self.assertEqual(self.attempt(Role.DEVICE, prove=False).close_code, ErrorCode.PROOF_REQUIRED)
        self.assertTrue(self.attempt(Role.PEER, prove=False).is_bound)

    def test_a_pinned_device_needs_no_proof_where_none_is_asked_for(self) -> None:
        self.scene = open_scene(proving_roles=frozenset())
        self.assertTrue(self.scene.bind(Role.DEVICE, prove=False).is_bound)

    def test_hello_asks_devices_for_a_proof(self) -> None:
        self.scene = open_scene(proving_roles=frozenset())
        self.assertEqual(self.scene.connect().hello.features, HelloFeature.DEVICES_PROVE | HelloFeature.CHANNELS)

    def test_the_key_of_somebody_else_makes_it_known_to_nobody(self) -> None:
        client = self.scene.connect()
        request = client.request(Role.DEVICE, STRANGERS)
        forged = replace(request, public_key=public(PEER), proof=client.prove(PEER, request.token, Role.DEVICE))
        client.feed(forged.encode())
        self.assertEqual(client.close_code, ErrorCode.DEVICE_UNKNOWN)
        self.assertEqual(self.remembered(), 0)

    def test_its_key_with_a_proof_that_is_wrong_leaves_nothing(self) -> None:
        client = self.scene.connect()
        request = client.request(Role.DEVICE, STRANGERS)
        client.feed(replace(request, proof=client.prove(PEER, request.token, Role.DEVICE)).encode())
        self.assertEqual(client.close_code, ErrorCode.PROOF_INVALID)
        self.assertEqual((self.remembered(), len(self.scene.relay.table)), (0, 0))

    def test_its_key_under_a_token_of_another_hand_is_a_bad_signature(self) -> None:
        client = self.scene.connect()
        forged = replace(STRANGERS, signature=make_token(DEVICE).signature)
        request = client.request(Role.DEVICE, forged)
        client.feed(request.encode())
        self.assertEqual(client.close_code, ErrorCode.TOKEN_BAD_SIGNATURE)
        self.assertEqual(self.remembered(), 0)


class PeerTests(SelfCertifiedTestCase):
    """Issue "proof of possession": a peer that comes first is told to come again; its device's key is remembered meanwhile."""

    def test_a_peer_that_comes_first_is_told_when_to_come_again(self) -> None:
        client = self.attempt(Role.PEER)
        ((code, reason),) = client.link.closes
        self.assertEqual(code, ErrorCode.DEVICE_UNKNOWN)
        self.assertEqual(reason, f"retry_after={UNKNOWN_RETRY_AFTER};the device has not been here yet")

    def test_a_peer_that_comes_second_is_admitted(self) -> None:
        device = self.attempt(Role.DEVICE)
        peer = self.attempt(Role.PEER)
        self.assertTrue(peer.is_bound, peer.link.closes)
        peer.datagram(b"hello")
        self.assertEqual(device.link.datagrams, [b"hello"])

    def test_the_key_is_remembered_while_the_allocation_waits_for_its_device(self) -> None:
        device = self.attempt(Role.DEVICE)
        self.attempt(Role.PEER)
        device.lose()
        self.assertTrue(self.attempt(Role.PEER).is_bound)

    def test_the_key_goes_with_the_last_allocation(self) -> None:
        device = self.attempt(Role.DEVICE)
        other = self.scene.connect()
        other.allocate(Role.DEVICE, make_token(STRANGER, allocation_id=bytes(16)))
        device.release()
        self.assertEqual(self.remembered(), 1)
        other.release()
        self.assertEqual(self.remembered(), 0)
        self.assertEqual(self.attempt(Role.PEER).close_code, ErrorCode.DEVICE_UNKNOWN)
        cached = vars(vars(self.scene.relay)["_authoriser"])["_verified"]
        self.assertEqual([data for data in cached if data[32:64] == id_of(STRANGER)], [], "R1.6: with its key")

    def test_a_token_can_be_refreshed_by_either_side(self) -> None:
        self.attempt(Role.DEVICE)
        peer = self.attempt(Role.PEER)
        peer.refresh(make_token(STRANGER, expires_at=int(EPOCH) + 7200))
        self.assertEqual(len(peer.refreshed), 1)

    def test_other_keys_in_the_file_change_nothing_for_it(self) -> None:
        device = self.attempt(Role.DEVICE)
        self.scene.relay.replace_keys(DeviceKeys(), self.scene.now, self.scene.wall)
        self.assertEqual(device.link.closes, [])
        self.assertTrue(self.attempt(Role.PEER).is_bound)


class BoundTests(SelfCertifiedTestCase):
    """R6.9: devices can be made up at will, so what is remembered of them is bounded all together."""

    def test_what_is_remembered_of_ended_allocations(self) -> None:
        self.patch(remembered_module, "UNPINNED_TOMBSTONES", 10)
        own = self.scene.bind(Role.DEVICE)
        own.release()
        for number in range(30):
            client = self.scene.connect()
            client.allocate(Role.DEVICE, make_token(STRANGER, allocation_id=number.to_bytes(16, "big")))
            client.release()
        table = self.scene.relay.table
        self.assertEqual(table.tombstones, 1 + 10)
        kept = table.tombstone((id_of(DEVICE), ALLOCATION_ID), self.scene.wall)
        self.assertIsNotNone(kept, "nobody can push out what is remembered of a pinned device")
        self.scene.advance(3601)
        self.assertEqual(table.tombstones, 0)
        self.assertEqual(len(vars(vars(table)["_graves"])["_unpinned"]), 0)
