"""Log lines: what they look like, what they never hold, how many there are, where they go."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogPublisher
from twisted.logger import LogLevel as TwistedLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import World
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.linefile import LineFile
from zrc_relay.logs.eventlog import EventLog
from zrc_relay.logs.levels import LogFormat, LogLevel
from zrc_relay.logs.observer import LogSettings, RelayLog
from zrc_relay.logs.outputs import FileOutput, Output, StreamOutput, SyslogOutput
from zrc_relay.logs.rates import FAILURES_AT_ONCE, LINES_PER_SECOND, MAX_KINDS
from zrc_relay.logs.render import MAX_TEXT, MAX_TRACEBACK
from zrc_relay.logs.twistd import DAEMON_FILE, install, requested_output

DEVICE = "5a" * 32
ALLOCATION = "0e" * 16


class Lines:
    """An ``Output`` that keeps lines."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.is_terminal = is_terminal
        self.lines: list[str] = []
        self.reopened = 0

    def write(self, line: str, level: LogLevel) -> None:
        del level
        self.lines.append(line)

    def reopen(self) -> None:
        self.reopened += 1


class LogCase(SynchronousTestCase):
    """A log on a clock of its own, and loggers that reach nobody else."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.output = Lines()
        self.log = RelayLog(self.output, LogSettings(), self.clock.seconds)

    def logger(self, namespace: str = "zrc_relay.service") -> Logger:
        log: Any = self.log
        publisher: Any = LogPublisher(log)
        return Logger(namespace, observer=publisher)

    def last(self) -> dict[str, Any]:
        """The last line, as JSON."""
        found: dict[str, Any] = json.loads(self.output.lines[-1])
        return found

    def as_text(self) -> None:
        self.log.configure(LogSettings(form=LogFormat.TEXT))


class JsonTests(LogCase):
    """Issue "logs": JSON lines with time, level, namespace, event, fields; a failure's traceback is a field."""

    def test_a_line_has_all_of_it(self) -> None:
        self.logger().info("relay {relay_id} is ready", event="relay.ready", relay_id="ab" * 16)
        line = self.last()
        self.assertRegex(line.pop("time"), r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(line, {
            "level": "info", "namespace": "zrc_relay.service", "event": "relay.ready",
            "message": f"relay {'ab' * 16} is ready", "relay_id": "ab" * 16,
        })

    def test_the_time_is_the_events_in_utc_to_the_millisecond(self) -> None:
        self.log({"log_time": 1_800_000_000.0126, "log_format": "x", "log_level": TwistedLevel.info})
        self.assertEqual(self.last()["time"], "2027-01-15T08:00:00.012Z")

    def test_what_the_catalog_does_not_list_is_not_written(self) -> None:
        self.logger().info("ready", event="relay.ready", relay_id="ab", token="secret", payload=b"secret")  # noqa: S106
        self.assertEqual(set(self.last()), {"time", "level", "namespace", "event", "message", "relay_id"})
        self.logger("twisted.web").info("hello", event="relay.unheard_of", token="secret")  # noqa: S106
        self.assertEqual((self.last()["event"], "token" in self.last()), ("other", False))

    def test_bytes_are_never_written(self) -> None:
        self.logger().info("stopped {relay_id}", event="relay.ready", relay_id=b"payload")
        self.assertNotIn("payload", self.output.lines[-1])

    def test_a_failure_has_its_traceback_in_a_field(self) -> None:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            self.logger().failure("task {task} failed", event="task.failed", task="sweeper")
        line = self.last()
        self.assertEqual((line["level"], line["event"], line["task"]), ("critical", "task.failed", "sweeper"))
        self.assertIn("ZeroDivisionError", line["traceback"])
        self.assertIn("test_logs.py", line["traceback"])
        self.assertEqual(len(self.output.lines), 1)

    def test_what_an_exception_quotes_is_blacked_out(self) -> None:
        secret = os.urandom(30)
        key = "c0ffee00" * 8
        for words in (f"cannot parse {secret!r}", f"cannot parse {secret!r:.25}", f"bad key {key}", f"token {key[:43]}_-{key}"):
            self.clock.advance(60)
            try:
                raise ValueError(words)
            except ValueError as error:
                self.logger().failure("task {task} failed", event="task.failed", task="x")
                self.logger().error("cannot keep: {problem}", event="access.not_saved", problem=str(error))
            for line in self.output.lines[-2:]:
                self.assertNotIn(repr(secret)[2:12].replace("\\", "\\\\"), line)
                self.assertNotIn(key, line)

    def test_a_very_long_traceback_keeps_its_ends(self) -> None:
        def down(depth: int) -> None:
            if not depth:
                msg = "the bottom"
                raise RuntimeError(msg)
            down(depth - 1)

        try:
            down(300)
        except RuntimeError:
            self.logger().failure("task {task} failed", event="task.failed", task="x")
        traceback = self.last()["traceback"]
        self.assertLess(len(traceback), MAX_TRACEBACK + 10)
        self.assertIn("the bottom", traceback)

    def test_values_are_plain(self) -> None:
        self.logger().info(
            "reloaded", event="reload.done", changed=("allow", "block", b"x"), not_reloadable=(), ended=float("nan"),
        )
        line = self.last()
        self.assertEqual((line["changed"], line["not_reloadable"], "ended" in line), (["allow", "block"], [], False))
        self.logger().info("x", event="session.refused", code=ErrorCode.TOKEN_EXPIRED, validated=True)
        self.assertEqual((self.last()["code"], self.last()["validated"]), ("TOKEN_EXPIRED", True))

    def test_an_event_of_an_allocation_has_its_fields_and_no_sentence(self) -> None:
        events = EventLog(self.clock.seconds)
        self.patch(EventLog, "_log", self.logger("zrc_relay.logs.eventlog.EventLog"))
        events.event("session.lost", device=DEVICE, allocation=ALLOCATION, role="peer", connection="83")
        line = self.last()
        self.assertNotIn("message", line)
        self.assertEqual(
            list(line), ["time", "level", "namespace", "event", "device", "allocation", "role", "connection"])
        self.assertEqual(line["device"], DEVICE)

    def test_a_line_that_cannot_be_made_costs_the_line_and_nothing_else(self) -> None:
        class Bad:
            def __str__(self) -> str:
                raise ZeroDivisionError

        self.logger().error("x", event="access.not_saved", problem=Bad())
        self.logger().info("relay stopped", event="relay.stopped")
        self.assertEqual(self.log.failures, 1)
        self.assertEqual([json.loads(line)["event"] for line in self.output.lines], ["other", "relay.stopped"])

    @given(st.text(), st.text(), st.one_of(st.binary(), st.floats(), st.integers(), st.text()))
    def test_whatever_is_logged_is_one_line_of_json(self, sentence: str, text: str, value: object) -> None:
        self.clock.advance(60)
        self.output.lines.clear()
        self.logger().error(sentence, event="access.not_saved", problem=text, value=value)
        (line,) = self.output.lines
        self.assertNotIn("\n", line)
        self.assertTrue(line.isascii())
        self.assertLessEqual(len(json.loads(line).get("problem", "")), MAX_TEXT)


class TextTests(LogCase):
    """Issue "logs": text on a terminal."""

    def setUp(self) -> None:
        super().setUp()
        self.as_text()

    def test_a_line_for_people(self) -> None:
        self.logger().info("relay {relay_id} is ready", event="relay.ready", relay_id="ab")
        self.assertRegex(self.output.lines[-1], r"^\S+Z info  \[zrc_relay\.service\] relay ab is ready$")

    def test_fields_that_the_sentence_does_not_have_come_behind_it(self) -> None:
        self.logger().warn("is refused: {problem}", event="webhook.answer_invalid", problem="no")
        self.logger().info(
            "a recording of {connection}", event="qlog.written", connection="83", events=5, path="/a b", complete=True)
        self.assertTrue(self.output.lines[-1].endswith('a recording of 83 path="/a b" events=5 complete=True'), self.output.lines)

    def test_an_event_of_an_allocation(self) -> None:
        self.patch(EventLog, "_log", self.logger("zrc_relay.logs.eventlog"))
        EventLog(self.clock.seconds).event("session.lost", device=DEVICE, allocation=ALLOCATION, role="peer", connection="83")
        self.assertTrue(
            self.output.lines[-1].endswith(f"session.lost device={DEVICE} allocation={ALLOCATION} role=peer connection=83"))

    def test_a_traceback_is_indented_below(self) -> None:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            self.logger().failure("task {task} failed", event="task.failed", task="x")
        first, *rest = self.output.lines[-1].splitlines()
        self.assertTrue(first.endswith("task x failed"))
        self.assertTrue(rest)
        self.assertTrue(all(row.startswith("    ") for row in rest))

    @given(st.text())
    def test_nobody_can_write_a_line_of_their_own_or_move_the_cursor(self, text: str) -> None:
        self.clock.advance(60)
        self.output.lines.clear()
        self.logger().error("cannot: {problem}", event="access.not_saved", problem=f"a\n{text}\x1b[2J\u2028")
        (line,) = self.output.lines
        self.assertTrue(line.isprintable())

    def test_which_form_is_automatic(self) -> None:
        for is_terminal, sign in ((True, "2"), (False, "{")):
            output = Lines(is_terminal=is_terminal)
            RelayLog(output, LogSettings(), self.clock.seconds)({"log_format": "hello", "log_time": 1.8e9})
            self.assertEqual(output.lines[0][0], sign)
        forced = Lines(is_terminal=True)
        RelayLog(forced, LogSettings(form=LogFormat.JSON), self.clock.seconds)({"log_format": "hello"})
        self.assertEqual(json.loads(forced.lines[0])["message"], "hello")


class LevelTests(LogCase):
    """Issue "logs": levels by namespace, the longest name decides, changeable while it runs."""

    def logged(self, namespace: str) -> list[str]:
        self.output.lines.clear()
        logger = self.logger(namespace)
        for level in LogLevel:
            logger.emit(TwistedLevel.levelWithName(level.value), "{word}", word=level.value)
        return [json.loads(line)["message"] for line in self.output.lines]

    def test_the_default(self) -> None:
        self.assertEqual(self.logged("zrc_relay.quic.udp"), ["info", "warn", "error", "critical"])

    def test_parts_of_the_program(self) -> None:
        levels = {"zrc_relay.quic": LogLevel.DEBUG, "zrc_relay.quic.udp.UdpPort": LogLevel.ERROR, "twisted": LogLevel.CRITICAL}
        self.log.configure(LogSettings(LogLevel.WARN, levels))
        self.assertEqual(self.logged("zrc_relay.quic.link"), ["debug", "info", "warn", "error", "critical"])
        self.assertEqual(self.logged("zrc_relay.quic.udp.UdpPort"), ["error", "critical"])
        self.assertEqual(self.logged("zrc_relay.quicker"), ["warn", "error", "critical"])
        self.assertEqual(self.logged("twisted.web.server"), ["critical"])
        self.log.configure(LogSettings(LogLevel.ERROR))
        self.assertEqual(self.logged("zrc_relay.quic.link"), ["error", "critical"])


class RateTests(LogCase):
    """R5.7: bounded rates for each kind of event."""

    def test_of_a_kind_so_many_a_second_are_written_and_the_rest_is_counted(self) -> None:
        logger = self.logger()
        for _ in range(3 * LINES_PER_SECOND):
            logger.info("relay stopped", event="relay.stopped")
        logger.info("ready", event="relay.ready")
        self.assertEqual(len(self.output.lines), LINES_PER_SECOND + 1)
        self.clock.advance(1)
        logger.info("relay stopped", event="relay.stopped")
        self.assertEqual(self.last()["suppressed"], 2 * LINES_PER_SECOND)
        logger.info("relay stopped", event="relay.stopped")
        self.assertNotIn("suppressed", self.last())

    def test_tracebacks_are_fewer(self) -> None:
        for _ in range(100):
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                self.logger().failure("task {task} failed", event="task.failed", task="x")
        self.assertEqual(len(self.output.lines), FAILURES_AT_ONCE)
        self.clock.advance(1.01)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            self.logger().failure("task {task} failed", event="task.failed", task="x")
        self.assertEqual(self.last()["suppressed"], 100 - FAILURES_AT_ONCE)

    def test_what_libraries_say_is_limited_by_sentence_and_the_table_is_bounded(self) -> None:
        for number in range(2 * MAX_KINDS):
            self.logger("twisted").info(f"sentence {number}")
        self.assertEqual(len(self.output.lines), MAX_KINDS + LINES_PER_SECOND)

    def test_events_of_allocations_are_bounded_before_they_are_formatted(self) -> None:
        self.patch(EventLog, "_log", self.logger())
        events = EventLog(self.clock.seconds)
        for _ in range(2 * LINES_PER_SECOND):
            events.event("session.lost", device=DEVICE, allocation=ALLOCATION, role="peer", connection="83")
        self.assertEqual(len(self.output.lines), LINES_PER_SECOND)
        self.clock.advance(1)
        events.event("session.lost", device=DEVICE, allocation=ALLOCATION, role="peer", connection="83")
        self.assertEqual(self.last()["suppressed"], LINES_PER_SECOND)


class SecrecyTests(LogCase):
    """R6.7, R3.2: payload, tokens and keys are in no line, whatever happens."""

    def test_a_busy_relay_that_logs_everything(self) -> None:
        self.log.configure(LogSettings(LogLevel.DEBUG))
        world = World()
        events = EventLog(world.now)
        self.patch(EventLog, "_log", self.logger())
        self.patch(world.recorder, "event", events.event)
        payload = b"the payload of a datagram, which nobody should read"
        token = world.token()
        device, peer = world.pair(token)
        device.send(payload)
        peer.send(payload)
        world.client(Role.PEER, world.token(peer_id=bytes(32)))
        refreshed = world.token(expires_at=token.expires_at + 5)
        device.refresh(refreshed)
        world.run(2.0)
        device.release()
        world.run(2.0)
        everything = "\n".join(self.output.lines)
        self.assertGreater(len(self.output.lines), 5)
        secrets = [payload.decode(), payload.hex()]
        for each in (token, refreshed):
            secrets += [each.to_text(), each.encode().hex(), each.encode()[-64:].hex()]
        for key in (world.device_key, world.peer_key):
            secrets += [bytes(key).hex()]
        for secret in secrets:
            self.assertNotIn(secret, everything)


class OutputTests(SynchronousTestCase):
    """Issue "logs": standard output, file, system log; files are reopened by name."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def test_a_stream(self) -> None:
        stream = io.StringIO()
        output = StreamOutput(stream)
        output.write("hello", LogLevel.INFO)
        output.reopen()
        self.assertEqual(stream.getvalue(), "hello\n")
        self.assertFalse(output.is_terminal)
        stream.close()
        output.write("lost", LogLevel.INFO)
        self.assertEqual((output.failures, output.is_terminal), (1, False))

    def test_a_terminal_is_known_as_one(self) -> None:
        _, end = os.openpty()
        with os.fdopen(end, "w") as stream:
            self.assertTrue(StreamOutput(stream).is_terminal)

    def test_a_file_is_appended_to_and_reopened_after_a_rotation(self) -> None:
        path = self.directory / "relay.log"
        path.write_text("before\n")
        output = FileOutput(LineFile(path))
        log = RelayLog(output, LogSettings(form=LogFormat.JSON), Clock().seconds)
        log({"log_format": "one"})
        path.rename(self.directory / "relay.log.1")
        log({"log_format": "two"})
        log.reopen()
        log({"log_format": "three"})
        before, *old = (self.directory / "relay.log.1").read_text().splitlines()
        self.assertEqual((before, [json.loads(line)["message"] for line in old]), ("before", ["one", "two"]))
        self.assertEqual(json.loads(path.read_text())["message"], "three")

    def test_a_file_that_the_log_itself_complains_of_does_not_go_round_in_circles(self) -> None:
        output = FileOutput(LineFile(Path("/dev/full")))
        log = RelayLog(output, LogSettings(), Clock().seconds)
        itself: Any = log
        publisher: Any = LogPublisher(itself)
        self.patch(LineFile, "_log", Logger("zrc_relay.linefile", observer=publisher))
        log({"log_format": "one"})
        log({"log_format": "two"})
        self.assertEqual(vars(output)["_file"].failures, 3)

    def test_the_system_log_gets_priorities(self) -> None:
        said: list[tuple[int, str]] = []
        self.patch(__import__("syslog"), "syslog", lambda priority, text: said.append((priority, text)))
        output = SyslogOutput("relay")
        output.write("fine", LogLevel.INFO)
        output.write("bad\n    below", LogLevel.CRITICAL)
        output.reopen()
        self.assertEqual(said, [(6, "fine"), (2, "bad"), (2, "    below")])

    def test_where_the_command_line_wants_it(self) -> None:
        self.patch(os, "environ", {})
        cwd = Path.cwd()
        self.addCleanup(os.chdir, cwd)
        os.chdir(self.directory)
        kinds: list[tuple[list[str], type[Output], str | None]] = [
            (["-n", "zrc-relay", "--config", "x"], StreamOutput, None),
            (["--nodaemon", "--logfile", "-", "zrc-relay"], StreamOutput, None),
            (["-n", "--logfile", "a.log", "zrc-relay"], FileOutput, "a.log"),
            (["--logfile=b.log", "-y", "relay.tac"], FileOutput, "b.log"),
            (["-l", "c.log", "zrc-relay", "--logfile", "no.log"], FileOutput, "c.log"),
            (["--python", "relay.tac"], FileOutput, DAEMON_FILE),
            (["--syslog", "--prefix", "x", "zrc-relay"], SyslogOutput, None),
            (["--no-such-option"], StreamOutput, None),
        ]
        for arguments, kind, name in kinds:
            before = {path.name for path in self.directory.iterdir()}
            self.assertIsInstance(requested_output(arguments), kind, arguments)
            self.assertEqual({path.name for path in self.directory.iterdir()} - before, {name} - {None}, arguments)

    def test_an_application_gets_it_once_and_nothing_else_does(self) -> None:
        application = Application("x")
        log = install(application, ["-n"], LogSettings(), Clock().seconds)
        self.assertIs(application.getComponent(ILogObserver), log)
        self.assertIsNone(install(application, ["-n"], LogSettings(), Clock().seconds))
        self.assertIsNone(install(object(), ["-n"], LogSettings(), Clock().seconds))
        self.assertIs(application.getComponent(ILogObserver), log)
