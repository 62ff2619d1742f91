"""``zrc-relay ctl`` and what is, or is not, at the other end: sockets, TLS, other servers, other users."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

from click.testing import Result
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.cli_support import PATIENCE, reactor
from tests.ctl_support import Beside, CtlCase
from tests.real_relay import eventually
from tests.test_abuse_http import LOOPBACK
from tests.web_server import Answer, RawServer, WebServer, key_pem, make_certificate
from zrc_relay.cli.ctl_client import AdminClient, Unreachable
from zrc_relay.cli.ctl_where import parse_place
from zrc_relay.cli.processes import child_environment, cli_command

NOBODY = 65534
AS_ANOTHER_USER = """
import os, sys
from twisted.internet import reactor
from zrc_relay.cli.main import main
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
main(sys.argv[2:], prog_name="zrc-relay")
"""


class NobodyThereTests(TestCase):
    """Issue "run it": where there is no relay, one line says what is wrong, with status 1."""

    timeout = 2 * PATIENCE

    def setUp(self) -> None:
        self.beside = Beside(self)

    async def failed(self, endpoint: str, *options: str, token: str = "x") -> str:  # noqa: S107 - no secret
        result: Result = await self.beside("ctl", "--endpoint", endpoint, "stats", *options, env={"ZRC_RELAY_CTL_TOKEN": token})
        self.assertEqual((result.exit_code, result.stdout), (1, ""), result.output)
        self.assertEqual(len(result.stderr.splitlines()), 1)
        return result.stderr

    async def test_no_such_socket(self) -> None:
        self.assertIn("there is no socket /nowhere/admin.sock", await self.failed("unix:/nowhere/admin.sock"))

    async def test_nobody_listens(self) -> None:
        with socket.socket() as bound:  # bound, and not listening: nobody else gets this port meanwhile
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            self.assertIn(f"nobody listens on http://127.0.0.1:{port}", await self.failed(f"tcp:127.0.0.1:{port}"))

    async def test_a_server_that_does_not_answer(self) -> None:
        server = RawServer(self, lambda _: None)
        self.assertIn("does not answer within 0.2 s", await self.failed(server.url, "--timeout", "200ms"))

    async def test_a_server_that_hangs_up(self) -> None:
        server = RawServer(self, lambda transport: transport.abortConnection())
        self.assertIn("no answer from", await self.failed(server.url))

    async def test_a_server_that_is_something_else(self) -> None:
        server = WebServer(self)
        for status in (200, 404, 502):
            server.answer = lambda _, status=status: Answer(b"<html>hello", status)  # type: ignore[misc]
            self.assertIn("is not the admin endpoint of a relay", await self.failed(server.url()))

    async def test_a_stream_of_events_that_falls_silent(self) -> None:
        server = RawServer(self, lambda transport: transport.write(b"HTTP/1.1 200 OK\r\n\r\n: listening\n\n"))
        got: list[bytes] = []

        def take(data: bytes) -> bool:
            got.append(data)
            return True

        client = AdminClient(reactor, parse_place(server.url), None, silence=0.2)
        with self.assertRaises(Unreachable) as caught:
            await client.listen(take)
        self.assertIn("no sign of life for 0.2 s", caught.exception.message)
        self.assertEqual(got, [b": listening\n\n"])
        await eventually(lambda: server.lost, "the end of the connection")

    async def test_a_proxy_in_front_of_it(self) -> None:
        server = WebServer(self)
        server.answer = lambda _: Answer(b'{"title":"Bad Gateway"}', 502)
        self.assertIn("Bad Gateway (status 502)", await self.failed(server.url("/relays/1")))
        (asked,) = server.asked
        self.assertEqual((asked.uri, asked.headers["authorization"]), ("/relays/1/admin/stats", "Bearer x"))


class TlsTests(CtlCase):
    """R10.1: the certificate is checked, and so is the name in it, before a token is shown."""

    settings: ClassVar[Mapping[str, str]] = {}

    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        authority = make_certificate()
        served = make_certificate(LOOPBACK, signed_by=authority)
        self.ca, self.key = directory / "ca.pem", directory / "key.pem"
        self.ca.write_bytes(authority.pem)
        self.key.write_bytes(served.pem + key_pem(served))
        self.endpoint = f"ssl:0:privateKey={self.key}:interface=127.0.0.1"
        super().setUp()

    @property
    def where(self) -> str:
        return f"ssl:{super().where.partition(':')[2]}"

    async def test_a_certificate_of_the_authority_for_the_name(self) -> None:
        self.assertIn("ready", await self.done("stats", "--ca", self.ca))

    async def failed(self, *options: object) -> str:
        result = await self.ctl("stats", *options)
        self.assertEqual((result.exit_code, result.stdout), (1, ""), result.output)
        self.assertEqual(self.audited(), [])
        return result.stderr

    async def test_an_authority_that_is_not_trusted(self) -> None:
        self.assertIn("TLS: certificate verify failed", await self.failed())

    async def test_another_name(self) -> None:
        self.assertIn("certificate is for another name", await self.failed("--ca", self.ca, "--server-name", "relay.example"))

    async def test_a_file_of_authorities_that_is_none(self) -> None:
        for path in ("/nowhere", self.tokens):
            result = await self.ctl("stats", "--ca", path)
            self.assertEqual(result.exit_code, 2)
            self.assertIn(str(path), result.stderr)

    async def test_ca_without_tls_is_a_slip(self) -> None:
        result = await self.ctl("stats", "--endpoint", "unix:/x", "--ca", self.ca)
        self.assertEqual(result.exit_code, 2)
        self.assertIn("--ca", result.stderr)


class OwnCertificateTests(CtlCase):
    """R10.1: a relay's own configuration says which name to expect of it, and which certificate to trust if it is self-signed."""

    endpoint = "ssl:0:privateKey=key.pem:certKey=cert.pem:interface=127.0.0.1"

    @property
    def where(self) -> str:
        port = super().where.rpartition(":")[2]
        directory = self.directory.absolute()
        return f"ssl:{port}:privateKey={directory / 'key.pem'}:certKey={directory / 'cert.pem'}:interface=127.0.0.1"

    async def test_it_is_trusted_where_the_configuration_names_it(self) -> None:
        self.assertIn("ready", await self.done("stats"))

    async def test_it_is_trusted_nowhere_else(self) -> None:
        port = super().where.rpartition(":")[2]
        result = await self.ctl("stats", "--endpoint", f"ssl:127.0.0.1:{port}")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("TLS: certificate verify failed", result.stderr)


class UnixTests(CtlCase):
    """Issue "run it": over a UNIX socket with mode 0600, without a token, for its owner and nobody else."""

    settings: ClassVar[Mapping[str, str]] = {"admin_unix_trust": "true"}

    def setUp(self) -> None:
        directory = Path(mkdtemp())  # trial's own directories have names that are too long for a socket
        directory.chmod(0o755)
        self.addCleanup(directory.rmdir)
        self.path = directory / "admin.sock"
        self.endpoint = f"unix:{self.path}:mode=600"
        super().setUp()

    async def process(self, *command: str) -> tuple[int, str, str]:
        """Run a command; its exit status, what it printed, what it complained."""
        out, err, status = await getProcessOutputAndValue(command[0], command[1:], env=child_environment(), reactor=reactor)
        return status, out.decode(), err.decode()

    async def test_the_owner_needs_no_token(self) -> None:
        self.assertIn("ready", await self.done("stats", token=None))
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    async def test_as_a_program_that_reads_the_relays_own_configuration(self) -> None:
        status, out, err = await self.process(*cli_command("ctl", "block", "192.0.2.1", "--config", str(self.setup.made.config)))
        self.assertEqual((status, err), (0, ""))
        self.assertIn("192.0.2.1/32", out)
        self.assertEqual((await self.get("/admin/lists"))["total"], 1)

    async def test_a_program_that_fails_has_its_status(self) -> None:
        config = str(self.setup.made.config)
        status, out, err = await self.process(*cli_command("ctl", "--config", config, "show", "ab" * 16))
        self.assertEqual((status, out), (4, ""))
        self.assertRegex(err, r"\Azrc-relay: .*404\)\n\Z")

    async def test_where_peers_are_not_trusted_the_hint_says_how_they_would_be(self) -> None:
        self.administration.gate._unix_trust = False  # noqa: SLF001 - as a relay without the setting
        result = await self.ctl("stats", token=None)
        self.assertEqual(result.exit_code, 3)
        self.assertIn("admin_unix_trust", result.stderr)

    async def check_that_another_user_is_refused(self) -> None:
        """The other user's process is told by the system, and reaches no relay."""
        other = [sys.executable, "-c", AS_ANOTHER_USER, str(NOBODY), "ctl", "--endpoint", self.where, "stats"]
        status, out, err = await self.process(*other)
        self.assertEqual((status, out), (1, ""), err)
        self.assertIn(f"you may not connect to {self.path}", err)
        self.assertEqual(self.audited(), [])

    async def check_that_another_user_gets_no_further_without_a_token(self) -> None:
        """With another mode it is the relay that refuses."""
        self.path.chmod(0o666)
        other = [sys.executable, "-c", AS_ANOTHER_USER, str(NOBODY), "ctl", "--endpoint", self.where, "stats"]
        status, _, err = await self.process(*other)
        self.assertEqual(status, 3, err)
        self.assertIn("status 401", err)


def _as_root(case: Any) -> None:
    """Add the tests that need another user, where this one may become him: only root can. The mode is shown all the same."""
    if os.geteuid() == 0:
        case.test_another_user_is_refused = case.check_that_another_user_is_refused
        case.test_another_user_gets_no_further_without_a_token = case.check_that_another_user_gets_no_further_without_a_token


_as_root(UnixTests)
