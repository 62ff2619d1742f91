"""What is compiled does the same: the tests of the way of a packet, on the compiled modules.

``make test`` runs them, too; here their number is a figure. Which ones they are, and how they get the compiled form, is in
``scripts/compiled_suite.py``.
"""

from __future__ import annotations

from typing import Final

from compiled_suite import TESTS
from run_tests import run_compiled

from figures._common import Verdict

PATIENCE: Final = 300.0
"""Seconds after which a test is taken to hang."""


def prove() -> Verdict:
    """Build and run."""
    counts, trouble = run_compiled(TESTS, PATIENCE)
    if trouble:
        return Verdict(kept=False, figure="; ".join(trouble))
    kept = counts.passed > 0 and not counts.failed
    return Verdict(kept, f"of the tests of the way of a packet, on compiled modules: {counts}")
