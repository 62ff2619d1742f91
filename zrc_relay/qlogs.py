"""Recordings of single connections in qlog format, on demand (R7).

Theory of operation
-------------------
An administrator names an allocation; the next connection that joins it is recorded from its ALLOCATE on, until it ends, until
``MAX_BYTES`` are there, or for ``MAX_SECONDS``. A connection says which allocation it wants only in ALLOCATE, which comes after
the handshake. So the handshake is not in a recording: to have it, every connection would have to be recorded just in case. What
goes wrong in handshakes is counted and logged by cause.

While it is recorded a connection takes the general way for every packet, which costs several times as much; hence the bounds.
``Recordings`` is an ``Observer`` in front of another one: it learns from ``session.bound`` who joined what. Files are written in
a thread, are readable by the relay's user alone, and are named by moment, allocation and connection: digits and letters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.relay import Observer
from zrc_relay.quic.qlog import Trace

MAX_BYTES: Final = 4 * 1024 * 1024
"""Size of one recording: some 15,000 packets."""
MAX_SECONDS: Final = 600.0
MAX_AT_ONCE: Final = 8
"""Recordings that run: 32 MB, and little enough of the slow way."""
MAX_WANTED: Final = 64
"""Allocations whose next connection is waited for."""
WANTED_SECONDS: Final = 3600.0
"""How long it is waited for."""


class QlogRefused(Exception):
    """No recording can be made; the message is one sentence that says why."""


class Recordable(Protocol):
    """A connection, as far as it can be recorded."""

    @property
    def name(self) -> str:
        """What logs call it: hexadecimal digits."""
        ...

    def record(self, trace: Trace | None) -> None:
        """Record into ``trace`` from now on; None: no longer."""
        ...


Run = Callable[[Callable[[], Any]], "Deferred[Any]"]
"""Runs a function that may take long, somewhere else."""


@dataclass(frozen=True, slots=True, eq=False)
class _Recording:
    key: AllocationKey
    connection: Recordable
    trace: Trace
    until: float

    @property
    def ids(self) -> dict[str, object]:
        return {"connection": self.connection.name, "device": self.key[0].hex(), "allocation": self.key[1].hex()}


class Recordings:
    """See the module's docstring; every event goes on to ``following``.

    ``directory`` is where they are written, None for nowhere. ``now`` gives monotonic and ``wall`` Unix seconds; ``run`` runs
    what writes a file. ``find`` finds a connection by the name that logs give it.
    """

    _log = Logger()

    def __init__(
        self,
        following: Observer,
        directory: Path | None,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
        run: Run,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._following = following
        self.directory = directory
        self._now = now
        self._wall = wall
        self._run = run
        self._max_bytes = max_bytes
        self.find: Callable[[str], Recordable | None] = _nobody
        self._wanted: dict[AllocationKey, float] = {}
        self._running: dict[str, _Recording] = {}
        self._writing: set[Deferred[None]] = set()

    def request(self, key: AllocationKey) -> None:
        """Record the next connection that joins the allocation ``key``, which need not be there yet; ``QlogRefused`` if not."""
        if self.directory is None:
            msg = "qlog_dir is not set: there is nowhere to write a recording"
            raise QlogRefused(msg)
        if key not in self._wanted and len(self._wanted) >= MAX_WANTED:
            msg = f"the next connections of {MAX_WANTED} allocations are waited for already"
            raise QlogRefused(msg)
        self._wanted[key] = self._now() + WANTED_SECONDS
        self._log.info(
            "the next connection of allocation {allocation} will be recorded", event="qlog.requested",
            device=key[0].hex(), allocation=key[1].hex(),
        )

    def event(self, name: str, **fields: object) -> None:
        """See ``Observer``."""
        self._following.event(name, **fields)
        if self._wanted and name == "session.bound":
            key = bytes.fromhex(str(fields["device"])), bytes.fromhex(str(fields["allocation"]))
            if key in self._wanted and len(self._running) < MAX_AT_ONCE:
                connection = self.find(str(fields["connection"]))
                if connection is not None:
                    del self._wanted[key]
                    self._begin(key, connection)

    def sweep(self) -> None:
        """End what has lasted long enough, and stop waiting for what does not come; a few times a second."""
        now = self._now()
        for key in [key for key, until in self._wanted.items() if until <= now]:
            del self._wanted[key]
        for recording in [recording for recording in self._running.values() if recording.until <= now]:
            recording.trace.end()

    def finish(self) -> Deferred[Any]:
        """End and write all that runs; fires when everything is written, or has failed."""
        for recording in list(self._running.values()):
            recording.trace.end()
        return DeferredList(list(self._writing))

    @property
    def running(self) -> int:
        """How many connections are being recorded."""
        return len(self._running)

    def _begin(self, key: AllocationKey, connection: Recordable) -> None:
        name = connection.name
        trace = Trace(bytes.fromhex(name), wall=self._wall, limit=self._max_bytes, on_end=lambda: self._ended(name))
        recording = self._running[name] = _Recording(key, connection, trace, self._now() + MAX_SECONDS)
        connection.record(trace)
        self._log.info("connection {connection} is being recorded", event="qlog.started", **recording.ids)

    def _ended(self, name: str) -> None:
        recording = self._running.pop(name)
        recording.connection.record(None)
        directory, trace = self.directory, recording.trace
        if directory is None:
            return
        moment = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y%m%dT%H%M%SZ")
        path = directory / f"{moment}-{recording.key[1].hex()}-{name}.qlog"
        done: Deferred[None] = Deferred()
        self._writing.add(done)

        def ended(result: Any) -> None:
            self._writing.discard(done)
            if isinstance(result, Failure):
                self._log.error(
                    "connection {connection} was recorded in vain: {problem}", event="qlog.failed",
                    **recording.ids, problem=str(result.value),
                )
            else:
                self._log.info(
                    "the recording of connection {connection} is in {path}", event="qlog.written",
                    **recording.ids, path=str(path), events=len(trace), complete=trace.is_complete,
                )
            done.callback(None)

        self._run(lambda: _write(path, trace.text())).addBoth(ended)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _nobody(name: str) -> None:
    del name
