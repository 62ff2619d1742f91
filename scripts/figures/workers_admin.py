"""The tests of what an operator has of a relay pass unchanged with 3 workers: admin, metrics, ctl, audit, reload.

They run under trial as always, but the relays that they start, in the process of the tests or as programs, have workers. Some
tests of these modules are of parts that know no relay process; they run, too, and the verdict says how many relays there were.
What needs the one process itself is named here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from figures._common import Verdict

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WORKERS: Final = 3
MODULES: Final = (
    "admin", "admin_docs", "admin_events", "admin_operations", "admin_schemathesis", "admin_unix", "audit", "ctl", "ctl_client",
    "ctl_events", "ctl_top", "ctl_where", "metrics", "metrics_promtool", "observe", "reload",
)
ALONE: Final = "test_observe.SocketTests, as a worker's sockets are its parent's and never gone"
"""What starts a relay without workers even so, and why."""
PATIENCE: Final = 1100.0
MIN_RELAYS: Final = 100
"""With fewer, the tests have not done what they should."""
_RAN: Final = re.compile(r"^Ran (\d+) tests", re.MULTILINE)
_FAILED: Final = re.compile(r"^tests\.\S+$", re.MULTILINE)


def prove() -> Verdict:
    """Run them."""
    with tempfile.TemporaryDirectory(prefix="prove-") as directory:
        names = [f"tests.test_{module}" for module in MODULES]
        trial = Path(directory, "trial")
        done = subprocess.run(
            [sys.executable, "-m", "twisted.trial", f"--temp-directory={trial}", "--reporter=text", *names],
            cwd=ROOT, env={**os.environ, "ZRC_RELAY_TEST_WORKERS": str(WORKERS)}, capture_output=True, text=True, check=False,
            timeout=PATIENCE,
        )
        relays = (trial / "test.log").read_text(encoding="utf-8", errors="replace").count("worker 0 is ready")
    ran = _RAN.search(done.stdout)
    failed = sorted(set(_FAILED.findall(done.stdout)))
    count = int(ran.group(1)) if ran is not None else 0
    kept = done.returncode == 0 and count > 0 and relays >= MIN_RELAYS
    what = "all pass" if done.returncode == 0 else f"these fail: {', '.join(failed) or done.stdout[-500:] + done.stderr[-500:]}"
    return Verdict(kept, (
        f"{count} tests of {len(MODULES)} modules about admin endpoint, metrics, ctl, audit and reload: {what}; they had "
        f"{relays} relays with {WORKERS} workers in their process (at least {MIN_RELAYS}), and others as programs; "
        f"without workers was {ALONE}"
    ))
