"""Networks and device keys as administrators change them at run time, on the relay of a simulated network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import execute

from tests.operations_support import OperationsCase
from zrc_relay.access import FILE_NAME, SAVE_INTERVAL, AccessStore
from zrc_relay.client import errors
from zrc_relay.control.operations import Conflict, NewEntry, NewKey, NotFound, Page
from zrc_relay.core.cidr import Access, AccessLists, Network
from zrc_relay.core.codes import Role
from zrc_relay.core.token import key_id


class ListsTests(OperationsCase):
    """R6.3, R10: networks are allowed and blocked at run time, with or without an end; the configuration's word stands."""

    def setUp(self) -> None:
        self.lists = AccessLists(block=[Network.parse("198.18.0.0/15")])
        super().setUp()

    def add(self, network: str, access: Access = Access.BLOCK, ttl: float | None = None, note: str = "") -> Any:
        return self.do(self.operations.add_entry(NewEntry(Network.parse(network), access, ttl, note, "ops")))

    def networks(self, access: Access | None = None) -> list[str]:
        return [item.network for item in self.do(self.operations.entries(access, Page())).items]

    def test_a_blocked_client_is_closed_and_kept_out_until_it_is_unblocked(self) -> None:
        device, _ = self.world.pair()
        self.add("198.51.100.0/24", note="floods us")
        self.world.run(0.5)
        self.assertIsInstance(device.error, errors.Blocked)
        kept_out = self.world.client(Role.DEVICE)
        self.world.run(1)
        self.assertIsNone(kept_out.allocated)
        self.do(self.operations.remove_entry(Network.parse("198.51.100.0/24")))
        again = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assertIsNotNone(again.allocated)

    def test_one_with_a_ttl_ends(self) -> None:
        entry = self.add("198.51.100.0/24", ttl=60)
        self.assertEqual(entry.until, "2027-01-15T08:01:00.000Z")
        self.world.run(60.5)
        self.assertEqual(self.networks(), ["198.18.0.0/15"])
        client = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assertIsNotNone(client.allocated)

    def test_what_is_said_of_an_entry(self) -> None:
        entry = self.add("2001:db8::/32", Access.ALLOW, note="ours")
        self.assertEqual((entry.access, entry.until, entry.note, entry.configured), ("allow", None, "admin ops: ours", False))
        self.assertEqual(self.add("2001:db8::/32").note, "admin ops")

    def test_it_is_said_whether_that_outlives_a_restart(self) -> None:
        one, other = "198.51.100.0/24", "203.0.113.0/24"
        kept = {"198.18.0.0/15": True}  # the configuration's
        self.assertFalse(self.add(one).kept)
        self.assertEqual(self.kept(), kept | {one: False})
        self.assertTrue(self.remove(one).kept, "nothing brings it back")

        directory = Path(self.mktemp()).absolute()
        self.host.access = AccessStore(
            self.host.lists, directory, now=self.world.now, wall=self.world.wall, run=execute
        )
        self.assertTrue(self.add(one).kept)
        self.assertEqual(self.kept(), kept | {one: True})
        self.assertIn(one, (directory / FILE_NAME).read_text())

        (directory / FILE_NAME).with_suffix(".new").mkdir()  # it cannot be opened for writing
        self.world.run(SAVE_INTERVAL)
        self.assertFalse(self.add(other).kept)
        self.assertEqual(self.kept(), kept | {one: False, other: False})
        self.assertFalse(self.remove(one).kept, "the file brings it back")

    def kept(self) -> dict[str, bool]:
        return {item.network: item.kept for item in self.do(self.operations.entries(None, Page())).items}

    def remove(self, network: str) -> Any:
        return self.do(self.operations.remove_entry(Network.parse(network)))

    def test_listed_by_access(self) -> None:
        self.add("2001:db8::/32", Access.ALLOW)
        self.assertEqual(self.networks(Access.ALLOW), ["2001:db8::/32"])
        self.assertEqual(self.networks(Access.BLOCK), ["198.18.0.0/15"])

    def test_a_network_of_the_configuration_is_its_own(self) -> None:
        entry = NewEntry(Network.parse("198.18.0.0/15"), Access.ALLOW, None, "", "ops")
        self.assertIn("configuration", str(self.fails(Conflict, self.operations.add_entry(entry))))
        self.assertIn("configuration", str(self.fails(Conflict, self.operations.remove_entry(entry.network))))
        self.assertEqual(self.networks(Access.BLOCK), ["198.18.0.0/15"])

    def test_what_is_not_there_cannot_be_removed(self) -> None:
        self.add("203.0.113.0/24")
        self.fails(NotFound, self.operations.remove_entry(Network.parse("203.0.113.0/25")))


class KeysTests(OperationsCase):
    """R1.2, R10: devices are pinned and unpinned at run time, over what the file says."""

    def setUp(self) -> None:
        super().setUp()
        self.newcomer = self.world.signing_key()
        self.newcomer_key = bytes(self.newcomer.verify_key)

    def pin(self, key: bytes, tier: str = "", note: str = "") -> Any:
        return self.do(self.operations.pin(NewKey(key, tier, note)))

    def join(self) -> Any:
        """A client of the newcomer."""
        client = self.world.client(Role.DEVICE, self.token_of(self.newcomer, 1), key=self.newcomer)
        self.world.run(0.5)
        return client

    def test_a_device_that_is_pinned_may_sign_and_one_that_is_not_may_not(self) -> None:
        self.assertIsInstance(self.join().error, errors.DeviceUnknown)
        change = self.pin(self.newcomer_key, note="new here")
        self.assertEqual((change.key.source, change.key.note, change.key.pinned, change.ended), ("runtime", "new here", True, 0))
        self.assertIsNotNone(self.join().allocated)

    def test_unpinning_ends_what_the_device_has(self) -> None:
        self.pin(self.newcomer_key)
        client = self.join()
        self.world.pair()
        change = self.do(self.operations.unpin(key_id(self.newcomer_key)))
        self.assertEqual((change.ended, change.key.pinned, change.key.public_key), (1, False, self.newcomer_key.hex()))
        self.world.run(0.5)
        self.assertIsInstance(client.error, errors.Terminated)
        self.assertIsInstance(self.join().error, errors.DeviceUnknown)
        self.assertEqual(self.listed().total, 1)

    def test_a_device_of_the_file_that_is_unpinned_stays_out_when_the_file_is_read_again(self) -> None:
        device_id = key_id(bytes(self.world.device_key.verify_key))
        self.do(self.operations.unpin(device_id))
        self.host.use_device_keys(self.world.keys)
        client = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assertIsInstance(client.error, errors.DeviceUnknown)
        (known,) = self.do(self.operations.keys(Page())).items
        self.assertEqual((known.device_id, known.pinned, known.source), (device_id.hex(), False, "runtime"))

    def test_what_is_pinned_stays_when_the_file_is_read_again(self) -> None:
        self.pin(self.newcomer_key)
        self.host.use_device_keys(self.world.keys)
        self.assertIsNotNone(self.join().allocated)

    def test_the_list_says_who_says_so(self) -> None:
        self.pin(self.newcomer_key)
        sources = {item.public_key: item.source for item in self.do(self.operations.keys(Page())).items}
        self.assertEqual(sources, {bytes(self.world.device_key.verify_key).hex(): "file", self.newcomer_key.hex(): "runtime"})
        page = self.do(self.operations.keys(Page(1, 1)))
        self.assertEqual((len(page.items), page.total), (1, 2))

    def test_a_tier_must_exist(self) -> None:
        self.assertIn("no tier paid", str(self.fails(Conflict, self.operations.pin(NewKey(self.newcomer_key, "paid", "")))))

    def test_who_is_not_pinned_cannot_be_unpinned(self) -> None:
        device_id = key_id(bytes(self.world.device_key.verify_key))
        self.fails(NotFound, self.operations.unpin(bytes(32)))
        self.do(self.operations.unpin(device_id))
        self.fails(NotFound, self.operations.unpin(device_id))
