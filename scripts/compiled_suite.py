"""The tests of the way of a packet, made ready to run against the compiled form (docs/compiled.md).

What is tested is what an operator installs (``compiled_form.py``), in front of everything else, and the tests beside it without
the sources. The differential test of the short way is among them, which compares it with the general machinery byte by byte.
``make test`` runs them after the suite, and ``make prove`` says how many there are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compiled_form import ROOT, NotCompiled, copy, make

TESTS: Final = tuple(f"tests.{name}" for name in (
    "test_form", "test_fastpath", "test_gather", "test_endpoint", "test_links", "test_egress", "test_idle", "test_connections",
    "test_session", "test_pmtu", "test_paths", "test_key_updates", "test_streams", "test_channels", "test_forwarding", "test_udp",
    "test_allocation", "test_limiter", "test_wheel", "test_recent", "test_congestion", "properties",
))
REPLACING: Final = (
    "tests.test_gather.EndpointGatherTests.test_each_batch_begins_and_ends_once",
    "tests.test_gather.EndpointGatherTests.test_a_reload_changes_it_from_the_next_batch_on",
    "tests.test_gather.EndpointGatherTests.test_a_reload_of_something_else_leaves_it_as_it_is",
    (
        "tests.test_endpoint.HandshakeBoundsTests."
        "test_half_open_connections_are_bounded_and_the_next_client_gets_in_when_they_are_gone"
    ),
    "tests.test_endpoint.BatchTests.test_however_long_it_takes_to_find_who_is_due_they_have_their_turn",
    "tests.test_endpoint.BatchTests.test_what_one_pair_has_sent_leaves_before_the_next_pairs_packets_are_opened",
    "tests.test_udp.SendingTests.test_paths_that_it_remembers_are_bounded",
    "tests.properties.test_p6_isolation.IsolationTests.test_an_exception_in_one_allocation_changes_nothing_in_another",
)
"""Tests of those modules that replace a constant, a class or a method of compiled code, where calls do not look names up, or read
an object's ``__dict__``, which it does not have. What they show of the source holds for both forms."""
IMPORT_PATIENCE: Final = 60.0
_WHERE: Final = "from zrc_relay.form import form; from zrc_relay.quic import fastpath; print(form(), fastpath.__file__, sep='|')"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where the tests are, and the environment in which an interpreter has the compiled form."""

    directory: Path
    environment: dict[str, str]


@contextmanager
def prepared() -> Iterator[Prepared]:
    """The compiled form and the tests, in a directory that goes at the end; ``NotCompiled`` where it cannot be had."""
    with tempfile.TemporaryDirectory(prefix="compiled-") as name:
        directory = Path(name)
        package, tests = directory / "package", directory / "tests-of-it"
        make(package)
        for each in ("tests", "docs"):
            copy(ROOT / each, tests / each)
        ready = Prepared(tests, {**os.environ, "PYTHONPATH": str(package)})
        check(ready, package)
        yield ready


def check(ready: Prepared, package: Path) -> None:
    """Whether an interpreter there runs compiled modules of ``package``: tests that pass on the sources would prove nothing."""
    done = subprocess.run(
        [sys.executable, "-c", _WHERE],
        cwd=ready.directory, env=ready.environment, capture_output=True, text=True, timeout=IMPORT_PATIENCE, check=False,
    )
    form, _, file = done.stdout.strip().partition("|")
    if form != "compiled" or not Path(file).is_relative_to(package):
        print(done.stderr)
        msg = f"what runs is {form or 'nothing'} of {file or 'nowhere'}"
        raise NotCompiled(msg)
