"""The tests of the way of a packet, made ready to run against the compiled form (docs/compiled.md).

What is tested is what an operator installs: the wheel that ``scripts/build_backend.py`` makes, unpacked in front of everything
else, and the tests beside it without the sources. The differential test of the short way is among them, which compares it with
the general machinery byte by byte. ``make test`` runs them after the suite, and ``make prove`` says how many there are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from build_backend import PACKAGES, lacking_compiler

ROOT: Final = Path(__file__).resolve().parent.parent
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
    "tests.test_endpoint.BatchTests.test_what_one_pair_has_sent_leaves_before_the_next_pairs_packets_are_opened",
    "tests.test_udp.SendingTests.test_paths_that_it_remembers_are_bounded",
    "tests.properties.test_p6_isolation.IsolationTests.test_an_exception_in_one_allocation_changes_nothing_in_another",
)
"""Tests of those modules that replace a constant, a class or a method of compiled code, where calls do not look names up, or read
an object's ``__dict__``, which it does not have. What they show of the source holds for both forms."""
SOURCES: Final = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "scripts/build_backend.py", "twisted", "zrc_relay")
"""What a wheel is made of."""
BUILD_PATIENCE: Final = 600.0
"""Seconds; it takes half a minute."""
IMPORT_PATIENCE: Final = 60.0
_BUILD: Final = "import sys, build_backend; build_backend.build_wheel(sys.argv[1])"
_WHERE: Final = "from zrc_relay.form import form; from zrc_relay.quic import fastpath; print(form(), fastpath.__file__, sep='|')"
_HIDDEN: Final = shutil.ignore_patterns("__pycache__", "*.so", "dropin.cache")


class NotCompiled(Exception):
    """It cannot be compiled here; the message says why, and what would change it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where the tests are, and the environment in which an interpreter has the compiled form."""

    directory: Path
    environment: dict[str, str]


@contextmanager
def prepared() -> Iterator[Prepared]:
    """The compiled form and the tests, in a directory that goes at the end; ``NotCompiled`` where it cannot be had."""
    if lack := lacking_compiler():
        msg = f"{lack}; install what is missing (Debian: apt install {PACKAGES})"
        raise NotCompiled(msg)
    with tempfile.TemporaryDirectory(prefix="compiled-") as name:
        directory = Path(name)
        source, package, tests = directory / "source", directory / "package", directory / "tests-of-it"
        for each in SOURCES:
            copy(ROOT / each, source / each)
        shutil.unpack_archive(build(source, directory / "wheel"), package, "zip")
        for each in ("tests", "docs"):
            copy(ROOT / each, tests / each)
        ready = Prepared(tests, {**os.environ, "PYTHONPATH": str(package)})
        check(ready, package)
        yield ready


def build(source: Path, into: Path) -> Path:
    """The compiled wheel."""
    into.mkdir()
    environment = {**os.environ, "ZRC_RELAY_COMPILE": "1", "PYTHONPATH": str(source / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(into)],
        cwd=source, env=environment, capture_output=True, text=True, timeout=BUILD_PATIENCE, check=False,
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).splitlines()
        lines = [line for line in said if line.startswith("zrc-relay: ")]
        if not lines or "compiling failed" in lines[-1]:
            print("\n".join(said[-60:]))
        raise NotCompiled(lines[-1].removeprefix("zrc-relay: ") if lines else f"building ended with status {done.returncode}")
    [wheel] = into.glob("*.whl")
    return wheel


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


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=_HIDDEN)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
