"""Device keys that are pinned and unpinned at run time, and what outlives a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay import pins
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.token import key_id
from zrc_relay.pins import FILE_NAME, PinFileError, PinnedKeys, TooManyPins

FILED, OTHER, NEW = (Device(bytes((number,)) * 32, tier="", note=f"number {number}") for number in (1, 2, 3))
FILE = DeviceKeys([FILED, OTHER])


def device_id(device: Device) -> bytes:
    """The id of a device."""
    return key_id(device.public_key)


class PinsCase(SynchronousTestCase):
    """A store in a scratch directory whose thread is this one, or waits while ``held``."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute() / "state"
        self.held: list[tuple[Callable[[], None], Deferred[None]]] | None = None
        self.pins = self.make()

    def make(self) -> PinnedKeys:
        """Another life of it."""
        store = PinnedKeys(self.directory, run=self.run_elsewhere)
        store.load()
        return store

    def run_elsewhere(self, function: Callable[[], None]) -> Deferred[None]:
        if self.held is None:
            return execute(function)
        waiting: Deferred[None] = Deferred()
        self.held.append((function, waiting))
        return waiting

    def save(self) -> bool:
        """Save; whether it is kept."""
        return self.successResultOf(self.start(self.pins.save()))

    @staticmethod
    def start(coroutine: Coroutine[Any, Any, bool]) -> Deferred[bool]:
        return Deferred.fromCoroutine(coroutine)

    def in_force(self, store: PinnedKeys | None = None) -> set[bytes]:
        """The public keys in force."""
        keys = (store or self.pins).over(FILE)
        return {device.public_key for each in keys if (device := keys.get(each)) is not None}


class RunTimeTests(PinsCase):
    """R1.2, R10: what run time says holds over the file."""

    def test_without_a_word_the_file_holds(self) -> None:
        self.assertEqual(self.in_force(), {FILED.public_key, OTHER.public_key})

    def test_a_device_may_be_added_and_taken_away(self) -> None:
        self.pins.pin(NEW, FILE)
        self.assertEqual(self.in_force(), {FILED.public_key, OTHER.public_key, NEW.public_key})
        self.pins.unpin(device_id(NEW), FILE)
        self.assertEqual((self.in_force(), len(self.pins)), ({FILED.public_key, OTHER.public_key}, 0))

    def test_what_was_taken_away_stays_away_although_the_file_has_it(self) -> None:
        self.pins.unpin(device_id(FILED), FILE)
        self.assertEqual(self.in_force(), {OTHER.public_key})

    def test_saying_what_the_file_says_is_saying_nothing(self) -> None:
        self.pins.unpin(device_id(FILED), FILE)
        self.pins.pin(FILED, FILE)
        self.assertEqual((self.in_force(), len(self.pins)), ({FILED.public_key, OTHER.public_key}, 0))

    def test_tier_and_note_of_a_device_of_the_file_may_be_others(self) -> None:
        self.pins.pin(Device(FILED.public_key, "paid", "promoted"), FILE)
        found = self.pins.over(FILE).get(device_id(FILED))
        self.assertEqual((found.tier, found.note) if found else None, ("paid", "promoted"))

    def test_there_is_an_upper_bound(self) -> None:
        self.patch(pins, "MAX_CHANGES", 1)
        self.pins.pin(NEW, FILE)
        self.assertRaises(TooManyPins, self.pins.unpin, device_id(FILED), FILE)
        self.pins.pin(Device(NEW.public_key, "paid"), FILE)
        self.assertEqual(len(self.pins), 1)


class KeepingTests(PinsCase):
    """Issue "run it": what was pinned at run time survives a restart where there is a state_dir."""

    def test_another_life_knows_both_kinds(self) -> None:
        self.pins.pin(NEW, FILE)
        self.pins.unpin(device_id(FILED), FILE)
        self.assertTrue(self.save())
        again = self.make()
        self.assertEqual(self.in_force(again), {OTHER.public_key, NEW.public_key})
        self.assertEqual(again.get(device_id(NEW)), NEW)

    def test_the_file_is_for_its_owner_only(self) -> None:
        self.pins.pin(NEW, FILE)
        self.save()
        self.assertEqual((self.directory / FILE_NAME).stat().st_mode & 0o777, 0o600)

    def test_without_a_directory_nothing_is_kept_and_that_is_said(self) -> None:
        store = PinnedKeys(None, run=self.run_elsewhere)
        store.load()
        store.pin(NEW, FILE)
        self.assertFalse(self.successResultOf(self.start(store.save())))

    def test_when_it_cannot_be_written_it_holds_all_the_same(self) -> None:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.write_text("in the way")
        self.pins.pin(NEW, FILE)
        self.assertFalse(self.save())
        self.assertEqual(self.pins.failures, 1)
        self.assertIn(NEW.public_key, self.in_force())
        self.assertEqual(len(self.flushLoggedErrors()), 0)
        self.assertRegex(self.pins.problem or "", "^device keys .* cannot be kept: ")
        self.directory.unlink()
        self.assertTrue(self.save())
        self.assertIsNone(self.pins.problem)

    def test_an_older_state_never_replaces_a_newer_one(self) -> None:
        self.held = []
        self.pins.pin(NEW, FILE)
        first = self.start(self.pins.save())
        self.pins.unpin(device_id(NEW), FILE)
        self.pins.unpin(device_id(FILED), FILE)
        second = self.start(self.pins.save())
        self.assertEqual(len(self.held), 1, "the second waits for the first")
        held, self.held = self.held, None
        for function, waiting in held:
            execute(function).chainDeferred(waiting)
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (True, True))
        self.assertEqual(self.in_force(self.make()), {OTHER.public_key})

    def test_a_damaged_file_is_said_in_one_line_that_names_it(self) -> None:
        self.directory.mkdir(parents=True)
        good = {"format": 1, "pinned": [], "unpinned": []}
        for text in (
            "", "{}", "[]", json.dumps({**good, "format": 2}), json.dumps({**good, "unpinned": ["ab"]}),
            json.dumps({**good, "pinned": [{"public_key": "zz" * 32, "tier": "", "note": ""}]}),
            json.dumps({**good, "pinned": [{"public_key": "ab" * 32}]}), json.dumps({**good, "unpinned": [7]}), "[" * 100_000,
        ):
            (self.directory / FILE_NAME).write_text(text)
            error = self.assertRaises(PinFileError, self.make)
            self.assertIn(f"{self.directory / FILE_NAME} is damaged", str(error))
            self.assertEqual(len(str(error).splitlines()), 1)

    def test_a_file_that_cannot_be_read_is_said(self) -> None:
        (self.directory / FILE_NAME).mkdir(parents=True)
        self.assertIn("Is a directory", str(self.assertRaises(PinFileError, self.make)))
