"""What figures share: the verdict, a relay process out of a temporary setup, and a reactor to measure with."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from zrc_relay.cli.dev_setup import DevSetup, make_dev_setup
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.cli.processes import Child, ChildFailed, child_environment, relay_command
from zrc_relay.client.connect import connect
from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.notices import NoticeEvent
from zrc_relay.client.trust import Trust
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken

Result = TypeVar("Result")
START_PATIENCE: Final = 30.0
POLL_INTERVAL: Final = 0.01
NO_RATES: Final = dict.fromkeys(("connection_rate", "allocation_rate", "rejoin_rate", "stun_rate"), "off")
_LISTENING: Final = r"listening on UDP \S+:(\d+)"
_RSS: Final = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a promise is kept, and the figure in words."""

    kept: bool
    figure: str


class Relay:
    """A relay process on 127.0.0.1 and the files of its first two clients."""

    def __init__(self, made: DevSetup, child: Child, port: int) -> None:
        self.made = made
        self.child = child
        self.port = port
        self.trust = Trust(fingerprint=made.fingerprint)
        self.token = RelayToken.from_text(made.token.read_text())
        self.keys: Mapping[Role, SigningKey] = {Role.DEVICE: read_key(made.device_key), Role.PEER: read_key(made.peer_key)}

    def token_for(self, allocation_id: bytes) -> RelayToken:
        """The token, for another allocation."""
        return replace(self.token, allocation_id=allocation_id).sign(self.keys[Role.DEVICE])

    async def connect(
        self,
        reactor: Any,
        role: Role,
        *,
        token: RelayToken | None = None,
        on_datagram: Callable[[bytes], None] | None = None,
        on_notice: Callable[[NoticeEvent], None] | None = None,
    ) -> ClientConnection:
        """An allocated client."""
        return await connect(
            reactor, "127.0.0.1", self.port, token=token or self.token, key=self.keys[role], trust=self.trust,
            on_datagram=on_datagram, on_notice=on_notice,
        )

    @property
    def memory(self) -> int:
        """Resident memory of the process, in bytes."""
        found = _RSS.search(Path(f"/proc/{self.child.pid}/status").read_text())
        return int(found.group(1)) * 1024 if found else 0


@contextlib.contextmanager
def relay_process(settings: Mapping[str, str] | None = None, *, tier: str = "unlimited") -> Iterator[Relay]:
    """A relay that runs as a process of its own, its device in ``tier``; it and its files go at the end.

    All clients of a figure come from one address, so there are no rates for sources unless ``settings`` say otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="prove-") as directory:
        changes = {"drain_timeout": "0s", **NO_RATES, **(settings or {})}
        made = make_dev_setup(Path(directory, "setup"), listen=["127.0.0.1"], port=0, tier=tier, settings=changes)
        with Child("relay", relay_command(made.config), made.directory, child_environment()) as child:
            port = int(child.wait_for(_LISTENING, timeout=START_PATIENCE).group(1))
            yield Relay(made, child, port)
            child.check()


def run(main: Callable[[Any], Coroutine[Any, Any, Result]]) -> Result:
    """Run ``main(reactor)`` in the reactor of this process; once in a process."""
    from twisted.internet import reactor as installed  # noqa: PLC0415 - importing it installs it

    reactor: Any = installed
    reactor.seconds = time.monotonic
    outcome: list[Result | Failure] = []

    def begin() -> None:
        Deferred.fromCoroutine(main(reactor)).addBoth(outcome.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    found = outcome[0]
    if isinstance(found, Failure):
        found.raiseException()
    return found


async def eventually(reactor: Any, condition: Callable[[], object], patience: float) -> bool:
    """Wait until ``condition`` holds, at most ``patience`` seconds; whether it does."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        await deferLater(reactor, POLL_INTERVAL)
    return True


class Program:
    """A child that prints JSON lines."""

    def __init__(self, name: str, command: list[str], directory: Path) -> None:
        self.child = Child(name, command, directory, child_environment())

    def lines(self) -> list[dict[str, Any]]:
        """What it has printed so far."""
        return [json.loads(line) for line in self.child.output.splitlines() if line.startswith("{")]

    def wait(self, timeout: float) -> int:
        """Wait for its end; its exit status, and ``ChildFailed`` when it takes longer than ``timeout`` seconds."""
        process: subprocess.Popen[bytes] = vars(self.child)["_process"]
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(self.child, f"did not end within {timeout:g} s") from error


def python_program(module: str, *arguments: object) -> list[str]:
    """A program of the figures or the tests, as a command line."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def percentile(values: list[float], fraction: float) -> float:
    """The value below which ``fraction`` of the values lie."""
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]
