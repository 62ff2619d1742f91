"""Where the lists of networks are kept between two lives of the relay."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from math import inf
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.access import FILE_NAME, SAVE_INTERVAL, AccessFileError, AccessStore
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network

WALL = 1_800_000_000.0
START = 1000.0


def networks(*texts: str) -> list[Network]:
    """Parsed."""
    return [Network.parse(text) for text in texts]


class StoreTestCase(SynchronousTestCase):
    """A store in a scratch directory; what writes runs at once unless ``held``, then when ``release`` is called."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute() / "state"
        self.directory.mkdir(parents=True)
        self.path = self.directory / FILE_NAME
        self.now = START
        self.wall = WALL
        self.held: list[tuple[Callable[[], None], Deferred[None]]] | None = None
        self.lists = AccessLists()
        self.store = self.make(self.lists)

    def make(self, lists: AccessLists, directory: Path | None = None) -> AccessStore:
        """Another life of it."""
        return AccessStore(
            lists, directory or self.directory, now=lambda: self.now, wall=lambda: self.wall, run=self.run_elsewhere
        )

    def run_elsewhere(self, function: Callable[[], None]) -> Deferred[None]:
        """A thread that is quick, or one that waits."""
        if self.held is None:
            return execute(function)
        waiting: Deferred[None] = Deferred()
        self.held.append((function, waiting))
        return waiting

    def release(self) -> None:
        """The thread gets its turn."""
        held, self.held = self.held, None
        for function, waiting in held or ():
            execute(function).chainDeferred(waiting)

    def block(self, text: str, until: float = inf, note: str = "") -> None:
        """Add an entry."""
        self.assertTrue(self.lists.add(Entry(Network.parse(text), Access.BLOCK, until, note), self.wall))

    def kept(self) -> list[str]:
        """The networks in the file."""
        return [item["network"] for item in json.loads(self.path.read_text())["entries"]]


class KeepingTests(StoreTestCase):
    """R6.3: what is added at run time is kept in state_dir."""

    def test_another_life_has_the_same_entries(self) -> None:
        self.block("192.0.2.0/24", WALL + 3600, "bouncer")
        self.block("2001:db8::/32")
        self.lists.add(Entry(Network.parse("192.0.2.7"), Access.ALLOW, note="Grüße"), WALL)
        self.store.sweep()
        again = AccessLists()
        self.assertEqual(self.make(again).load(), 3)
        self.assertEqual(set(again), set(self.lists))

    def test_removing_one_is_kept_too(self) -> None:
        self.block("192.0.2.0/24")
        self.block("192.0.3.0/24")
        self.store.sweep()
        self.lists.remove(Network.parse("192.0.2.0/24"))
        self.now += SAVE_INTERVAL
        self.store.sweep()
        self.assertEqual(self.kept(), ["192.0.3.0/24"])

    def test_what_is_over_is_taken_out_by_the_sweep_and_of_the_file(self) -> None:
        self.block("192.0.2.0/24", WALL + 60)
        self.store.sweep()
        self.now += 60
        self.wall += 60
        self.store.sweep()
        self.assertEqual((len(self.lists), self.kept()), (0, []))

    def test_what_is_over_by_the_time_of_the_next_life_is_passed_over(self) -> None:
        self.block("192.0.2.0/24", WALL + 60)
        self.store.sweep()
        self.wall += 60
        self.assertEqual(self.make(AccessLists()).load(), 0)

    def test_the_configuration_wins(self) -> None:
        self.block("192.0.2.0/24")
        self.block("192.0.2.7")
        self.store.sweep()
        again = AccessLists(allow=networks("192.0.2.0/24"))
        self.assertEqual(self.make(again).load(), 1)
        self.assertIsNone(again.blocked_until((32, 0xC0000201), WALL))
        self.assertEqual(again.blocked_until((32, 0xC0000207), WALL), inf)

    def test_the_configurations_own_entries_are_not_kept(self) -> None:
        lists = AccessLists(block=networks("192.0.2.0/24"))
        store = self.make(lists)
        lists.add(Entry(Network.parse("192.0.3.0/24"), Access.BLOCK), WALL)
        store.sweep()
        self.assertEqual(self.kept(), ["192.0.3.0/24"])

    def test_nothing_is_written_when_nothing_changed(self) -> None:
        self.store.sweep()
        self.successResultOf(self.store.finish())
        self.assertFalse(self.path.exists())
        self.block("192.0.2.0/24")
        self.store.sweep()
        before = self.path.stat().st_ino
        again = self.make(AccessLists())
        again.load()
        self.now += 100
        again.sweep()
        self.store.sweep()
        self.assertEqual(self.path.stat().st_ino, before)

    def test_without_a_directory_nothing_is_kept(self) -> None:
        store = AccessStore(self.lists, None, now=lambda: self.now, wall=lambda: self.wall, run=self.run_elsewhere)
        self.assertEqual(store.load(), 0)
        self.block("192.0.2.0/24", WALL + 60)
        self.wall += 60
        store.sweep()
        self.assertEqual(len(self.lists), 0, "it sweeps all the same")
        self.successResultOf(store.finish())

    def test_only_the_owner_reads_the_file(self) -> None:
        self.block("192.0.2.0/24")
        self.store.sweep()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_the_directory_is_made(self) -> None:
        store = self.make(self.lists, self.directory / "new")
        self.block("192.0.2.0/24")
        store.sweep()
        self.assertTrue((self.directory / "new" / FILE_NAME).exists())


class PaceTests(StoreTestCase):
    """R6.3: writing is off the packets' way, and not more often than needed."""

    def test_changes_in_quick_succession_are_written_together(self) -> None:
        self.block("192.0.2.1")
        self.store.sweep()
        self.block("192.0.2.2")
        self.now += SAVE_INTERVAL - 0.1
        self.store.sweep()
        self.assertEqual(self.kept(), ["192.0.2.1/32"])
        self.now += 0.1
        self.store.sweep()
        self.assertEqual(sorted(self.kept()), ["192.0.2.1/32", "192.0.2.2/32"])

    def test_one_write_at_a_time_and_what_changes_meanwhile_is_not_forgotten(self) -> None:
        self.held = []
        self.block("192.0.2.1")
        self.store.sweep()
        self.block("192.0.2.2")
        self.now += 10 * SAVE_INTERVAL
        self.store.sweep()
        self.assertEqual(len(self.held), 1)
        self.release()
        self.assertEqual(self.kept(), ["192.0.2.1/32"])
        self.store.sweep()
        self.assertEqual(sorted(self.kept()), ["192.0.2.1/32", "192.0.2.2/32"])

    def test_finishing_waits_for_what_is_being_written_and_writes_the_rest(self) -> None:
        self.held = []
        self.block("192.0.2.1")
        self.store.sweep()
        self.block("192.0.2.2")
        done = self.store.finish()
        self.assertNoResult(done)
        self.release()
        self.successResultOf(done)
        self.assertEqual(sorted(self.kept()), ["192.0.2.1/32", "192.0.2.2/32"])


class AskingTests(StoreTestCase):
    """Issue "run it": who adds an entry hears whether it outlives a restart."""

    def ask(self) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.store.keep())

    def keep(self) -> bool:
        return self.successResultOf(self.ask())

    def test_it_is_written_before_the_answer(self) -> None:
        self.block("192.0.2.1")
        self.assertTrue(self.keep())
        self.assertEqual(self.kept(), ["192.0.2.1/32"])

    def test_many_who_ask_get_the_answer_of_the_write_before(self) -> None:
        self.block("192.0.2.1")
        self.keep()
        self.block("192.0.2.2")
        self.assertTrue(self.keep())
        self.assertEqual(self.kept(), ["192.0.2.1/32"])
        self.now += SAVE_INTERVAL
        self.assertTrue(self.keep())
        self.assertEqual(len(self.kept()), 2)

    def test_a_write_that_fails_says_no_until_one_does_not(self) -> None:
        self.path.with_suffix(".new").mkdir()
        self.block("192.0.2.1")
        self.assertFalse(self.keep())
        self.assertFalse(self.store.is_kept)
        self.assertRegex(self.store.problem or "", "^the lists of networks cannot be kept: .*directory")
        self.path.with_suffix(".new").rmdir()
        self.now += SAVE_INTERVAL
        self.assertTrue(self.keep())
        self.assertIsNone(self.store.problem)

    def test_whoever_goes_away_takes_the_write_from_nobody(self) -> None:
        self.held = []
        self.block("192.0.2.1")
        gone, other, finished = self.ask(), self.ask(), self.store.finish()
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertNoResult(other)
        self.release()
        self.assertTrue(self.successResultOf(other))
        self.successResultOf(finished)
        self.assertEqual(self.kept(), ["192.0.2.1/32"])

    def test_without_a_directory_it_says_no_and_nothing_is_wrong(self) -> None:
        self.store = AccessStore(self.lists, None, now=lambda: self.now, wall=lambda: self.wall, run=self.run_elsewhere)
        self.block("192.0.2.1")
        self.assertFalse(self.keep())
        self.assertIsNone(self.store.problem)


class TroubleTests(StoreTestCase):
    """R6.3: a disk that fails costs no entry that holds, and a damaged file lets nobody in."""

    def test_a_write_that_fails_is_counted_and_tried_again(self) -> None:
        self.directory.rmdir()
        self.directory.write_text("a file where the directory should be")
        self.block("192.0.2.1")
        self.store.sweep()
        self.assertEqual(self.store.failures, 1)
        self.assertEqual(len(self.lists), 1)
        self.directory.unlink()
        self.now += SAVE_INTERVAL
        self.store.sweep()
        self.assertEqual((self.store.failures, self.kept()), (1, ["192.0.2.1/32"]))

    def test_a_write_that_fails_in_the_middle_leaves_the_old_file(self) -> None:
        self.block("192.0.2.1")
        self.store.sweep()
        before = self.path.read_bytes()
        self.path.with_suffix(".new").mkdir()  # it cannot be opened for writing
        self.block("192.0.2.2")
        self.now += SAVE_INTERVAL
        self.store.sweep()
        self.assertEqual((self.store.failures, self.path.read_bytes()), (1, before))

    def test_damage_is_told_with_the_name_of_the_file(self) -> None:
        good = '{"format": 1, "entries": [{"network": "192.0.2.0/24", "access": "block"}]}'
        self.path.write_text(good)
        self.assertEqual(self.make(AccessLists()).load(), 1)
        for text in (
            "", "[]", "{}", good[:-1], good.replace("1", "2", 1), good.replace("block", "drop"), good.replace(".0/24", ".1/24"),
            good.replace('"access"', '"until": "soon", "access"'), good.replace('"access"', '"until": NaN, "access"'),
            good.replace("[{", '["x", {'), '{"format": 1, "entries": 7}', "[" * 100_000,
        ):
            self.path.write_text(text)
            error = self.assertRaises(AccessFileError, self.make(AccessLists()).load)
            self.assertIn(f"{self.path} is damaged", str(error), text[:100])
        self.path.write_bytes(b"\xff\xfe")
        self.assertIn(str(self.path), str(self.assertRaises(AccessFileError, self.make(AccessLists()).load)))

    def test_a_file_that_cannot_be_read_is_told(self) -> None:
        self.path.mkdir()
        self.assertIn(f"cannot read {self.path}", str(self.assertRaises(AccessFileError, self.store.load)))
