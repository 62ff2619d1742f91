"""The composition root: builds everything out of a ``Config`` and owns the service tree.

::

    RelayService(MultiService)      stopService: not ready -> refuse new -> drain -> close -> stop children
    |- sweeper                      expiry, absence, held-back notices, the lists of networks
    |- security-log                 what was suppressed in the stream of security events
    |- webhook, bouncer             external abuse systems, when there are any
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

from zrc_relay.abuse.setup import Environment, SetupError, make_parts
from zrc_relay.access import AccessFileError, AccessStore
from zrc_relay.config import Config, TrustModel
from zrc_relay.core.admission import Admission, AdmissionSettings
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.keys import DeviceKeys, KeyFileError, parse_device_keys
from zrc_relay.core.relay import Policy, Relay
from zrc_relay.core.wire import NO_ADDRESS, Address
from zrc_relay.credentials import load_credentials
from zrc_relay.linefile import LineFile
from zrc_relay.logs import EventLog
from zrc_relay.quic.endpoint import MAX_HANDSHAKES, Endpoint, EndpointSettings
from zrc_relay.quic.ids import SECRET_SIZE, ConnectionIds
from zrc_relay.quic.udp import UdpPort
from zrc_relay.securitylog import SUMMARY_INTERVAL, SecurityLog
from zrc_relay.tasks import Ticker

SWEEP_INTERVAL: Final = 0.25
"""Seconds between sweeps: expiry is at most 1 s late (R2.5)."""


RESET_SECRET_FILE: Final = "reset.key"  # noqa: S105 - the name of a file


class StartError(Exception):
    """The relay cannot start; the message is one line for the operator."""


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
                    self._log.warn("this host has no IPv6; listening on IPv4 only")
                    continue
                self._stop_ports()
                reason = getattr(error.socketError, "strerror", None) or error.socketError
                msg = f"cannot listen on UDP {Address.of(address, port)}: {reason}"
                raise StartError(msg) from error
            self.ports.append(udp_port)
            port = udp_port.local.port
            self._log.info("listening on UDP {address}", address=str(udp_port.local))

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
    """A whole relay. ``now`` is monotonic, ``wall`` Unix time, both in seconds."""

    _log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__()
        self.setName("zrc-relay")
        self._config = config
        self._reactor = reactor
        self._now = now
        self._wall = wall
        self._drained: Deferred[None] | None = None
        self._drain_timer: Any = None
        self.ready = False
        credentials = load_credentials(
            config.quic_cert_path,
            config.quic_key_path,
            idle_timeout=config.quic_idle_timeout,
            udp_payload=config.base_udp_payload,
            stream_window=config.stream_window,
            max_streams=config.max_streams,
        )
        keys = load_device_keys(config)
        self.security_log = SecurityLog(EventLog(now), now=now, wall=wall, file=security_file(config))
        lists = AccessLists(config.allow, config.block)
        self.access = AccessStore(
            lists, config.state_dir,
            now=now, wall=wall, run=lambda function: deferToThreadPool(reactor, reactor.getThreadPool(), function),
        )
        try:
            self.access.load()
        except AccessFileError as error:
            raise StartError(str(error)) from error
        admission = Admission(admission_of(config), lists, now=now())
        self.relay = Relay(policy_of(config, random(8)), keys, self.security_log, now=now(), admission=admission)
        self.endpoint = Endpoint(
            self.relay,
            credentials,
            EndpointSettings(
                handshake_timeout=config.handshake_timeout,
                egress_queue_bytes=config.egress_queue_bytes,
                egress_queue_age=config.egress_queue_age,
                max_streams=config.max_streams,
                max_pending_streams=config.max_pending_streams,
                max_udp_payload=config.max_udp_payload,
                fast_path=config.fast_path,
                max_connections=2 * config.max_allocations * config.max_connections_per_side + MAX_HANDSHAKES,
            ),
            ConnectionIds(reset_secret(config.state_dir, random), random),
            clock=reactor,
            now=now,
            wall=wall,
            random=random,
        )
        self.quic = QuicService(self.endpoint, config.listen_addr, config.listen_port, reactor)
        self.sweeper = Ticker(reactor, SWEEP_INTERVAL, self._sweep, "sweeper")
        self.addService(self.sweeper)
        self.addService(self.quic)
        self.addService(Ticker(reactor, SUMMARY_INTERVAL, self.security_log.summarise, "security-log"))
        environment = Environment(reactor, now, wall, lambda: random(1)[0] / 0xFF)
        try:
            parts = make_parts(config, environment, self.relay.admission.lists, self.relay.policy.instance_id)
        except SetupError as error:
            raise StartError(str(error)) from error
        self.webhook, self.bouncer = parts
        if self.webhook is not None:
            self.security_log.sinks.append(self.webhook)
        for part in parts:
            if part is not None:
                self.addService(part)

    def startService(self) -> None:
        """Start the children; ready when they are."""
        super().startService()
        self.ready = True
        self._log.info("relay {relay_id} is ready", relay_id=self.relay.policy.relay_id.hex())

    def stopService(self) -> Deferred[None]:
        """Drain, close what is left, then stop the children."""
        return self.drain().addCallback(self._close)

    def reload_keys(self) -> None:
        """Read the device keys again; on any problem the ones in use stay (R1, ``revoke_ends_sessions``)."""
        try:
            keys = load_device_keys(self._config)
        except StartError as error:
            self._log.error("device keys are not reloaded: {problem}", problem=str(error))
            return
        ended = self.relay.replace_keys(keys, self._now(), self._wall())
        self.endpoint.sweep()
        self._log.info("{devices} device keys reloaded; {ended} allocations ended", devices=len(keys), ended=ended)

    def reopen_logs(self) -> None:
        """Go on in new files, after the old ones were renamed."""
        self.security_log.reopen()

    def drain(self) -> Deferred[None]:
        """Be not ready, refuse ALLOCATE, tell everyone; the Deferred fires when all are gone or ``drain_timeout`` is over."""
        self.ready = False
        if self._drained is None:
            timeout = self._config.drain_timeout
            self.relay.drain(self._wall() + timeout)
            if not self.relay.is_in_use:
                self._drained = succeed(None)
                return succeed(None)
            self._log.info(
                "draining {allocations} allocations for at most {timeout} s", allocations=len(self.relay.table), timeout=timeout
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
        self._log.info("relay stopped")
        stopped: Deferred[Any] = super().stopService()
        return stopped.addBoth(lambda _: self.access.finish()).addBoth(self._closed)

    def _closed(self, result: object) -> object:
        self.security_log.close()
        return result

    def _sweep(self) -> None:
        self.access.sweep()
        self.endpoint.sweep()
        if self._drained is not None and not self.relay.is_in_use:
            self.stop_draining()


def load_device_keys(config: Config) -> DeviceKeys:
    """The devices of ``device_keys_path``, if there is one; ``StartError`` with every problem on its own line."""
    path = config.device_keys_path
    if path is None:
        return DeviceKeys()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the device keys {path}: {getattr(error, 'strerror', None) or error}"
        raise StartError(msg) from error
    try:
        return parse_device_keys(text, tiers=config.tiers)
    except KeyFileError as error:
        raise StartError("\n".join(f"{path}: {problem}" for problem in error.problems)) from error


def security_file(config: Config) -> LineFile | None:
    """The file of ``security_log``, or None; ``StartError`` when it cannot be opened."""
    if config.security_log is None:
        return None
    try:
        return LineFile(config.security_log)
    except OSError as error:
        msg = f"cannot write the security log {config.security_log}: {error.strerror or error}"
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


def admission_of(config: Config) -> AdmissionSettings:
    """The part of ``config`` that decides about sources."""
    return AdmissionSettings(
        connection_rate=config.connection_rate,
        allocation_rate=config.allocation_rate,
        rejoin_rate=config.rejoin_rate,
        stun_rate=config.stun_rate,
        handshake_pressure=config.handshake_pressure,
        amplification_block=config.amplification_block,
    )


def policy_of(config: Config, instance_id: bytes) -> Policy:
    """The part of ``config`` that decides about allocations."""
    proving = {Role.DEVICE: config.require_proof.of_devices, Role.PEER: config.require_proof.of_peers}
    relay_addr = NO_ADDRESS
    if config.relay_addr is not None or config.relay_port is not None:
        relay_addr = Address(config.relay_addr or "", config.relay_port or 0)
    return Policy(
        relay_id=config.relay_id,
        instance_id=instance_id,
        default_tier=config.default_tier(),
        tiers=config.tiers,
        proving_roles=frozenset(role for role, must in proving.items() if must),
        relay_addr=relay_addr,
        max_allocations=config.max_allocations,
        max_connections_per_side=config.max_connections_per_side,
        max_token_lifetime=config.max_token_lifetime,
        allocation_timeout=config.allocation_timeout,
        wait_timeout=config.wait_timeout,
        idle_timeout=config.idle_timeout,
        keepalive_interval=config.keepalive_interval,
        global_bandwidth_limit=config.global_bandwidth_limit,
        bandwidth_burst=config.bandwidth_burst,
        revoke_ends_sessions=config.revoke_ends_sessions,
        self_certified_tier=config.self_certified_tier if config.trust is TrustModel.SELF_CERTIFIED else None,
    )


def _no_ipv6(error: CannotListenError) -> bool:
    return getattr(error.socketError, "errno", None) in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
