"""``zrc-relay keygen`` and key files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import zrc_relay
from zrc_relay.cli.errors import BadInput, Failure
from zrc_relay.cli.keyfiles import read_key, write_key, write_private
from zrc_relay.core.token import key_id


def mode(path: Path) -> int:
    """Permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


class KeygenTests(SynchronousTestCase):
    """Issue 2: keys are written 0600, never over another one; what is printed is the public half."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "device.key"

    def test_writes_the_seed_as_64_hex_digits_for_the_owner_only(self) -> None:
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        result = zrc_relay("keygen", self.path)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertRegex(self.path.read_text(), r"\A[0-9a-f]{64}\n\Z")
        self.assertEqual(mode(self.path), 0o600)

    def test_the_owner_can_read_it_whatever_the_umask(self) -> None:
        old = os.umask(0o777)
        self.addCleanup(os.umask, old)
        zrc_relay("keygen", self.path)
        self.assertEqual(mode(self.path), 0o600)

    def test_prints_public_key_and_id_of_the_key_in_the_file(self) -> None:
        result = zrc_relay("keygen", self.path)
        public = bytes(SigningKey(bytes.fromhex(self.path.read_text())).verify_key)
        printed = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines())
        self.assertEqual(printed, {"key file": str(self.path), "public key": public.hex(), "id": key_id(public).hex()})

    def test_the_secret_is_not_printed(self) -> None:
        result = zrc_relay("keygen", self.path)
        self.assertNotIn(self.path.read_text().strip(), result.output)

    def test_keys_differ(self) -> None:
        other = self.directory / "peer.key"
        zrc_relay("keygen", self.path)
        zrc_relay("keygen", other)
        self.assertNotEqual(self.path.read_text(), other.read_text())

    def test_an_existing_file_is_left_alone(self) -> None:
        self.path.write_text("precious")
        result = zrc_relay("keygen", self.path)
        self.assertEqual(result.exit_code, 2)
        self.assertEqual(result.stderr, f"zrc-relay: {self.path} exists already; --force replaces it\n")
        self.assertEqual(self.path.read_text(), "precious")

    def test_a_dangling_symbolic_link_is_not_followed(self) -> None:
        target = self.directory / "elsewhere"
        self.path.symlink_to(target)
        self.assertEqual(zrc_relay("keygen", self.path).exit_code, 2)
        self.assertFalse(target.exists())

    def test_force_replaces_the_file_and_its_mode(self) -> None:
        self.path.write_text("old")
        self.path.chmod(0o644)
        self.assertEqual(zrc_relay("keygen", self.path, "--force").exit_code, 0)
        self.assertEqual(mode(self.path), 0o600)
        self.assertEqual(len(bytes(read_key(self.path))), 32)
        self.assertEqual(list(self.directory.iterdir()), [self.path])

    def test_a_directory_that_is_not_there_is_a_failure_in_one_line(self) -> None:
        path = self.directory / "no" / "device.key"
        result = zrc_relay("keygen", path)
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(result.stderr, f"zrc-relay: cannot write {path}: No such file or directory\n")


class KeyFileTests(SynchronousTestCase):
    """Issue 2: a key file that others can read is refused, and so is everything that is no key."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.key = SigningKey.generate()
        write_key(self.path, self.key)

    def test_what_was_written_is_read(self) -> None:
        self.assertEqual(bytes(read_key(self.path)), bytes(self.key))

    def test_any_access_of_group_or_others_is_refused_with_the_remedy(self) -> None:
        for bit in (0o040, 0o020, 0o010, 0o004, 0o002, 0o001):
            self.path.chmod(0o600 | bit)
            error = self.assertRaises(BadInput, read_key, self.path)
            self.assertIn(f"mode {0o600 | bit:04o}", error.message)
            self.assertTrue(error.message.endswith(f"chmod 600 {self.path}"), error.message)

    def test_a_read_only_key_is_fine(self) -> None:
        self.path.chmod(0o400)
        self.assertEqual(bytes(read_key(self.path)), bytes(self.key))

    def test_blanks_around_the_digits_are_fine(self) -> None:
        self.path.write_text(f"  {bytes(self.key).hex().upper()}\r\n\n")
        self.assertEqual(bytes(read_key(self.path)), bytes(self.key))

    def test_what_is_no_key_is_refused(self) -> None:
        digits = bytes(self.key).hex()
        for text in ("", digits[:-1], digits + "0", digits[:-1] + "g", "-----BEGIN PRIVATE KEY-----", f"{digits}\n{digits}"):
            self.path.write_text(text)
            error = self.assertRaises(BadInput, read_key, self.path)
            self.assertIn("64 hex digits", error.message)

    def test_binary_rubbish_is_refused(self) -> None:
        self.path.write_bytes(bytes(range(256)) * 100)
        self.assertRaises(BadInput, read_key, self.path)

    def test_a_missing_file_and_a_directory_are_refused(self) -> None:
        self.assertIn("No such file", self.assertRaises(BadInput, read_key, self.path.with_name("absent")).message)
        self.path.unlink()
        self.path.mkdir(mode=0o700)
        self.assertIn("Is a directory", self.assertRaises(BadInput, read_key, self.path).message)

    def test_replacing_what_cannot_be_replaced_leaves_nothing_behind(self) -> None:
        directory = self.path.with_name(f"{self.path.name}-directory")
        (directory / "taken").mkdir(parents=True)
        self.assertRaises(Failure, write_private, directory / "taken", "text", replace=True)
        self.assertEqual([path.name for path in directory.iterdir()], ["taken"])
