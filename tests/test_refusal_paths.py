"""Every refusal: one code, one event, one counter, and nothing left behind (R1.5, R6.5, R6.9)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from tests import refusal_paths as paths
from tests import refusal_sessions as sessions
from tests.fakes import Scene
from tests.harness import World
from tests.raw_quic import leftovers
from tests.refusal_paths import Act, Refusal
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.counters import Counters, InputDrop, Limit
from zrc_relay.core.relay import Relay

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "security.md"
ALL: Final = (*paths.BEFORE, *paths.CONNECTED, *sessions.SESSIONS, *sessions.LIMITED_SESSIONS)


def counted(counters: Counters) -> Counter[Limit | ErrorCode]:
    """Every refusal so far, by its counter."""
    total: Counter[Limit | ErrorCode] = Counter()
    total.update(counters.limited)
    total.update(counters.refused)
    return total


def kept(relay: Relay) -> tuple[object, ...]:
    """What the relay holds of allocations and devices."""
    authoriser = vars(vars(relay)["_authoriser"])
    allocations = {one.key: (one.token, one.bytes_transferred, len(list(one.members))) for one in relay.table}
    return allocations, relay.table.tombstones, dict(authoriser["_remembered"])


class RefusalTests(SynchronousTestCase):
    """Issue "must show": every refusal path has one code, one event, one counter, and leaves no state."""

    def run_to_its_end(self, act: Act) -> str:
        ended: StopIteration = self.assertRaises(StopIteration, next, act)
        return str(ended.value)

    def check(self, refusal: Refusal, stage: Any) -> None:
        relay: Relay = stage.relay
        recorder = stage.recorder if isinstance(stage, World) else stage.observer
        act = refusal.act(stage)
        next(act)
        before, seen, held = counted(relay.counters), len(recorder.events), kept(relay)
        answer = self.run_to_its_end(act)
        self.assertEqual(answer, refusal.answer, refusal.when)
        more = counted(relay.counters) - before
        self.assertEqual(dict(more), {refusal.counter: 1}, refusal.when)
        told = [(name, fields) for name, fields in recorder.events[seen:] if name.startswith("security.") or "refused" in name]
        self.assertEqual([name for name, _ in told], [refusal.event], refusal.when)
        self.check_event(refusal, told[0][1])
        if refusal.answer.startswith("ERROR") or refusal.when.startswith(("control", "more than", "session of")):
            return  # these concern an allocation that is there, and that goes on or loses a side
        self.assertEqual(kept(relay), held, refusal.when)

    def check_event(self, refusal: Refusal, fields: dict[str, object]) -> None:
        text = repr(fields)
        for key in sessions.KEYS:
            self.assertNotIn(key.hex()[:16], text, refusal.when)
        self.assertIn("validated", fields, refusal.when)
        if "code" in fields:
            self.assertEqual(fields["code"], refusal.answer.removeprefix("ERROR "), refusal.when)
        else:
            self.assertTrue(fields["source"] and fields["cause"], refusal.when)

    def test_those_before_there_is_a_connection(self) -> None:
        for refusal in (*paths.BEFORE, *paths.CONNECTED):
            world = World(limits=paths.LIMITS)
            self.check(refusal, world)
            world.run(15)
            self.assertEqual(leftovers(world), {}, refusal.when)

    def test_those_of_sessions(self) -> None:
        for refusal in sessions.SESSIONS:
            self.check(refusal, Scene())

    def test_those_of_sessions_with_limits(self) -> None:
        for refusal in sessions.LIMITED_SESSIONS:
            self.check(refusal, sessions.scene_for(refusal))

    def test_every_limit_and_every_code_is_there(self) -> None:
        counters = {refusal.counter for refusal in ALL}
        self.assertEqual(set(Limit) - counters, set())
        # The others are how something ends, not how it is refused.
        ends = {ErrorCode.NO_ERROR, ErrorCode.EXPIRED, ErrorCode.IDLE, ErrorCode.INTERNAL}
        limited = {ErrorCode.BLOCKED}  # always for a limit
        self.assertEqual(set(ErrorCode) - ends - limited - counters, set())


class PageTests(SynchronousTestCase):
    """Issue "must show": ``docs/security.md`` has them all."""

    def test_the_table_of_refusals_is_that_of_the_scenes(self) -> None:
        lines = PAGE.read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if line.startswith("| ") and ("`security." in line or "`session.refused`" in line)]
        self.assertEqual(rows, [refusal.row for refusal in ALL])

    def test_every_silent_drop_is_told(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        rows = [line.split("|")[1].strip() for line in page.partition("## Dropped without a word")[2].splitlines() if "|" in line]
        self.assertEqual(set(rows) - {"counter", "---"}, {f"`input_dropped[{drop.value}]`" for drop in InputDrop})
