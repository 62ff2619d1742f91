"""coturn under the load that comes with it, ``turnutils_uclient``.

Clients talk to each other by way of the server (``-y``): channel data of one goes to its relayed address, from there as plain UDP
to that of the other, and from there as channel data to the other. So the server forwards each message twice, and what is counted
is forwarded datagrams that led to a delivery: two for each message that arrived.

The client sends from each of its sessions by a timer: more sessions or shorter intervals give a rate, an interval of 0 as many as
go through. Sessions begin at random within ``RAMP`` seconds after they are set up; what is measured comes after that, between two
of the lines that it prints each second, and then it is ended.
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
from bench.outcome import Sample
from bench.scenarios import Load
from bench.systems import HOST, Running
from zrc_relay.cli.processes import cpu_seconds

FORWARDS: Final = 2
RAMP: Final = 6.5
"""Seconds from its first line until all sessions send."""
SATURATING_SESSIONS: Final = 40
ENDLESS: Final = 10_000_000
"""Messages of a session: it is ended before it has sent them."""
PATIENCE: Final = 30.0
LINE_JITTER: Final = 0.2
"""Seconds that a line may come early."""
INTERVALS: Final = (20, 10, 5, 4, 2, 1)
"""Milliseconds."""
MOST_SESSIONS: Final = 40
_PROGRESS: Final = re.compile(r"start_mclient: msz=\d+, tot_send_msgs=(\d+), tot_recv_msgs=(\d+)")


def sessions_for(rate: float) -> tuple[int, int]:
    """How many sessions, and at which interval in milliseconds, come nearest to ``rate`` forwarded datagrams a second.

    Sessions come in pairs; of ways that are equally near, that with the most sessions is taken.
    """

    def sessions(interval: int) -> int:
        pairs = round(rate / FORWARDS * interval / 1000 / 2)
        return 2 * min(max(1, pairs), MOST_SESSIONS // 2)

    def error(interval: int) -> float:
        return abs(FORWARDS * sessions(interval) * 1000 / interval - rate)

    best = min(INTERVALS, key=error)
    return sessions(best), best


def measure(running: Running, load: Load, *, warm_up: float, seconds: float) -> Sample:
    """One measurement; ``MeasurementFailed`` when there is none. Warming up takes ``RAMP``, whatever else is wanted."""
    del warm_up
    child = running.child
    if child is None:
        msg = "there is no server"
        raise MeasurementFailed(msg)
    sessions, interval = sessions_for(load.rate) if load.rate else (SATURATING_SESSIONS, 0)
    # Its output must come line by line, because it is looked at while it comes.
    command = [
        "stdbuf", "-oL", str(build.turn_client()), "-y", "-c", "-m", str(sessions), "-n", str(ENDLESS), "-z", str(interval),
        "-l", str(load.size), "-p", str(running.port), HOST,
    ]
    with subprocess.Popen(  # noqa: S603 - coturn's own program
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    ) as process:
        timer = threading.Timer(RAMP + seconds + PATIENCE, process.kill)
        timer.start()
        try:
            return read(process.stdout or (), seconds, cpu=lambda: cpu_seconds(child.pid), now=time.monotonic)
        finally:
            timer.cancel()
            process.kill()


@dataclass(frozen=True, slots=True)
class _Moment:
    """How far the client had come at a time, and the processor time that the server had used by then; both in seconds."""

    at: float
    cpu: float
    sent: int
    arrived: int


def read(lines: Iterable[str], seconds: float, *, cpu: Callable[[], float], now: Callable[[], float]) -> Sample:
    """A sample from the lines that ``turnutils_uclient`` prints, as they come; ``cpu`` is the processor time of the server.

    What is measured lasts ``seconds``, and up to one more, since a line comes each second.
    """
    first: _Moment | None = None
    begin: _Moment | None = None
    last_line = "nothing"
    for line in lines:
        last_line = line.strip() or last_line
        if (progress := _PROGRESS.search(line)) is None:
            continue
        moment = _Moment(now(), cpu(), int(progress[1]), int(progress[2]))
        first = first or moment
        if begin is None:
            begin = moment if moment.at - first.at >= RAMP else None
        elif moment.at - begin.at >= seconds - LINE_JITTER:
            forwarded = FORWARDS * (moment.arrived - begin.arrived)
            if not forwarded:
                break
            sent = moment.sent - begin.sent
            return Sample(
                cost=MICROSECONDS * (moment.cpu - begin.cpu) / forwarded,
                rate=forwarded / (moment.at - begin.at),
                loss=max(0, sent - forwarded // FORWARDS) / sent if sent else None,
            )
    msg = f"turnutils_uclient says: {last_line}"
    raise MeasurementFailed(msg)
