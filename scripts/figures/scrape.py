"""A scrape of /metrics costs at most 5 ms of the relay's thread, with 10,000 allocations as with none, in either format.

The site is real, on a loopback socket, and so are relay, table and allocations; only the sessions in them are fakes, because
20,000 connections are another figure. What counts is the CPU time that the reactor's thread spends from before the request until
after the answer: reading the request, routing it, taking the snapshot, writing the text. The client is in another thread.
"""

from __future__ import annotations

import http.client
import time
from statistics import median
from typing import Any, Final

from twisted.internet.threads import deferToThread

from figures._common import Verdict, percentile, run
from tests.fakes import Scene, make_token
from tests.harness import certificate
from tests.watching import ACCEPT_OPENMETRICS, Thing
from zrc_relay.config_endpoints import TcpEndpoint
from zrc_relay.control.management import Clocks
from zrc_relay.control.watch import Sights, Watch
from zrc_relay.core.codes import Role

ALLOCATIONS: Final = 10_000
SCRAPES: Final = 100
MAX_COST: Final = 5.0
"""Milliseconds, of 95 in 100 scrapes."""
MAX_RATIO: Final = 1.25
"""How much more the median may be with all allocations than with none."""
FORMATS: Final = {"text": "text/plain", "OpenMetrics": ACCEPT_OPENMETRICS}
PATIENCE: Final = 30.0


class Connections:
    """As many as there would be."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.handshaking = 0

    @property
    def connections(self) -> int:
        """Both ends of every allocation."""
        return 2 * len(self._scene.relay.table)


def prove() -> Verdict:
    """Measure."""
    return run(measure)


async def measure(reactor: Any) -> Verdict:
    """Scrape an empty relay, fill it, scrape again."""
    scene = Scene(max_allocations=ALLOCATIONS, wait_timeout=1e6)
    thing = Thing()
    sights = Sights(
        clocks=Clocks(time.monotonic, time.time, reactor), endpoint=TcpEndpoint(0, "127.0.0.1"), tasks=[], logs=[], state=[],
        reloads=thing, certificate=lambda: certificate().configuration.certificate, is_ready=lambda: True,
    )
    watch: Any = Watch(sights, scene.relay, connections=Connections(scene), ports=lambda: [thing])
    watch.startService()
    port = watch.site.port.getHost().port
    costs: dict[str, list[float]] = {}
    said: list[str] = []
    for step in ("none", "all"):
        if step == "all":
            for number in range(ALLOCATIONS):
                token = make_token(allocation_id=number.to_bytes(16, "big"))
                for role in Role:
                    scene.bind(role, token).forget()
        for name, accept in FORMATS.items():
            costs[f"{step} {name}"] = [await scrape(port, accept, said) for _ in range(SCRAPES)]
    await watch.stopService()
    shown = f'zrc_relay_active_allocations{{state="active"}} {float(ALLOCATIONS)}' in said[-1]
    worst = max(percentile(costs[f"all {name}"], 0.95) for name in FORMATS)
    ratio = max(median(costs[f"all {name}"]) / median(costs[f"none {name}"]) for name in FORMATS)
    figures = ", ".join(
        f"{name} {median(costs[f'all {name}']):.2f} ms (p95 {percentile(costs[f'all {name}'], 0.95):.2f}, "
        f"with none {median(costs[f'none {name}']):.2f})" for name in FORMATS
    )
    return Verdict(shown and worst <= MAX_COST and ratio <= MAX_RATIO, (
        f"a scrape with {len(scene.relay.table)} allocations: {figures}; at most {MAX_COST:g} ms, and {ratio:.2f} times what it "
        f"costs with none (at most {MAX_RATIO:g}); {len(said[-1])} bytes, {SCRAPES} scrapes each"
    ))


async def scrape(port: int, accept: str, said: list[str]) -> float:
    """Scrape once; the CPU time that this thread spent meanwhile, in milliseconds. The last answer is kept in ``said``."""

    def ask() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", "/metrics", headers={"Accept": accept})
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    begun = time.thread_time()
    said[:] = [await deferToThread(ask)]
    return 1000 * (time.thread_time() - begun)
