"""How ``zrc-relay ctl`` finds a relay and its token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from tests.real_relay import Setup
from tests.test_abuse_http import LOCALHOST
from tests.web_server import key_pem, make_certificate
from zrc_relay.cli.ctl_client import AdminClient, request_of
from zrc_relay.cli.ctl_where import Place, find_place, find_token, parse_place
from zrc_relay.cli.errors import BadInput
from zrc_relay.config import load_config
from zrc_relay.control.routes import ROUTES

LOOPBACK = "127.0.0.1"


class PlaceTests(SynchronousTestCase):
    """Issue "run it": the same notation as in the configuration, hosts, and URLs."""

    def test_what_people_write(self) -> None:
        for text, place in (
            ("unix:/run/a.sock", Place(path=Path("/run/a.sock"))),
            ("unix:/run/a.sock:mode=600", Place(path=Path("/run/a.sock"))),
            ("tcp:127.0.0.1:9434", Place(host=LOOPBACK, port=9434)),
            ("tcp:[::1]:9434", Place(host="::1", port=9434)),
            ("tcp:9434:interface=127.0.0.2", Place(host="127.0.0.2", port=9434)),
            ("tcp:9434", Place(host=LOOPBACK, port=9434)),
            ("tcp:9434:interface=[::]", Place(host="::1", port=9434)),
            ("ssl:relay.example:9434", Place(host="relay.example", port=9434, is_tls=True)),
            ("ssl:9434:privateKey=/nowhere", Place(host=LOOPBACK, port=9434, is_tls=True)),
            ("http://localhost", Place(host="localhost", port=80)),
            ("https://relay.example", Place(host="relay.example", port=443, is_tls=True)),
            ("https://[2001:db8::1]:8443/relays/1/", Place(host="2001:db8::1", port=8443, is_tls=True, prefix="/relays/1")),
            ("https://relay.example/admin", Place(host="relay.example", port=443, is_tls=True)),
        ):
            self.assertEqual(parse_place(text), place, text)

    def test_what_is_no_endpoint(self) -> None:
        for text in (
            "", "relay.example", "relay.example:9434", "tcp:relay.example", "tcp:relay.example:0", "tcp:0", "unix:", "udp:1:2",
            "ssl:9434", "tcp:9434:x=1", "ftp://relay.example", "http://", "http://h:x", "http://user:secret@h", "http://h/?q",
            f"unix:/{'x' * 120}",
        ):
            self.assertRaises(BadInput, parse_place, text)

    def test_a_certificate_of_the_configuration_says_which_name_to_expect(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        authority = make_certificate()
        own = make_certificate(x509.DNSName("relay.example"))
        signed = make_certificate(x509.DNSName("relay.example"), LOCALHOST, signed_by=authority)
        for certificate, ca in ((own, True), (signed, False)):
            file = directory / "cert.pem"
            file.write_bytes(certificate.pem + key_pem(certificate))
            place = parse_place(f"ssl:9434:privateKey={file}")
            self.assertEqual((place.name, place.ca), ("relay.example", file if ca else None))


class FindTests(SynchronousTestCase):
    """Issue "run it": --endpoint, then --config, then the environment, then what the relay reads."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.config = self.directory / "relay.toml"
        self.config.write_text("admin_endpoint = 'unix:a.sock'\nidle_timeout = 'wrong'\nno_such_setting = 1\n")

    def found(self, environ: Mapping[str, str], option: str | None = None, config: Path | None = None) -> str:
        return str(find_place(option, config, {f"ZRC_RELAY_{name}": value for name, value in environ.items()}))

    def test_the_order(self) -> None:
        socket = str(self.directory.absolute() / "a.sock")
        environ = {"CTL_ENDPOINT": "unix:/b", "ADMIN_ENDPOINT": "unix:/c", "CONFIG": str(self.config)}
        self.assertEqual(self.found(environ, "unix:/a", self.config), "/a")
        self.assertEqual(self.found(environ, None, self.config), socket)
        self.assertEqual(self.found(environ), "/b")
        del environ["CTL_ENDPOINT"]
        self.assertEqual(self.found(environ), "/c")
        del environ["ADMIN_ENDPOINT"]
        self.assertEqual(self.found(environ), socket)

    def problem(self, config: Path | None = None, **environ: str) -> str:
        return str(self.assertRaises(BadInput, self.found, environ, None, config))

    def test_nothing_that_tells(self) -> None:
        self.assertIn("--endpoint", self.problem())

    def test_a_relay_without_an_admin_endpoint(self) -> None:
        for text in ("", "admin_endpoint = 'off'"):
            self.config.write_text(text)
            self.assertIn("has no admin_endpoint", self.problem(self.config))
        self.assertIn("has no admin_endpoint", self.problem(ADMIN_ENDPOINT="none"))

    def test_files_that_cannot_be_used(self) -> None:
        self.assertIn("cannot read", self.problem(self.directory / "absent"))
        for text, expected in (
            ("x = [", "not TOML"), ("admin_endpoint = 5", "5 is no text"), ("admin_endpoint = 'tcp:x'", "tcp:x"),
        ):
            self.config.write_text(text)
            self.assertIn(expected, self.problem(self.config))

    def test_a_relay_does_not_mind_what_is_meant_for_ctl(self) -> None:
        made = Setup(self).made  # type: ignore[arg-type]  # a SynchronousTestCase has what it uses
        environ = {"ZRC_RELAY_CTL_ENDPOINT": "unix:/x", "ZRC_RELAY_CTL_TOKEN": "x"}
        self.assertEqual(
            load_config(path=made.config, environ=environ, options={}), load_config(path=made.config, environ={}, options={})
        )


class TokenTests(SynchronousTestCase):
    """R10.5: a token comes from a file or the environment, and crosses no network in the clear."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.file.write_text("secret\n\n[[token]]\nname = 'x'\n")
        self.file.chmod(0o600)

    def test_the_file_goes_before_the_environment(self) -> None:
        environ: Mapping[str, str] = {"ZRC_RELAY_CTL_TOKEN": "other"}
        self.assertEqual(find_token(self.file, environ), "secret")
        self.assertEqual(find_token(None, environ), "other")
        self.assertIsNone(find_token(None, {}))
        self.assertIsNone(find_token(None, {"ZRC_RELAY_CTL_TOKEN": ""}))

    def test_a_file_that_everybody_can_read_is_refused(self) -> None:
        self.file.chmod(0o644)
        self.assertIn("chmod 600", str(self.assertRaises(BadInput, find_token, self.file, {})))

    def test_what_is_no_token_is_refused_and_not_repeated(self) -> None:
        self.file.write_text("two words")
        self.assertNotIn("words", str(self.assertRaises(BadInput, find_token, self.file, {})))
        self.assertRaises(BadInput, find_token, self.file.with_name("absent"), {})
        self.assertRaises(BadInput, find_token, None, {"ZRC_RELAY_CTL_TOKEN": "a\r\nb"})

    def test_it_is_sent_to_another_host_by_tls_only(self) -> None:
        for text in ("tcp:192.0.2.1:9434", "http://relay.example:9434"):
            self.assertRaises(BadInput, AdminClient, None, parse_place(text), "secret")
        for place in (Place(path=Path("/x")), parse_place("tcp:[::1]:1"), parse_place("http://localhost:1")):
            self.assertTrue(place.is_private)


class RequestTests(SynchronousTestCase):
    """Issue "run it": values get where the table of routes wants them, whatever is in them."""

    def test_path_query_and_body(self) -> None:
        self.assertEqual(
            request_of(ROUTES["terminateAllocation"], {"id": "a:b/..?", "reason": "x&y=z #"}),
            ("/admin/allocations/a:b%2F..%3F?reason=x%26y%3Dz+%23", None),
        )
        self.assertEqual(request_of(ROUTES["listAllocations"], {"pinned": False}), ("/admin/allocations?pinned=false", None))
        self.assertEqual(request_of(ROUTES["addNetwork"], {"network": "::1"}), ("/admin/lists", b'{"network": "::1"}'))
        self.assertEqual(request_of(ROUTES["drain"], {}), ("/admin/drain", None))
