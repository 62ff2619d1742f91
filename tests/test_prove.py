"""``scripts/prove.py``: one line for each figure, and an exit status that says whether all are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.real_relay import PATIENCE

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "prove.py"


class ProveTests(SynchronousTestCase):
    """Issue: ``make prove`` runs what is long or measured, each printing its figure."""

    def run_script(self, *names: str, **environment: str) -> tuple[int, list[str], str]:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *names],
            capture_output=True, text=True, check=False, timeout=4 * PATIENCE, env={**os.environ, **environment},
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    def test_a_figure_that_is_kept_is_one_line_and_status_0(self) -> None:
        status, lines, errors = self.run_script("oversize")
        self.assertEqual((status, len(lines)), (0, 1), (lines, errors))
        self.assertTrue(lines[0].startswith("ok   oversize: 500 of 500 small datagrams"), lines)

    def test_a_figure_that_is_not_kept_is_told_and_fails_the_run(self) -> None:
        nothing_installed = self.mktemp()
        Path(nothing_installed).mkdir()
        status, lines, _ = self.run_script("quic_go", PATH=nothing_installed)
        self.assertEqual(status, 1)
        self.assertEqual(
            lines,
            [
                "FAIL quic_go: Go is not installed (Debian: golang and golang-github-lucas-clemente-quic-go-dev)",
                "not kept: quic_go",
            ],
        )

    def test_what_there_is_can_be_asked_for_and_nothing_else(self) -> None:
        status, _, errors = self.run_script("speed_of_light")
        self.assertEqual(status, 2)
        self.assertIn("there is no figure speed_of_light", errors)
        _, lines, _ = self.run_script("--help")
        for name in ("allocations", "bits", "dead_client", "latency", "oversize", "quic_go"):
            self.assertIn(name, " ".join(lines))
