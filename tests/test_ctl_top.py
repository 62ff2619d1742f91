"""``zrc-relay ctl top``: in a pseudo-terminal, and piece by piece."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import WRITE_TOKEN
from tests.ctl_support import CtlCase, Terminal
from tests.real_relay import eventually, exchange
from zrc_relay.cli.ctl_client import Denied, Unreachable
from zrc_relay.cli.ctl_top import Top, TopPlan
from zrc_relay.cli.ctl_top_view import GAP, HEAD_LINES, Order, Snapshot, columns, frame, room
from zrc_relay.cli.errors import STATUS_INTERRUPTED
from zrc_relay.control.operations import SortKey
from zrc_relay.core.codes import Role

OTHER_ID = "00" * 16
ALTERNATE_SCREEN, MAIN_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


class TerminalTests(CtlCase):
    """Issue "run it": ``ctl top`` in a pseudo-terminal shows the allocations, sorts, quits, and leaves the terminal as it was."""

    settings: ClassVar[Mapping[str, str]] = {"drain_timeout": "0s"}

    async def top(self, *options: str, **more: Any) -> Terminal:
        """Two allocations, one that has carried something, and top that shows them."""
        device, peer = await self.setup.pair()
        await exchange(device, peer)
        await self.setup.connect(Role.DEVICE, token=self.setup.another_token(allocation_id=bytes.fromhex(OTHER_ID)))
        self.busy = self.setup.token.allocation_id.hex()
        env = {"ZRC_RELAY_CTL_ENDPOINT": self.where, "ZRC_RELAY_CTL_TOKEN": WRITE_TOKEN}
        terminal = Terminal(self, "ctl", "top", *options, env=env, **more)
        self.before = terminal.modes()
        await terminal.shows("ready, up ", "2 allocations: 1 active, 1 waiting", "q quit")
        return terminal

    def order(self, terminal: Terminal) -> list[str]:
        """The ids on the screen, from top to bottom."""
        return [line.split()[0] for line in terminal.lines() if line[:32] in (self.busy, OTHER_ID)]

    async def sorted_so(self, terminal: Terminal, key: bytes, words: str, *ids: str) -> None:
        terminal.type(key)
        await terminal.shows(words)
        await eventually(lambda: self.order(terminal) == list(ids), f"{ids} in this order, {words}")

    def check_restored(self, terminal: Terminal) -> None:
        self.assertEqual(terminal.modes(), self.before)
        raw = terminal.raw
        self.assertEqual((raw.count(ALTERNATE_SCREEN), raw.count(MAIN_SCREEN)), (1, 1))
        self.assertLess(raw.index(ALTERNATE_SCREEN), raw.index(MAIN_SCREEN))
        self.assertLess(raw.rindex(HIDE_CURSOR), raw.rindex(SHOW_CURSOR))
        self.assertNotIn(b"Traceback", raw)

    async def test_a_row_for_each_allocation_totals_and_sorting_by_keys(self) -> None:
        terminal = await self.top()
        await terminal.shows(self.busy, OTHER_ID, "3 connections", "1 to 2 of 2, by bandwidth, largest first")
        self.assertNotEqual(terminal.modes(), self.before)
        row = next(line for line in terminal.lines() if line.startswith(self.busy))
        self.assertIn("active", row)
        await self.sorted_so(terminal, b"i", "by id, lowest first", OTHER_ID, self.busy)
        await self.sorted_so(terminal, b"r", "by id, highest first", self.busy, OTHER_ID)
        await self.sorted_so(terminal, b"r", "by id, lowest first", OTHER_ID, self.busy)
        await self.sorted_so(terminal, b"t", "by total carried, largest first", self.busy, OTHER_ID)
        await self.sorted_so(terminal, b"r", "by total carried, smallest first", OTHER_ID, self.busy)
        terminal.type(b"q")
        self.assertEqual(await terminal.ended(), 0)
        self.check_restored(terminal)

    async def test_it_looks_again_by_itself(self) -> None:
        terminal = await self.top("--interval", "200ms")
        device = await self.setup.connect(Role.DEVICE, token=self.setup.another_token(allocation_id=b"\xee" * 16))
        await terminal.shows("3 allocations", "ee" * 16)
        await device.relay.release()
        await terminal.shows("2 allocations")
        await eventually(lambda: "ee" * 16 not in terminal.text, "the end of the row")

    async def test_ctrl_c_leaves_the_terminal_as_it_was(self) -> None:
        terminal = await self.top()
        terminal.type(b"\x03")
        self.assertEqual(await terminal.ended(), STATUS_INTERRUPTED)
        self.check_restored(terminal)

    async def test_sigterm_leaves_the_terminal_as_it_was(self) -> None:
        terminal = await self.top()
        os.kill(terminal.process.pid, signal.SIGTERM)
        self.assertEqual(await terminal.ended(), STATUS_INTERRUPTED)
        self.check_restored(terminal)

    async def test_a_narrow_terminal_and_one_that_changes(self) -> None:
        terminal = await self.top("--interval", "1h", columns=40, lines=12)
        await terminal.shows(self.busy[:8], OTHER_ID[:8])
        self.assertNotIn(self.busy[:9], terminal.text)
        self.assertIn("RATE", terminal.text)
        terminal.resize(120, 30)
        await terminal.shows(self.busy, OTHER_ID)
        self.assertIn("EXPIRES", terminal.text)
        terminal.resize(20, 8)
        await eventually(lambda: self.busy[:8] in terminal.text and "RATE" not in terminal.text, "a smaller one")
        terminal.type(b"q")
        self.assertEqual(await terminal.ended(), 0)
        self.check_restored(terminal)

    async def test_when_the_relay_goes_it_says_so_and_ctrl_c_still_works(self) -> None:
        terminal = await self.top("--interval", "200ms")
        await self.service.stopService()
        await terminal.shows("OLD: nobody listens", self.busy)
        terminal.type(b"\x03")
        self.assertEqual(await terminal.ended(), STATUS_INTERRUPTED)
        self.check_restored(terminal)

    async def test_after_so_many_looks_it_ends(self) -> None:
        terminal = await self.top("--interval", "1s", "--count", "2")
        self.assertEqual(await terminal.ended(), 0)
        self.check_restored(terminal)

    async def test_who_is_not_let_in_is_told_without_a_screen(self) -> None:
        env = {"ZRC_RELAY_CTL_ENDPOINT": self.where, "ZRC_RELAY_CTL_TOKEN": "wrong"}
        terminal = Terminal(self, "ctl", "top", env=env)
        self.assertEqual(await terminal.ended(), 3)
        self.assertIn("status 401", terminal.text)
        self.assertNotIn(ALTERNATE_SCREEN, terminal.raw)

    async def test_what_is_no_terminal_is_told(self) -> None:
        result = await self.ctl("top")
        self.assertEqual((result.exit_code, result.stdout), (2, ""))
        self.assertIn("--json", result.stderr)
        terminal = Terminal(self, "ctl", "top", env={"ZRC_RELAY_CTL_ENDPOINT": self.where}, term="dumb")
        self.assertEqual(await terminal.ended(), 2)


STATS: dict[str, Any] = {
    "time": "2026-11-23T00:00:10.000Z", "state": "ready", "uptime_seconds": 61, "version": "9",
    "allocations": {"current": 3, "active": 1, "waiting": 2}, "connections": {"current": 4},
    "traffic": {"bytes_per_second": 1500.0, "packets_per_second": 3.0, "bytes": 10_000},
    "dropped": {"packets": {"quota": 2, "bandwidth": 3}}, "refused": {"TOKEN_EXPIRED": 7},
}


def item(number: int) -> dict[str, Any]:
    """An allocation."""
    return {
        "allocation_id": f"{number:032x}", "state": "active", "tier": "",
        "bytes_per_second": 12.0, "bytes_transferred": 2_500_000,
        "last_activity_at": "2026-11-23T00:00:05.000Z", "expires_at": None if number else "2026-11-23T01:00:10.000Z",
        "device": {"address": "192.0.2.1:5"}, "peer": {"address": None},
    }


class FrameTests(SynchronousTestCase):
    """Issue "run it": what is on the screen, whatever its size."""

    def page(self, count: int, offset: int = 0, total: int | None = None) -> Snapshot:
        items = [item(number) for number in range(offset, offset + count)]
        return Snapshot(STATS, {"items": items, "offset": offset, "total": count if total is None else total})

    def text(self, snapshot: Snapshot, width: int = 200, height: int = 24, problem: str = "") -> list[str]:
        order = Order(SortKey.ID, descending=False)
        return [line.plain for line in frame(snapshot, order, width, height, place="/x", problem=problem)]

    def test_it_has_as_many_lines_as_the_screen(self) -> None:
        for height in (1, 2, 5, 7, 24):
            for count in (0, 1, 50):
                self.assertEqual(len(self.text(self.page(count), height=height)), height)

    def test_every_row_that_fits_is_there(self) -> None:
        lines = self.text(self.page(50, offset=10, total=99), height=12)
        shown = [line[:32] for line in lines[HEAD_LINES:-1]]
        self.assertEqual(shown, [f"{number:032x}" for number in range(10, 10 + room(12))])

    def test_totals(self) -> None:
        text = "\n".join(self.text(self.page(3)))
        for part in (
            "up 1 min 1 s, at 00:00:10 UTC", "3 allocations: 1 active, 2 waiting; 4 connections", "1.5 kB/s, 3 packets/s",
            "10.0 kB carried", "5 packets dropped", "7 requests refused", "1 to 3 of 3, by id, lowest first",
        ):
            self.assertIn(part, text)

    def test_a_row(self) -> None:
        rows = self.text(self.page(2))[HEAD_LINES:]
        self.assertEqual(rows[0].split(), f"{0:032x} active - 12 B/s 2.5 MB 5 s 1 h 192.0.2.1:5 -".split())
        self.assertIn("never", rows[1])

    def test_columns_fit_and_the_most_wanted_stay(self) -> None:
        counts = []
        for width in range(8, 200):
            chosen = columns(width)
            self.assertLessEqual(sum(each.width + GAP for each in chosen) - GAP, width)
            counts.append(len(chosen))
        self.assertEqual(counts, sorted(counts))
        self.assertEqual([each.title for each in columns(8)], ["ID"])
        self.assertEqual([each.title for each in columns(80)], ["ALLOCATION", "STATE", "RATE", "CARRIED", "IDLE"])
        self.assertEqual([each.title for each in columns(200)][-2:], ["DEVICE", "PEER"])

    def test_what_is_old_says_why(self) -> None:
        self.assertIn("OLD: nobody?there", self.text(self.page(1), problem="nobody\x1bthere"))


class FakeClient:
    """Answers with a page of ``total`` allocations, as asked for, or with ``error``."""

    def __init__(self, total: int = 100) -> None:
        self.total = total
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.hangs: Deferred[Any] | None = None

    async def ask(self, name: str, **values: Any) -> Any:
        if self.hangs is not None:
            await self.hangs
        if self.error is not None:
            raise self.error
        if name == "showStats":
            return STATS
        self.asked.append(values)
        numbers = range(values["offset"], min(self.total, values["offset"] + values["limit"]))
        return {"items": [item(number) for number in numbers], "offset": values["offset"], "total": self.total}


class FakeDisplay:
    """Keeps what was drawn last."""

    size = (100, HEAD_LINES + 1 + 10)

    def __init__(self) -> None:
        self.text = ""

    def draw(self, lines: list[Text]) -> None:
        self.text = "\n".join(line.plain for line in lines)


class TopTests(SynchronousTestCase):
    """Issue "run it": live, sortable, and patient with a relay that does not answer."""

    def setUp(self) -> None:
        self.clock, self.client, self.display = Clock(), FakeClient(), FakeDisplay()
        plan = TopPlan(Order.parse("-bytes_per_second"), 1.0, None, {"tier": "paid"})
        self.top = Top(self.clock, self.client, plan, "/x", self.display)
        self.successResultOf(Deferred.fromCoroutine(self.top.look()))
        self.running = Deferred.fromCoroutine(self.top.run())
        self.running.addErrback(lambda failure: failure.value)

    def test_it_looks_once_a_second_with_the_filters_given(self) -> None:
        self.clock.pump([0.5, 0.5, 1.0])
        self.assertEqual(self.client.asked, [{"tier": "paid", "sort": "-bytes_per_second", "limit": 10, "offset": 0}] * 3)

    def test_moving_stays_within_the_list(self) -> None:
        for key, offset in (
            ("\x1b[A", 0), ("\x1b[B", 1), ("j", 2), ("k", 1), ("\x1b[6~", 11), (" ", 21), ("\x1b[5~", 11), ("g", 0),
            *((" ", 10 * number) for number in range(1, 10)), (" ", 90), ("\x1b[B", 90), ("\x1b[H", 0),
        ):
            self.top.press(key)
            self.assertEqual(self.client.asked[-1]["offset"], offset, key)

    def test_another_order_begins_at_the_top(self) -> None:
        self.top.press(" ")
        self.top.press("e")
        self.assertEqual((self.client.asked[-1]["sort"], self.client.asked[-1]["offset"]), ("expires_at", 0))
        self.top.press("?")
        self.assertEqual(len(self.client.asked), 3)

    def test_a_list_that_has_become_shorter(self) -> None:
        for _ in range(9):
            self.top.press(" ")
        self.client.total = 15
        self.clock.advance(1)
        self.assertEqual(self.client.asked[-1]["offset"], 5)
        self.assertIn("6 to 15 of 15", self.display.text)

    def test_a_look_that_fails_leaves_what_was_there_and_the_next_may_do_better(self) -> None:
        self.client.error = Unreachable("nobody there\nmore")
        self.clock.advance(1)
        self.assertIn("OLD: nobody there", self.display.text)
        self.assertIn(f"{1:032x}", self.display.text)
        self.client.error = None
        self.clock.advance(1)
        self.assertNotIn("OLD", self.display.text)

    def test_who_is_let_in_no_more_is_told(self) -> None:
        self.client.error = Denied("go away")
        self.clock.advance(1)
        self.assertIsInstance(self.successResultOf(self.running), Denied)

    def test_q_ends_it_also_while_a_relay_does_not_answer(self) -> None:
        self.client.hangs = Deferred()
        self.clock.advance(1)
        self.assertNoResult(self.running)
        self.top.press("q")
        self.assertIsNone(self.successResultOf(self.running))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_key_while_a_look_is_under_way_is_not_forgotten(self) -> None:
        self.client.hangs = hanging = Deferred[Any]()
        self.clock.advance(1)
        self.top.press("i")
        self.client.hangs = None
        hanging.callback(None)
        self.assertEqual(self.client.asked[-1]["sort"], "id")
