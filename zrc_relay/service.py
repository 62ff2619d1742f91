"""The composition root: builds everything out of a ``Config`` and owns the service tree.

::

    RelayService(MultiService)      stopService: not ready -> refuse new -> drain -> close -> stop children
    |- sweeper                      expiry, absence, held-back notices, the lists of networks
    |- security-log                 what was suppressed in the stream of security events
    |- webhook, bouncer             external abuse systems, when there are any
    |- administration               the admin endpoint, when there is one
    |- watch                        vital signs, and the observe endpoint
    `- relay-quic                   the UDP sockets

``MultiService`` starts and stops its children all at once and ignores what they return; the order of stopping is ours.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from zrc_relay.abuse.bouncer import Bouncer
from zrc_relay.abuse.setup import Environment, SetupError, make_parts
from zrc_relay.abuse.webhook import Webhook
from zrc_relay.access import AccessFileError, AccessStore
from zrc_relay.config import Config
from zrc_relay.control.administration import Administration
from zrc_relay.control.audit import AuditLog
from zrc_relay.control.auth import AdminToken, TokenFileError, load_tokens
from zrc_relay.control.endpoints import ListenError
from zrc_relay.control.events import EventHub
from zrc_relay.control.local import Clocks
from zrc_relay.control.watch import Watch
from zrc_relay.core.admission import Admission
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.core.relay import Relay
from zrc_relay.core.wire import Address
from zrc_relay.inputs import (
    Inputs,
    StartError,
    admission_of,
    credentials_of,
    endpoint_settings_of,
    load_device_keys,
    log_settings_of,
    policy_of,
    read_inputs,
)
from zrc_relay.linefile import LineFile
from zrc_relay.logs.eventlog import EventLog
from zrc_relay.logs.observer import RelayLog
from zrc_relay.pins import PinFileError, PinnedKeys
from zrc_relay.qlogs import Recordings
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.ids import SECRET_SIZE, ConnectionIds
from zrc_relay.quic.udp import UdpPort
from zrc_relay.reload import Reloader, ReloadReport
from zrc_relay.securitylog import SUMMARY_INTERVAL, SecurityLog
from zrc_relay.tasks import Ticker

__all__ = ["QuicService", "RelayService", "StartError", "load_device_keys", "reset_secret"]

SWEEP_INTERVAL: Final = 0.25
"""Seconds between sweeps: expiry is at most 1 s late (R2.5)."""


RESET_SECRET_FILE: Final = "reset.key"  # noqa: S105 - the name of a file


class QuicService(Service):
    """The UDP sockets of the endpoint, bound while the process may still be privileged."""

    _log = Logger()

    def __init__(self, endpoint: Endpoint, addresses: tuple[str, ...], port: int, reactor: Any) -> None:
        self.setName("relay-quic")
        self._endpoint = endpoint
        self._addresses = addresses
        self._port = port
        self._reactor = reactor
        self.ports: list[UdpPort] = []

    def privilegedStartService(self) -> None:
        """Bind the sockets; ``StartError`` when an address or the port cannot be had."""
        if self.ports:
            return
        port = self._port
        for address in self._addresses:
            udp_port = UdpPort(address, port, self._endpoint, self._reactor)
            try:
                udp_port.startListening()
            except CannotListenError as error:
                if address == "::" and self.ports and _no_ipv6(error):
                    self._log.warn("this host has no IPv6; listening on IPv4 only", event="listen.ipv4_only")
                    continue
                self._stop_ports()
                reason = getattr(error.socketError, "strerror", None) or error.socketError
                msg = f"cannot listen on UDP {Address.of(address, port)}: {reason}"
                raise StartError(msg) from error
            self.ports.append(udp_port)
            port = udp_port.local.port
            self._log.info("listening on UDP {address}", event="listen.udp", address=str(udp_port.local))

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


class RelayService(MultiService):
    """A whole relay. ``now`` is monotonic, ``wall`` Unix time, both in seconds.

    ``load`` gives the settings as they are now, for reloading; without it they are ``config`` for ever.
    """

    _log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
        load: Callable[[], Config] | None = None,
    ) -> None:
        super().__init__()
        self.setName("zrc-relay")
        self._reactor = reactor
        self._now = now
        self._wall = wall
        self._drained: Deferred[None] | None = None
        self._drain_timer: Any = None
        self.drain_deadline: float | None = None
        """Until when clients were told to leave, Unix seconds."""
        self.ready = False
        credentials = credentials_of(config)
        self.device_keys = load_device_keys(config)
        """Those of the file; what run time says over them is in ``pins``."""
        self.pins = PinnedKeys(config.state_dir, run=self._elsewhere)
        self.hub = EventHub(EventLog(now), wall=wall)
        security_file, audit_file = log_file(config.security_log, "security log"), log_file(config.audit_log, "audit log")
        self.security_log = SecurityLog(self.hub, now=now, wall=wall, file=security_file)
        self.security_log.sinks.append(self.hub)
        self.audit = AuditLog(audit_file, now=now, wall=wall)
        lists = AccessLists(config.allow, config.block)
        self.access = AccessStore(lists, config.state_dir, now=now, wall=wall, run=self._elsewhere)
        try:
            self.pins.load()
            self.access.load()
        except (PinFileError, AccessFileError) as error:
            raise StartError(str(error)) from error
        keys = self.pins.over(self.device_keys)
        admission = Admission(admission_of(config), lists, now=now())
        self.qlogs = Recordings(self.security_log, config.qlog_dir, now=now, wall=wall, run=self._elsewhere)
        self.relay = Relay(policy_of(config, random(8)), keys, self.qlogs, now=now(), admission=admission)
        self.endpoint = Endpoint(
            self.relay,
            credentials,
            endpoint_settings_of(config),
            ConnectionIds(reset_secret(config.state_dir, random), random),
            clock=reactor,
            now=now,
            wall=wall,
            random=random,
        )
        self.qlogs.find = self.endpoint.find
        self.reloader = Reloader(
            Inputs(config, credentials, self.device_keys), lambda: read_inputs(load or (lambda: config)),
            run=self._elsewhere, commit=self._commit,
        )
        self.log: RelayLog | None = None
        """The log of the process, if it is this relay's."""
        self.quic = QuicService(self.endpoint, config.listen_addr, config.listen_port, reactor)
        self.sweeper = Ticker(reactor, SWEEP_INTERVAL, self._sweep, "sweeper")
        self.addService(self.sweeper)
        self.addService(self.quic)
        summary = Ticker(reactor, SUMMARY_INTERVAL, self.security_log.summarise, "security-log")
        self.addService(summary)
        self.webhook, self.bouncer = self._make_parts(config, lambda: random(1)[0] / 0xFF)
        self.administration = self._make_administration(config)
        self.watch = self._make_watch(config, summary, [file for file in (security_file, audit_file) if file is not None])
        self.addService(self.watch)

    def privilegedStartService(self) -> None:
        """Bind what the children listen on; ``StartError`` when something cannot be had."""
        try:
            super().privilegedStartService()
        except ListenError as error:
            raise StartError(str(error)) from error

    def startService(self) -> None:
        """Start the children; ready when they are. ``StartError`` as above."""
        try:
            super().startService()
        except ListenError as error:
            raise StartError(str(error)) from error
        self.ready = True
        self._log.info("relay {relay_id} is ready", event="relay.ready", relay_id=self.relay.policy.relay_id.hex())

    def stopService(self) -> Deferred[None]:
        """Drain, close what is left, then stop the children."""
        return self.drain().addCallback(self._close)

    def _make_parts(self, config: Config, chance: Callable[[], float]) -> tuple[Webhook | None, Bouncer | None]:
        environment = Environment(self._reactor, self._now, self._wall, chance)
        try:
            parts = make_parts(config, environment, self.relay.admission.lists, self.relay.policy.instance_id)
        except SetupError as error:
            raise StartError(str(error)) from error
        for part in parts:
            if part is not None:
                self.addService(part)
        if parts[0] is not None:
            self.security_log.sinks.append(parts[0])
        return parts

    def _make_administration(self, config: Config) -> Administration | None:
        if config.admin_endpoint is None:
            return None
        made = Administration(
            self, self.endpoint, config.admin_endpoint, tokens=lambda: admin_tokens(config), unix_trust=config.admin_unix_trust,
            audit=self.audit, hub=self.hub, clocks=Clocks(self._now, self._wall, self._reactor),
        )
        self.addService(made)
        self.reloader.participants.append(made)
        return made

    def _make_watch(self, config: Config, summary: Ticker, logs: list[LineFile]) -> Watch:
        watch = Watch(
            self._reactor, self.relay,
            endpoint=config.observe_endpoint, connections=self.endpoint, ports=lambda: self.quic.ports,
            tasks=(self.sweeper, summary), logs=logs, state=(self.access, self.pins), reloads=self.reloader,
            certificate=lambda: self.endpoint.credentials.configuration.certificate, is_ready=lambda: self.ready,
            webhook=self.webhook, bouncer=self.bouncer, now=self._now, wall=self._wall,
        )
        if watch.site is not None:
            self.reloader.participants.append(watch.site)
        return watch

    def use_device_keys(self, configured: DeviceKeys | None = None) -> int:
        """Let ``configured``, those of the file, be in force under what run time says; None: the file is as it was.

        Returns how many allocations ended because their device is gone.
        """
        if configured is not None:
            self.device_keys = configured
        ended = self.relay.replace_keys(self.pins.over(self.device_keys), self._now(), self._wall())
        self.endpoint.sweep()
        return ended

    def reload(self) -> Deferred[ReloadReport]:
        """Read settings, keys, lists and the certificate again, all or nothing; fires with what came of it (R8)."""
        return self.reloader.reload().addCallback(self._reloaded)

    def _reloaded(self, report: ReloadReport) -> ReloadReport:
        self.audit.reload(report.changed, report.problems)
        return report

    def _commit(self, inputs: Inputs) -> int:
        """Put other inputs in force; returns how many allocations ended because their device is gone."""
        config, now, wall = inputs.config, self._now(), self._wall()
        self.device_keys = inputs.device_keys
        admission = self.relay.admission
        admission.reconfigure(admission_of(config), now)
        admission.lists.configure(config.allow, config.block)
        policy = policy_of(config, self.relay.policy.instance_id)
        ended = self.relay.reconfigure(policy, self.pins.over(self.device_keys), now, wall)
        self.endpoint.reconfigure(inputs.credentials, endpoint_settings_of(config))
        self.qlogs.directory = config.qlog_dir
        if self.log is not None:
            self.log.configure(log_settings_of(config))
        self.endpoint.sweep()
        return ended

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self.reloader.inputs.config

    def _elsewhere(self, function: Callable[[], Any]) -> Deferred[Any]:
        """Run what may take long in a thread."""
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function)

    def reopen_logs(self) -> None:
        """Go on in new files, after the old ones were renamed."""
        self.security_log.reopen()
        self.audit.reopen()
        if self.log is not None:
            self.log.reopen()

    def drain(self) -> Deferred[None]:
        """Be not ready, refuse ALLOCATE, tell everyone; the Deferred fires when all are gone or ``drain_timeout`` is over."""
        self.ready = False
        if self._drained is None:
            timeout = self.config.drain_timeout
            self.drain_deadline = self._wall() + timeout
            self.relay.drain(self.drain_deadline)
            if not self.relay.is_in_use:
                self._drained = succeed(None)
                return succeed(None)
            self._log.info(
                "draining {allocations} allocations for at most {timeout} s", event="relay.draining",
                allocations=len(self.relay.table), timeout=timeout,
            )
            self._drained = Deferred()
            self._drain_timer = self._reactor.callLater(timeout, self.stop_draining)
        waiter: Deferred[None] = Deferred()
        if self._drained.called:
            waiter.callback(None)
        else:
            self._drained.chainDeferred(waiter)
        return waiter

    def stop_draining(self) -> None:
        """Do not wait for who is still there."""
        if self._drain_timer is not None:
            if self._drain_timer.active():
                self._drain_timer.cancel()
            self._drain_timer = None
        if self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    def _close(self, _: object) -> Deferred[Any]:
        self.endpoint.close_all(ErrorCode.DRAINING, "the relay stops")
        self._log.info("relay stopped", event="relay.stopped")
        stopped: Deferred[Any] = super().stopService()
        finished = stopped.addBoth(lambda _: self.access.finish()).addBoth(lambda _: self.qlogs.finish())
        return finished.addBoth(self._closed)

    def _closed(self, result: object) -> object:
        self.security_log.close()
        self.audit.close()
        return result

    def _sweep(self) -> None:
        self.access.sweep()
        self.endpoint.sweep()
        self.qlogs.sweep()
        if self._drained is not None and not self.relay.is_in_use:
            self.stop_draining()


def admin_tokens(config: Config) -> tuple[AdminToken, ...]:
    """The tokens of ``admin_tokens_path``, if there is one; ``StartError`` with every problem on its own line."""
    if config.admin_tokens_path is None:
        return ()
    try:
        return load_tokens(config.admin_tokens_path)
    except TokenFileError as error:
        raise StartError(str(error)) from error


def log_file(path: Path | None, what: str) -> LineFile | None:
    """The file at ``path``, or None; ``StartError`` when it cannot be opened."""
    if path is None:
        return None
    try:
        return LineFile(path)
    except OSError as error:
        msg = f"cannot write the {what} {path}: {error.strerror or error}"
        raise StartError(msg) from error


def reset_secret(state_dir: Path | None, random: Callable[[int], bytes]) -> bytes:
    """The secret behind stateless reset tokens (R5.9): kept in ``state_dir``, so that a restarted relay can reset what was lost.

    Without a ``state_dir`` it is new each time. ``StartError`` when it can be neither read nor written.
    """
    if state_dir is None:
        return random(SECRET_SIZE)
    path = state_dir / RESET_SECRET_FILE
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(random(SECRET_SIZE))
        except FileExistsError:
            pass
        secret = path.read_bytes()
    except OSError as error:
        msg = f"cannot keep state in {state_dir}: {error.strerror or error}"
        raise StartError(msg) from error
    if len(secret) != SECRET_SIZE:
        msg = f"{path} is damaged: {len(secret)} bytes instead of {SECRET_SIZE}; remove it to get a new one"
        raise StartError(msg)
    return secret


def _no_ipv6(error: CannotListenError) -> bool:
    return getattr(error.socketError, "errno", None) in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
