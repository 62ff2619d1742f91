"""``zrc-relay dev-setup``."""

from __future__ import annotations

import shlex
import stat
import time
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import zrc_relay
from zrc_relay.cli.config import certificate_names
from zrc_relay.cli.dev_setup import TOKEN_LIFETIME, DevSetup, make_dev_setup, program
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.cli.main import main
from zrc_relay.client.connection import Identity
from zrc_relay.config import Config, load_config
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken, key_id
from zrc_relay.credentials import load_credentials
from zrc_relay.quic.settings import Credentials
from zrc_relay.service import load_device_keys

FILES = {"cert.pem", "key.pem", "relay.toml", "devices.toml", "device.key", "peer.key", "token.txt"}


def config_of(directory: Path) -> Config:
    """What a relay makes of the TOML file."""
    return load_config(path=directory / "relay.toml", environ={}, options={})


def credentials_of(config: Config) -> Credentials:
    """What a relay makes of the certificate and its key."""
    return load_credentials(
        config.quic_cert_path, config.quic_key_path, idle_timeout=30, udp_payload=1232, stream_window=262144, max_streams=32
    )


class DevSetupTests(SynchronousTestCase):
    """Issue 2: ``dev-setup DIR`` makes certificate, keys and TOML that are ready to run."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())

    def setup(self, *arguments: object) -> Config:
        result = zrc_relay("dev-setup", self.directory, *arguments)
        self.assertEqual(result.exit_code, 0, result.output)
        return config_of(self.directory)

    def test_makes_all_files_and_no_others(self) -> None:
        self.setup()
        self.assertEqual({path.name for path in self.directory.iterdir()}, FILES)

    def test_secrets_are_for_the_owner_only(self) -> None:
        self.setup()
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        for name in ("key.pem", "device.key", "peer.key", "token.txt"):
            self.assertEqual(stat.S_IMODE((self.directory / name).stat().st_mode), 0o600, name)

    def test_a_relay_takes_the_configuration(self) -> None:
        config = self.setup()
        self.assertEqual((config.listen_addr, config.listen_port), (("127.0.0.1",), 4433))
        device = key_id(bytes(read_key(self.directory / "device.key").verify_key))
        self.assertEqual(list(load_device_keys(config)), [device])
        credentials_of(config)

    def test_the_token_is_the_devices_for_the_peer_at_this_relay_and_as_long_as_a_relay_allows(self) -> None:
        before = int(time.time())
        config = self.setup()
        device, peer = (read_key(self.directory / name) for name in ("device.key", "peer.key"))
        token = RelayToken.from_text((self.directory / "token.txt").read_text())
        self.assertTrue(token.is_signed_by(bytes(device.verify_key)))
        self.assertEqual(token.relay_id, config.relay_id)
        self.assertIs(Identity.of(token, device).role, Role.DEVICE)
        self.assertIs(Identity.of(token, peer).role, Role.PEER)
        self.assertTrue(before + TOKEN_LIFETIME <= token.expires_at <= time.time() + config.max_token_lifetime)

    def test_the_certificate_has_the_local_names_and_those_asked_for(self) -> None:
        config = self.setup("--listen", "192.0.2.7", "--listen", "::", "--name", "relay.example", "--name", "198.51.100.1")
        certificate = x509.load_pem_x509_certificate(config.quic_cert_path.read_bytes())
        names = ["relay.example", "198.51.100.1", "localhost", "127.0.0.1", "::1", "192.0.2.7"]
        self.assertEqual(certificate_names(certificate), names)

    def test_listens_where_it_is_told(self) -> None:
        config = self.setup("--listen", "192.0.2.7", "--listen", "2001:db8::7", "--listen", "192.0.2.7", "--port", 5555)
        self.assertEqual((config.listen_addr, config.listen_port), (("192.0.2.7", "2001:db8::7"), 5555))

    def test_the_directory_can_be_moved(self) -> None:
        self.setup()
        moved = self.directory.with_name(f"{self.directory.name}-moved")
        self.directory.rename(moved)
        credentials_of(config_of(moved))
        load_device_keys(config_of(moved))

    def test_a_directory_that_is_not_empty_is_refused_and_untouched(self) -> None:
        self.directory.mkdir()
        (self.directory / "device.key").write_text("precious")
        result = zrc_relay("dev-setup", self.directory)
        self.assertEqual(result.exit_code, 2)
        self.assertRegex(result.stderr, r"\Azrc-relay: .* is not empty; --force .*\n\Z")
        self.assertEqual([path.name for path in self.directory.iterdir()], ["device.key"])
        self.assertEqual((self.directory / "device.key").read_text(), "precious")

    def test_an_empty_directory_will_do(self) -> None:
        self.directory.mkdir()
        self.setup()

    def test_force_replaces_all_files_and_leaves_others(self) -> None:
        self.setup()
        (self.directory / "notes").write_text("mine")
        before = {name: (self.directory / name).read_bytes() for name in FILES}
        self.setup("--force")
        self.assertEqual({path.name for path in self.directory.iterdir()}, FILES | {"notes"})
        self.assertEqual([name for name in FILES if (self.directory / name).read_bytes() == before[name]], [])
        credentials_of(config_of(self.directory))

    def test_a_file_in_the_way_is_a_failure_in_one_line(self) -> None:
        self.directory.write_text("a file")
        result = zrc_relay("dev-setup", self.directory)
        self.assertEqual(result.exit_code, 1)
        self.assertRegex(result.stderr, r"\Azrc-relay: cannot use .*\n\Z")

    def test_names_and_addresses_that_are_none_are_refused(self) -> None:
        for option, value in (
            ("--name", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example"), ("--name", "two words"), ("--name", "-x"),
            ("--name", "x" * 64), ("--name", ".".join(["x" * 60] * 5)), ("--name", ""), ("--listen", "localhost"),
            ("--listen", "224.0.0.1"), ("--port", "70000"),
        ):
            result = zrc_relay("dev-setup", self.directory, option, value)
            self.assertEqual(result.exit_code, 2, value)
            self.assertIn(option, result.stderr)
        self.assertFalse(self.directory.exists())

    def test_extra_settings_and_a_tier_reach_the_files(self) -> None:
        settings = {"drain_timeout": "0s"}
        made = make_dev_setup(self.directory, listen=["127.0.0.1"], port=0, tier="unlimited", settings=settings)
        config = config_of(self.directory)
        self.assertEqual((config.drain_timeout, config.listen_port), (0.0, 0))
        keys = load_device_keys(config)
        device = keys.get(key_id(bytes(read_key(made.device_key).verify_key)))
        self.assertEqual(device.tier if device else None, "unlimited")


class InstructionsTests(SynchronousTestCase):
    """Issue 2: what ``dev-setup`` says to type next is right, word for word."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp() + " with blanks")

    def commands(self, *arguments: object) -> list[list[str]]:
        result = zrc_relay("dev-setup", self.directory, *arguments)
        self.assertEqual(result.exit_code, 0, result.output)
        return [shlex.split(line) for line in result.stdout.splitlines() if line.startswith("  ")]

    def parse(self, command: list[str]) -> dict[str, object]:
        """The parameters that click makes of a printed command; refused ones raise."""
        found: click.Command = main
        rest = command[1:]
        while isinstance(found, click.Group):
            found = found.commands[rest.pop(0)]
        return dict(found.make_context(command[0], rest).params)

    def test_the_relay_is_started_by_twistd_with_the_file(self) -> None:
        relay, *_ = self.commands()
        self.assertEqual(relay, [program("twistd"), "-n", "zrc-relay", "--config", str(self.directory / "relay.toml")])

    def test_the_two_tunnels_use_both_keys_one_token_and_the_fingerprint(self) -> None:
        _, device, peer, _ = self.commands("--port", 5555)
        given = self.parse(device), self.parse(peer)
        token = RelayToken.from_text((self.directory / "token.txt").read_text())
        certificate = x509.load_pem_x509_certificate((self.directory / "cert.pem").read_bytes())
        made = DevSetup(self.directory, b"", b"")
        for parameters, key in zip(given, (made.device_key, made.peer_key), strict=True):
            self.assertEqual(str(parameters["relay"]), "127.0.0.1:5555")
            self.assertEqual(parameters["token"], token)
            self.assertEqual(parameters["key"], read_key(key))
            self.assertEqual(parameters["fingerprint"], certificate.fingerprint(SHA256()))
        self.assertEqual([str(given[0]["target"]), str(given[1]["listen"])], ["127.0.0.1:51820", "127.0.0.1:51821"])

    def test_the_command_for_another_token_mints_one(self) -> None:
        *_, mint = self.commands()
        self.assertEqual(mint[-2:], [">", str(self.directory / "token.txt")])
        again = RelayToken.from_text(zrc_relay(*mint[1:-2]).stdout)
        first = RelayToken.from_text((self.directory / "token.txt").read_text())
        self.assertEqual((again.relay_id, again.device_id, again.peer_id), (first.relay_id, first.device_id, first.peer_id))

    def test_clients_are_sent_to_the_name_that_was_given_or_an_address_that_is_listened_on(self) -> None:
        for arguments, expected in (
            (("--name", "relay.example"), "relay.example:4433"),
            (("--listen", "0.0.0.0", "--listen", "192.0.2.7"), "192.0.2.7:4433"),
            (("--listen", "0.0.0.0"), "127.0.0.1:4433"),
            (("--listen", "::"), "[::1]:4433"),
        ):
            _, device, _, _ = self.commands(*arguments, "--force")
            self.assertEqual(str(self.parse(device)["relay"]), expected)

    def test_for_port_0_it_says_where_the_port_is_found(self) -> None:
        result = zrc_relay("dev-setup", self.directory, "--port", 0)
        self.assertIn("any free port", result.stdout)
