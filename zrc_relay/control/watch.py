"""All that watches a relay process, put together: vital signs, metrics, health, and the observe endpoint that tells of them (R7).

``Watch`` is a part of the service tree. What it looks at comes in as arguments, most of it as ``Sights``; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from zrc_relay.control.management import Clocks
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sights:
    """What there is to watch in every process, whatever it does. Functions give what is replaced while it runs."""

    clocks: Clocks
    endpoint: StreamEndpoint | None
    """Where to tell of it; None: nothing is served."""
    tasks: Sequence[BackgroundTask]
    logs: Sequence[Log]
    state: Sequence[State]
    reloads: Reloading
    certificate: Callable[[], Certificate]
    """That of connections which begin now."""
    is_ready: Callable[[], bool]
    webhook: Webhook | None = None
    bouncer: Bouncer | None = None

    def with_vitals(self, vitals: Vitals) -> Sights:
        """These, and the tasks that take the vital signs."""
        return replace(self, tasks=(*self.tasks, *vitals.tickers))

    def certificate_expires(self) -> float:
        """When the certificate of the moment expires, in Unix seconds."""
        return self.certificate().not_valid_after_utc.timestamp()

    def troubles(self) -> Mapping[str, Iterable[Task]]:
        """What may fail beside sessions, as metrics count it."""
        return {"background": self.tasks, "log": self.logs, "state": self.state}


class Watch(MultiService):
    """See the module's docstring. ``connections`` and ``ports`` are those of ``relay``, which forwards in this process."""

    def __init__(
        self, sights: Sights, relay: Relay, *, connections: ConnectionCounts, ports: Callable[[], Sequence[Port]]
    ) -> None:
        super().__init__()
        self.setName("watch")
        clocks, is_ready = sights.clocks, sights.is_ready
        self.vitals = Vitals(clocks.reactor, relay.counters, clocks.now)
        self.addService(self.vitals)
        sights = sights.with_vitals(self.vitals)
        self.local = Local(
            relay=relay, connections=connections, ports=ports, vitals=self.vitals, now=clocks.now, is_ready=is_ready,
            is_draining=lambda: relay.draining, certificate_expires=sights.certificate_expires, troubles=sights.troubles,
            entries=lambda: len(relay.admission.lists), restarts=lambda: 0,
            reloads=sights.reloads, webhook=sights.webhook, bouncer=sights.bouncer,
        )
        no_port = complain_if(lambda: is_ready() and not ports(), "no UDP socket is open")
        self.checks = checks_of(sights, self.local, failures=(no_port,))
        self.exposition = Exposition(lambda: take(self.local))
        self.site: SiteService | None = None
        if sights.endpoint is not None:
            observe = Observe(self.checks, self.exposition)
            self.site = SiteService("observe", sights.endpoint, observe.resource(), clocks.reactor)
            self.addService(self.site)


def checks_of(sights: Sights, front: Front, *, failures: Sequence[Check] = ()) -> Checks:
    """The checks that every process in front of clients or operators has, behind its own ``failures``."""
    clocks, expires = sights.clocks, sights.certificate_expires
    is_ready, is_draining = front.is_ready, front.is_draining
    return Checks(
        failures=(
            *failures,
            certificate_expired(expires, clocks.wall),
            *(failing(task, f"the background task {task.name} fails") for task in sights.tasks),
        ),
        warnings=(
            certificate_expires_soon(expires, clocks.wall),
            loop_late(lambda: front.vitals.loop.waits.worst.at(clocks.now())),
            failing(sights.reloads, "the last reload was refused: what the files say is not in force"),
            *(failing(log, f"cannot write to {log.path}") for log in sights.logs),
            *(complaint(each) for each in sights.state),
        ),
        unreadiness=(
            complain_if(is_draining, "the relay drains"),
            complain_if(lambda: not is_ready() and not is_draining(), "the relay has not started"),
        ),
    )
