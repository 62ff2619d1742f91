"""``zrc_relay.core`` stays what it is: no I/O, no clock, no randomness, nothing from the other rooms."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import zrc_relay.core

CORE = Path(zrc_relay.core.__file__).parent
ROOT = CORE.parent.parent
FOREIGN = frozenset((
    "twisted", "aioquic", "klein", "txredisapi", "prometheus_client", "OpenSSL", "cryptography", "asyncio", "socket", "selectors",
    "ssl", "subprocess", "threading", "multiprocessing",
))
"""Nothing that does input or output may even be loaded, by us or by what we import."""
IMPURE = frozenset(("time", "os", "random", "secrets", "uuid", "socket", "pathlib", "io", "tempfile", "logging"))
"""Sources of time, randomness and files: others may load these, no line of core may import them."""
IMPURE_METHODS = frozenset(("now", "utcnow", "today", "urandom", "generate"))
"""What reads a clock or makes randomness although its module may be imported (``datetime.now``, ``SigningKey.generate``)."""
IMPURE_BUILTINS = frozenset(("open", "print", "input", "__import__", "exec", "eval"))
"""I/O, and ways around the list of imports, that need no import."""


def module_files() -> list[Path]:
    """Every source file of core."""
    return sorted(CORE.rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name that ``path`` is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every module that a source file imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def impure_calls(tree: ast.AST) -> Iterator[str]:
    """The names of the calls that core may not make."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name in IMPURE_METHODS:
                yield name
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_METHODS | IMPURE_BUILTINS:
                yield name


def loaded_by(statement: str) -> set[str]:
    """Modules that ``statement`` loads in a fresh interpreter, beyond those that the interpreter starts with."""
    program = f"import json, sys\nbefore = set(sys.modules)\n{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT,
    )
    return set(json.loads(done.stdout))


class LoadTests(SynchronousTestCase):
    """What comes along when a core module is imported (ARCHITECTURE rule 1)."""

    def test_each_module_alone_loads_no_io_library_and_no_other_room(self) -> None:
        self.assertGreaterEqual(len(module_files()), 6)
        for path in module_files():
            name = module_name(path)
            loaded = loaded_by(f"import {name}")
            self.assertIn(name, loaded)
            foreign = {one for one in loaded if one.partition(".")[0] in FOREIGN}
            self.assertEqual(foreign, set(), name)
            rooms = {one for one in loaded if one.startswith("zrc_relay.") and f"{one}.".split(".")[1] != "core"}
            self.assertEqual(rooms, set(), name)

    def test_the_method_notices_an_offender(self) -> None:
        self.assertIn("asyncio", loaded_by("import zrc_relay.core.wire, asyncio"))


class SourceTests(SynchronousTestCase):
    """Time and randomness are arguments in core (ARCHITECTURE rule 6)."""

    def test_no_module_imports_a_clock_randomness_or_files(self) -> None:
        for path in module_files():
            names = {name.partition(".")[0] for name in imported_names(ast.parse(path.read_text(encoding="utf-8")))}
            self.assertEqual(names & (IMPURE | FOREIGN), set(), path.name)

    def test_no_module_imports_another_room(self) -> None:
        for path in module_files():
            names = set(imported_names(ast.parse(path.read_text(encoding="utf-8"))))
            ours = {name for name in names if name.partition(".")[0] == "zrc_relay"}
            self.assertEqual({name for name in ours if not f"{name}.".startswith("zrc_relay.core.")}, set(), path.name)

    def test_no_module_calls_what_reads_a_clock_or_makes_randomness(self) -> None:
        for path in module_files():
            self.assertEqual(list(impure_calls(ast.parse(path.read_text(encoding="utf-8")))), [], path.name)

    def test_the_method_notices_offenders(self) -> None:
        source = "import os.path\nfrom random import Random\nx.now()\nKey.generate()\nopen(a)\nx.open(a)\n"
        tree = ast.parse(source)
        self.assertEqual(sorted(imported_names(tree)), ["os.path", "random"])
        self.assertEqual(sorted(impure_calls(tree)), ["generate", "now", "open"])
