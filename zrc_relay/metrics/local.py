"""What the metrics of this process are read from, and taking a snapshot of it (R7.2-5).

``Local`` is handed to the readers of the ``catalogue``, or ``Front``, which is less, where nothing is forwarded. They hold narrow
views of what there is, so that neither they nor the readers know the composition of the service. Reading is in plain attributes
and lengths; nothing walks over allocations or connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from zrc_relay.core.counters import Traffic
from zrc_relay.core.relay import Relay
from zrc_relay.metrics.vitals import Vitals

TROUBLES: Final = ("background", "log", "state")
"""Background tasks (a run of one raised), log files (a line is lost), state on disk (it could not be written)."""


class ConnectionCounts(Protocol):
    """How many QUIC connections there are."""

    @property
    def connections(self) -> int:
        """All of them, half-open and closing ones included."""
        ...

    @property
    def handshaking(self) -> int:
        """Those that are half-open."""
        ...


class Port(Protocol):
    """A UDP socket."""

    @property
    def traffic(self) -> Traffic:
        """What went through it."""
        ...


class Task(Protocol):
    """Something in the background that may fail and goes on."""

    @property
    def failures(self) -> int:
        """How often it failed."""
        ...


class Reloads(Protocol):
    """How often the settings were read again."""

    @property
    def done(self) -> int:
        """How often they were put in force."""
        ...

    @property
    def refused(self) -> int:
        """How often nothing was changed because something was wrong."""
        ...


class External(Task, Protocol):
    """A system outside."""

    @property
    def last_success(self) -> float | None:
        """When an exchange with it last went well, in Unix seconds."""
        ...

    @property
    def rejected(self) -> int:
        """How many things it said were not understood or not done."""
        ...


class Webhook(External, Protocol):
    """The one that hears of security events."""

    @property
    def queued(self) -> int:
        """Events that wait."""
        ...

    @property
    def dropped(self) -> int:
        """Events that it will never hear of."""
        ...

    @property
    def blocked(self) -> int:
        """Sources that were blocked because it said so."""
        ...


class Bouncer(External, Protocol):
    """The one whose decisions are followed."""

    @property
    def decisions(self) -> int:
        """How many are in force."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What can be told of a relay where nothing is forwarded. Functions give what is replaced while it runs."""

    is_ready: Callable[[], bool]
    is_draining: Callable[[], bool]
    certificate_expires: Callable[[], float]
    """Unix seconds."""
    troubles: Callable[[], Mapping[str, Iterable[Task]]]
    """What may fail beside sessions, by one of ``TROUBLES``."""
    entries: Callable[[], int]
    """How many networks are on the lists."""
    restarts: Callable[[], int]
    """How often a process that forwards was replaced."""
    vitals: Vitals
    reloads: Reloads
    webhook: Webhook | None = None
    bouncer: Bouncer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Local(Front):
    """A process that forwards, as its metrics see it."""

    relay: Relay
    connections: ConnectionCounts
    ports: Callable[[], Iterable[Port]]
    now: Callable[[], float]
    """Monotonic seconds."""

    @property
    def traffic(self) -> list[Traffic]:
        """What went through each UDP socket."""
        return [port.traffic for port in self.ports()]
