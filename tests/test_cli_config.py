"""``zrc-relay check-config``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import zrc_relay
from zrc_relay.cli.dev_setup import DevSetup, make_dev_setup


class CheckConfigTests(SynchronousTestCase):
    """R8: settings and files are checked as the relay would, every problem is listed, and the status is 2."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.made: DevSetup = make_dev_setup(self.directory, listen=["127.0.0.1", "::1"], port=4433, names=["relay.example"])

    def test_says_ok_and_what_the_relay_would_be(self) -> None:
        result = zrc_relay("check-config", "--config", self.made.config)
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        self.assertTrue(result.stdout.startswith("OK\n"))
        for shown in (
            self.made.relay_id.hex(), "UDP 127.0.0.1:4433, UDP [::1]:4433", "relay.example, localhost, 127.0.0.1, ::1",
            self.made.fingerprint.hex(), "UTC",
        ):
            self.assertIn(shown, result.stdout)
        self.assertRegex(result.stdout, r"devices +1\n")

    def test_says_which_ports_lead_to_each_of_several_workers(self) -> None:
        for settings, shown in (
            (("--workers", 1), "UDP [::1]:4433\n"),
            (("--workers", 4), "UDP [::1]:4433 with 4 workers, each alone on 4434 to 4437\n"),
            (("--workers", 2, "--worker-port-base", 5000), "with 2 workers, each alone on 5000 to 5001\n"),
            (("--workers", 2, "--listen-port", 0), "with 2 workers, each alone on the ports behind that\n"),
        ):
            result = zrc_relay("check-config", "-c", self.made.config, *settings)
            self.assertEqual((result.exit_code, result.stderr), (0, ""))
            self.assertIn(shown, result.stdout)

    def test_a_relay_port_that_redirects_of_workers_do_not_go_by_is_a_warning(self) -> None:
        told = ("check-config", "-c", self.made.config, "--relay-port", 443, "--workers")
        result = zrc_relay(*told, 2)
        self.assertEqual(result.exit_code, 0)
        self.assertRegex(result.stderr, r"\Azrc-relay: warning: relay_port does not apply to .* ports, 4434 to 4435: .*\n\Z")
        self.assertEqual(zrc_relay(*told, 1).stderr, "")

    def test_the_file_may_be_named_by_the_environment(self) -> None:
        result = zrc_relay("check-config", env={"ZRC_RELAY_CONFIG": str(self.made.config), "ZRC_RELAY_LISTEN_PORT": "4444"})
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("UDP 127.0.0.1:4444", result.stdout)

    def test_every_setting_is_an_option_and_options_win(self) -> None:
        result = zrc_relay(
            "check-config", "-c", self.made.config, "--listen-port", 4455, "--listen-addr", "192.0.2.1",
            env={"ZRC_RELAY_LISTEN_PORT": "4444"},
        )
        self.assertRegex(result.stdout, r"listens on +UDP 192\.0\.2\.1:4455\n")

    def test_all_problems_of_the_settings_are_listed_each_on_a_line(self) -> None:
        text = self.made.config.read_text().replace("4433", '"high"')
        self.made.config.write_text(text + '\nlisten_prot = 1\nidle_timeout = "soon"\n')
        result = zrc_relay("check-config", "-c", self.made.config, env={"ZRC_RELAY_MAX_ALLOCATIONS": "-1"})
        self.assertEqual((result.exit_code, result.stdout), (2, ""))
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 4, result.stderr)
        for line in lines:
            self.assertTrue(line.startswith("zrc-relay: "), line)
        for setting in ("listen_port", "listen_prot", "idle_timeout", "max_allocations"):
            self.assertEqual(sum(setting in line.partition(" (")[0] for line in lines), 1, result.stderr)

    def test_without_any_configuration_all_that_is_required_is_listed(self) -> None:
        result = zrc_relay("check-config")
        self.assertEqual(result.exit_code, 2)
        for setting in ("quic_cert_path", "quic_key_path", "relay_id", "device_keys_path"):
            self.assertIn(setting, result.stderr)

    def test_problems_of_several_files_are_listed_together(self) -> None:
        (self.directory / "cert.pem").write_text("rubbish")
        (self.directory / "devices.toml").write_text('[[device]]\npublic_key = "1"\n[[device]]\ntier = "none such"\n')
        result = zrc_relay("check-config", "-c", self.made.config)
        self.assertEqual((result.exit_code, result.stdout), (2, ""))
        self.assertIn("cert.pem", result.stderr)
        self.assertIn("device 1: ", result.stderr)
        self.assertIn("device 2: ", result.stderr)

    def test_a_missing_file_and_a_wrong_key_are_problems(self) -> None:
        make_dev_setup(self.directory / "other", listen=["127.0.0.1"], port=0)
        (self.directory / "key.pem").write_bytes((self.directory / "other" / "key.pem").read_bytes())
        (self.directory / "devices.toml").unlink()
        result = zrc_relay("check-config", "-c", self.made.config)
        self.assertEqual(result.exit_code, 2)
        self.assertIn("is not the key of the certificate", result.stderr)
        self.assertIn("devices.toml: No such file", result.stderr)

    def test_a_private_key_open_to_everyone_is_a_warning(self) -> None:
        (self.directory / "key.pem").chmod(0o644)
        result = zrc_relay("check-config", "-c", self.made.config)
        self.assertEqual(result.exit_code, 0)
        self.assertRegex(result.stderr, r"\Azrc-relay: warning: everyone .*key\.pem \(mode 0644\)\n\Z")

    def test_secrets_of_external_systems_are_looked_at_as_well(self) -> None:
        (self.directory / "secret").write_text("too-short")
        settings = ("--webhook-url", "https://abuse.example/", "--webhook-secret-path", self.directory / "secret")
        result = zrc_relay("check-config", "-c", self.made.config, *settings)
        self.assertEqual((result.exit_code, result.stdout), (2, ""))
        self.assertIn("secret holds no secret that will do: it is 9 characters long", result.stderr)
        (self.directory / "secret").write_text("long-enough-to-be-one")
        (self.directory / "secret").chmod(0o604)
        result = zrc_relay("check-config", "-c", self.made.config, *settings)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertRegex(result.stderr, r"\Azrc-relay: warning: everyone .*secret \(mode 0604\)\n\Z")

    def test_admin_tokens_are_looked_at_as_well(self) -> None:
        (self.directory / "tokens.toml").write_text('[[token]]\nname = "ops"\n[[token]]\nname = "two words"\n')
        (self.directory / "tokens.toml").chmod(0o600)
        settings = ("--admin-endpoint", "tcp:9434:interface=127.0.0.1", "--admin-tokens-path", self.directory / "tokens.toml")
        result = zrc_relay("check-config", "-c", self.made.config, *settings)
        self.assertEqual((result.exit_code, result.stdout), (2, ""))
        for problem in ("token 1: scopes", "token 1: sha256", "token 2: name"):
            self.assertEqual(result.stderr.count(f"tokens.toml: {problem}"), 1, result.stderr)

    def test_a_secret_is_no_option(self) -> None:
        result = zrc_relay("check-config", "-c", self.made.config, "--webhook-secret", "sesame-open-yourself")
        self.assertEqual(result.exit_code, 2)
        self.assertIn("No such option", result.stderr)
        self.assertNotIn("sesame", result.stderr)

    def test_an_expired_certificate_is_a_warning_because_pinning_clients_accept_it(self) -> None:
        self.replace_certificate(dt.timedelta(days=-3), dt.timedelta(days=-1))
        result = zrc_relay("check-config", "-c", self.made.config)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("has expired", result.stderr)

    def test_a_certificate_of_tomorrow_is_a_warning(self) -> None:
        self.replace_certificate(dt.timedelta(days=1), dt.timedelta(days=3))
        self.assertIn("not valid yet", zrc_relay("check-config", "-c", self.made.config).stderr)

    def test_a_certificate_without_names_is_said_to_have_none(self) -> None:
        self.replace_certificate(dt.timedelta(days=-1), dt.timedelta(days=1))
        self.assertRegex(zrc_relay("check-config", "-c", self.made.config).stdout, r"certificate +no name\n")

    def replace_certificate(self, begins: dt.timedelta, ends: dt.timedelta) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay")])
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now + begins, now + ends)
        (self.directory / "cert.pem").write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.directory / "key.pem").write_bytes(pem)
