"""What the tests of the command line share: running it, a relay in this process, and UDP programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.cli.main import main
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.processes import child_environment, cli_command
from zrc_relay.client.trust import Trust
from zrc_relay.config import load_config
from zrc_relay.core.token import RelayToken
from zrc_relay.engine import Surroundings
from zrc_relay.service import RelayService

reactor: Any = installed_reactor
PATIENCE = 30.0
"""Seconds that a test waits for what comes at once on an idle machine."""
NO_SETTINGS = {name: None for name in os.environ if name.startswith("ZRC_RELAY_")}


def zrc_relay(*arguments: object, stdin: str | None = None, env: Mapping[str, str] | None = None) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(
        main, [str(argument) for argument in arguments], input=stdin, env={**NO_SETTINGS, **(env or {})}, prog_name="zrc-relay"
    )


def zrc_relay_process(*arguments: object, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, to its end."""
    command = cli_command(*map(str, arguments))
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
    )


class RelayCase(TestCase):
    """A relay on loopback sockets of this process, out of the files of a dev setup."""

    timeout = 2 * PATIENCE

    def setUp(self) -> None:
        self.made = make_dev_setup(Path(self.mktemp()), listen=["127.0.0.1"], port=0, settings={"drain_timeout": "0s"})
        self.service = RelayService(load_config(path=self.made.config, environ={}, options={}), Surroundings(reactor))
        self.service.startService()
        self.addCleanup(self.service.stopService)
        self.relay = HostPort("127.0.0.1", self.service.quic.ports[0].local.port)
        self.trust = Trust(fingerprint=self.made.fingerprint)
        self.token = RelayToken.from_text(self.made.token.read_text())


class UdpProgram(DatagramProtocol):
    """A UDP program on a port of its own: remembers what it gets, and may be waited for."""

    def __init__(self, case: TestCase, *, echo: bool = False) -> None:
        self.got: list[bytes] = []
        self.senders: list[tuple[str, int]] = []
        self._echo = echo
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._port: Any = reactor.listenUDP(0, self, interface="127.0.0.1", maxPacketSize=65535)
        case.addCleanup(self._port.stopListening)

    @property
    def port(self) -> int:
        return int(self._port.getHost().port)

    def send(self, payload: bytes, port: int) -> None:
        self._port.write(payload, ("127.0.0.1", port))

    def has(self, count: int) -> Deferred[None]:
        """Fires when ``count`` datagrams have come in all."""
        waiter: Deferred[None] = Deferred()
        waiter.addTimeout(PATIENCE, reactor)
        self._waiting.append((count, waiter))
        self._look()
        return waiter

    def datagramReceived(self, data: bytes, address: Any) -> None:
        self.got.append(data)
        self.senders.append(address)
        if self._echo:
            self._port.write(data, address)
        self._look()

    def _look(self) -> None:
        ready = [entry for entry in self._waiting if len(self.got) >= entry[0]]
        self._waiting = [entry for entry in self._waiting if len(self.got) < entry[0]]
        for _, waiter in ready:
            waiter.callback(None)
