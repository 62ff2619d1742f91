"""That the catalog of log events, the source, what a relay logs and the page about it say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import World
from zrc_relay.core.codes import Role
from zrc_relay.core.counters import Limit
from zrc_relay.logs.catalog import EVENTS, FIELDS
from zrc_relay.logs.reference import logs_markdown
from zrc_relay.securitylog import EVENTS as SECURITY_EVENTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zrc_relay"
IDS = frozenset(("connection", "device", "allocation"))
LEVELS = {"debug": "debug", "info": "info", "warn": "warn", "error": "error", "failure": "critical"}
NOT_OF_THE_RELAY = ("client", "cli")
"""Rooms that log in other people's processes."""
GENERAL = frozenset(("logs/eventlog.py",))
"""Where the name of the event is not known in advance."""


class LogCall:
    """One call of a logger in the source."""

    def __init__(self, where: str, node: ast.Call) -> None:
        self.where = f"{where}:{node.lineno}"
        function = node.func
        self.level = LEVELS[function.attr] if isinstance(function, ast.Attribute) else ""
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        name = keywords.pop("event", None)
        self.name = name.value if isinstance(name, ast.Constant) else None
        self.fields = {*keywords} - {"failure", "level"}
        for keyword in node.keywords:
            if keyword.arg is None:
                self.fields |= IDS if ast.unparse(keyword.value).endswith(".ids") else {"**"}
        spoken = node.args[0] if node.args else None
        self.sentence = spoken.value if isinstance(spoken, ast.Constant) and isinstance(spoken.value, str) else ""

    @property
    def placeholders(self) -> set[str]:
        return set(re.findall(r"{(\w+)}", self.sentence))


def log_calls() -> Iterator[LogCall]:
    """Every call of a logger by the relay."""
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE)
        if where.parts[0] in NOT_OF_THE_RELAY or where.as_posix() in GENERAL:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                receiver = ast.unparse(node.func.value)
                if receiver in ("_log", "self._log"):
                    yield LogCall(where.as_posix(), node)


def event_calls() -> Iterator[tuple[str, set[str]]]:
    """Every event about an allocation that the core tells its observer: its name and fields."""
    for path in sorted((PACKAGE / "core").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_event":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield str(first.value), {"device", "allocation", *(str(keyword.arg) for keyword in node.keywords)}


class SourceTests(SynchronousTestCase):
    """Issue "logs": every log event and its fields are documented, and every documented one is logged."""

    def test_each_call_names_its_event_at_the_level_and_with_the_fields_of_the_catalog(self) -> None:
        for call in log_calls():
            self.assertIn(call.name, EVENTS, call.where)
            event = EVENTS[str(call.name)]
            self.assertEqual(call.level, event.level.value, call.where)
            self.assertLessEqual(call.fields - set(event.fields) - {"line"}, set(), call.where)
            self.assertTrue(call.sentence, call.where)
            self.assertLessEqual(call.placeholders, call.fields, call.where)

    def test_each_event_and_field_of_the_catalog_is_logged_somewhere(self) -> None:
        logged: dict[str, set[str]] = {}
        for call in log_calls():
            logged.setdefault(str(call.name), set()).update(call.fields)
        for name, fields in event_calls():
            logged.setdefault(name, set()).update(fields)
        by_observer = {name for name in EVENTS if name.startswith("security.")}
        by_observer |= {"session.refused", "session.moved", "session.redirected"}
        self.assertEqual(set(EVENTS) - by_observer, set(logged) - by_observer)
        for name in set(EVENTS) - by_observer:
            self.assertEqual(set(EVENTS[name].fields), logged[name] - {"line"}, name)

    def test_the_events_about_security_are_those_of_the_stream(self) -> None:
        here = {name for name in EVENTS if name.startswith("security.") or name == "session.refused"}
        self.assertEqual(here | {"security.suppressed"}, set(SECURITY_EVENTS))
        self.assertLessEqual({f"security.{limit.value}" for limit in Limit}, set(EVENTS))

    def test_every_field_has_a_meaning_and_every_meaning_a_field(self) -> None:
        self.assertEqual({field for event in EVENTS.values() for field in event.fields}, set(FIELDS))
        self.assertEqual(list(FIELDS), sorted(FIELDS))

    def test_the_page_in_the_repository_is_current(self) -> None:
        self.assertEqual((ROOT / "docs/logs.md").read_text(encoding="utf-8"), logs_markdown(), "run make docs")


class SceneTests(SynchronousTestCase):
    """R5.7: what a relay tells while sessions come, move, are refused and go has the fields of the catalog, ids in every line."""

    SEEN: ClassVar[tuple[str, ...]] = (
        "allocation.created", "allocation.ended", "allocation.refreshed", "session.bound", "session.lost", "session.moved",
        "session.refused",
    )

    def test_a_day_of_a_relay(self) -> None:
        world = World()
        device, peer = world.pair()
        world.network.attach(device.host.sockaddr)
        device.host.sockaddr = ("198.51.100.99", 999)
        world.network.attach(device.host.sockaddr, device)
        device.send(b"from elsewhere")
        world.run(1.0)
        device.refresh(world.token(expires_at=int(world.wall()) + 7200))
        world.client(Role.PEER, world.token(relay_id=bytes(16)))
        another = world.client(Role.PEER)
        world.run(1.0)
        another.close()
        world.run(1.0)
        peer.release()
        world.run(2.0)
        events: list[tuple[str, dict[str, Any]]] = world.recorder.events
        self.assertLessEqual(set(self.SEEN), {name for name, _ in events})
        for name, fields in events:
            self.assertLessEqual(set(fields), set(EVENTS[name].fields), name)
            if name.startswith("allocation."):
                self.assertLessEqual({"device", "allocation"}, set(fields), name)
            if name.startswith("session."):
                self.assertIn("connection", fields, name)
        (moved,) = world.recorder.named("session.moved")
        self.assertEqual(moved["allocation"], world.token().allocation_id.hex())
