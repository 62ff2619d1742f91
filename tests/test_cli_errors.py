"""What every command does with what it cannot use, and the parameters they share."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import PATIENCE, zrc_relay, zrc_relay_process
from zrc_relay import __version__
from zrc_relay.cli.console import printable, size, span, when
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.cli.errors import STATUS_INTERRUPTED, BadInput, Failure, Program, trouble
from zrc_relay.cli.main import main
from zrc_relay.cli.params import HostPort, hex_bytes, host_port, make_trust
from zrc_relay.cli.processes import child_environment, cli_command
from zrc_relay.client.errors import ConnectFailed, ConnectionLost, TokenExpired, UnknownCode
from zrc_relay.client.trust import Trust


def every_command(group: click.Group = main, *path: str) -> list[tuple[str, ...]]:
    """The paths of all commands, groups included."""
    found: list[tuple[str, ...]] = [path]
    for name, command in group.commands.items():
        found += every_command(command, *path, name) if isinstance(command, click.Group) else [(*path, name)]
    return found


class HelpTests(SynchronousTestCase):
    """Issue 2: every command explains itself."""

    def test_every_command_and_every_option_has_a_help_text(self) -> None:
        self.assertGreaterEqual(len(every_command()), 10)
        for path in every_command():
            result = zrc_relay(*path, "--help")
            self.assertEqual((result.exit_code, result.stderr), (0, ""), path)
            self.assertIn("Usage: zrc-relay", result.stdout)
            command: click.Command = main
            for name in path:
                self.assertIsInstance(command, click.Group)
                command = command.commands[name] if isinstance(command, click.Group) else command
            self.assertTrue(command.help, path)
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    self.assertTrue(parameter.help, (path, parameter.name))

    def test_the_version_is_the_packages(self) -> None:
        self.assertIn(__version__, zrc_relay("--version").stdout)


class UsageTests(SynchronousTestCase):
    """Issue 2, "bad input gets a clear answer": one line on standard error, status 2, no traceback."""

    def test_wrong_usage_is_one_line_that_points_to_the_help(self) -> None:
        for arguments, where in (
            (("bogus",), "zrc-relay --help"),
            (("token", "bogus"), "zrc-relay token --help"),
            (("keygen", "a", "b"), "zrc-relay keygen --help"),
            (("keygen", "--bogus"), "zrc-relay keygen --help"),
            (("token", "mint"), "zrc-relay token mint --help"),
            (("ping",), "zrc-relay ping --help"),
            (("ping", "relay.example", "--count", "0"), "zrc-relay ping --help"),
            (("tunnel",), "zrc-relay tunnel --help"),
            (("demo", "--bulk", "much"), "zrc-relay demo --help"),
        ):
            result = zrc_relay(*arguments)
            self.assertEqual((result.exit_code, result.stdout), (2, ""), arguments)
            self.assertRegex(result.stderr, rf"\Azrc-relay: .+ \(see {where}\)\n\Z")

    def test_a_group_without_a_command_shows_its_help(self) -> None:
        for arguments in ((), ("token",)):
            self.assertIn("Commands:", zrc_relay(*arguments).output)

    def test_a_real_process_ends_the_same_way(self) -> None:
        result = zrc_relay_process("ping", "relay.example:x")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"\Azrc-relay: .*'x' is not a port.*\n\Z")

    def test_nobody_at_the_relays_address_is_status_1_in_one_line(self) -> None:
        result = zrc_relay_process("ping", "127.0.0.1:9", "--insecure", "--timeout", "200ms")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertRegex(result.stderr, r"\Azrc-relay: cannot connect to 127\.0\.0\.1:9: no answer .*\n\Z")


class ProgramTests(SynchronousTestCase):
    """Issue 2: how the command ends."""

    def run_raising(self, error: BaseException) -> Any:
        @click.group(cls=Program)
        def group() -> None:
            """A group."""

        @group.command()
        def fail() -> None:
            """Fail."""
            raise error

        return CliRunner().invoke(group, ["fail"])

    def test_failures_and_bad_input_have_their_statuses(self) -> None:
        for error, status, hint in (
            (Failure("no"), 1, ""), (BadInput("no"), 2, ""), (click.UsageError("no"), 2, " (see group fail --help)"),
        ):
            result = self.run_raising(error)
            self.assertEqual((result.exit_code, result.stderr), (status, f"zrc-relay: no{hint}\n"))

    def test_each_of_several_problems_has_a_line(self) -> None:
        self.assertEqual(self.run_raising(BadInput("one\ntwo")).stderr, "zrc-relay: one\nzrc-relay: two\n")

    def test_ctrl_c_is_status_130_without_a_traceback(self) -> None:
        result = self.run_raising(KeyboardInterrupt())
        self.assertEqual(result.exit_code, STATUS_INTERRUPTED)
        self.assertNotIn("Traceback", result.output)

    def test_a_bug_is_not_hidden(self) -> None:
        self.assertIsInstance(self.run_raising(ZeroDivisionError()).exception, ZeroDivisionError)

    def test_without_standalone_mode_errors_go_to_the_caller(self) -> None:
        self.assertRaises(click.UsageError, main.main, ["bogus"], standalone_mode=False)

    def test_what_a_relay_says_cannot_command_a_terminal(self) -> None:
        failure = trouble(TokenExpired("\x1b[2Jgone\r\nzrc-relay: all is well"), "relay.example:4433")
        self.assertNotIn("\x1b", failure.message)
        self.assertEqual(len(failure.message.splitlines()), 1)

    def test_each_kind_of_trouble_is_told_apart(self) -> None:
        texts = {
            trouble(error, "relay.example:4433").message.partition(":")[0]
            for error in (TokenExpired("x"), ConnectFailed("x"), ConnectionLost("x"))
        }
        self.assertEqual(len(texts), 3)
        self.assertIn("0x99", trouble(UnknownCode(0x99, "later"), "relay").message)


class ParameterTests(SynchronousTestCase):
    """Issue 2: addresses, digits and trust, as people write them."""

    def test_addresses(self) -> None:
        relay = host_port(default_port=4433)
        for text, host, port in (
            ("relay.example", "relay.example", 4433), ("relay.example:1", "relay.example", 1),
            ("192.0.2.1:65535", "192.0.2.1", 65535),
            ("[2001:db8::1]:99", "2001:db8::1", 99), ("[2001:db8::1]", "2001:db8::1", 4433), ("2001:db8::1", "2001:db8::1", 4433),
            (" relay.example ", "relay.example", 4433),
        ):
            self.assertEqual(relay(text), HostPort(host, port))

    def test_listening_takes_a_port_alone(self) -> None:
        listen = host_port(default_host="127.0.0.1", minimum_port=0)
        self.assertEqual(listen("0"), HostPort("127.0.0.1", 0))
        self.assertEqual(listen("[::1]:5000"), HostPort("::1", 5000))
        self.assertEqual(listen("192.0.2.1:5000"), HostPort("192.0.2.1", 5000))

    def test_addresses_that_are_none(self) -> None:
        for text in ("", ":5", "host:", "host:0", "host:65536", "host:-1", "host:1x", "host:\u0661", "[::1", "[::1]5", "[]:5"):
            self.assertRaises(click.BadParameter, host_port(), text)
        self.assertRaises(click.BadParameter, host_port(), "2001:db8::1")

    def test_an_ipv6_address_is_shown_in_brackets(self) -> None:
        self.assertEqual([str(HostPort("::1", 5)), str(HostPort("a", 5))], ["[::1]:5", "a:5"])

    def test_digits_may_have_colons(self) -> None:
        self.assertEqual(hex_bytes(3)("0a:0B:0c"), b"\x0a\x0b\x0c")
        for text in ("", "0a0b", "0a0b0c0d", "0a0b0x", "0a 0b 0c"):
            self.assertRaises(click.BadParameter, hex_bytes(3), text)

    def test_trust_is_the_systems_authorities_unless_told(self) -> None:
        self.assertEqual(make_trust(fingerprint=None, ca_file=None, server_name=None, insecure=False), Trust())
        self.assertEqual(
            make_trust(fingerprint=bytes(32), ca_file=None, server_name="x", insecure=False),
            Trust(fingerprint=bytes(32), server_name="x"),
        )

    def test_ways_to_trust_that_exclude_each_other_are_refused(self) -> None:
        with self.assertRaises(BadInput):
            make_trust(fingerprint=bytes(32), ca_file=None, server_name=None, insecure=True)
        with self.assertRaises(BadInput):
            make_trust(fingerprint=None, ca_file=Path("x"), server_name=None, insecure=True)

    def test_authorities_are_read_before_anything_is_sent(self) -> None:
        made = make_dev_setup(Path(self.mktemp()), listen=["127.0.0.1"], port=0)
        good, bad = made.directory / "cert.pem", made.directory / "relay.toml"
        self.assertEqual(make_trust(fingerprint=None, ca_file=good, server_name=None, insecure=False), Trust(ca_file=good))
        for path in (bad, made.directory / "absent"):
            with self.assertRaises(BadInput) as caught:
                make_trust(fingerprint=None, ca_file=path, server_name=None, insecure=False)
            self.assertIn(str(path), str(caught.exception))


class WordingTests(SynchronousTestCase):
    """How numbers and texts are shown."""

    def test_times(self) -> None:
        self.assertEqual(when(0), "1970-01-01 00:00:00 UTC")
        self.assertEqual(when(2**64 - 1), str(2**64 - 1))
        self.assertEqual([span(s) for s in (0, 59.9, 3600, 90061)], ["0 s", "59 s", "1 h", "1 d 1 h"])

    def test_sizes(self) -> None:
        self.assertEqual([size(n) for n in (0, 999, 1000, 8_000_000, 5e15)], ["0 B", "999 B", "1.0 kB", "8.0 MB", "5000.0 TB"])

    def test_only_what_can_be_printed_is(self) -> None:
        self.assertEqual(printable("a\x1bb\n\u202ec"), "a?b??c")


class SignalTests(SynchronousTestCase):
    """Issue 2: a command that waits in the reactor ends when it is told to."""

    def setUp(self) -> None:
        self.silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.silent.close)
        self.silent.bind(("127.0.0.1", 0))
        self.silent.settimeout(PATIENCE)

    def interrupt(self, number: signal.Signals) -> tuple[int, str]:
        """Send ``number`` to a ping that waits for an answer; its status and all that it has printed."""
        port = self.silent.getsockname()[1]
        command = cli_command("ping", f"127.0.0.1:{port}", "--insecure", "--timeout", "5min")
        with subprocess.Popen(
            command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            self.silent.recv(2048)
            process.send_signal(number)
            output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def test_ctrl_c_ends_it_without_a_traceback(self) -> None:
        status, output = self.interrupt(signal.SIGINT)
        self.assertEqual(status, STATUS_INTERRUPTED, output)
        self.assertNotIn("Traceback", output)

    def test_sigterm_does_the_same(self) -> None:
        status, output = self.interrupt(signal.SIGTERM)
        self.assertEqual(status, STATUS_INTERRUPTED, output)
        self.assertNotIn("Traceback", output)
