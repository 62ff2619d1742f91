"""Device keys: who is pinned, in which tier, everything that can be wrong with the file, and what has changed."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core import keys as module
from zrc_relay.core.keys import Device, DeviceKeys, KeyFileError, parse_device_keys
from zrc_relay.core.token import key_id

TIERS = ("free", "paid")
FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))


def problems_of(text: str) -> list[str]:
    """What ``parse_device_keys`` complains about; empty if it does not."""
    try:
        parse_device_keys(text, tiers=TIERS)
    except KeyFileError as error:
        return error.problems
    return []


def all_of(keys: DeviceKeys) -> dict[bytes, Device | None]:
    """What there is in ``keys``."""
    return {device_id: keys.get(device_id) for device_id in keys}


class RightFileTests(SynchronousTestCase):
    """A right file pins its devices by the hash of their keys (R1.2, R8)."""

    def test_devices_are_found_by_id(self) -> None:
        keys = parse_device_keys(
            f'[[device]]\npublic_key = "{FIRST.hex()}"\n'
            f'[[device]]\npublic_key = "{SECOND.hex().upper()}"\ntier = "paid"\nnote = "the attic"\n',
            tiers=TIERS,
        )
        self.assertEqual(keys.get(key_id(FIRST)), Device(FIRST))
        self.assertEqual(keys.get(key_id(SECOND)), Device(SECOND, "paid", "the attic"))
        self.assertIsNone(keys.get(key_id(b"x" * 32)))
        self.assertIsNone(keys.get(FIRST))
        self.assertEqual((len(keys), set(keys)), (2, {key_id(FIRST), key_id(SECOND)}))

    def test_a_file_without_devices_pins_nobody(self) -> None:
        self.assertEqual(len(parse_device_keys("# nobody yet\n", tiers=TIERS)), 0)
        self.assertEqual(len(DeviceKeys()), 0)

    def test_an_empty_tier_means_the_defaults(self) -> None:
        keys = parse_device_keys(f'[[device]]\npublic_key = "{FIRST.hex()}"\ntier = ""\n', tiers=())
        self.assertEqual(keys.get(key_id(FIRST)), Device(FIRST))


class WrongFileTests(SynchronousTestCase):
    """A wrong file is refused with all of its problems at once (R8)."""

    def test_all_problems_are_listed(self) -> None:
        text = f"""
            owner = "someone"
            [[device]]
            public_key = "abc"
            [[device]]
            public_key = "{FIRST.hex()}"
            tier = "gold"
            [[device]]
            note = 7
            colour = "red"
            [[device]]
            public_key = "{FIRST.hex()}"
        """
        found = problems_of(text)
        expected = [
            "'owner'", "device 1: public_key must be 64 hex digits", "device 2: tier 'gold'", "device 3: unknown key 'colour'",
            "device 3: public_key must be 64 hex digits", "device 3: note must be text",
            "device 4: the same public_key as device 2",
        ]
        self.assertEqual(len(found), len(expected), found)
        for part, problem in zip(expected, found, strict=True):
            self.assertIn(part, problem)

    def test_an_unknown_tier_is_answered_with_those_there_are(self) -> None:
        [problem] = problems_of(f'[[device]]\npublic_key = "{FIRST.hex()}"\ntier = "gold"\n')
        self.assertIn("free, paid", problem)

    def test_only_64_hex_digits_are_a_key(self) -> None:
        wrong = [
            '""', "5", "true", f'["{FIRST.hex()}"]', f'"{FIRST.hex()}00"', f'"{FIRST.hex()[:-2]}"', f'"{FIRST.hex()[:-1]}g"',
            f'"{FIRST.hex()[:62]}  "', f'"0x{FIRST.hex()[:62]}"', '"' + "٣" * 64 + '"',
        ]
        for value in wrong:
            found = problems_of(f"[[device]]\npublic_key = {value}\n")
            self.assertEqual(found, ["device 1: public_key must be 64 hex digits"], value)

    def test_a_tier_that_is_not_text_is_refused(self) -> None:
        for value in ("5", '["free"]', "false"):
            [problem] = problems_of(f'[[device]]\npublic_key = "{FIRST.hex()}"\ntier = {value}\n')
            self.assertIn("device 1: tier", problem)

    def test_what_is_not_toml_is_refused_with_the_place(self) -> None:
        [problem] = problems_of("[[device]]\npublic_key = \n")
        self.assertIn("not TOML", problem)
        self.assertIn("line 2", problem)

    def test_device_must_be_tables(self) -> None:
        for text in ('device = "x"', "device = [1, 2]", "[device]\npublic_key = 'x'"):
            self.assertIn("[[device]]", problems_of(text)[-1])

    def test_the_error_reads_as_one_line(self) -> None:
        with self.assertRaises(KeyFileError) as caught:
            parse_device_keys("[[device]]\n[[device]]\n", tiers=TIERS)
        self.assertEqual(str(caught.exception), "; ".join(caught.exception.problems))
        self.assertEqual(len(caught.exception.problems), 2)


class ChangesTests(SynchronousTestCase):
    """Issue "all cores", R1.2, R8: who hears what has changed has the same keys as who reads all of them again."""

    OLD = (Device(FIRST, "free", "the cellar"), Device(SECOND))

    def changes(self, before: Collection[Device], after: Collection[Device]) -> dict[bytes, Device | None]:
        """What has changed, which is enough to make the one of the other."""
        old, new = DeviceKeys(before), DeviceKeys(after)
        changes = old.changes_to(new)
        self.assertEqual(all_of(old.with_changes(changes)), all_of(new))
        self.assertEqual(all_of(old), all_of(DeviceKeys(before)), "whoever has the old ones keeps them")
        return changes

    def test_a_device_more(self) -> None:
        new = Device(bytes(32), "paid")
        self.assertEqual(self.changes(self.OLD, (*self.OLD, new)), {key_id(bytes(32)): new})

    def test_a_device_less(self) -> None:
        self.assertEqual(self.changes(self.OLD, self.OLD[:1]), {key_id(SECOND): None})

    def test_another_tier_or_note(self) -> None:
        for changed in (Device(FIRST, "paid", "the cellar"), Device(FIRST, "free", "the attic")):
            self.assertEqual(self.changes(self.OLD, (changed, self.OLD[1])), {key_id(FIRST): changed})

    def test_the_same_devices_in_another_order_are_no_change(self) -> None:
        self.assertEqual(self.changes(self.OLD, self.OLD[::-1]), {})

    def test_taking_out_who_is_not_there_changes_nothing(self) -> None:
        keys = DeviceKeys(self.OLD)
        self.assertEqual(all_of(keys.with_changes({bytes(32): None})), all_of(keys))

    def test_the_same_is_in_force_as_after_reading_the_file(self) -> None:
        def file(*devices: tuple[bytes, str]) -> DeviceKeys:
            tables = (f'[[device]]\npublic_key = "{key.hex()}"\ntier = "{tier}"\n' for key, tier in devices)
            return parse_device_keys("".join(tables), tiers=TIERS)

        before, after = file((FIRST, "free"), (SECOND, "")), file((bytes(32), ""), (FIRST, "paid"))
        self.assertEqual(all_of(before.with_changes(before.changes_to(after))), all_of(after))

    @given(*[st.dictionaries(st.integers(0, 9), st.sampled_from(("", *TIERS)))] * 2)
    def test_any_keys_to_any_others(self, before: dict[int, str], after: dict[int, str]) -> None:
        old, new = ([Device(bytes((key,)) * 32, tier) for key, tier in tiers.items()] for tiers in (before, after))
        changes = self.changes(old, new)
        self.assertEqual(len(changes), len(before.keys() ^ after.keys() | {
            key for key in before.keys() & after.keys() if before[key] != after[key]
        }), "and nothing that is the same")

    def test_no_key_is_hashed_again(self) -> None:
        keys = DeviceKeys(self.OLD)
        new = Device(bytes(32))
        changes = keys.changes_to(DeviceKeys((*self.OLD, new)))
        self.patch(module, "key_id", None)
        self.assertEqual(len(keys.with_changes(changes)), 3)
