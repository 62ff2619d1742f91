"""Which form of the relay runs, and where it says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import zrc_relay
from tests.cli_support import zrc_relay as command
from tests.harness import World
from tests.watching import Watched
from zrc_relay import __version__
from zrc_relay.form import Form, form
from zrc_relay.quic import fastpath

PACKAGE = Path(zrc_relay.__file__).parent


class FormTests(SynchronousTestCase):
    """docs/compiled.md: the form is that of the modules which a packet goes through."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        quic = self.directory / "zrc_relay" / "quic"
        quic.mkdir(parents=True)
        for name in ("__init__.py", "form.py"):
            shutil.copy(PACKAGE / name, quic.parent)
        self.module = quic / "fastpath.py"
        for path in (quic / "__init__.py", self.module):
            path.touch()

    def told(self) -> str:
        code = "from zrc_relay.form import form; print(form())"
        # Without `site`, because an editable install would lend the modules that are missing.
        done = subprocess.run([sys.executable, "-S", "-c", code], cwd=self.directory, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def test_sources_alone_are_pure_python(self) -> None:
        self.assertEqual(self.told(), "pure Python")

    def test_an_extension_beside_the_source_is_what_runs(self) -> None:
        self.module.with_suffix(EXTENSION_SUFFIXES[0]).touch()
        self.assertEqual(self.told(), "compiled")

    def test_it_is_the_form_that_was_imported(self) -> None:
        self.assertEqual(form() is Form.PYTHON, Path(fastpath.__file__).suffix == ".py")


class TellingTests(SynchronousTestCase):
    """docs/compiled.md: an operator sees which form runs; these run against both."""

    def test_the_version_says_it(self) -> None:
        self.assertEqual(command("--version").stdout, f"zrc-relay, version {__version__} ({form()})\n")

    def test_the_metrics_say_it(self) -> None:
        told = [
            sample.labels for family in Watched(World()).families() for sample in family.samples
            if sample.name == "zrc_relay_build_info"
        ]
        self.assertEqual([labels["form"] for labels in told], [str(form())])
