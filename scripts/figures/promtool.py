"""Prometheus itself finds the metrics clean (``promtool check metrics``), before and after sessions of a relay process."""

from __future__ import annotations

import urllib.request
from typing import Any, Final

from twisted.internet.threads import deferToThread

from figures._common import Relay, Verdict, eventually, relay_process, run
from tests import promtool
from zrc_relay.core.codes import Role

PATIENCE: Final = 30.0


def prove() -> Verdict:
    """Measure."""
    lacking = promtool.missing()
    if lacking is not None:
        return Verdict(kept=False, figure=lacking)
    with relay_process() as relay:
        return run(lambda reactor: measure(reactor, relay))


async def measure(reactor: Any, relay: Relay) -> Verdict:
    """Scrape, let two clients exchange something, scrape again."""
    texts = [await deferToThread(scrape, relay)]
    got: list[bytes] = []
    device = await relay.connect(reactor, Role.DEVICE)
    peer = await relay.connect(reactor, Role.PEER, on_datagram=got.append)
    device.send(b"x")
    await eventually(reactor, lambda: got, PATIENCE)
    texts.append(await deferToThread(scrape, relay))
    for client in (device, peer):
        client.close()
    said = [line for text in texts for line in promtool.check_metrics(text)]
    series = sum(not line.startswith(b"#") for line in texts[-1].splitlines())
    return Verdict(not said and series > 100, (
        f"promtool check metrics says nothing of {series} series" if not said else f"promtool says: {'; '.join(said[:5])}"
    ))


def scrape(relay: Relay) -> bytes:
    """The metrics of a relay process, at the address that it logged."""
    port = int(relay.child.wait_for(r"observe listens on tcp:(\d+)", timeout=PATIENCE).group(1))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        text: bytes = answer.read()
    return text
