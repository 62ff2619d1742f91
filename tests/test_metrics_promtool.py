"""What Prometheus itself thinks of the metrics, and of the expressions in docs/metrics.md.

The tests exist where promtool is installed; elsewhere the module says that it has none. ``make prove`` insists on them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests import promtool
from tests.harness import World
from tests.watching import Watched

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


class PromtoolTests(SynchronousTestCase):
    """Issue: clean under ``promtool check metrics`` from Debian's prometheus."""

    def test_the_metrics_are_clean_before_and_after_sessions(self) -> None:
        world = World()
        watched = Watched(world)
        self.assertEqual(promtool.check_metrics(watched.text().encode()), [])
        device, _ = world.pair()
        device.send(b"x")
        world.run(1)
        device.release()
        world.run(1)
        self.assertEqual(promtool.check_metrics(watched.text().encode()), [])

    def test_it_notices_what_is_not_clean(self) -> None:
        text = b"# TYPE zrc_relay_bytes_kilobytes counter\nzrc_relay_bytes_kilobytes 1\n"
        self.assertNotEqual(promtool.check_metrics(text), [])

    def test_the_expressions_of_the_page_are_promql(self) -> None:
        spans = re.findall(r"`([^`]*)`", re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))
        expressions = [span for span in spans if re.search(r"[(<>]|==", span)]
        self.assertGreater(len(expressions), 20)
        rules = [{"record": f"page:expression{number}", "expr": text} for number, text in enumerate(expressions)]
        path = Path(self.mktemp())
        path.write_text(json.dumps({"groups": [{"name": "page", "rules": rules}]}), encoding="utf-8")  # JSON is YAML, too
        is_clean, said = promtool.check_rules(str(path))
        self.assertTrue(is_clean, said)
        self.assertIn(f"{len(expressions)} rules found", said)


if (_missing := promtool.missing()) is not None:
    # No test is there that would be passed over in silence: there is none, and a line that says so.
    sys.stderr.write(f"tests.test_metrics_promtool has no tests here: {_missing}\n")
    del PromtoolTests
