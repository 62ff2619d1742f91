"""What ``ctl stats`` and ``ctl top`` show of a relay with several workers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import NO_SETTINGS
from tests.test_traffic_merged import numbered
from zrc_relay.cli import ctl_views
from zrc_relay.cli.console import console
from zrc_relay.cli.ctl_top_view import FOOT_LINES, HEAD_LINES, Order, Snapshot, frame, room
from zrc_relay.cli.main import main
from zrc_relay.control.answers import Stats, WorkerStats
from zrc_relay.control.schema import plain

ORDER = Order.parse("-bytes_per_second")


def stats_of(workers: int) -> dict[str, Any]:
    """Statistics of a relay with so many."""
    numbers = numbered(3)
    rows = tuple(
        WorkerStats(index, 4000 + index, "ready" if index else "draining", 61.0, index, 2 * index, 1500.0, 12.0, 0.415, 0.0012, 5)
        for index in range(workers)
    )
    found: dict[str, Any] = plain(Stats(
        "2027-01-15T08:00:00.000Z", "2027-01-15T07:00:00.000Z", 3600.0, "1.0", "aa", "bb", "ready", numbers.allocations,
        numbers.connections, numbers.traffic, numbers.dropped, numbers.refused, numbers.limited, (), rows,
    ))
    return found


class TopTests(SynchronousTestCase):
    """Issue "all cores": ``ctl top`` has a row for each worker, when there are several."""

    def lines(self, stats: dict[str, Any], height: int = 24, rows: int = 100, **page: Any) -> list[str]:
        item = {
            "allocation_id": "ab" * 16, "bytes_per_second": 1.0, "bytes_transferred": 1, "state": "active", "tier": "",
            "last_activity_at": stats["time"], "expires_at": None, "device": {"address": None}, "peer": {"address": None},
        }
        listed = {"items": [item] * rows, "total": rows, "offset": 0, **page}
        return [line.plain for line in frame(Snapshot(stats, listed), ORDER, 160, height, place="here")]

    def test_a_row_for_each_of_several(self) -> None:
        lines = self.lines(stats_of(3))
        (titles,) = [number for number, line in enumerate(lines) if line.split()[:3] == ["WORKER", "STATE", "PID"]]
        rows = [line.split() for line in lines[titles + 1 : titles + 4]]
        self.assertEqual([row[:3] for row in rows], [["0", "draining", "4000"], ["1", "ready", "4001"], ["2", "ready", "4002"]])
        self.assertIn("42%", rows[2])
        self.assertEqual((rows[2][-1], rows[2][-3:-1]), ("5", ["1.2", "ms"]))

    def test_none_for_one_or_a_relay_that_says_nothing_of_them(self) -> None:
        silent = stats_of(0)
        del silent["workers"]
        for stats in (stats_of(0), stats_of(1), silent):
            self.assertFalse(any("WORKER" in line for line in self.lines(stats)))
        self.assertEqual(self.lines(stats_of(1)), self.lines(silent))

    def test_a_list_that_is_not_whole_says_so(self) -> None:
        for rows, rest in ((7, "1 to 7 of 7, by bandwidth, largest first"), (0, "no allocations")):
            self.assertIn(rest, self.lines(stats_of(2), rows=rows, missing_workers=[]))
            lines = self.lines(stats_of(2), rows=rows, missing_workers=[1])
            self.assertIn(f"worker 1 does not answer; what it has is missing; {rest}", lines)

    def test_a_screen_is_full_and_never_more_than_that_and_half_of_it_is_for_allocations(self) -> None:
        for workers in (0, 2, 3, 12, 64):
            for height in (7, 8, 10, 11, 24, 60):
                lines = self.lines(stats_of(workers), height)
                self.assertEqual(len(lines), height, (workers, height))
                shown = sum(line.startswith("abab") for line in lines)
                self.assertEqual(shown, room(height, workers), (workers, height))
                self.assertGreaterEqual(shown, (height - HEAD_LINES - FOOT_LINES) // 2)

    def test_those_that_do_not_fit_are_counted(self) -> None:
        lines = self.lines(stats_of(64), 26)
        shown = sum("ready" in line.split()[1:2] or "draining" in line.split()[1:2] for line in lines)
        self.assertIn(f"and {64 - shown} more workers", lines)
        self.assertEqual(shown, 8)


class ListTests(SynchronousTestCase):
    """Issue "all cores": ``ctl list`` and ``ctl connections`` do not pass off a part for the whole."""

    def run_on(self, page: dict[str, Any], *words: str) -> Result:
        """Run a command of ``ctl`` on a relay that answers with ``page``."""
        arguments = ["ctl", "--endpoint", "tcp:127.0.0.1:1", *words]
        return CliRunner().invoke(main, arguments, env=NO_SETTINGS, prog_name="zrc-relay", obj=lambda _: page)

    def test_who_does_not_answer_is_named_beside_the_list(self) -> None:
        page = {"items": [], "total": 0, "offset": 0, "missing_workers": [1, 3]}
        for words in (("list",), ("connections",), ("list", "--json"), ("connections", "--json")):
            result = self.run_on(page, *words)
            self.assertEqual((result.exit_code, result.stderr.splitlines()), (0, [
                "zrc-relay: worker 1 does not answer; what it has is missing",
                "zrc-relay: worker 3 does not answer; what it has is missing",
            ]), words)
            if "--json" in words:
                self.assertEqual(json.loads(result.stdout), page)

    def test_nothing_is_said_of_a_list_that_is_whole(self) -> None:
        page: dict[str, Any] = {"items": [], "total": 0, "offset": 0}
        for answer in ({**page, "missing_workers": []}, page):  # the second is that of an earlier version
            self.assertEqual(self.run_on(answer, "list").stderr, "")


class StatsTests(SynchronousTestCase):
    """Issue "all cores": ``ctl stats`` tells of each worker."""

    def shown(self, stats: dict[str, Any]) -> str:
        screen = console()
        with screen.capture() as captured:
            self.patch(ctl_views, "console", lambda: screen)
            self.patch(ctl_views, "print_fields", lambda fields: None)
            ctl_views.stats(stats)
        return captured.get()

    def test_a_table_where_there_are_several_and_none_where_there_is_one(self) -> None:
        lines = self.shown(stats_of(2)).splitlines()
        (titles,) = [number for number, line in enumerate(lines) if line.startswith("WORKER")]
        self.assertEqual(lines[titles + 1].split()[:3], ["0", "draining", "4000"])
        self.assertEqual(lines[titles + 2].split()[:3], ["1", "ready", "4001"])
        down = stats_of(0)
        down["workers"] = [plain(replace(WorkerStats(0, 1, "down", 0.0, 0, 0, 0.0, 0.0, 0.0, 0.0, 1), pid=None))]
        self.assertIn("down   -", self.shown(down))
        self.assertNotIn("WORKER", self.shown(stats_of(0)))
