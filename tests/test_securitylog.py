"""The stream of security events: what is in it, what never is, how much it can become, and the file it goes to."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import resource
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

import zrc_relay
from tests.real_relay import Setup, eventually
from tests.test_process import ProcessCase
from zrc_relay import securitylog
from zrc_relay.client.errors import TokenBadSignature
from zrc_relay.config import load_config
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import Limit
from zrc_relay.core.fields import Address
from zrc_relay.engine import Surroundings
from zrc_relay.linefile import LineFile
from zrc_relay.securitylog import EVENTS, FIELDS, MAX_SOURCES, SOURCE_BURST, UNVALIDATED_BURST, SecurityLog
from zrc_relay.service import RelayService, StartError

PACKAGE = Path(zrc_relay.__file__).parent
ROOT = PACKAGE.parent
NOON = 1795348800.0
"""2026-11-22T12:00:00Z"""
Record = Mapping[str, object]


class Recorder:
    """An observer and a sink that keep what they get."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.records: list[Record] = []

    def event(self, name: str, **fields: object) -> None:
        self.events.append((name, fields))

    def offer(self, record: Record) -> None:
        self.records.append(record)


class SecurityLogCase(SynchronousTestCase):
    """A log without a file whose records are looked at, and the clock that it reads."""

    def setUp(self) -> None:
        self.time = 0.0
        self.behind = Recorder()
        self.log = self.make()

    def make(self, file: LineFile | None = None) -> SecurityLog:
        log = SecurityLog(self.behind, now=lambda: self.time, wall=lambda: NOON + self.time, file=file)
        log.sinks.append(self.behind)
        return log

    @property
    def records(self) -> list[Record]:
        return self.behind.records

    def refuse(self, source: str = "192.0.2.7", code: str = "TOKEN_EXPIRED", times: int = 1) -> None:
        """Some events as ``Relay.refused`` reports them."""
        for _ in range(times):
            self.log.event("session.refused", code=code, reason="a reason", connection="8394", remote=f"{source}:4000")

    def last(self, name: str = "session.refused", **fields: object) -> Record:
        """The record of an event with these fields."""
        self.log.event(name, **fields)
        return self.records[-1]

    def logged(self) -> list[LogEvent]:
        """A list that fills with what is logged from here on."""
        events: list[LogEvent] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return events


class RecordTests(SecurityLogCase):
    """R6.5: one structured stream; R6.7: never payload, whole tokens or keys."""

    def test_a_refusal_as_a_record(self) -> None:
        self.time = 7.1236
        self.refuse()
        self.assertEqual(self.records, [{
            "time": "2026-11-22T12:00:07.123Z", "event": "session.refused", "source": "192.0.2.7", "port": 4000,
            "validated": True, "code": "TOKEN_EXPIRED", "connection": "8394", "reason": "a reason",
        }])

    def test_the_fields_come_in_the_order_of_the_table(self) -> None:
        everything: dict[str, Any] = dict.fromkeys(reversed(list(FIELDS)), "x")
        everything |= {"source": "192.0.2.7", "port": 5, "validated": False}
        for _ in range(UNVALIDATED_BURST + 1):
            self.log.event("security.stun_rate", **everything)
        self.time = 10
        names = list(self.last("security.stun_rate", **everything))
        self.assertEqual(names, [name for name in FIELDS if name in names])
        self.assertEqual(set(FIELDS) - set(names), {"of", "sources"})

    def test_sources_in_every_form_that_events_use(self) -> None:
        for given_as, host, port in (
            ("192.0.2.1", "192.0.2.1", None), ("192.0.2.1:99", "192.0.2.1", 99), ("[2001:db8::1]:99", "2001:db8::1", 99),
            ("2001:db8::1", "2001:db8::1", None), ("2001:db8::/64", "2001:db8::", None), ("::ffff:192.0.2.1", "192.0.2.1", None),
            (Address.of("192.0.2.1", 99), "192.0.2.1", 99),
        ):
            record = self.last(remote=given_as, code=str(given_as))
            self.assertEqual((record["source"], record.get("port")), (host, port), given_as)
        self.assertEqual(self.last(source="192.0.2.1", port=99)["port"], 99)

    def test_without_a_source_that_is_one_there_is_none(self) -> None:
        for given_as in (None, "", "nonsense", "none", "192.0.2.1:x", "192.0.2.1:70000", 5, b"\1\2\3\4", Address()):
            record = self.last(remote=given_as)
            self.assertEqual(set(record) & {"source", "port", "validated"}, set(), given_as)

    def test_whether_the_source_is_validated_is_told_by_the_event_or_else_by_its_kind(self) -> None:
        for name, kind in EVENTS.items():
            self.assertIs(self.last(name, source="192.0.2.1", cause="a")["validated"], kind.validated, name)
            for validated in (True, False):
                record = self.last(name, source="192.0.2.1", cause="b", validated=validated)
                self.assertIs(record["validated"], validated, name)

    def test_a_kind_that_is_not_known_is_written_and_not_believed(self) -> None:
        self.assertIs(self.last("security.news", source="192.0.2.1")["validated"], False)

    def test_what_is_no_field_of_the_table_is_not_written(self) -> None:
        record = self.last(remote="192.0.2.1:5", token="sesame", payload="data", key="k", device="d")  # noqa: S106
        self.assertEqual(list(record), ["time", "event", "source", "port", "validated"])

    def test_bytes_are_never_written(self) -> None:
        record = self.last(code=b"code", reason=b"reason", connection=bytearray(b"x"), cause=memoryview(b"y"))
        self.assertEqual(list(record), ["time", "event"])

    def test_text_is_cut_and_numbers_and_names_are_kept(self) -> None:
        record = self.last(reason="x" * 5000, code=ErrorCode.BLOCKED, cause=Limit.BLOCKED, connection=float("nan"))
        self.assertEqual(record["reason"], "x" * 200)
        self.assertEqual((record["code"], record["cause"]), ("BLOCKED", "BLOCKED"))
        self.assertNotIn("connection", record)

    @given(st.sampled_from([*EVENTS, "security.x"]), st.dictionaries(
        st.sampled_from([*FIELDS, "remote", "token"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary() | st.ip_addresses()
        | st.lists(st.text()),
    ))
    def test_whatever_an_event_carries_is_one_line_of_json(self, name: str, fields: dict[str, Any]) -> None:
        path = Path(self.mktemp())
        log = SecurityLog(Recorder(), now=lambda: 0.0, wall=lambda: NOON, file=LineFile(path))
        fields.pop("name", None)
        log.event(name, **fields)
        log.close()
        [line] = path.read_text().splitlines()
        record = json.loads(line, parse_constant=self.fail)
        self.assertEqual(list(record)[:2], ["time", "event"])
        self.assertEqual(set(record) - set(FIELDS), set())
        self.assertLess(len(line), 3000)


class PassingTests(SecurityLogCase):
    """R6.5, R5.7: the stream takes what is its own, and no event is lost to the observer behind it."""

    def test_other_events_pass_and_make_no_record(self) -> None:
        self.log.event("allocation.created", device="d", tier="free")
        self.assertEqual(self.behind.events, [("allocation.created", {"device": "d", "tier": "free"})])
        self.assertEqual(self.records, [])

    def test_without_a_file_records_go_to_the_log_and_not_behind_it_a_second_time(self) -> None:
        events = self.logged()
        self.refuse()
        self.assertEqual(self.behind.events, [])
        [event] = [event for event in events if event.get("log_namespace") == "zrc_relay.securitylog.SecurityLog"]
        self.assertEqual(event["log_format"], "security {line}")
        self.assertEqual(json.loads(event["line"]), self.records[0])
        self.assertIs(event["log_level"], LogLevel.info)

    def test_with_a_file_every_event_goes_on_as_well(self) -> None:
        self.log = self.make(LineFile(Path(self.mktemp())))
        self.refuse(times=SOURCE_BURST + 5)
        self.assertEqual(len(self.behind.events), SOURCE_BURST + 5)
        self.assertEqual(len(self.records), SOURCE_BURST)


class RateTests(SecurityLogCase):
    """R6.5, R6.9: a bounded rate for each cause and source, and nothing lost from the sum."""

    def test_one_source_gets_a_burst_and_then_ten_a_minute_with_what_is_missing_told(self) -> None:
        self.refuse(times=50)
        self.assertEqual(len(self.records), SOURCE_BURST)
        self.time = 6.1
        self.refuse()
        self.assertEqual(self.records[-1]["suppressed"], 40)
        self.time = 12.2
        self.refuse()
        self.assertNotIn("suppressed", self.records[-1])
        self.time = 13
        self.refuse(times=5)
        self.assertEqual(len(self.records), SOURCE_BURST + 2)

    def test_other_causes_and_other_sources_have_budgets_of_their_own(self) -> None:
        self.refuse(times=50)
        self.refuse(code="PROOF_INVALID")
        self.refuse(source="192.0.2.8")
        self.log.event("security.rejoin_rate", source="192.0.2.7", code="TOKEN_EXPIRED")
        self.assertEqual(len(self.records), SOURCE_BURST + 3)

    def test_an_ipv6_64_is_one_source_and_its_neighbour_another(self) -> None:
        for number in range(50):
            self.refuse(source=f"[2001:db8::{number:x}]")
        self.assertEqual(len(self.records), SOURCE_BURST)
        self.refuse(source="[2001:db8:0:1::1]")
        self.assertEqual(len(self.records), SOURCE_BURST + 1)

    def test_made_up_sources_share_one_budget_and_take_no_room(self) -> None:
        for number in range(5000):
            self.log.event("security.connection_rate", source=f"198.51.{number >> 8}.{number & 255}", validated=False)
        self.assertEqual(len(self.records), UNVALIDATED_BURST)
        self.assertEqual(len(vars(self.log)["_sources"]), 1)
        self.time = 1
        record = self.last("security.connection_rate", source="192.0.2.1", validated=False)
        self.assertEqual(record["suppressed"], 5000 - UNVALIDATED_BURST)

    def test_made_up_sources_do_not_spend_the_budget_of_real_ones(self) -> None:
        for number in range(5000):
            self.log.event("security.connection_rate", source=f"198.51.{number >> 8}.{number & 255}", validated=False)
        record = self.last("security.connection_rate", source="198.51.0.1", validated=True)
        self.assertIs(record["validated"], True)

    def test_many_real_sources_together_are_bounded_too(self) -> None:
        for number in range(1000):
            self.refuse(source=f"198.51.{number >> 8}.{number & 255}")
        self.assertEqual(len(self.records), securitylog.CAUSE_BURST)
        self.time = 1
        for number in range(1000):
            self.refuse(source=f"198.52.{number >> 8}.{number & 255}")
        self.assertEqual(len(self.records), securitylog.CAUSE_BURST + securitylog.CAUSE_RATE)

    def test_the_table_of_sources_is_bounded_and_the_one_heard_of_least_recently_goes(self) -> None:
        self.refuse(source="192.0.2.1", times=SOURCE_BURST)
        self.refuse(source="192.0.2.2", times=SOURCE_BURST + 7)
        for number in range(MAX_SOURCES - 2):
            self.refuse(source=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        self.refuse(source="192.0.2.1")
        self.refuse(source="192.0.2.3")
        self.assertEqual(len(vars(self.log)["_sources"]), MAX_SOURCES)
        self.time = 5
        before = len(self.records)
        self.refuse(source="192.0.2.1")
        self.assertEqual(len(self.records), before, "still known, and over its budget")
        self.refuse(source="192.0.2.2")
        self.assertEqual(len(self.records), before + 1, "forgotten")
        self.log.summarise()
        self.assertEqual(self.told(), 2 * SOURCE_BURST + 7 + MAX_SOURCES - 2 + 4, "and nothing is lost from the sum")

    def test_the_table_of_causes_is_bounded(self) -> None:
        for number in range(1000):
            self.refuse(source=f"10.0.{number >> 8}.{number & 255}", code=f"C{number}")
        self.assertLessEqual(len(vars(self.log)["_causes"]), securitylog.MAX_CAUSES + 1)
        self.log.summarise()
        self.assertEqual(self.told(), 1000)

    def test_a_summary_tells_what_no_record_has_told_once(self) -> None:
        self.refuse(times=SOURCE_BURST + 3)
        self.refuse(source="192.0.2.8", times=SOURCE_BURST + 4)
        self.refuse(code="PROOF_INVALID", times=SOURCE_BURST + 1)
        for _ in range(UNVALIDATED_BURST + 2):
            self.log.event("security.stun_rate", source="192.0.2.9")
        before = len(self.records)
        self.log.summarise()
        summaries = [{name: value for name, value in record.items() if name != "time"} for record in self.records[before:]]
        self.assertEqual(summaries, [
            {"event": "security.suppressed", "cause": "TOKEN_EXPIRED", "of": "session.refused", "sources": 2, "suppressed": 7},
            {"event": "security.suppressed", "cause": "PROOF_INVALID", "of": "session.refused", "sources": 1, "suppressed": 1},
            {"event": "security.suppressed", "of": "security.stun_rate", "sources": 1, "suppressed": 2},
        ])
        self.log.summarise()
        self.assertEqual(len(self.records), before + 3)

    @given(st.lists(st.tuples(
        st.sampled_from(["192.0.2.1", "192.0.2.2", "[2001:db8::1]"]), st.sampled_from(["A", "B"]), st.booleans(),
        st.floats(0, 20), st.integers(1, 30), st.booleans(),
    ), max_size=30))
    def test_records_and_what_they_say_is_missing_add_up(self, steps: list[tuple[str, str, bool, float, int, bool]]) -> None:
        self.setUp()
        events = 0
        for source, cause, validated, seconds, times, summarises in steps:
            self.time += seconds
            for _ in range(times):
                self.log.event("security.blocked", source=source, cause=cause, validated=validated)
            events += times
            if summarises:
                self.log.summarise()
        self.log.close()
        self.assertEqual(self.told(), events)
        self.assertEqual((self.log.written, self.log.suppressed + self.events_written()), (len(self.records), events))

    def events_written(self) -> int:
        return sum(record["event"] != "security.suppressed" for record in self.records)

    def told(self) -> int:
        """How many events the records tell of."""
        return self.events_written() + sum(int(str(record.get("suppressed", 0))) for record in self.records)


class FileTests(SecurityLogCase):
    """R6.5: the file is appended to, survives rotation, and no trouble with it reaches the relay."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def test_what_was_there_stays(self) -> None:
        self.path.write_text("before\n")
        log = self.make(LineFile(self.path))
        log.event("session.refused", remote="192.0.2.1:5")
        self.assertEqual(self.lines()[0], "before")
        self.assertEqual(json.loads(self.lines()[1])["source"], "192.0.2.1")

    def test_only_owner_and_group_may_read_it(self) -> None:
        LineFile(self.path).close()
        self.assertEqual(self.path.stat().st_mode & 0o137, 0)

    def test_reopening_goes_on_under_the_old_name(self) -> None:
        log = self.make(LineFile(self.path))
        log.event("session.refused", code="A")
        rotated = self.path.rename(self.path.with_suffix(".1"))
        log.event("session.refused", code="B")
        self.assertEqual(len(rotated.read_text().splitlines()), 2)
        log.reopen()
        log.event("session.refused", code="C")
        self.assertEqual([json.loads(line)["code"] for line in self.lines()], ["C"])
        self.assertEqual(len(rotated.read_text().splitlines()), 2)

    def test_when_it_cannot_be_reopened_the_old_one_goes_on_and_the_log_says_so(self) -> None:
        file = LineFile(self.path)
        events = self.logged()
        rotated = self.path.rename(self.path.with_suffix(".1"))
        self.path.mkdir()
        file.reopen()
        file.write("on")
        self.assertEqual(rotated.read_text(), "on\n")
        [event] = [event for event in events if event["log_level"] is LogLevel.error]
        self.assertEqual(event["problem"], "Is a directory")

    def test_closing_tells_what_was_suppressed_and_nothing_is_written_afterwards(self) -> None:
        self.log = self.make(LineFile(self.path))
        self.refuse(times=SOURCE_BURST + 5)
        self.log.close()
        self.assertEqual(json.loads(self.lines()[-1])["suppressed"], 5)
        self.refuse(source="192.0.2.8")
        self.log.reopen()
        self.refuse(source="192.0.2.8")
        self.assertEqual(len(self.lines()), SOURCE_BURST + 1)

    def test_a_full_disk_costs_lines_and_is_logged_when_it_begins_and_when_it_ends(self) -> None:
        self.path.symlink_to("/dev/full")
        file = LineFile(self.path)
        events = self.logged()
        for _ in range(5):
            file.write("lost")
        self.assertEqual(file.failures, 5)
        [event] = events
        self.assertEqual((event["log_level"], event["problem"]), (LogLevel.error, os.strerror(errno.ENOSPC)))
        self.path.unlink()
        file.reopen()
        file.write("kept")
        file.write("kept")
        self.assertEqual(self.lines(), ["kept", "kept"])
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error, LogLevel.info])
        self.assertEqual(events[1]["failures"], 5)

    def test_a_line_that_did_not_fit_does_not_spoil_the_next(self) -> None:
        size = 1 << 30  # of a hole, so that the limit below is of no consequence to what else this process writes
        with self.path.open("wb") as hole:
            hole.truncate(size)
        file = LineFile(self.path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
        try:
            file.write("0123456789")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        file.write("whole")
        with self.path.open("rb") as written:
            written.seek(size)
            self.assertEqual(written.read(), b"01234\nwhole\n")
        self.assertEqual(file.failures, 1)

    def test_a_pipe_that_nobody_reads_is_refused_and_one_that_is_full_does_not_block(self) -> None:
        os.mkfifo(self.path)
        with self.assertRaises(OSError):
            LineFile(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        file = LineFile(self.path)
        for _ in range(200):
            file.write("x" * 4000)
        self.assertGreater(file.failures, 100)


class RelayTests(TestCase):
    """R6.5, R1.5: a relay writes a refusal into the stream that is configured, and not the token it is about."""

    async def test_a_refused_token_is_one_line_also_after_a_rotation(self) -> None:
        setup = Setup(self, settings={"security_log": "security.log"})
        path = setup.made.directory / "security.log"
        service = setup.service()
        forged = replace(setup.token, signature=bytes(64))
        for _ in range(2):
            with self.assertRaises(TokenBadSignature):
                await setup.connect(Role.DEVICE, token=forged)
            [line] = path.read_text().splitlines()
            record = json.loads(line)
            self.assertEqual(
                (record["event"], record["code"], record["source"], record["validated"]),
                ("session.refused", "TOKEN_BAD_SIGNATURE", "127.0.0.1", True),
            )
            self.assertNotIn(setup.token.device_id.hex(), line)
            path.rename(path.with_suffix(".1"))
            service.reopen_logs()

    def test_what_was_suppressed_is_told_every_minute(self) -> None:
        setup, clock = Setup(self, settings={"security_log": "security.log"}), Clock()
        service = RelayService(load_config(path=setup.made.config, environ={}, options={}), Surroundings(clock, clock.seconds))
        self.addCleanup(service.security_log.close)
        ticker = service.getServiceNamed("security-log")
        ticker.startService()
        self.addCleanup(ticker.stopService)
        for _ in range(SOURCE_BURST + 5):
            service.security_log.event("session.refused", remote="192.0.2.1:5", code="A")
        clock.advance(60)
        record = json.loads((setup.made.directory / "security.log").read_text().splitlines()[-1])
        self.assertEqual((record["event"], record["suppressed"]), ("security.suppressed", 5))

    async def test_stopping_closes_the_file(self) -> None:
        setup = Setup(self, settings={"security_log": "security.log"})
        service = setup.service()
        await service.stopService()
        service.security_log.event("session.refused", code="A")
        self.assertEqual((setup.made.directory / "security.log").read_text(), "")

    async def test_a_file_that_cannot_be_opened_keeps_the_relay_from_starting(self) -> None:
        setup = Setup(self, settings={"security_log": "nowhere/security.log"})
        with self.assertRaises(StartError) as caught:
            setup.service()
        self.assertRegex(str(caught.exception), r"\Acannot write the security log .*/nowhere/security\.log: No such file .*\Z")


class SignalTests(ProcessCase):
    """R6.5: a relay process goes on in a new file after SIGHUP, as whoever rotates files tells it to."""

    async def test_sighup_reopens_the_file(self) -> None:
        setup = Setup(self, settings={"security_log": "security.log"})
        path = setup.made.directory / "security.log"
        relay = await self.relay(setup)
        rotated = path.rename(path.with_suffix(".1"))
        os.kill(relay.pid, signal.SIGHUP)
        await eventually(path.exists, "the new file")
        with self.assertRaises(TokenBadSignature):
            await setup.connect(Role.DEVICE, token=replace(setup.token, signature=bytes(64)))
        await eventually(path.read_text, "the line")
        self.assertEqual(json.loads(path.read_text())["code"], "TOKEN_BAD_SIGNATURE")
        self.assertEqual(rotated.read_text(), "")
        relay.check()


class DocumentationTests(SynchronousTestCase):
    """Issue "security events": fields documented; the page says what the program does."""

    def setUp(self) -> None:
        self.page = (ROOT / "docs/security-events.md").read_text(encoding="utf-8")

    def table(self, heading: str) -> list[list[str]]:
        """The cells of the first table under ``heading``, without its head."""
        section = self.page.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[1:]]

    def test_every_event(self) -> None:
        self.assertEqual(self.table("## Events"), [
            [f"`{name}`", "yes" if kind.validated else "no", kind.meaning] for name, kind in EVENTS.items()
        ])

    def test_every_field_in_order(self) -> None:
        self.assertEqual(self.table("## Fields"), [[f"`{name}`", meaning] for name, meaning in FIELDS.items()])

    def test_the_example_is_a_record_as_they_are_written(self) -> None:
        found = re.search(r"^\{\"time\".*\}$", self.page, re.MULTILINE)
        line = found.group() if found else ""
        record = json.loads(line)
        self.assertEqual(line, json.dumps(record, separators=(",", ":")))
        self.assertEqual(list(record), [name for name in FIELDS if name in record])
        self.assertIn(record["event"], EVENTS)

    def test_the_rates(self) -> None:
        text = " ".join(self.page.split())
        for part in (
            f"gets {SOURCE_BURST} records of one event and cause at once and then {securitylog.SOURCE_RATE * 60:g} a minute;",
            f"all validated sources together get {securitylog.CAUSE_BURST} and then {securitylog.CAUSE_RATE:g} a second.",
            f"All that are not validated share {UNVALIDATED_BURST} and then {securitylog.UNVALIDATED_RATE:g} a second.",
        ):
            self.assertIn(part, text)

    def test_every_event_of_the_program_is_in_the_table(self) -> None:
        used = {f"security.{limit.value}" for limit in Limit}
        for path in PACKAGE.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    used |= set(re.findall(r"\Asecurity\.[a-z_]+\Z", node.value))
        self.assertEqual(used - set(EVENTS), set())
        self.assertEqual(set(EVENTS) - used, {"session.refused"})
