"""``Watch`` for a relay whose work is done by other processes: its own vital signs, and what they say of theirs (R7).

Health and metrics answer for all: what a worker complains of is told with its index, unless it is what this process complains
of anyway (the certificate is everybody's). The event loop that metrics tell of is that of the workers; this process forwards
nothing, and a warning is all that it has to say of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cryptography.x509 import Certificate
from twisted.application.service import MultiService

from zrc_relay.config_endpoints import StreamEndpoint
from zrc_relay.control.endpoints import SiteService
from zrc_relay.control.fleet import Fleet
from zrc_relay.control.health import (
    Checks,
    Report,
)
from zrc_relay.control.observe import Observe
from zrc_relay.control.traffic import Traffic
from zrc_relay.control.watch import BackgroundTask, Log, Reloading, State, checks_of, expiry_of, troubles
from zrc_relay.core.counters import Counters
from zrc_relay.metrics.catalogue import take_front
from zrc_relay.metrics.exposition import MergedExposition
from zrc_relay.metrics.local import Bouncer, Front, Webhook
from zrc_relay.metrics.vitals import Vitals


class FleetChecks:
    """The checks of this process, and what the workers found."""

    def __init__(self, own: Checks, fleet: Fleet) -> None:
        self._own = own
        self._fleet = fleet

    def report(self) -> Report:
        """Look now."""
        own = self._own.report()
        known = (*own.failures, *own.warnings)
        return Report(
            (*own.failures, *_new(self._fleet.failures(), known)),
            (*own.warnings, *_new(self._fleet.warnings(), known)),
            own.unready,
        )


def _new(found: Iterable[str], known: Iterable[str]) -> list[str]:
    endings = tuple(f": {problem}" for problem in known)
    return [problem for problem in found if not problem.endswith(endings)]


class FleetWatch(MultiService):
    """See the module's docstring, and ``Watch`` for the arguments; ``entries`` says how many networks are on the lists."""

    def __init__(
        self,
        reactor: Any,
        fleet: Fleet,
        traffic: Traffic,
        *,
        endpoint: StreamEndpoint | None,
        tasks: Sequence[BackgroundTask],
        logs: Sequence[Log],
        state: Sequence[State],
        reloads: Reloading,
        certificate: Callable[[], Certificate],
        is_ready: Callable[[], bool],
        is_draining: Callable[[], bool],
        entries: Callable[[], int],
        webhook: Webhook | None,
        bouncer: Bouncer | None,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        super().__init__()
        self.setName("watch")
        self.vitals = Vitals(reactor, Counters(), now)
        self.addService(self.vitals)
        background = (*tasks, *self.vitals.tickers)
        self.front = Front(
            is_ready=is_ready, is_draining=is_draining, certificate_expires=expiry_of(certificate),
            troubles=troubles(background, logs, state), entries=entries, restarts=lambda: fleet.restarts, vitals=self.vitals,
            reloads=reloads, webhook=webhook, bouncer=bouncer,
        )
        self.checks = FleetChecks(checks_of(self.front, background, logs, state, reloads, now=now, wall=wall), fleet)
        self.exposition = MergedExposition(lambda: take_front(self.front), traffic.snapshot)
        self.site: SiteService | None = None
        if endpoint is not None:
            self.site = SiteService("observe", endpoint, Observe(self.checks, self.exposition).resource(), reactor)
            self.addService(self.site)
