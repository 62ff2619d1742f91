"""The build backend of the package: that of setuptools, which is told when to compile (docs/compiled.md).

``ZRC_RELAY_COMPILE`` in the environment says what is wanted:

* ``auto``, or nothing: a wheel is compiled where a C compiler and Python's headers are. Where they are not, or where compiling
  fails, the wheel is pure Python, and one line on standard error says why and what would change it.
* ``1``: the wheel is compiled, or the build fails with that line.
* ``0``: the wheel is pure Python. mypy is not even fetched.

An sdist holds sources only, and an editable install runs them: compiled modules beside the sources would win over them at every
later change. So these two are never compiled, and asking for an editable install that is, is an error.

``setup.py`` does what it is told with ``1`` and ``0``; this module decides which, and what the build needs for it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any, Final, NoReturn

from setuptools import build_meta

VARIABLE: Final = "ZRC_RELAY_COMPILE"
PACKAGES: Final = "gcc libc6-dev python3-dev"
"""Debian's packages with what compiling takes."""
_INSTALL: Final = f"install what is missing (Debian: apt install {PACKAGES}) and install zrc-relay again"
_NO_MYPY: Final = "install mypy and what pyproject.toml depends on, or leave --no-build-isolation out"
_PATIENCE: Final = 60.0

Settings = Mapping[str, Any] | None


class Wish(Enum):
    """What ``ZRC_RELAY_COMPILE`` asks for."""

    AUTO = "auto"
    COMPILED = "1"
    PURE = "0"


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What a wheel needs to be built; mypy, and the packages whose types it reads, only for one that will be compiled."""
    wish, lack = wished(), lacking_compiler()
    if wish is Wish.COMPILED and lack:
        refuse(lack, _INSTALL)
    with telling(Wish.PURE):
        needed = build_meta.get_requires_for_build_wheel(config_settings)
    return needed if wish is Wish.PURE or lack else [*needed, *compilers_needs()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """What an editable install needs to be built."""
    _refuse_compiled_sources()
    with telling(Wish.PURE):
        return build_meta.get_requires_for_build_editable(config_settings)


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """What an sdist needs to be built."""
    with telling(Wish.PURE):
        return build_meta.get_requires_for_build_sdist(config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    """The metadata, which are the same for both forms."""
    with telling(Wish.PURE):
        return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None) -> str:
    """The same for an editable install."""
    with telling(Wish.PURE):
        return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """The sources."""
    with telling(Wish.PURE):
        return build_meta.build_sdist(sdist_directory, config_settings)


def build_editable(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel that points to the sources."""
    _refuse_compiled_sources()
    with telling(Wish.PURE):
        return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel in the form that is wished for and can be had."""
    arguments = wheel_directory, config_settings, metadata_directory
    wish = wished()
    if wish is Wish.PURE:
        with telling(Wish.PURE):
            return build_meta.build_wheel(*arguments)
    lack, remedy = lacking_compiler(), _INSTALL
    if not lack and find_spec("mypyc") is None:
        lack, remedy = "mypy is not there", _NO_MYPY
    if not lack:
        try:
            with telling(Wish.COMPILED):
                return build_meta.build_wheel(*arguments)
        # mypyc and setuptools end the process, each in its own way, when the compiler fails.
        except (Exception, SystemExit) as error:
            # mypyc says what is wrong itself, and leaves with a number.
            reason = "mypyc says above why" if isinstance(error, SystemExit) else shorten(repr(error), 80, placeholder=" ...")
            lack, remedy = f"compiling failed ({reason})", "see above what was wrong, mend it, and install zrc-relay again"
    if wish is Wish.COMPILED:
        refuse(lack, remedy)
    say(
        f"installed as pure Python, which does the same and takes more processor time: {lack}. For the compiled form {remedy}; "
        f"{VARIABLE}=0 asks for pure Python."
    )
    with telling(Wish.PURE):
        return build_meta.build_wheel(*arguments)


def wished() -> Wish:
    """What the environment asks for; ends the process for what cannot be understood."""
    value = os.environ.get(VARIABLE) or Wish.AUTO.value
    try:
        return Wish(value)
    except ValueError:
        say(f'{VARIABLE} is "{value}"; it can be "auto", "1" or "0"')
        raise SystemExit(1) from None


def lacking_compiler() -> str:
    """What keeps this machine from compiling modules for this Python, in words; empty when nothing does."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler ({compiler[0]})"
    headers = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    if not any(Path(each, "Python.h").is_file() for each in headers):
        return f"there are no headers of Python {sysconfig.get_python_version()} (Python.h)"
    # Debian's compiler comes without the headers of the C library, which those of Python include.
    command = [*compiler, "-fsyntax-only", *(f"-I{each}" for each in headers), "-x", "c", "-"]
    try:
        tried = subprocess.run(
            command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the C compiler does not work: {error}"
    if tried.returncode != 0:
        errors = [line for line in tried.stderr.splitlines() if "error" in line] or ["it gives no reason"]
        return f"the C compiler does not work: {errors[0]}"
    return ""


def compilers_needs() -> list[str]:
    """Requirements of compiling: mypy in the version that the tests use, and the packages whose types it reads."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    [mypy] = [each for each in project["optional-dependencies"]["test"] if each.startswith("mypy")]
    return [mypy, *project["dependencies"]]


def refuse(lack: str, remedy: str) -> NoReturn:
    """End the process, which was told to compile and cannot."""
    say(f"{VARIABLE} is 1, and it cannot be compiled: {lack}. For the compiled form {remedy}; {VARIABLE}=0 asks for pure Python.")
    raise SystemExit(1)


def say(line: str) -> None:
    """Print a line where pip shows it, which is when the build fails or pip is told ``-v``."""
    print(f"zrc-relay: {line}", file=sys.stderr, flush=True)


def _refuse_compiled_sources() -> None:
    if wished() is Wish.COMPILED:
        say(f"{VARIABLE} is 1, but an editable install runs the sources as they are; leave out the one or the other")
        raise SystemExit(1)


@contextmanager
def telling(wish: Wish) -> Iterator[None]:
    """Tell ``setup.py``, which setuptools runs in this process."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = wish.value
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
