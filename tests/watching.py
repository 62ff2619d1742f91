"""A relay of a scene on the simulated network, watched: its metrics and health without sockets."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.harness import World
from zrc_relay.control.management import Clocks
from zrc_relay.control.watch import Sights, Watch
from zrc_relay.core.counters import Traffic
from zrc_relay.metrics.exposition import OPENMETRICS

ACCEPT_OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class Thing:
    """Anything that a watch looks at, with values that a test chooses."""

    def __init__(self, name: str = "thing") -> None:
        self.name = self.path = name
        self.failures = self.done = self.refused = self.rejected = 0
        self.queued = self.dropped = self.blocked = self.decisions = 0
        self.is_failing = False
        self.problem: str | None = None
        self.last_success: float | None = None
        self.traffic = Traffic()


class Watched:
    """A ``World`` and what watches its relay; the service is not started."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.port, self.task, self.log = Thing("port"), Thing("chores"), Thing("/var/log/x")
        self.state, self.reloads, self.webhook, self.bouncer = Thing(), Thing(), Thing(), Thing()
        self.ports: list[Thing] = [self.port]
        self.is_ready = True
        sights = Sights(
            clocks=Clocks(world.now, world.wall, world.clock), endpoint=None, tasks=[self.task], logs=[self.log],
            state=[self.state], reloads=self.reloads, certificate=lambda: world.credentials.configuration.certificate,
            is_ready=lambda: self.is_ready, webhook=self.webhook, bouncer=self.bouncer,
        )
        self.watch = Watch(sights, world.relay, connections=world.endpoint, ports=lambda: self.ports)

    def text(self, accept: str = "") -> str:
        """What a scraper gets."""
        return self.watch.exposition.render(accept)[0].decode()

    def families(self, accept: str = "") -> list[Metric]:
        """The same, read with prometheus-client's own parser."""
        text, content_type = self.watch.exposition.render(accept)
        return list((parse_openmetrics if content_type == OPENMETRICS else parse_text)(text.decode()))

    def values(self) -> dict[str, float]:
        """Every sample by its name and labels, as in ``name{label="value"}``."""
        return dict(samples(self.families()))


def samples(families: Iterable[Metric]) -> Iterable[tuple[str, float]]:
    """The samples of ``families``."""
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            yield (f"{sample.name}{{{labels}}}" if labels else sample.name), sample.value
