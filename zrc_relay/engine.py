"""What forwards, in one process: the relay, its QUIC endpoint and sockets, and what they need to go on by themselves.

Theory of operation
-------------------
A relay of one process has one ``Engine`` beside everything that an operator sees of it; each worker of a larger one has one and
little else. An engine knows no files but those it writes recordings to: what it is to go by comes in as ``EngineSettings``, plain
values that travel between processes, and is replaced whole by ``commit``. Device keys and lists of networks come from whoever
owns them.

::

    engine(MultiService)
    |- sweeper          expiry, absence, held-back notices
    `- relay-quic       the UDP sockets
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from zrc_relay.core.admission import Admission, AdmissionSettings
from zrc_relay.core.cidr import AccessLists, Network
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.core.limits import Limits
from zrc_relay.core.relay import Observer, Policy, Relay
from zrc_relay.core.routing import ALONE, Share
from zrc_relay.core.wire import Address
from zrc_relay.qlogs import Recordings
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.ids import ConnectionIds
from zrc_relay.quic.settings import Credentials, EndpointSettings
from zrc_relay.quic.udp import UdpPort
from zrc_relay.tasks import Ticker

_log = Logger()

SWEEP_INTERVAL: Final = 0.25
"""Seconds between sweeps: expiry is at most 1 s late (R2.5)."""


class StartError(Exception):
    """The relay cannot start; the message is one line for the operator, or several."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything of the configuration that an engine goes by."""

    policy: Policy
    admission: AdmissionSettings
    endpoint: EndpointSettings
    qlog_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine lives in: the reactor, monotonic and Unix seconds, and random bytes."""

    reactor: Any
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom

    def elsewhere(self, function: Callable[[], Any]) -> Deferred[Any]:
        """Run what may take long in a thread."""
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function)


class QuicService(Service):
    """The UDP sockets of an endpoint, bound while the process may still be privileged. ``make`` makes them, or raises."""

    def __init__(self, endpoint: Endpoint, make: Callable[[], Iterable[UdpPort]]) -> None:
        self.setName("relay-quic")
        self._endpoint = endpoint
        self._make = make
        self.ports: list[UdpPort] = []

    def privilegedStartService(self) -> None:
        """Bind the sockets; ``StartError`` when an address or the port cannot be had."""
        if self.ports:
            return
        try:
            self.ports.extend(self._make())
        except BaseException:
            self._stop_ports()
            raise

    def startService(self) -> None:
        """Bind what is not bound yet."""
        super().startService()
        self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Close the sockets; fires when they are closed."""
        super().stopService()
        self._endpoint.stop()
        return self._stop_ports()

    def _stop_ports(self) -> Deferred[Any]:
        stopped = DeferredList([maybeDeferred(udp_port.stopListening) for udp_port in self.ports])
        self.ports.clear()
        return stopped


class Engine(MultiService):
    """See the module's docstring.

    ``make_ports`` makes the listening sockets of the endpoint that it gets; ``share`` is this process' part of all routing bytes,
    ``limits`` what it shares with the others.
    """

    def __init__(
        self,
        settings: EngineSettings,
        credentials: Credentials,
        keys: DeviceKeys,
        lists: AccessLists,
        observer: Observer,
        *,
        surroundings: Surroundings,
        secret: bytes,
        make_ports: Callable[[Endpoint], Iterable[UdpPort]],
        share: Share = ALONE,
        limits: Limits | None = None,
    ) -> None:
        super().__init__()
        self.setName("engine")
        now, wall, random = surroundings.now, surroundings.wall, surroundings.random
        self._now = now
        self._wall = wall
        admission = Admission(settings.admission, lists, now=now(), limits=limits)
        self.qlogs = Recordings(observer, settings.qlog_dir, now=now, wall=wall, run=surroundings.elsewhere)
        self.relay = Relay(
            settings.policy, keys, self.qlogs, now=now(), admission=admission, share=share, limits=limits,
        )
        self.endpoint = Endpoint(
            self.relay, credentials, settings.endpoint, ConnectionIds(secret, random, share),
            clock=surroundings.reactor, now=now, wall=wall, random=random,
        )
        self.qlogs.find = self.endpoint.find
        self.sweeper = Ticker(surroundings.reactor, SWEEP_INTERVAL, self.sweep, "sweeper")
        self.quic = QuicService(self.endpoint, lambda: make_ports(self.endpoint))
        self._when_left: Deferred[None] | None = None
        self.addService(self.sweeper)
        self.addService(self.quic)

    def sweep(self) -> None:
        """What is due a few times a second."""
        self.endpoint.sweep()
        self.qlogs.sweep()
        self._look_whether_left()

    def use_keys(self, keys: DeviceKeys) -> int:
        """Let those devices sign tokens; how many allocations ended because their device is gone."""
        ended = self.relay.replace_keys(keys, self._now(), self._wall())
        self.endpoint.sweep()
        return ended

    def commit(
        self, settings: EngineSettings, credentials: Credentials, keys: DeviceKeys,
        allow: Iterable[Network], block: Iterable[Network],
    ) -> int:
        """Put all of that in force; returns what ``use_keys`` does."""
        now, wall = self._now(), self._wall()
        self.relay.admission.reconfigure(settings.admission, now)
        self.relay.admission.lists.configure(allow, block)
        ended = self.relay.reconfigure(settings.policy, keys, now, wall)
        self.endpoint.reconfigure(credentials, settings.endpoint)
        self.qlogs.directory = settings.qlog_dir
        self.endpoint.sweep()
        return ended

    def drain(self, deadline: float) -> Deferred[None]:
        """Refuse ALLOCATE and tell everyone to leave until ``deadline``, Unix seconds; fires when all have left."""
        left: Deferred[None] = Deferred()
        before, self._when_left = self._when_left, left
        if before is not None:
            left.chainDeferred(before)
        self.relay.drain(deadline)
        self._look_whether_left()
        return left

    def stopService(self) -> Deferred[Any]:
        """Close every connection, then the sockets; fires when they are closed, and what was recorded is written."""
        self.endpoint.close_all(ErrorCode.DRAINING, "the relay stops")
        stopped: Deferred[Any] = super().stopService()
        return stopped.addBoth(lambda _: self.qlogs.finish())

    def _look_whether_left(self) -> None:
        if self._when_left is not None and not self.relay.is_in_use:
            left, self._when_left = self._when_left, None
            left.callback(None)


def listen(addresses: tuple[str, ...], port: int, reactor: Any) -> Callable[[Endpoint], Iterable[UdpPort]]:
    """Makes a socket for each address, all with the same port; ``StartError`` when it cannot be had.

    A host without IPv6 is no reason not to start when "::" is one of several addresses.
    """
    def make(endpoint: Endpoint) -> Iterable[UdpPort]:
        wanted = port
        for number, address in enumerate(addresses):
            udp_port = UdpPort(address, wanted, endpoint, reactor)
            try:
                udp_port.startListening()
            except CannotListenError as error:
                if address == "::" and number and has_no_ipv6(error.socketError):
                    _log.warn("this host has no IPv6; listening on IPv4 only", event="listen.ipv4_only")
                    continue
                raise cannot_listen(address, wanted, error.socketError) from error
            wanted = udp_port.local.port
            _log.info("listening on UDP {address}", event="listen.udp", address=str(udp_port.local))
            yield udp_port

    return make


def cannot_listen(host: str, port: int, error: object) -> StartError:
    """That a UDP port cannot be had, for the operator."""
    return StartError(f"cannot listen on UDP {Address.of(host, port)}: {getattr(error, 'strerror', None) or error}")


def has_no_ipv6(error: object) -> bool:
    """Whether an error of bind says that there is no IPv6 here."""
    return getattr(error, "errno", None) in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
