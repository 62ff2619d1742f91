"""``zrc-relay token mint`` and ``token inspect``."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import Result
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import zrc_relay
from zrc_relay.cli.keyfiles import write_key
from zrc_relay.core.token import RelayToken, key_id

RELAY_ID = "00112233445566778899aabbccddeeff"


class TokenCase(SynchronousTestCase):
    """A device's and a peer's key file."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.device, self.peer = SigningKey.generate(), SigningKey.generate()
        self.device_file, self.peer_file = self.directory / "device.key", self.directory / "peer.key"
        write_key(self.device_file, self.device)
        write_key(self.peer_file, self.peer)
        self.peer_id = key_id(bytes(self.peer.verify_key))

    def mint(self, *arguments: object) -> Result:
        return zrc_relay("token", "mint", "--key", self.device_file, "--relay-id", RELAY_ID, *arguments)

    def minted(self, *arguments: object) -> RelayToken:
        result = self.mint("--peer-id", self.peer_id.hex(), *arguments)
        self.assertEqual(result.exit_code, 0, result.output)
        return RelayToken.from_text(result.stdout)

    def text(self, **changes: Any) -> str:
        token = RelayToken(
            relay_id=bytes.fromhex(RELAY_ID),
            allocation_id=bytes(range(16)),
            device_id=key_id(bytes(self.device.verify_key)),
            peer_id=self.peer_id,
            expires_at=int(time.time()) + 3600,
        )
        return replace(token, **changes).sign(self.device).to_text()


class MintTests(TokenCase):
    """PROTOCOL §3: the device signs relay, allocation, peer, expiry and limits."""

    def test_the_token_is_signed_by_the_device_and_names_all(self) -> None:
        allocation = bytes(range(16))
        token = self.minted("--allocation-id", allocation.hex())
        self.assertTrue(token.is_signed_by(bytes(self.device.verify_key)))
        self.assertEqual(token.relay_id.hex(), RELAY_ID)
        self.assertEqual(token.device_id, key_id(bytes(self.device.verify_key)))
        self.assertEqual(token.peer_id, self.peer_id)
        self.assertEqual(token.allocation_id, allocation)

    def test_nothing_but_the_text_form_is_printed(self) -> None:
        result = self.mint("--peer-id", self.peer_id.hex())
        self.assertRegex(result.output, r"\A[A-Za-z0-9_-]{240}\n\Z")

    def test_allocation_ids_are_random_unless_told(self) -> None:
        self.assertNotEqual(self.minted().allocation_id, self.minted().allocation_id)

    def test_the_peer_may_be_named_by_its_public_key_or_its_key_file(self) -> None:
        for peer in (bytes(self.peer.verify_key).hex(), self.peer_file):
            result = self.mint("--peer-key", peer)
            self.assertEqual(RelayToken.from_text(result.stdout).peer_id, self.peer_id)

    def test_limits_are_read_with_their_units(self) -> None:
        token = self.minted("--bandwidth", "10 Mbit/s", "--quota", "1 GB")
        self.assertEqual((token.bandwidth_limit, token.quota_bytes), (1_250_000, 10**9))

    def test_without_limits_the_tiers_own_are_asked_for(self) -> None:
        token = self.minted()
        self.assertEqual((token.bandwidth_limit, token.quota_bytes), (0, 0))

    def test_the_largest_limits_fit(self) -> None:
        token = self.minted("--bandwidth", str(2**32 - 1), "--quota", str(2**64 - 1))
        self.assertEqual((token.bandwidth_limit, token.quota_bytes), (2**32 - 1, 2**64 - 1))

    def test_limits_that_do_not_fit_or_mean_something_else_are_refused(self) -> None:
        for option, value in (
            ("--bandwidth", 2**32), ("--bandwidth", 0), ("--bandwidth", "10 Mb"),
            ("--quota", 2**64), ("--quota", 0), ("--quota", "x"),
        ):
            result = self.mint("--peer-id", self.peer_id.hex(), option, value)
            self.assertEqual(result.exit_code, 2, result.output)
            self.assertIn(option, result.stderr)

    def test_it_is_valid_for_an_hour_or_the_duration_given(self) -> None:
        for arguments, lifetime in (((), 3600), (("--expires", "8h"), 28800), (("--expires", "90 s"), 90)):
            before = int(time.time())
            token = self.minted(*arguments)
            self.assertTrue(before + lifetime <= token.expires_at <= int(time.time()) + lifetime)

    def test_a_plain_number_is_a_unix_time(self) -> None:
        self.assertEqual(self.minted("--expires", 4_000_000_000).expires_at, 4_000_000_000)
        self.assertEqual(self.minted("--expires", 2**64 - 1).expires_at, 2**64 - 1)

    def test_a_unix_time_in_the_past_is_most_likely_a_duration(self) -> None:
        result = self.mint("--peer-id", self.peer_id.hex(), "--expires", 3600)
        self.assertEqual(result.exit_code, 2)
        self.assertIn("3600s", result.stderr)

    def test_expiries_that_are_none_are_refused(self) -> None:
        for value in ("soon", "-1h", "0s", 2**64, "9" * 5000, "1 fortnight", ""):
            self.assertEqual(self.mint("--peer-id", self.peer_id.hex(), f"--expires={value}").exit_code, 2, value)

    def test_exactly_one_way_to_name_the_peer_is_wanted(self) -> None:
        for arguments in ((), ("--peer-id", self.peer_id.hex(), "--peer-key", self.peer_file)):
            result = self.mint(*arguments)
            self.assertEqual(result.exit_code, 2)
            self.assertIn("either --peer-id or --peer-key", result.stderr)

    def test_a_peer_id_of_zeros_is_refused_because_every_relay_would(self) -> None:
        self.assertEqual(self.mint("--peer-id", "00" * 32).exit_code, 2)

    def test_a_key_that_others_can_read_signs_nothing(self) -> None:
        self.device_file.chmod(0o640)
        result = self.mint("--peer-id", self.peer_id.hex())
        self.assertEqual((result.exit_code, result.stdout), (2, ""))
        self.assertIn(f"chmod 600 {self.device_file}", result.stderr)

    def test_ids_of_the_wrong_length_are_refused(self) -> None:
        for arguments in (("--peer-id", "00"), ("--peer-id", self.peer_id.hex(), "--allocation-id", "0" * 31)):
            result = self.mint(*arguments)
            self.assertEqual(result.exit_code, 2)
            self.assertIn("hex digits", result.stderr)


class InspectTests(TokenCase):
    """PROTOCOL §3: everything in a token can be seen, and whether it is signed."""

    def inspect(self, *arguments: object, stdin: str | None = None) -> Result:
        return zrc_relay("token", "inspect", *arguments, stdin=stdin)

    def test_every_field_is_shown(self) -> None:
        text = self.text(bandwidth_limit=1_250_000, quota_bytes=10**9, expires_at=4_000_000_000)
        result = self.inspect(text)
        self.assertEqual(result.exit_code, 0, result.output)
        for shown in (
            RELAY_ID, bytes(range(16)).hex(), key_id(bytes(self.device.verify_key)).hex(), self.peer_id.hex(),
            "2096-10-02 07:06:40 UTC", "10 Mbit/s", "1 GB",
        ):
            self.assertIn(shown, result.stdout)

    def test_argument_file_and_standard_input_are_the_same(self) -> None:
        text = self.text(expires_at=4_000_000_000)
        file = self.directory / "token.txt"
        file.write_text(text + "\n")
        given = [self.inspect(text, "--json"), self.inspect(f"@{file}", "--json")]
        given += [self.inspect(*arguments, "--json", stdin=text + "\n") for arguments in (("-",), ())]
        self.assertEqual({result.stdout for result in given}, {given[0].stdout})
        self.assertEqual({result.exit_code for result in given}, {0})

    def test_json_has_every_field(self) -> None:
        text = self.text(bandwidth_limit=7, quota_bytes=2**64 - 1, expires_at=4_000_000_000)
        self.assertEqual(json.loads(self.inspect(text, "--json", "--device-key", self.device_file).stdout), {
            "relay_id": RELAY_ID,
            "allocation_id": bytes(range(16)).hex(),
            "device_id": key_id(bytes(self.device.verify_key)).hex(),
            "peer_id": self.peer_id.hex(),
            "expires_at": 4_000_000_000,
            "expired": False,
            "bandwidth_limit": 7,
            "quota_bytes": 2**64 - 1,
            "signature": RelayToken.from_text(text).signature.hex(),
            "signature_valid": True,
        })

    def test_an_expired_token_is_said_to_be(self) -> None:
        text = self.text(expires_at=int(time.time()) - 7200)
        self.assertIn("EXPIRED 2 h", self.inspect(text).stdout)
        self.assertIs(json.loads(self.inspect(text, "--json").stdout)["expired"], True)

    def test_a_time_beyond_the_calendar_is_shown_all_the_same(self) -> None:
        result = self.inspect(self.text(expires_at=2**64 - 1))
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn(str(2**64 - 1), result.stdout)

    def test_the_signature_is_checked_only_when_there_is_a_key(self) -> None:
        text = self.text()
        self.assertIn("not checked", self.inspect(text).stdout)
        self.assertIsNone(json.loads(self.inspect(text, "--json").stdout)["signature_valid"])
        for key in (bytes(self.device.verify_key).hex(), self.device_file):
            self.assertRegex(self.inspect(text, "--device-key", key).stdout, r"signature +right")

    def test_a_wrong_signature_is_status_1(self) -> None:
        token = RelayToken.from_text(self.text())
        forged = replace(token, quota_bytes=1).to_text()
        result = self.inspect(forged, "--device-key", self.device_file)
        self.assertEqual(result.exit_code, 1)
        self.assertRegex(result.stdout, "signature +the signature is wrong")
        self.assertEqual(result.stderr, "zrc-relay: the signature is wrong\n")
        shown = json.loads(self.inspect(forged, "--json", "--device-key", self.device_file).stdout)
        self.assertIs(shown["signature_valid"], False)

    def test_another_devices_token_is_status_1(self) -> None:
        result = self.inspect(self.text(), "--device-key", self.peer_file)
        self.assertEqual((result.exit_code, result.stderr), (1, "zrc-relay: the token is another device's\n"))

    def test_what_is_no_token_is_refused_in_one_line(self) -> None:
        text = self.text()
        for wrong in ("", "x", text[:-4], text + "AAAA", "!" * 240, "\N{BULLET}" * 240, "A" * 240):
            result = self.inspect(stdin=wrong)
            self.assertEqual(result.exit_code, 2, wrong)
            self.assertRegex(result.stderr, r"\Azrc-relay: .*not a token: .*\n\Z")

    def test_a_missing_token_file_is_refused(self) -> None:
        result = self.inspect(f"@{self.directory}/absent")
        self.assertEqual(result.exit_code, 2)
        self.assertIn("No such file", result.stderr)
