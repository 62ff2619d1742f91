"""All that watches a relay process, put together: vital signs, metrics, health, and the observe endpoint that tells of them (R7).

``Watch`` is a part of the service tree. What it looks at comes in as arguments; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from cryptography.x509 import Certificate
from twisted.application.service import MultiService

from zrc_relay.config_endpoints import StreamEndpoint
from zrc_relay.control.endpoints import SiteService
from zrc_relay.control.health import (
    Check,
    Checks,
    Failing,
    certificate_expired,
    certificate_expires_soon,
    complain_if,
    complaint,
    failing,
    loop_late,
)
from zrc_relay.control.observe import Observe
from zrc_relay.core.relay import Relay
from zrc_relay.metrics.catalogue import take
from zrc_relay.metrics.exposition import Exposition
from zrc_relay.metrics.local import Bouncer, ConnectionCounts, Front, Local, Port, Reloads, Task, Webhook
from zrc_relay.metrics.vitals import Vitals


class BackgroundTask(Task, Failing, Protocol):
    """A task that goes on after it failed, and a name for it."""

    @property
    def name(self) -> str | None:
        """What messages call it."""
        ...


class Log(Task, Failing, Protocol):
    """A file that lines are written to."""

    @property
    def path(self) -> Any:
        """Where it is."""
        ...


class State(Task, Protocol):
    """What should outlive a restart."""

    @property
    def problem(self) -> str | None:
        """Why it could not be written when last tried, in a sentence; None when it could."""
        ...


class Reloading(Reloads, Failing, Protocol):
    """What reads the settings again."""


class Watch(MultiService):
    """See the module's docstring. ``now`` gives monotonic and ``wall`` Unix seconds; without ``endpoint`` nothing is served."""

    def __init__(
        self,
        reactor: Any,
        relay: Relay,
        *,
        endpoint: StreamEndpoint | None,
        connections: ConnectionCounts,
        ports: Callable[[], Sequence[Port]],
        tasks: Sequence[BackgroundTask],
        logs: Sequence[Log],
        state: Sequence[State],
        reloads: Reloading,
        certificate: Callable[[], Certificate],
        is_ready: Callable[[], bool],
        webhook: Webhook | None,
        bouncer: Bouncer | None,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        super().__init__()
        self.setName("watch")
        self.vitals = Vitals(reactor, relay.counters, now)
        self.addService(self.vitals)
        background = (*tasks, *self.vitals.tickers)
        self.local = Local(
            relay=relay, connections=connections, ports=ports, vitals=self.vitals, now=now, is_ready=is_ready,
            is_draining=lambda: relay.draining, certificate_expires=expiry_of(certificate),
            troubles=troubles(background, logs, state), entries=lambda: len(relay.admission.lists), restarts=lambda: 0,
            reloads=reloads, webhook=webhook, bouncer=bouncer,
        )
        self.checks = checks_of(
            self.local, background, logs, state, reloads, now=now, wall=wall,
            failures=(complain_if(lambda: is_ready() and not ports(), "no UDP socket is open"),),
        )
        self.exposition = Exposition(lambda: take(self.local))
        self.site: SiteService | None = None
        if endpoint is not None:
            self.site = SiteService("observe", endpoint, Observe(self.checks, self.exposition).resource(), reactor)
            self.addService(self.site)


def expiry_of(certificate: Callable[[], Certificate]) -> Callable[[], float]:
    """When the certificate of the moment expires, in Unix seconds."""

    def expires() -> float:
        return certificate().not_valid_after_utc.timestamp()

    return expires


def troubles(
    background: Sequence[BackgroundTask], logs: Sequence[Log], state: Sequence[Task]
) -> Callable[[], Mapping[str, Iterable[Task]]]:
    """What may fail beside sessions, as metrics count it."""
    return lambda: {"background": background, "log": logs, "state": state}


def checks_of(
    front: Front, background: Sequence[BackgroundTask], logs: Sequence[Log], state: Sequence[State],
    reloads: Failing, *,
    now: Callable[[], float], wall: Callable[[], float], failures: Sequence[Check] = (),
) -> Checks:
    """The checks that every process in front of clients or operators has, behind its own ``failures``."""
    expires, is_ready, is_draining = front.certificate_expires, front.is_ready, front.is_draining
    return Checks(
        failures=(
            *failures,
            certificate_expired(expires, wall),
            *(failing(task, f"the background task {task.name} fails") for task in background),
        ),
        warnings=(
            certificate_expires_soon(expires, wall),
            loop_late(lambda: front.vitals.loop.waits.worst.at(now())),
            failing(reloads, "the last reload was refused: what the files say is not in force"),
            *(failing(log, f"cannot write to {log.path}") for log in logs),
            *(complaint(each) for each in state),
        ),
        unreadiness=(
            complain_if(is_draining, "the relay drains"),
            complain_if(lambda: not is_ready() and not is_draining(), "the relay has not started"),
        ),
    )
