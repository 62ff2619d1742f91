"""The fail2ban filter and jail, on the lines that the relay writes."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.test_securitylog import NOON, Recorder
from zrc_relay.config_table import SETTINGS
from zrc_relay.core.codes import ErrorCode
from zrc_relay.linefile import LineFile
from zrc_relay.securitylog import EVENTS, SOURCE_BURST, SOURCE_RATE, SecurityLog

ROOT = Path(__file__).resolve().parent.parent
FILTER = ROOT / "deploy/fail2ban/filter.d/zrc-relay.conf"
JAIL = ROOT / "deploy/fail2ban/jail.d/zrc-relay.conf"
SYSTEM = Path("/etc/fail2ban")

ABUSIVE = frozenset((
    ErrorCode.PROTOCOL_ERROR, ErrorCode.CONTROL_TOO_LARGE, ErrorCode.TOKEN_MALFORMED, ErrorCode.TOKEN_BAD_SIGNATURE,
    ErrorCode.TOKEN_WRONG_RELAY, ErrorCode.TOKEN_WRONG_ALLOCATION, ErrorCode.TOKEN_WRONG_PEER, ErrorCode.TOKEN_TOO_LONG,
    ErrorCode.PROOF_REQUIRED, ErrorCode.PROOF_INVALID, ErrorCode.RATE_LIMITED,
))
"""What an honest client is not told again and again."""
LIMITS = frozenset(("security.connection_rate", "security.allocation_rate", "security.rejoin_rate"))


def write_stream(path: Path) -> dict[str, bool]:
    """A file with a line for everything that the relay can report, each from a source of its own; which of them should count."""
    log = SecurityLog(Recorder(), now=lambda: 0.0, wall=lambda: NOON, file=LineFile(path))
    expected: dict[str, bool] = {}

    def report(name: str, *, counts: bool, host: str = "", **fields: object) -> None:
        host = host or f"192.0.2.{len(expected) + 1}"
        expected[host] = counts
        log.event(name, remote=f"[{host}]:4000" if ":" in host else f"{host}:4000", **fields)

    for code in ErrorCode:
        report("session.refused", counts=code in ABUSIVE, code=code.name, reason="a reason", connection="8394c8f03e515708")
    for name in EVENTS:
        if name != "session.refused":
            for validated in (True, False):
                report(name, counts=validated and name in LIMITS, cause="retry", validated=validated)
    report("session.refused", counts=True, host="2001:db8::7", code="PROOF_INVALID")
    report("session.refused", counts=False, code="PROOF_INVALID", validated=False)
    abuse = '{"time":"","event":"session.refused","source":"203.0.113.1","validated":true,"code":"PROOF_INVALID"'
    report("session.refused", counts=False, code="TOKEN_EXPIRED", reason=rf'{abuse}\"{abuse}' + f"\n{abuse}")
    log.event("session.refused", code="PROOF_INVALID", reason="without a source")
    log.close()
    return expected


def read(path: Path) -> Mapping[str, str]:
    """The options of the one section of a configuration file, with fail2ban's own tags left as they are."""
    parser = configparser.RawConfigParser()
    parser.read(path, encoding="utf-8")
    [section] = parser.sections()
    return parser[section]


class FilterTests(SynchronousTestCase):
    """R6.5, R6.6, R6.2: the filter takes every line that tells of abuse, and none whose source may be made up."""

    def setUp(self) -> None:
        self.log = Path(self.mktemp()).absolute()
        self.expected = write_stream(self.log)
        self.counted = [host for host, counts in self.expected.items() if counts]

    def test_the_pattern_matches_exactly_the_lines_that_count(self) -> None:
        options = read(FILTER)
        patterns = []
        for line in options["failregex"].splitlines():
            filled = line.replace("<abusive>", options["abusive"]).replace("<ADDR>", r"(?P<host>[0-9a-f.:]+)")
            self.assertNotRegex(filled, r"<(?!host>)\w+>")
            patterns.append(re.compile(filled))
        matched = []
        for line in self.log.read_text().splitlines():
            undated = re.sub(r'\A\{"time":"[^"]*"', '{"time":""', line)  # fail2ban takes the date out
            found = [match.group("host") for pattern in patterns if (match := pattern.search(undated))]
            matched += found
        self.assertEqual(matched, self.counted)

    def test_the_codes_that_count_are_codes(self) -> None:
        self.assertEqual(set(read(FILTER)["abusive"].split("|")), {code.name for code in ABUSIVE})

    def check_with_fail2ban_regex(self) -> None:
        done = subprocess.run(
            [FAIL2BAN_REGEX, "-o", "<ip> <time>", self.log, FILTER], capture_output=True, text=True, check=False,
            env={"PATH": "/usr/bin:/bin", "TZ": "America/New_York"},
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stdout.splitlines(), [f"{host} {int(NOON)}" for host in self.counted])


class JailTests(SynchronousTestCase):
    """R6.6: the jail is for the relay's port, and its numbers can be reached at the rate that lines are written."""

    def test_it_guards_the_port_that_is_the_default(self) -> None:
        options = read(JAIL)
        self.assertEqual((options["port"], options["protocol"]), (SETTINGS["listen_port"].default, "udp"))
        self.assertEqual(options["filter"], FILTER.stem)

    def test_who_goes_on_is_banned_although_lines_are_bounded(self) -> None:
        options = read(JAIL)
        minutes = int(options["findtime"].removesuffix("m"))
        self.assertLess(int(options["maxretry"]), SOURCE_BURST + SOURCE_RATE * 60 * minutes)
        self.assertGreater(int(options["maxretry"]), SOURCE_BURST, "one burst of mistakes is not enough")

    def check_with_fail2ban_client(self) -> None:
        directory = Path(self.mktemp()).absolute()
        shutil.copytree(SYSTEM, directory)
        shutil.rmtree(directory / "jail.d")
        (directory / "jail.d").mkdir()
        shutil.copy(JAIL, directory / "jail.d")
        shutil.copy(FILTER, directory / "filter.d")
        log = directory / "security.log"
        write_stream(log)
        (directory / "jail.d/zz.local").write_text(f"[zrc-relay]\nlogpath = {log}\n")
        done = subprocess.run([FAIL2BAN_CLIENT, "-c", directory, "-d"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("['add', 'zrc-relay', 'auto']", done.stdout)
        self.assertIn(str(log), done.stdout)


def _when_installed(case: type[SynchronousTestCase], name: str, check: Callable[..., None], program: str) -> None:
    """Add a test that needs a program of Debian's fail2ban where there is one; everywhere else the tests above do."""
    if program:
        setattr(case, name, check)


FAIL2BAN_REGEX = shutil.which("fail2ban-regex") or ""
FAIL2BAN_CLIENT = (SYSTEM.is_dir() and shutil.which("fail2ban-client")) or ""
_when_installed(
    FilterTests, "test_fail2ban_regex_agrees_about_sources_and_times", FilterTests.check_with_fail2ban_regex, FAIL2BAN_REGEX)
_when_installed(
    JailTests, "test_fail2ban_client_understands_the_jail", JailTests.check_with_fail2ban_client, FAIL2BAN_CLIENT)
