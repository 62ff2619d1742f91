"""What is in the packages that are built, and that it works once installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay import __version__

ROOT = Path(__file__).resolve().parent.parent
NEEDED_TO_BUILD = (
    "LICENSE", "MANIFEST.in", "README.md", "deploy", "docs", "pyproject.toml", "relay.tac", "scripts", "setup.py", "tests",
    "twisted", "zrc_relay",
)
PLUGIN = "twisted/plugins/zrc_relay_plugin.py"


def run(*command: str | Path, cwd: Path, environ: dict[str, str] | None = None) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        msg = f"{command} failed with {done.returncode}:\n{done.stdout}{done.stderr}"
        raise AssertionError(msg)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Built:
    """A directory to work in, and the packages built there."""

    directory: Path
    wheel: Path
    sdist: Path

    def names_in_wheel(self) -> set[str]:
        """The files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def names_in_sdist(self) -> set[str]:
        """The files in the sdist, without the directory they are in."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}


@cache
def build() -> Built:
    """The packages. They are built once for all tests, and from a copy, because building leaves files beside the sources."""
    directory = Path.cwd() / "packaging"
    source, packages = directory / "source", directory / "packages"
    source.mkdir(parents=True)
    for name in NEEDED_TO_BUILD:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "dropin.cache"))
        else:
            shutil.copy(path, source / name)
    for what in ("wheel", "sdist"):
        run(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_{what}({str(packages)!r})", cwd=source)
    [wheel] = packages.glob("*.whl")
    [sdist] = packages.glob("*.tar.gz")
    return Built(directory, wheel, sdist)


class Packages(SynchronousTestCase):
    """R12, and the given shape: wheel and sdist install a relay that twistd finds from any directory."""

    def setUp(self) -> None:
        self.built = build()

    def test_the_wheel_has_every_module_and_the_marker_for_type_checkers(self) -> None:
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / "zrc_relay").rglob("*.py")}
        installed = {name for name in self.built.names_in_wheel() if name.startswith("zrc_relay/")}
        self.assertEqual(installed, modules | {"zrc_relay/py.typed"})

    def test_the_wheel_has_the_plugin_and_nothing_else_of_twisteds(self) -> None:
        self.assertEqual({name for name in self.built.names_in_wheel() if name.startswith("twisted/")}, {PLUGIN})

    def test_the_wheel_has_nothing_beside_the_relay_and_the_plugin(self) -> None:
        tops = {name.partition("/")[0] for name in self.built.names_in_wheel()}
        self.assertEqual(tops, {"zrc_relay", "twisted", f"zrc_relay-{__version__}.dist-info"})

    def test_the_metadata(self) -> None:
        with zipfile.ZipFile(self.built.wheel) as archive:
            metadata = message_from_bytes(archive.read(f"zrc_relay-{__version__}.dist-info/METADATA"))
        self.assertEqual(
            [metadata[key] for key in ("Name", "Version", "License-Expression", "Requires-Python")],
            ["zrc-relay", __version__, "MIT", ">=3.11"],
        )

    def test_the_sdist_has_what_it_takes_to_build_test_and_deploy(self) -> None:
        needed = {
            "LICENSE", "README.md", "pyproject.toml", "setup.py", "relay.tac", PLUGIN, "zrc_relay/py.typed",
            "zrc_relay/config.py", "tests/__init__.py", "tests/test_config.py", "scripts/run_tests.py",
            "docs/configuration.md", "deploy/relay.example.toml",
        }
        self.assertEqual(needed - self.built.names_in_sdist(), set())

    def test_installed_it_works_from_any_directory(self) -> None:
        installed, elsewhere = self.built.directory / "installed", self.built.directory / "elsewhere"
        elsewhere.mkdir()
        shutil.unpack_archive(self.built.wheel, installed, "zip")
        # Without `site`, because an editable install would lend a hand: the sources themselves must not be on the path.
        libraries = [str(installed), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(libraries), "HOME": str(elsewhere), "COLUMNS": "200"}
        where = run(sys.executable, "-S", "-c", "import zrc_relay; print(zrc_relay.__file__)", cwd=elsewhere, environ=environ)
        self.assertEqual(Path(where.strip()), installed / "zrc_relay/__init__.py")
        twistd = "from twisted.scripts.twistd import run; run()"
        usage = run(sys.executable, "-S", "-c", twistd, "zrc-relay", "--help", cwd=elsewhere, environ=environ)
        self.assertIn("--listen-port=", usage)
        command = "import sys; sys.argv[0] = 'zrc-relay'; from zrc_relay.cli.main import main; main()"
        self.assertIn("tunnel", run(sys.executable, "-S", "-c", command, "--help", cwd=elsewhere, environ=environ))


class Plugin(SynchronousTestCase):
    """The plugin is loaded whenever twistd lists its commands, whatever they are, so it must cost nothing."""

    def test_listing_the_commands_loads_nothing_of_the_relay(self) -> None:
        code = (
            "import sys; from twisted.plugins import zrc_relay_plugin;"
            "print([name for name in sys.modules if name.partition('.')[0] in ('zrc_relay', 'aioquic', 'klein', 'nacl')])"
        )
        self.assertEqual(run(sys.executable, "-c", code, cwd=ROOT).strip(), "[]")
