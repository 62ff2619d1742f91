"""coturn under the load that comes with it, ``turnutils_uclient``.

Clients talk to each other by way of the server (``-y``): one's channel data goes to its relayed address, from there as plain UDP to
the other's, and from there as channel data to the other. So the server forwards each message twice, and what is counted is
forwarded datagrams that led to a delivery: two for each message that arrived.

The client sends from each of its sessions by a timer; more sessions or shorter intervals give a rate, and an interval of 0 as many
as go through.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from bench import build
from bench.generator import MICROSECONDS, MeasurementFailed
from bench.machine import cpu_seconds
from bench.outcome import Sample
from bench.scenarios import Load
from bench.systems import HOST, Running

FORWARDS: Final = 2
SATURATING_SESSIONS: Final = 40
SATURATING_MESSAGES: Final = 8_000
"""How many messages go through in a second is not known before; so many are sent for each second of the measurement."""
PATIENCE: Final = 60.0
INTERVALS: Final = (20, 10, 4, 2, 1)
"""Milliseconds; the longest is taken that needs no more than MOST_SESSIONS."""
MOST_SESSIONS: Final = 40
_PROGRESS: Final = re.compile(r"start_mclient: msz=\d+, tot_send_msgs=(\d+), tot_recv_msgs=(\d+)")
_TOTAL: Final = re.compile(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)")


def sessions_for(rate: float) -> tuple[int, int]:
    """How many sessions, and at which interval in milliseconds, forward ``rate`` datagrams a second; sessions come in pairs."""
    for interval in INTERVALS:
        sessions = max(2, 2 * round(rate / FORWARDS * interval / 1000 / 2))
        if sessions <= MOST_SESSIONS:
            return sessions, interval
    return MOST_SESSIONS, INTERVALS[-1]


def measure(running: Running, load: Load, *, warm_up: float, seconds: float) -> Sample:
    """One measurement; ``MeasurementFailed`` when there is none. There is no warming up but the setting up of sessions."""
    del warm_up
    child = running.child
    if child is None:
        msg = "there is no server"
        raise MeasurementFailed(msg)
    if load.rate:
        sessions, interval = sessions_for(load.rate)
        messages = max(1, round(seconds * 1000 / interval))
    else:
        sessions, interval = SATURATING_SESSIONS, 0
        messages = max(1, round(seconds * SATURATING_MESSAGES / SATURATING_SESSIONS))
    # Its output must come line by line, because it says when the sessions are set up.
    command = [
        "stdbuf", "-oL", str(build.turn_client()), "-y", "-c", "-m", str(sessions), "-n", str(messages), "-z", str(interval),
        "-l", str(load.size), "-p", str(running.port), HOST,
    ]
    patience = seconds + PATIENCE
    with subprocess.Popen(  # noqa: S603 - coturn's own program
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    ) as process:
        timer = threading.Timer(patience, process.kill)
        timer.start()
        try:
            return read(process.stdout or (), cpu=lambda: cpu_seconds(child.pid), now=time.monotonic)
        finally:
            timer.cancel()
            process.kill()


@dataclass(frozen=True, slots=True)
class _Moment:
    """How far the client had come at a time, and the processor time that the server had used by then; both in seconds."""

    at: float
    cpu: float
    arrived: int


def read(lines: Iterable[str], *, cpu: Callable[[], float], now: Callable[[], float]) -> Sample:
    """A sample from the lines that ``turnutils_uclient`` prints, one each second, as they come.

    ``cpu`` is the processor time of the server. The first line comes when the sessions are set up, which is not measured; when all is
    sent, the client goes on waiting for what is lost, which takes no part in the rate.
    """
    first = busy = None
    last_line = "nothing"
    for line in lines:
        last_line = line.strip() or last_line
        if (total := _TOTAL.search(line)) is not None and first is not None:
            sent, arrived = int(total[1]), int(total[2])
            end = _Moment(now(), cpu(), arrived)
            if busy is None or arrived > busy.arrived:
                busy = end
            forwarded = FORWARDS * (arrived - first.arrived)
            if not forwarded:
                break
            return Sample(
                cost=MICROSECONDS * (end.cpu - first.cpu) / forwarded,
                rate=forwarded / (busy.at - first.at),
                loss=(sent - arrived) / sent,
            )
        if (progress := _PROGRESS.search(line)) is not None:
            moment = _Moment(now(), cpu(), int(progress[2]))
            first = first or moment
            if moment.arrived > (busy or first).arrived:
                busy = moment
    msg = f"turnutils_uclient says: {last_line}"
    raise MeasurementFailed(msg)
