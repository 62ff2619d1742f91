"""``twistd zrc-relay``: options and ``makeService``, nothing else; ``relay.tac`` calls the same builder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from twisted.python import usage

from zrc_relay.config import ConfigError, find_config, load_config, option_parameters
from zrc_relay.core.counters import Handshake
from zrc_relay.credentials import CredentialsError
from zrc_relay.engine import Surroundings
from zrc_relay.front import Front
from zrc_relay.garbage import INTERVAL, Garbage
from zrc_relay.inputs import log_settings_of
from zrc_relay.logs.twistd import install
from zrc_relay.service import RelayService, StartError
from zrc_relay.signals import Signals
from zrc_relay.tasks import Ticker
from zrc_relay.workers.parent import ParentService

STATUS_CANNOT_START = 1
STATUS_BAD_CONFIGURATION = 2


class Options(usage.Options):
    """The options of ``twistd zrc-relay``: ``--config`` and one for each setting."""

    synopsis = "[options]"
    longdesc = "Runs a relay for devices that cannot reach each other. `zrc-relay dev-setup DIR` makes a configuration to try."
    optParameters = option_parameters()


class AsProgram(Front):
    """A relay that is a program of its own: what keeps it from starting ends the process, with one line and no traceback."""

    signals: Signals | None = None
    """Its handlers of signals, which are there before anything listens."""

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802 - Twisted's name
        """Join the application, and give it this relay's log; twistd begins to log when that is done."""
        try:
            self.log = install(parent, sys.argv[1:], log_settings_of(self.config), time.monotonic)
        except OSError as error:
            give_up([f"cannot write the log {error.filename}: {error.strerror}"], STATUS_CANNOT_START)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Bind the sockets, or exit."""
        if self.signals is not None:
            self.signals.install()
        try:
            super().privilegedStartService()
        except StartError as error:
            give_up(str(error).splitlines(), STATUS_CANNOT_START)


class RelayProcess(AsProgram, RelayService):
    """A program of one process."""

    def startService(self) -> None:
        """Start, and keep the garbage collector of the process from stopping it."""
        garbage = Garbage(lambda: self.relay.counters.handshakes[Handshake.STARTED], lambda: self.endpoint.connections)
        Ticker(self._reactor, INTERVAL, garbage.look, "garbage").setServiceParent(self)
        super().startService()
        garbage.start()


class ParentProcess(AsProgram, ParentService):
    """A program of several processes."""


def makeService(options: Mapping[str, str | None]) -> Front:
    """The relay that ``options``, the environment and the TOML file describe; exits with status 2 when they do not."""
    return build_service({name: value for name, value in options.items() if value is not None})


def build_service(options: Mapping[str, str], reactor: Any = None) -> Front:
    """As ``makeService``; ``config`` among the options names the TOML file."""
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it, which must not happen earlier
    use_monotonic_time(reactor)
    given = dict(options)
    path = find_config(os.environ, given.pop("config", None))
    try:
        load = partial(load_config, path=path, environ=dict(os.environ), options=given, cwd=Path.cwd())
        config = load()
        count, surroundings = config.worker_count(), Surroundings(reactor)
        service: AsProgram = (
            RelayProcess(config, surroundings, load) if count == 1 else ParentProcess(config, surroundings, load, count=count)
        )
    except ConfigError as error:
        give_up([str(problem) for problem in error.problems])
    except (CredentialsError, StartError) as error:
        give_up(str(error).splitlines())
    service.signals = Signals(service, reactor)
    service.signals.setServiceParent(service)
    return service


def use_monotonic_time(reactor: Any) -> None:
    """Let ``reactor`` count time monotonically, so that a clock that is set cannot stop its timers.

    Only while no call is waiting: one that was scheduled by wall clock time would never come.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def give_up(problems: list[str], status: int = STATUS_BAD_CONFIGURATION) -> NoReturn:
    """Say what is wrong, one line each, and exit with ``status``."""
    for problem in problems:
        sys.stderr.write(f"zrc-relay: {problem}\n")
    raise SystemExit(status)
