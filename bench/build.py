"""What has to be compiled, and where it is found: everything offline, from Debian's packages, into ``bench/.build``.

A program that cannot be had on this machine raises ``Missing`` with what would bring it. That is reported and not fatal: the
others are measured without it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BENCH: Final = ROOT / "bench"
BUILD: Final = BENCH / ".build"
PROTOCOL_SOURCES: Final = ROOT / "tests" / "interop" / "quicgo"
"""The client that speaks the relay's protocol in Go; the load generator borrows the files that hold the bytes."""
BORROWED: Final = ("wire.go", "decode.go", "event.go")
GO_PATH: Final = Path("/usr/share/gocode")
QUIC_GO: Final = GO_PATH / "src/github.com/lucas-clemente/quic-go"
GO_PACKAGES: Final = "golang and golang-github-lucas-clemente-quic-go-dev"
CRATES: Final = Path("/usr/share/cargo/registry")
RUST_PACKAGES: Final = "cargo and librust-quinn-dev"
DEBIANS_CARGO: Final = Path("/usr/bin/cargo")
DEBIANS_RUSTC: Final = Path("/usr/bin/rustc")
PATIENCE: Final = 1800.0
"""Seconds for a build: quinn and what it needs take some minutes the first time."""
_CARGO_CONFIG: Final = """\
[source.crates-io]
replace-with = "packaged"

[source.packaged]
directory = "{crates}"

[net]
offline = true
"""


class Missing(Exception):
    """Something cannot be had on this machine; the message says why, and which packages bring it."""


@cache
def load_generator() -> Path:
    """The load generator."""
    with load_sources() as source:
        return _go_build(source, "load")


def check_load_generator() -> str:
    """Run the load generator's own tests; returns what they say, ``Missing`` when they fail."""
    with load_sources() as source:
        _run([_go(), "vet", "."], source, _go_environment())
        return _run([_go(), "test", "."], source, _go_environment())


@contextlib.contextmanager
def load_sources() -> Iterator[Path]:
    """A directory with the sources of the load generator and what they borrow."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="load-", dir=BUILD) as directory:
        source = Path(directory, "load")
        shutil.copytree(BENCH / "load", source)
        for name in BORROWED:
            shutil.copy2(PROTOCOL_SOURCES / name, source)
        yield source


@cache
def quicgo_relay() -> Path:
    """The peer on quic-go."""
    return _go_build(BENCH / "peers" / "quicgo_relay", "quicgo_relay")


@cache
def quinn_relay() -> Path:
    """The peer on quinn.

    Debian's own compiler is preferred to a newer one that may be on the PATH: what is measured is what Debian ships.
    """
    cargo = DEBIANS_CARGO if DEBIANS_CARGO.exists() else _found("cargo", RUST_PACKAGES)
    if not list(CRATES.glob("quinn-0.9*")):
        msg = f"quinn 0.9 is not installed (Debian: {RUST_PACKAGES})"
        raise Missing(msg)
    source = BUILD / "quinn_relay"
    for path in ("Cargo.toml", "src/main.rs"):
        copy = source / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(BENCH / "peers" / "quinn_relay" / path, copy)  # with its time, by which cargo knows what is new
    settings = source / ".cargo" / "config.toml"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(_CARGO_CONFIG.format(crates=CRATES))
    environment = {"CARGO_HOME": str(BUILD / "cargo-home"), "CARGO_TARGET_DIR": str(source / "target")}
    if cargo == DEBIANS_CARGO and DEBIANS_RUSTC.exists():
        environment["RUSTC"] = str(DEBIANS_RUSTC)
    _run([cargo, "build", "--release", "--offline", "--quiet"], source, environment)
    return source / "target" / "release" / "quinn_relay"


@cache
def compiled_relay() -> Path:
    """Our own relay as it is installed, hot modules compiled (docs/compiled.md): a directory for the front of ``PYTHONPATH``."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compiled-", dir=BUILD) as directory:
        made = Path(directory, "made")
        _run([sys.executable, ROOT / "scripts" / "compiled_form.py", made], ROOT, {})
        built = BUILD / "compiled"
        shutil.rmtree(built, ignore_errors=True)
        return made.rename(built)


def turn_server() -> Path:
    """Debian's coturn."""
    return _found("turnserver", "coturn")


def turn_client() -> Path:
    """The load that comes with coturn."""
    return _found("turnutils_uclient", "coturn")


def _found(program: str, packages: str) -> Path:
    path = shutil.which(program)
    if path is None:
        msg = f"{program} is not installed (Debian: {packages})"
        raise Missing(msg)
    return Path(path)


def _go() -> Path:
    if not QUIC_GO.is_dir():
        msg = f"quic-go is not installed (Debian: {GO_PACKAGES})"
        raise Missing(msg)
    return _found("go", GO_PACKAGES)


def _go_build(source: Path, name: str) -> Path:
    built = BUILD / name
    # Built under another name first: somebody may be running the one that is there.
    made = BUILD / f"{name}.{os.getpid()}"
    _run([_go(), "build", "-trimpath", "-o", made, "."], source, _go_environment())
    return made.replace(built)


def _go_environment() -> dict[str, str]:
    environment = {
        "GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOPROXY": "off", "GOFLAGS": "", "CGO_ENABLED": "0",
    }
    if not any(os.environ.get(name) for name in ("GOCACHE", "XDG_CACHE_HOME", "HOME")):
        environment["GOCACHE"] = str(BUILD / "go-cache")  # go build insists on a cache somewhere
    return environment


def _run(command: Sequence[str | Path], directory: Path, environment: Mapping[str, str]) -> str:
    BUILD.mkdir(exist_ok=True)
    done = subprocess.run(  # noqa: S603 - compilers, with arguments of our making
        command, cwd=directory, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    if done.returncode != 0:
        said = done.stderr.strip()
        sys.stderr.write(said + "\n")
        what = f"{Path(command[0]).name} {command[1]}"
        errors = [line for line in said.splitlines() if "error" in line] or said.splitlines()[:1] or ["no reason given"]
        msg = f"{what} fails for {directory.name}: {errors[0]}"
        raise Missing(msg)
    return done.stdout
