"""What is in the packages that are built, and that it works once installed."""

from __future__ import annotations

import json
import os
import re
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
    environ = {**os.environ, "PYTHONPATH": str(source / "scripts"), "ZRC_RELAY_COMPILE": "0"}
    for what in ("wheel", "sdist"):
        run(sys.executable, "-c", f"import build_backend as b; b.build_{what}({str(packages)!r})", cwd=source, environ=environ)
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
            "zrc_relay/config.py", "tests/__init__.py", "tests/test_config.py", "scripts/build_backend.py",
            "scripts/run_tests.py", "docs/configuration.md", "deploy/relay.example.toml",
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


class Forms(SynchronousTestCase):
    """docs/compiled.md: a wheel is compiled where that can be done, pure where not, and never half; sources stay sources.

    In place of mypyc there is one that gives setuptools a module of one line of C; the real one is at work in what ``make test``
    runs against the compiled form.
    """

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.source, self.mypyc, self.nothing = (self.directory / name for name in ("source", "mypyc", "nothing"))
        self.nothing.mkdir(parents=True)
        (self.source / "scripts").mkdir(parents=True)
        for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py", "scripts/build_backend.py"):
            shutil.copy(ROOT / name, self.source / name)
        for name in ("twisted", "zrc_relay"):
            shutil.copytree(ROOT / name, self.source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        self.mypyc.mkdir()
        self.module_is("int compiled;")

    def module_is(self, text: str) -> None:
        """Let what stands for mypyc make ``text`` of any module."""
        (self.source / "build").mkdir(exist_ok=True)
        (self.source / "build" / "module.c").write_text(text + "\n")
        (self.mypyc / "__init__.py").touch()
        (self.mypyc / "build.py").write_text(
            "from setuptools import Extension\n"
            "def mypycify(*_, **__): return [Extension('zrc_relay__mypyc', ['build/module.c'])]\n"
        )

    def hook(self, name: str, *arguments: str, wish: str | None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Let the backend do something with ``wish`` in ``ZRC_RELAY_COMPILE``; prints what it returns."""
        paths = os.pathsep.join(map(str, (self.source / "scripts", self.directory)))
        environ = {key: value for key, value in os.environ.items() if key not in {"CC", "ZRC_RELAY_COMPILE"}}
        environ |= {"PYTHONPATH": paths, **environment} | ({} if wish is None else {"ZRC_RELAY_COMPILE": wish})
        code = f"import build_backend, json; result = build_backend.{name}(*{arguments!r}); print(json.dumps(result))"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=self.source, env=environ, capture_output=True, text=True, check=False)

    def wheel(self, wish: str | None, **environment: str) -> tuple[str, list[str]]:
        """Build a wheel: the last part of its name, which is the platform that it is for, and the lines that were said."""
        done = self.hook("build_wheel", str(self.directory), wish=wish, **environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        name = json.loads(done.stdout.splitlines()[-1])
        with zipfile.ZipFile(self.directory / name) as archive:
            compiled = [each for each in archive.namelist() if each.endswith(".so")]
        platform = name.removesuffix(".whl").rpartition("-")[2]
        self.assertEqual(bool(compiled), platform != "any", "the name is that of the contents")
        return platform, said(done)

    def refused(self, done: subprocess.CompletedProcess[str]) -> str:
        """The one line with which the backend failed."""
        self.assertNotEqual(done.returncode, 0)
        [line] = said(done)
        return line

    def needs(self, wish: str | None, *, what: str = "wheel", **environment: str) -> list[str]:
        """The names of what a build needs."""
        done = self.hook(f"get_requires_for_build_{what}", wish=wish, **environment)
        self.assertEqual((done.returncode, said(done)), (0, []), done.stderr)
        return [re.split(r"[^a-z-]", each)[0] for each in json.loads(done.stdout.splitlines()[-1])]

    def test_a_wheel_is_compiled_by_itself_and_on_request(self) -> None:
        for wish in (None, "", "auto", "1"):
            platform, lines = self.wheel(wish)
            self.assertIn("linux", platform)
            self.assertEqual(lines, [])

    def test_it_is_pure_when_that_is_asked_for(self) -> None:
        self.assertEqual(self.wheel("0"), ("any", []))

    def test_without_a_compiler_it_is_pure_and_one_line_says_what_to_install(self) -> None:
        platform, [line] = self.wheel(None, PATH=str(self.nothing))
        self.assertEqual(platform, "any")
        self.assertRegex(line, "installed as pure Python.*: there is no C compiler.*apt install gcc libc6-dev python3-dev")

    def test_without_headers_of_the_c_library_it_is_pure_and_one_line_says_why(self) -> None:
        platform, [line] = self.wheel(None, CC="false")
        self.assertEqual(platform, "any")
        self.assertRegex(line, "the C compiler does not work.*apt install gcc libc6-dev python3-dev")

    def test_where_compiling_fails_it_is_pure_and_whole(self) -> None:
        self.module_is("#error no")
        platform, [line] = self.wheel(None)
        self.assertEqual(platform, "any")
        self.assertRegex(line, "installed as pure Python.*compiling failed")

    def test_where_mypyc_fails_it_is_pure_and_whole(self) -> None:
        for trouble in ("import sys; sys.exit(1)", "raise AssertionError"):
            (self.mypyc / "build.py").write_text(f"def mypycify(*_, **__): {trouble}\n")
            platform, [line] = self.wheel(None)
            self.assertEqual(platform, "any")
            self.assertIn("compiling failed", line)

    def test_who_insists_gets_no_pure_one(self) -> None:
        wheel = ("build_wheel", str(self.directory))
        for done in (
            self.hook(*wheel, wish="1", PATH=str(self.nothing)),
            self.hook("get_requires_for_build_wheel", wish="1", PATH=str(self.nothing)),
        ):
            self.assertRegex(
                self.refused(done), "ZRC_RELAY_COMPILE is 1, .* no C compiler.*apt install gcc libc6-dev python3-dev")
        self.module_is("#error no")
        self.assertIn("compiling failed", self.refused(self.hook(*wheel, wish="1")))
        self.assertEqual(list(self.directory.glob("*.whl")), [])

    def test_mypy_is_needed_only_where_something_is_compiled(self) -> None:
        self.assertLessEqual({"mypy", "aioquic", "twisted"}, set(self.needs(None)))
        self.assertEqual(self.needs("1"), self.needs(None))
        for nothing in (
            self.needs("0"), self.needs(None, PATH=str(self.nothing)), self.needs(None, what="editable"),
            self.needs(None, what="sdist"), self.needs("1", what="sdist"),
        ):
            self.assertEqual(nothing, [])

    def test_an_editable_install_is_never_compiled(self) -> None:
        done = self.hook("build_editable", str(self.directory), wish=None)
        self.assertEqual((done.returncode, said(done)), (0, []), done.stderr)
        self.assertEqual([*self.source.rglob("*.so")], [])
        for name, *arguments in (("build_editable", str(self.directory)), ("get_requires_for_build_editable",)):
            self.assertIn("an editable install runs the sources", self.refused(self.hook(name, *arguments, wish="1")))

    def test_another_value_is_an_error(self) -> None:
        line = self.refused(self.hook("build_wheel", str(self.directory), wish="yes"))
        self.assertEqual(line, 'zrc-relay: ZRC_RELAY_COMPILE is "yes"; it can be "auto", "1" or "0"')


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the backend itself has said."""
    return [line for line in done.stderr.splitlines() if line.startswith("zrc-relay: ")]


class Plugin(SynchronousTestCase):
    """The plugin is loaded whenever twistd lists its commands, whatever they are, so it must cost nothing."""

    def test_listing_the_commands_loads_nothing_of_the_relay(self) -> None:
        code = (
            "import sys; from twisted.plugins import zrc_relay_plugin;"
            "print([name for name in sys.modules if name.partition('.')[0] in ('zrc_relay', 'aioquic', 'klein', 'nacl')])"
        )
        self.assertEqual(run(sys.executable, "-c", code, cwd=ROOT).strip(), "[]")
