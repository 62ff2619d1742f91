"""``Watch`` for a relay whose work is done by other processes: its own vital signs, and what they say of theirs (R7).

Health and metrics answer for all: what a worker complains of is told with its index, unless it is what this process complains
of anyway (the certificate is everybody's). The event loop that metrics tell of is that of the workers; this process forwards
nothing, and a warning is all that it has to say of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.application.service import MultiService

from zrc_relay.control.endpoints import SiteService
from zrc_relay.control.fleet import Fleet
from zrc_relay.control.health import Checks, Report
from zrc_relay.control.observe import Observe
from zrc_relay.control.traffic import Traffic
from zrc_relay.control.watch import Sights, checks_of
from zrc_relay.core.counters import Counters
from zrc_relay.metrics.catalogue import take_front
from zrc_relay.metrics.exposition import MergedExposition
from zrc_relay.metrics.local import Front
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
    """See the module's docstring. ``entries`` says how many networks are on the lists."""

    def __init__(
        self, sights: Sights, fleet: Fleet, traffic: Traffic, *, is_draining: Callable[[], bool], entries: Callable[[], int]
    ) -> None:
        super().__init__()
        self.setName("watch")
        reactor = sights.clocks.reactor
        self.vitals = Vitals(reactor, Counters(), sights.clocks.now)
        self.addService(self.vitals)
        sights = sights.with_vitals(self.vitals)
        self.front = Front(
            is_ready=sights.is_ready, is_draining=is_draining, certificate_expires=sights.certificate_expires,
            troubles=sights.troubles, entries=entries, restarts=lambda: fleet.restarts, vitals=self.vitals,
            reloads=sights.reloads, webhook=sights.webhook, bouncer=sights.bouncer,
        )
        self.checks = FleetChecks(checks_of(sights, self.front), fleet)
        self.exposition = MergedExposition(lambda: take_front(self.front), traffic.snapshot)
        self.site: SiteService | None = None
        if sights.endpoint is not None:
            observe = Observe(self.checks, self.exposition)
            self.site = SiteService("observe", sights.endpoint, observe.resource(), reactor)
            self.addService(self.site)
