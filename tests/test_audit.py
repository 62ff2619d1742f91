"""The audit log: what is in it, what never is, how much strangers can make of it, and its file."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import READ_TOKEN, WRITE_TOKEN, AdminCase
from tests.real_relay import Setup, eventually
from tests.test_process import ProcessCase
from zrc_relay.control.audit import FIELDS, MAX_TEXT, STRANGERS, STRANGERS_AT_ONCE, AuditLog, Outcome
from zrc_relay.control.auth import REFUSALS
from zrc_relay.control.site import MAX_BODY, MAX_DRAINED
from zrc_relay.linefile import LineFile

NOON = 1_795_348_800.0
PAGE = Path(__file__).resolve().parent.parent / "docs" / "admin.md"


class AuditLogTests(SynchronousTestCase):
    """R10.6: one JSON object on each line, with known fields only; strangers cannot fill the disk."""

    def setUp(self) -> None:
        self.now = 0.0
        self.path = Path(self.mktemp())
        self.audit = AuditLog(LineFile(self.path), now=lambda: self.now, wall=lambda: NOON + self.now)
        self.addCleanup(self.audit.close)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def test_a_record_has_the_fields_in_their_order_and_no_others(self) -> None:
        self.audit.record("drain", Outcome.DONE, {"status": 202, "who": "ops", "token": "secret", "detail": None, "from": "here"})
        (line,) = self.path.read_text().splitlines()
        self.assertEqual(
            line, '{"time":"2026-11-22T12:00:00.000Z","action":"drain","outcome":"done","who":"ops","from":"here","status":202}'
        )

    def test_long_text_is_cut_and_line_breaks_do_not_break_lines(self) -> None:
        self.audit.record("drain", Outcome.FAILED, {"detail": "\n" * 10_000})
        (record,) = self.records()
        self.assertEqual(len(record["detail"]), MAX_TEXT)

    def test_strangers_are_written_at_a_bounded_rate_and_counted(self) -> None:
        for _ in range(STRANGERS_AT_ONCE + 7):
            self.audit.record("request", Outcome.REFUSED, {}, is_stranger=True)
        self.assertEqual(len(self.records()), STRANGERS_AT_ONCE)
        self.now += 1 / STRANGERS
        self.audit.record("request", Outcome.REFUSED, {}, is_stranger=True)
        self.assertEqual(self.records()[-1]["suppressed"], 7)

    def test_who_is_known_is_always_written(self) -> None:
        for _ in range(3 * STRANGERS_AT_ONCE):
            self.audit.record("showStats", Outcome.DONE, {"who": "ops"})
        self.assertEqual(len(self.records()), 3 * STRANGERS_AT_ONCE)

    def test_signals_and_reloads(self) -> None:
        self.audit.signal("SIGHUP")
        self.audit.reload(("idle_timeout", "allow"), ())
        self.audit.reload((), ("max_allocations: many",))
        self.audit.reload((), ())
        found = [(record["action"], record["outcome"], record.get("target") or record.get("detail")) for record in self.records()]
        self.assertEqual(found, [
            ("signal", "done", "SIGHUP"), ("reloaded", "done", "idle_timeout; allow"),
            ("reloaded", "failed", "max_allocations: many"), ("reloaded", "done", "nothing has changed"),
        ])

    def test_after_a_rotation_it_goes_on_in_a_new_file(self) -> None:
        self.audit.signal("SIGHUP")
        self.path.rename(self.path.with_suffix(".1"))
        self.audit.reopen()
        self.audit.signal("SIGHUP")
        self.assertEqual((len(self.records()), self.audit.written), (1, 2))

    def test_without_a_file_it_goes_to_the_log(self) -> None:
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        AuditLog(None, now=lambda: 0.0, wall=lambda: NOON).record("drain", Outcome.DONE, {"who": "ops"})
        (record,) = [event["record"] for event in events if event.get("event") == "audit.record"]
        self.assertEqual((record["action"], record["who"]), ("drain", "ops"))

    def test_the_page_has_every_field(self) -> None:
        for name, meaning in FIELDS.items():
            self.assertIn(f"| `{name}` | {meaning} |", PAGE.read_text(encoding="utf-8"))


class AuditedRequestTests(AdminCase):
    """R10.6: every request is audited, also those that are refused, and no secret is."""

    async def test_who_what_when_from_where_and_what_came_of_it(self) -> None:
        await self.setup.pair()
        name = self.setup.token.allocation_id.hex()
        await self.ask("DELETE", f"/admin/allocations/{name}", query={"reason": "it floods"})
        (record,) = self.audited()
        self.assertRegex(record.pop("time"), r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertRegex(record.pop("from"), r"^127\.0\.0\.1:\d+$")
        self.assertEqual(record, {
            "action": "terminateAllocation", "outcome": "done", "who": "writer", "how": "token", "method": "DELETE",
            "path": f"/admin/allocations/{name}", "status": 200, "target": name, "reason": "it floods",
        })

    async def test_lists_and_keys_say_what_they_were_about(self) -> None:
        await self.ask("POST", "/admin/lists", value={"network": "203.0.113.0/24", "access": "block", "note": "noisy"})
        await self.ask("DELETE", "/admin/lists", query={"network": "203.0.113.0/24"})
        await self.ask("POST", "/admin/keys", value={"public_key": "ab" * 32, "note": "new"})
        found = [(record["action"], record.get("target"), record.get("reason")) for record in self.audited()]
        self.assertEqual(found, [
            ("addNetwork", "203.0.113.0/24", "noisy"), ("removeNetwork", "203.0.113.0/24", None), ("pinKey", "ab" * 32, "new"),
        ])

    async def test_what_is_refused_is_audited_with_why(self) -> None:
        for method, path, token in (
            ("GET", "/admin/stats", None), ("POST", "/admin/drain", READ_TOKEN),
            ("GET", "/admin/allocations?limit=0", WRITE_TOKEN), ("GET", "/admin/nothing", WRITE_TOKEN),
            ("PUT", "/admin/drain", WRITE_TOKEN), ("OPTIONS", "/admin/drain", None),
            ("POST", "/admin/lists", WRITE_TOKEN),
        ):
            await self.ask(method, path, token=token)
        found = [(record["action"], record["status"], record["outcome"], record.get("who")) for record in self.audited()]
        self.assertEqual(found, [
            ("showStats", 401, "refused", None), ("drain", 403, "refused", "reader"),
            ("listAllocations", 422, "refused", "writer"), ("request", 404, "failed", "writer"),
            ("request", 405, "refused", "writer"), ("request", 204, "done", None),
            ("addNetwork", 415, "refused", "writer"),
        ])
        self.assertEqual([record["path"] for record in self.audited()][2], "/admin/allocations")

    async def test_what_never_gets_to_a_route_is_audited_as_well(self) -> None:
        await self.ask("GET", "/admin/%ff")
        for size in (MAX_BODY, 2 * MAX_DRAINED):
            await self.ask("POST", "/admin/lists", body=b"x" * (size + 1))
        found = [(record["action"], record["status"], record["outcome"], "who" in record) for record in self.audited()]
        self.assertEqual(found, [("request", 400, "refused", False), *[("request", 413, "refused", False)] * 2])

    async def test_429_is_audited_too(self) -> None:
        for _ in range(REFUSALS.events + 1):
            await self.ask("GET", "/admin/stats", token=None)
        self.assertEqual([record["status"] for record in self.audited()][-2:], [401, 429])

    async def test_strangers_cannot_fill_the_disk(self) -> None:
        self.patch(self.service.audit, "_now", lambda: 0.0)
        for _ in range(STRANGERS_AT_ONCE + 20):
            await self.ask("GET", "/admin/stats", token=None)
        self.assertEqual(len(self.audited()), STRANGERS_AT_ONCE)
        await self.get("/admin/stats")
        self.assertEqual(self.audited()[-1]["who"], "writer")

    async def test_a_reload_is_audited_with_what_it_changed(self) -> None:
        config = self.setup.made.config
        config.write_text(f'idle_timeout = "23s"\n{config.read_text()}')
        await self.ask("POST", "/admin/reload")
        found = [(record["action"], record.get("who"), record["detail"]) for record in self.audited()]
        self.assertEqual(found, [("reloaded", None, "idle_timeout"), ("reload", "writer", "idle_timeout")])

    async def test_no_token_is_ever_in_it(self) -> None:
        for token in (READ_TOKEN, WRITE_TOKEN, "guess" * 8):
            await self.ask("GET", f"/admin/stats?token={token}", token=token)
            await self.ask("GET", "/admin/stats", token=None, headers={"Authorization": f"Basic {token}"})
            await self.ask("POST", "/admin/lists", token=token, value={"network": token, "access": token})
        text = self.audit_path.read_text()
        for token in (READ_TOKEN, WRITE_TOKEN, "guess" * 8):
            self.assertNotIn(token, text)
        self.assertEqual(len(text.splitlines()), 9)


class SignalTests(ProcessCase):
    """R10.6: signals that the process obeys are audited, and the file is opened again on SIGHUP."""

    async def test_sighup_and_sigterm(self) -> None:
        setup = Setup(self, settings={"audit_log": "audit.log"})
        path = setup.made.directory / "audit.log"
        relay = await self.relay(setup)
        os.kill(relay.pid, signal.SIGHUP)
        await eventually(lambda: len(path.read_text().splitlines()) == 2, "two records")
        path.rename(path.with_suffix(".1"))
        os.kill(relay.pid, signal.SIGHUP)
        await eventually(lambda: path.exists() and len(path.read_text().splitlines()) == 2, "two records in a new file")
        os.kill(relay.pid, signal.SIGTERM)
        self.assertEqual(await self.gone(relay), 0)
        found = [(record["action"], record.get("target")) for record in map(json.loads, path.read_text().splitlines())]
        self.assertEqual(found, [("signal", "SIGHUP"), ("reloaded", None), ("signal", "SIGTERM")])
