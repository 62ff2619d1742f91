"""What an operator sees of a relay, whatever forwards behind it: configuration, lists, keys, logs, endpoints, the way it stops.

Theory of operation
-------------------
``Front`` is the half of a relay that needs no packets. It owns the settings in force and replaces them on a reload, the lists of
networks and the device keys with what run time says of them, the streams of events, and the observe and admin endpoints. What
forwards is a ``Forwarding``: an ``Engine`` in this process (``service.RelayService``), or workers that have one each
(``workers.parent.ParentService``). A subclass makes it, and hands it to ``_complete`` together with what tells of it and what
watches it.

::

    Front(MultiService)             stopService: not ready -> refuse new -> drain -> close -> stop children
    |- (what forwards)
    |- security-log                 what was suppressed in the stream of security events
    |- access                       lists of networks: what is over, and what is to be kept
    |- webhook, bouncer             external abuse systems, when there are any
    |- administration               the admin endpoint, when there is one
    `- watch                        vital signs, and the observe endpoint

``MultiService`` starts and stops its children all at once and ignores what they return; the order of stopping is ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
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
from zrc_relay.control.fleet_watch import FleetWatch
from zrc_relay.control.management import Clocks, FrontOperations
from zrc_relay.control.traffic import Traffic
from zrc_relay.control.watch import Sights, Watch
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.engine import SWEEP_INTERVAL, EngineSettings, StartError, Surroundings
from zrc_relay.form import form
from zrc_relay.inputs import Inputs, credentials_of, engine_settings_of, load_device_keys, log_settings_of, read_inputs
from zrc_relay.linefile import LineFile
from zrc_relay.logs.eventlog import EventLog
from zrc_relay.logs.observer import RelayLog
from zrc_relay.pins import PinFileError, PinnedKeys
from zrc_relay.quic.ids import SECRET_SIZE
from zrc_relay.reload import Reloader, ReloadReport
from zrc_relay.securitylog import SUMMARY_INTERVAL, SecurityLog
from zrc_relay.tasks import Ticker

RESET_SECRET_FILE: Final = "reset.key"  # noqa: S105 - the name of a file


class Forwarding(Protocol):
    """What forwards for a relay."""

    def use_keys(self, keys: DeviceKeys) -> Deferred[int]:
        """Let those devices sign tokens; how many allocations ended because their device is gone."""
        ...

    def lists_in_force(self) -> Deferred[None]:
        """Fires when what was said of networks until now holds wherever packets come in."""
        ...

    def put_in_force(self, inputs: Inputs, settings: EngineSettings, keys: DeviceKeys) -> Deferred[int]:
        """Go by other settings, all of it or nothing (``ReloadRefused``); returns what ``use_keys`` does."""
        ...

    def drain(self, deadline: float) -> Deferred[None]:
        """Take nobody new and tell who is there to leave until ``deadline``, Unix seconds; fires when all have left."""
        ...


class Front(MultiService):
    """See the module's docstring. ``load`` gives the settings as they are now, for reloading; None: ``config`` for ever."""

    _log = Logger()

    def __init__(self, config: Config, surroundings: Surroundings, load: Callable[[], Config] | None = None) -> None:
        super().__init__()
        self.setName("zrc-relay")
        self._surroundings = surroundings
        self._reactor = surroundings.reactor
        self._now, self._wall = surroundings.now, surroundings.wall
        self._clocks = Clocks(self._now, self._wall, self._reactor)
        self._drained: Deferred[None] | None = None
        self._drain_timer: Any = None
        self.drain_deadline: float | None = None
        """Until when clients were told to leave, Unix seconds."""
        self.ready = False
        self.log: RelayLog | None = None
        """The log of the process, if it is this relay's."""
        self.instance_id = surroundings.random(8)
        credentials = credentials_of(config)
        self.device_keys = load_device_keys(config)
        """Those of the file; what run time says over them is in ``pins``."""
        self.reloader = Reloader(
            Inputs(config, credentials, self.device_keys), lambda: read_inputs(load or (lambda: config)),
            run=surroundings.elsewhere, commit=self._commit,
        )
        self.pins = PinnedKeys(config.state_dir, run=surroundings.elsewhere)
        self.hub = EventHub(EventLog(self._now), wall=self._wall)
        security_file, audit_file = log_file(config.security_log, "security log"), log_file(config.audit_log, "audit log")
        self.log_files = [file for file in (security_file, audit_file) if file is not None]
        self.security_log = SecurityLog(self.hub, now=self._now, wall=self._wall, file=security_file)
        self.security_log.sinks.append(self.hub)
        self.audit = AuditLog(audit_file, now=self._now, wall=self._wall)
        self.lists = AccessLists(config.allow, config.block)
        self.access = AccessStore(
            self.lists, config.state_dir, now=self._now, wall=self._wall, run=surroundings.elsewhere
        )
        try:
            self.pins.load()
            self.access.load()
        except (PinFileError, AccessFileError) as error:
            raise StartError(str(error)) from error
        self.reset_secret = reset_secret(config.state_dir, surroundings.random)
        self.summary = Ticker(self._reactor, SUMMARY_INTERVAL, self.security_log.summarise, "security-log")
        self.keeper = Ticker(self._reactor, SWEEP_INTERVAL, self.access.sweep, "access")
        self.forwarding: Forwarding = None  # type: ignore[assignment]  # set by ``_complete``, before anyone sees this
        self.administration: Administration | None = None

    def _complete(
        self,
        forwarding: Forwarding,
        traffic: Traffic,
        services: Sequence[Service],
        chores: Sequence[Ticker],
        make_watch: Callable[[Sights], Watch | FleetWatch],
    ) -> None:
        """Put everything together: ``forwarding`` is what forwards, ``traffic`` tells of it, ``services`` are its parts.

        ``chores`` are what it does in the background, and ``make_watch`` makes what watches it and this front.
        """
        self.forwarding = forwarding
        for service in services:
            self.addService(service)
        self.addService(self.summary)
        self.addService(self.keeper)
        config = self.config
        self.webhook, self.bouncer = self._make_parts(config)
        if config.admin_endpoint is not None:
            self.administration = Administration(
                FrontOperations(self, traffic, self._clocks), config.admin_endpoint,
                tokens=lambda: admin_tokens(config), unix_trust=config.admin_unix_trust, audit=self.audit, hub=self.hub,
                clocks=self._clocks,
            )
            self.addService(self.administration)
            self.reloader.participants.append(self.administration)
        self.watch = make_watch(Sights(
            clocks=self._clocks, endpoint=config.observe_endpoint, tasks=(*chores, self.summary, self.keeper),
            logs=self.log_files, state=(self.access, self.pins), reloads=self.reloader,
            certificate=lambda: self.reloader.inputs.credentials.configuration.certificate, is_ready=lambda: self.ready,
            webhook=self.webhook, bouncer=self.bouncer,
        ))
        self.addService(self.watch)
        if self.watch.site is not None:
            self.reloader.participants.append(self.watch.site)

    def privilegedStartService(self) -> None:
        """Bind what the children listen on; ``StartError`` when something cannot be had."""
        try:
            super().privilegedStartService()
        except ListenError as error:
            raise StartError(str(error)) from error

    def startService(self) -> None:
        """Start the children; ``StartError`` as above."""
        try:
            super().startService()
        except ListenError as error:
            raise StartError(str(error)) from error

    def _is_ready(self) -> None:
        self.ready = True
        self._log.info(
            "relay {relay_id} is ready ({form})", event="relay.ready", relay_id=self.config.relay_id.hex(), form=form().value)

    def stopService(self) -> Deferred[None]:
        """Drain, close what is left, then stop the children."""
        return self.drain().addCallback(self._close)

    def _make_parts(self, config: Config) -> tuple[Webhook | None, Bouncer | None]:
        random = self._surroundings.random
        environment = Environment(self._reactor, self._now, self._wall, lambda: random(1)[0] / 0xFF)
        try:
            parts = make_parts(config, environment, self.lists, self.instance_id)
        except SetupError as error:
            raise StartError(str(error)) from error
        for part in parts:
            if part is not None:
                self.addService(part)
        if parts[0] is not None:
            self.security_log.sinks.append(parts[0])
        return parts

    # -- settings and keys

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self.reloader.inputs.config

    @property
    def relay_id(self) -> bytes:
        """Who the relay is to tokens."""
        return self.config.relay_id

    @property
    def tiers(self) -> Collection[str]:
        """Names of the tiers that there are."""
        return self.config.tiers

    @property
    def state(self) -> str:
        """``starting``, ``ready`` or ``draining``."""
        return "draining" if self.drain_deadline is not None else "ready" if self.ready else "starting"

    @property
    def settings(self) -> EngineSettings:
        """What forwards goes by."""
        return engine_settings_of(self.config, self.instance_id)

    def use_device_keys(self) -> Deferred[int]:
        """Let the keys of the file be in force under what run time says.

        Fires with how many allocations ended because their device is gone.
        """
        return self.forwarding.use_keys(self.pins.over(self.device_keys))

    def lists_in_force(self) -> Deferred[None]:
        """See ``Forwarding``."""
        return self.forwarding.lists_in_force()

    def reload(self) -> Deferred[ReloadReport]:
        """Read settings, keys, lists and the certificate again, all or nothing; fires with what came of it (R8)."""
        return self.reloader.reload().addCallback(self._reloaded)

    def _reloaded(self, report: ReloadReport) -> ReloadReport:
        self.audit.reload(report.changed, report.problems)
        return report

    def _commit(self, inputs: Inputs) -> Deferred[int]:
        config = inputs.config
        said = self.pins.revision
        done = self.forwarding.put_in_force(
            inputs, engine_settings_of(config, self.instance_id), self.pins.over(inputs.device_keys)
        )

        def committed(ended: int) -> int | Deferred[int]:
            self.device_keys = inputs.device_keys
            self.lists.configure(config.allow, config.block)
            if self.log is not None:
                self.log.configure(log_settings_of(config))
            if self.pins.revision == said:
                return ended
            # Somebody pinned or unpinned a key while what forwards, elsewhere, made ready to go by those from before.
            return self.use_device_keys().addCallback(lambda more: ended + more)

        return done.addCallback(committed)

    def reopen_logs(self) -> None:
        """Go on in new files, after the old ones were renamed."""
        self.security_log.reopen()
        self.audit.reopen()
        if self.log is not None:
            self.log.reopen()

    # -- the end

    def drain(self) -> Deferred[None]:
        """Be not ready, refuse ALLOCATE, tell everyone; the Deferred fires when all are gone or ``drain_timeout`` is over."""
        self.ready = False
        if self._drained is None:
            timeout = self.config.drain_timeout
            self.drain_deadline = self._wall() + timeout
            self._drained = Deferred()
            self.forwarding.drain(self.drain_deadline).addCallback(lambda _: self.stop_draining())
            if not self._drained.called:
                self._log.info("draining for at most {timeout} s", event="relay.draining", timeout=timeout)
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
        stopped: Deferred[Any] = super().stopService()
        return stopped.addBoth(lambda _: self.access.finish()).addBoth(self._closed)

    def _closed(self, result: object) -> object:
        self._log.info("relay stopped", event="relay.stopped")
        self.security_log.close()
        self.audit.close()
        return result


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
