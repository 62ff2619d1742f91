"""A worker: a process that forwards for its share of all routing bytes, and does what its parent says.

Theory of operation
-------------------
``main`` is what a ``WorkerProcess`` starts. The process has nothing of its own but an ``Engine``: its settings, keys and lists
come from the parent over the socket pair, its sockets and the memory with the limits were handed down, and all that it has to
tell goes back the same way. It ignores SIGTERM, SIGINT and SIGHUP, which a terminal or a service manager sends to all processes
at once: it is the parent that decides what they mean.

It ends when it is told to, and at once when the pair is closed, because then there is no parent any more. A worker that stands
still could not see that; for that case the kernel was asked to kill it (PR_SET_PDEATHSIG, prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from zrc_relay import __version__
from zrc_relay.control.local import LocalTraffic
from zrc_relay.control.management import Clocks
from zrc_relay.control.reporting import Reporter
from zrc_relay.control.sampler import Sampler
from zrc_relay.control.watch import Sights, Watch
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.counters import Handshake
from zrc_relay.core.keys import DeviceKeys, KeyChanges
from zrc_relay.core.remembered import Remembered
from zrc_relay.core.routing import Share
from zrc_relay.engine import SWEEP_INTERVAL, Engine, Surroundings
from zrc_relay.garbage import INTERVAL, Garbage
from zrc_relay.logs.observer import RelayLog
from zrc_relay.metrics.catalogue import take
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.settings import Credentials
from zrc_relay.quic.udp import UdpPort
from zrc_relay.securitylog import SUMMARY_INTERVAL, SecurityLog
from zrc_relay.tasks import Ticker
from zrc_relay.workers.commands import Report
from zrc_relay.workers.keeping import Keeper
from zrc_relay.workers.memory import LimitsMemory
from zrc_relay.workers.orders import (
    CHANNEL_FD,
    FIRST_SOCKET_FD,
    LIMITS_FD,
    Begin,
    Beginning,
    ChangeKeys,
    ChangeLists,
    Commit,
    Drain,
    Keep,
    ListChange,
    Orders,
    Prepare,
    Remember,
    Said,
    Stop,
    Tell,
)
from zrc_relay.workers.pair import PairEnd
from zrc_relay.workers.remote import TrafficResponder
from zrc_relay.workers.telling import Outbox, RemoteEvents, RemoteLines, RemoteRecords

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class NoReloads:
    """Reloads are the parent's."""

    done: int = 0
    refused: int = 0
    is_failing: bool = False


class NotPrepared(Exception):
    """There is nothing to commit."""


class Worker(PairEnd):
    """The worker's end of the socket pair, and with it the worker. ``on_end`` is called when it has nothing more to do."""

    _log = Logger()

    def __init__(self, surroundings: Surroundings, limits_fd: int, on_end: Callable[[], None]) -> None:
        super().__init__()
        self._surroundings = surroundings
        self._limits_fd = limits_fd
        self._on_end = on_end
        self._prepared: tuple[Orders, KeyChanges, Credentials] | None = None
        self._keys = DeviceKeys()
        self._asked: TrafficResponder | None = None
        self.engine: Engine = None  # type: ignore[assignment]  # made by ``Begin``, which is always the first command
        self.log: RelayLog | None = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The parent is gone: there is nobody left to forward for."""
        super().connectionLost(reason)
        self._on_end()

    @Begin.responder
    def begin(self, beginning: Beginning) -> dict[str, Any]:
        """See ``Begin``."""
        with aloud():
            self._begin(beginning)
        return {}

    def _begin(self, beginning: Beginning) -> None:
        post, orders, around = beginning.post, beginning.orders, self._surroundings
        if post.cpus:
            os.sched_setaffinity(0, post.cpus)
        mine = {place.fd for place in post.sockets}
        for fd in {*range(FIRST_SOCKET_FD, FIRST_SOCKET_FD + post.descriptors)} - mine:
            os.close(fd)
        outbox = self._outbox = Outbox(self._tell, around.reactor)
        self.log = RelayLog(RemoteLines(outbox), orders.log, around.now, worker=post.index)
        observer: Any = self.log
        globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)
        events = SecurityLog(
            RemoteEvents(outbox), now=around.now, wall=around.wall, output=RemoteRecords(outbox), passes_on=post.logs_security,
        )
        self._lists = AccessLists(orders.allow, orders.block)
        for entry in beginning.entries:
            self._lists.add(entry, around.wall())
        self._keys = DeviceKeys(beginning.keys)
        share = Share(post.index, post.count)

        def ports(endpoint: Endpoint) -> Iterable[UdpPort]:
            for place in post.sockets:
                sock = socket.socket(fileno=place.fd)
                port = UdpPort(place.host, place.port, endpoint, around.reactor, sock=sock)
                port.startListening()
                yield port

        engine = self.engine = Engine(
            orders.settings, orders.certificate.credentials(), self._keys, self._lists, events,
            surroundings=around, secret=post.secret, make_ports=ports,
            share=share, limits=LimitsMemory.attach(self._limits_fd).limits(share),
        )
        garbage = Garbage(lambda: engine.relay.counters.handshakes[Handshake.STARTED], lambda: engine.endpoint.connections)
        tasks = (
            Ticker(around.reactor, INTERVAL, garbage.look, "garbage"),
            Ticker(around.reactor, SWEEP_INTERVAL, self._sweep_lists, "access"),
            Ticker(around.reactor, SUMMARY_INTERVAL, events.summarise, "security-log"),
            Ticker(around.reactor, post.report_interval, self._report, "report"),
        )
        sampler = Sampler(engine.relay, engine.endpoint, around.reactor, around.now)
        keeper = Keeper(engine.relay.table, partial(self.callRemote, Keep), around.wall)
        engine.relay.table.report_to(keeper)
        sampler.on_moved, sampler.on_looked = keeper.changed, keeper.flush
        self.remember(beginning.remembered)
        clocks = Clocks(around.now, around.wall, around.reactor)
        sights = Sights(
            clocks=clocks, endpoint=None, tasks=(engine.sweeper, *tasks), logs=(), state=(), reloads=NoReloads(),
            certificate=lambda: engine.endpoint.credentials.configuration.certificate,
            is_ready=lambda: bool(engine.quic.ports),
        )
        watch = Watch(sights, engine.relay, connections=engine.endpoint, ports=lambda: engine.quic.ports)
        metrics = partial(take, watch.local)
        traffic = LocalTraffic(engine.relay, engine.endpoint, engine.qlogs, sampler, clocks, metrics=metrics)
        self._asked = TrafficResponder(traffic)
        self._reporter = Reporter(
            numbers=traffic.numbers, metrics=metrics, health=watch.checks.report,
            state=lambda: "draining" if engine.relay.draining else "ready",
            lag=lambda: watch.vitals.loop.waits.worst.at(around.now()), now=around.now,
        )
        for part in (*tasks, sampler, watch):
            engine.addService(part)
        engine.startService()
        garbage.start()
        self._report()

    def locateResponder(self, name: bytes) -> Any:  # noqa: N802 - Twisted's name
        """What answers a command: this, or what answers questions about the traffic."""
        return super().locateResponder(name) or (self._asked.locateResponder(name) if self._asked is not None else None)

    def _sweep_lists(self) -> None:
        self._lists.sweep(self._surroundings.wall())

    def _report(self) -> None:
        self.callRemote(Report, report=self._reporter.report())

    @Prepare.responder
    def prepare(self, orders: Orders, changes: KeyChanges) -> dict[str, Any]:
        """See ``Prepare``."""
        try:
            self._prepared = orders, changes, orders.certificate.credentials()
        except Exception as error:
            return {"problem": f"{type(error).__name__}: {error}"}
        return {"problem": ""}

    @Commit.responder
    def commit(self) -> dict[str, Any]:
        """See ``Commit``."""
        if self._prepared is None:
            raise NotPrepared
        (orders, changes, credentials), self._prepared = self._prepared, None
        if self.log is not None:
            self.log.configure(orders.log)
        self._keys = self._keys.with_changes(changes)
        with aloud():
            return {"ended": self.engine.commit(orders.settings, credentials, self._keys, orders.allow, orders.block)}

    @ChangeKeys.responder
    def change_keys(self, changes: KeyChanges) -> dict[str, Any]:
        """See ``ChangeKeys``."""
        self._keys = self._keys.with_changes(changes)
        return {"ended": self.engine.use_keys(self._keys)}

    @ChangeLists.responder
    def change_lists(self, changes: tuple[ListChange, ...]) -> dict[str, Any]:
        """See ``ChangeLists``."""
        for change in changes:
            change.apply(self._lists, self._surroundings.wall())
        return {}

    @Remember.responder
    def remember(self, entries: tuple[Remembered, ...]) -> dict[str, Any]:
        """See ``Remember``."""
        wall = self._surroundings.wall()
        for entry in entries:
            self.engine.relay.table.remember(entry, wall)
        return {}

    @Drain.responder
    def drain(self, deadline: float) -> Deferred[dict[str, Any]]:
        """See ``Drain``."""
        return self.engine.drain(deadline).addCallback(lambda _: {})

    @Stop.responder
    def stop(self) -> Deferred[dict[str, Any]]:
        """See ``Stop``."""
        return maybeDeferred(self.engine.stopService).addCallback(lambda _: self._outbox.finish()).addCallback(lambda _: {})

    def _tell(self, said: tuple[Said, ...], lost: int) -> Deferred[Any]:
        told: Deferred[Any] = self.callRemote(Tell, said=said, lost=lost)
        return told


@contextmanager
def aloud() -> Iterator[None]:
    """Write an error of ours to standard error, which the parent logs: it ends the connection, and the log goes that way."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` ends, and end now if it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Run a worker on the file descriptors that it was given; the arguments are the parent's process id and its version."""
    parent, version = sys.argv[1:]
    die_with_parent(int(parent))
    if version != __version__:
        sys.exit(f"version {__version__} is installed, and the parent runs {version}: restart the relay")
    from twisted.internet import reactor as installed  # noqa: PLC0415 - importing it installs it, which is for a program to decide

    reactor: Any = installed
    reactor.seconds = time.monotonic
    worker = Worker(Surroundings(reactor), LIMITS_FD, lambda: os._exit(0))
    reactor.adoptStreamConnection(CHANNEL_FD, socket.AF_UNIX, Factory.forProtocol(lambda: worker))
    os.close(CHANNEL_FD)
    reactor.run(installSignalHandlers=False)
