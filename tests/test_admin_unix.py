"""The admin endpoint on a UNIX socket: its mode, and the peer's credentials instead of a token."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import ClassVar

from twisted.internet.utils import getProcessOutput
from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import READ_TOKEN, AdminCase, reactor, request_bytes
from tests.real_relay import Setup
from zrc_relay.config import ConfigError, load_config

NOBODY = 65534
ASK = """
import os, socket, sys
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
peer = socket.socket(socket.AF_UNIX)
try:
    peer.connect(sys.argv[1])
except OSError as error:
    print(type(error).__name__)
else:
    peer.sendall(bytes.fromhex(sys.argv[2]))
    print(peer.recv(4096).split(b" ")[1].decode())
"""


class UnixSocketTests(AdminCase):
    """R10.7: a UNIX socket with mode 0600 whose peers' credentials replace the token."""

    settings: ClassVar[Mapping[str, str]] = {"admin_unix_trust": "true"}
    mode = 0o600

    def setUp(self) -> None:
        directory = Path(mkdtemp())  # trial's own directories have names that are too long for a socket
        directory.chmod(0o755)
        self.addCleanup(directory.rmdir)
        self.path = directory / "admin.sock"
        self.endpoint = f"unix:{self.path}:mode={self.mode:o}"
        super().setUp()

    def test_the_socket_has_its_mode(self) -> None:
        status = self.path.stat()
        self.assertTrue(stat.S_ISSOCK(status.st_mode))
        self.assertEqual((stat.S_IMODE(status.st_mode), status.st_uid), (self.mode, os.geteuid()))

    async def test_the_relays_own_user_needs_no_token_and_the_audit_log_says_who_it_was(self) -> None:
        answer = await self.ask("POST", "/admin/lists", token=None, value={"network": "203.0.113.1", "access": "block"})
        self.assertEqual((answer.status, answer.json["note"]), (201, f"admin uid {os.geteuid()}"))
        (record,) = self.audited()
        self.assertEqual((record["who"], record["how"]), (f"uid {os.geteuid()}", "unix"))
        self.assertEqual(record["from"], f"unix uid={os.geteuid()} pid={os.getpid()}")

    async def test_a_token_that_is_shown_goes_before_it(self) -> None:
        self.assertEqual((await self.ask("POST", "/admin/drain", token=READ_TOKEN)).status, 403)
        self.assertEqual((await self.ask("GET", "/admin/stats", token="wrong")).status, 401)  # noqa: S106 - it is

    async def test_when_the_relay_stops_the_socket_goes(self) -> None:
        await self.service.stopService()
        self.assertFalse(self.path.exists())

    async def ask_as(self, uid: int) -> str:
        """The status that another user gets, or the name of the error that keeps him from asking."""
        data = request_bytes("GET", "/admin/stats").hex()
        output: bytes = await getProcessOutput(
            sys.executable, ("-I", "-S", "-c", ASK, str(self.path), data, str(uid)), reactor=reactor, errortoo=True
        )
        return output.decode().strip()

    async def check_that_another_user_is_refused_by_the_system(self) -> None:
        self.assertEqual(await self.ask_as(NOBODY), "PermissionError")
        self.assertEqual(await self.ask_as(0), "200")


class OpenSocketTests(UnixSocketTests):
    """R10.7: where a mode lets others connect, they need a token all the same."""

    mode = 0o666

    async def check_that_another_user_is_refused_by_the_system(self) -> None:
        self.assertEqual(await self.ask_as(NOBODY), "401")
        (record,) = self.audited()
        self.assertEqual((record["status"], record["from"].split()[1]), (401, f"uid={NOBODY}"))


class UntrustedSocketTests(AdminCase):
    """R10.7: unless so configured nobody is known by his credentials."""

    def setUp(self) -> None:
        directory = Path(mkdtemp())
        self.addCleanup(directory.rmdir)
        self.endpoint = f"unix:{directory / 'admin.sock'}"
        super().setUp()

    async def test_everybody_needs_a_token(self) -> None:
        self.assertEqual((await self.ask("GET", "/admin/stats", token=None)).status, 401)
        self.assertEqual((await self.ask("GET", "/admin/stats", token=READ_TOKEN)).status, 200)


class ConfigurationTests(SynchronousTestCase):
    """R8, R10.1: off by default; an endpoint that nobody could use, or that everybody could listen to, is a problem."""

    def problems(self, **settings: str) -> str:
        made = Setup(self).made  # type: ignore[arg-type]  # a SynchronousTestCase has what it uses
        error = self.assertRaises(ConfigError, load_config, path=made.config, environ={}, options=settings)
        return str(error)

    def test_it_is_off_by_default(self) -> None:
        made = Setup(self).made  # type: ignore[arg-type]
        config = load_config(path=made.config, environ={}, options={})
        self.assertEqual((config.admin_endpoint, config.admin_tokens_path, config.admin_unix_trust), (None, None, False))

    def test_one_that_nobody_could_use(self) -> None:
        self.assertIn("nobody could use it", self.problems(admin_endpoint="tcp:9434:interface=127.0.0.1"))
        self.assertIn("nobody could use it", self.problems(admin_endpoint="unix:/run/x.sock"))

    def test_trust_in_peers_of_what_is_no_unix_socket(self) -> None:
        text = self.problems(admin_endpoint="tcp:9434:interface=127.0.0.1", admin_unix_trust="true", admin_tokens_path="x")
        self.assertIn("admin_unix_trust", text)
        self.assertIn("there is no UNIX socket", text)

    def test_plain_tcp_that_others_can_reach(self) -> None:
        for endpoint in ("tcp:9434", "tcp:9434:interface=0.0.0.0", "tcp:9434:interface=192.0.2.1"):
            self.assertIn("plain TCP", self.problems(admin_endpoint=endpoint, admin_tokens_path="x"))


def _as_root(case: type[UnixSocketTests]) -> None:
    """Add the test that needs another user, where this one may become him; the others show the modes that keep him out."""
    if os.geteuid() == 0 and hasattr(socket, "SO_PEERCRED"):
        case.test_another_user_is_refused = case.check_that_another_user_is_refused_by_the_system  # type: ignore[attr-defined]


_as_root(UnixSocketTests)
_as_root(OpenSocketTests)
