"""The relays that are measured, each as a process on loopback with the same kind of certificate.

A ``System`` says how to start one and how the load generator must speak to it. Ours needs tokens; the others pair connections as
they come.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import build
from zrc_relay.cli.dev_setup import DevSetup, make_dev_setup
from zrc_relay.cli.processes import Child, child_environment, relay_command
from zrc_relay.config import SETTINGS

HOST: Final = "127.0.0.1"
START_PATIENCE: Final = 30.0
TURN_PORT: Final = 34780
LISTENING: Final = r"listening on (?:UDP )?\S*:(\d+)"

OURS: Final = "zrc-relay"
"""As it is installed: with its hot modules compiled (docs/compiled.md)."""
SOURCE: Final = "zrc-relay, not compiled"
"""The same source, run as it is."""
GENERAL: Final = "zrc-relay, fast_path = false"
"""As it is installed, with that setting."""
QUIC_GO: Final = "quic-go relay"
QUINN: Final = "quinn relay"
AIOQUIC: Final = "stock aioquic relay"
COTURN: Final = "coturn"
NO_RELAY: Final = "no relay"

SETTINGS_OF_OURS: Final[Mapping[str, str]] = {
    "drain_timeout": "0s",
    "idle_timeout": "2s",  # allocations of a measurement that has ended do not wait for anybody
    "max_allocations": "100000",
    # All clients of a benchmark are one source, which asks for more than any source should.
    "connection_rate": "none",
    "allocation_rate": "none",
    "rejoin_rate": "none",
    "handshake_pressure": "1000",
}
"""What differs from the defaults, beside the tier: ``unlimited``. Settings that do not exist (yet) are left out."""


class Running:
    """A relay that runs: its process (None: there is no relay), its port, and how the load generator must speak to it."""

    def __init__(self, child: Child | None, port: int, arguments: Sequence[str]) -> None:
        self.child = child
        self.port = port
        self._arguments = arguments

    @property
    def load_arguments(self) -> list[str]:
        """Flags for the load generator; ``ChildFailed`` if the relay has ended."""
        if self.child is None:
            return [*self._arguments]
        self.child.check()
        return [f"-addr={HOST}:{self.port}", f"-relay-pid={self.child.pid}", *self._arguments]


class Workshop:
    """A directory for the files of all relays; ``shared`` are those of the ones that need no more than a certificate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shared = self.setup("shared", {})

    def setup(self, name: str, settings: Mapping[str, str]) -> DevSetup:
        """Files for one of our relays and its first two clients."""
        known = {key: text for key, text in {**SETTINGS_OF_OURS, **settings}.items() if key in SETTINGS}
        return make_dev_setup(self.directory / name, listen=[HOST], port=0, tier="unlimited", settings=known, force=True)


@dataclass(frozen=True, slots=True)
class System:
    """A relay that can be started; ``why_not`` tells what this machine lacks for it, None when nothing."""

    name: str
    start: Callable[[Workshop], contextlib.AbstractContextManager[Running]]
    why_not: Callable[[], str | None]


def directory_of(system: str) -> str:
    """Name of the directory with the files of one of ours: they run at the same time, each with its own keys."""
    return re.sub(r"\W+", "-", system)


@contextlib.contextmanager
def _ours(workshop: Workshop, name: str, settings: Mapping[str, str], package: Path | None) -> Iterator[Running]:
    """One of ours: the package in the directory ``package``, or the sources that this is run from if there is none."""
    made = workshop.setup(directory_of(name), settings)
    environment = child_environment()
    if package is not None:
        environment["PYTHONPATH"] = os.pathsep.join((str(package), environment["PYTHONPATH"]))
    with Child("relay", relay_command(made.config), made.directory, environment) as child:
        port = int(child.wait_for(LISTENING, timeout=START_PATIENCE).group(1))
        yield Running(child, port, [
            f"-cert-sha256={made.fingerprint.hex()}", f"-relay-id={made.relay_id.hex()}",
            f"-device-key={made.device_key}", f"-peer-key={made.peer_key}",
        ])


@contextlib.contextmanager
def _pairing(workshop: Workshop, command: Sequence[str | Path], address: str) -> Iterator[Running]:
    made = workshop.shared
    files = [str(made.directory / "cert.pem"), str(made.directory / "key.pem")]
    name = Path(command[-1]).name
    with Child(name, [*map(str, command), address, *files], workshop.directory, child_environment()) as child:
        port = int(child.wait_for(LISTENING, timeout=START_PATIENCE).group(1))
        yield Running(child, port, ["-plain", f"-cert-sha256={made.fingerprint.hex()}"])


@contextlib.contextmanager
def _coturn(workshop: Workshop) -> Iterator[Running]:
    command = [
        str(build.turn_server()), "-n", "--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--allow-loopback-peers",
        f"--listening-ip={HOST}", f"--relay-ip={HOST}", f"--listening-port={TURN_PORT}", "--relay-threads=1",
        f"--pidfile={workshop.directory / 'turn.pid'}", f"--userdb={workshop.directory / 'turn.db'}", "--log-file=stdout",
    ]
    with Child(COTURN, command, workshop.directory, child_environment()) as child:
        child.wait_for("Total General servers", timeout=START_PATIENCE)
        yield Running(child, TURN_PORT, [])


@contextlib.contextmanager
def _no_relay(workshop: Workshop) -> Iterator[Running]:
    del workshop
    yield Running(None, 0, ["-direct"])


def _builds(*makers: Callable[[], Path]) -> Callable[[], str | None]:
    def why_not() -> str | None:
        try:
            for make in makers:
                make()
        except build.Missing as missing:
            return str(missing)
        return None

    return why_not


SYSTEMS: Final[Mapping[str, System]] = {
    system.name: system
    for system in (
        System(OURS, lambda workshop: _ours(workshop, OURS, {}, build.compiled_relay()), _builds(build.compiled_relay)),
        System(SOURCE, lambda workshop: _ours(workshop, SOURCE, {}, None), lambda: None),
        System(
            GENERAL, lambda workshop: _ours(workshop, GENERAL, {"fast_path": "false"}, build.compiled_relay()),
            _builds(build.compiled_relay),
        ),
        System(QUIC_GO, lambda workshop: _pairing(workshop, [build.quicgo_relay()], f"{HOST}:0"), _builds(build.quicgo_relay)),
        System(QUINN, lambda workshop: _pairing(workshop, [build.quinn_relay()], f"{HOST}:0"), _builds(build.quinn_relay)),
        System(
            AIOQUIC, lambda workshop: _pairing(workshop, [sys.executable, "-m", "bench.peers.aioquic_relay"], "0"), lambda: None
        ),
        System(COTURN, _coturn, _builds(build.turn_server, build.turn_client)),
        System(NO_RELAY, _no_relay, lambda: None),
    )
}
