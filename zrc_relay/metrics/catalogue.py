"""The table of metrics: what each is called, what it means, and where its number comes from (R7.3-5).

Theory of operation
-------------------
A row is a ``Metric``. Everything else is derived from the table: snapshots (``take``), how they merge, the text for scrapers, and
the check that ``docs/metrics.md`` lists exactly these. The rules:

* Names follow Prometheus' conventions: the prefix ``zrc_relay_``, base units (seconds, bytes), ``_total`` for counters.
* A metric has at most one label, with values that are fixed by the program. **No label takes a value that a client chooses**,
  nor one of which there can be arbitrarily many (R7).
* Every value is there from the start, as 0, so that a rate over its first occurrence is right.
* Reading takes time that does not depend on how many allocations or connections there are.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, unique
from math import inf
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import aioquic

import twisted
from zrc_relay import __version__
from zrc_relay.core.admission import TABLES
from zrc_relay.core.codes import DropCause, ErrorCode, TerminationReason
from zrc_relay.core.counters import LARGEST_BATCH, LARGEST_TRAIN, Handshake, InputDrop, Limit, StreamReset
from zrc_relay.core.histogram import Sizes
from zrc_relay.form import form
from zrc_relay.metrics.local import TROUBLES, Front, Local
from zrc_relay.metrics.snapshot import Buckets, Merge, Snapshot, Values

K = TypeVar("K", bound=Enum)

PREFIX: Final = "zrc_relay_"


@unique
class Kind(Enum):
    """What kind of number a metric is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. ``label`` is empty for a metric without one; ``labels`` are all values that the label can have.

    ``front`` reads what a process has to say where nothing is forwarded; None when that is nothing.
    """

    name: str
    kind: Kind
    help: str
    read: Callable[[Local], Any]
    label: str = ""
    labels: tuple[str, ...] = ("",)
    merge: Merge = Merge.SUM
    front: Callable[[Front], Any] | None = None


class _Distribution(Protocol):
    """What both kinds of histogram in ``core`` have."""

    @property
    def bounds(self) -> tuple[float, ...]: ...

    @property
    def counts(self) -> list[int]: ...

    @property
    def sum(self) -> float: ...


def _counter(name: str, help_: str, read: Callable[[Local], float]) -> Metric:
    return Metric(f"{PREFIX}{name}_total", Kind.COUNTER, help_, read)


def _counters(name: str, help_: str, read: Callable[[Local], Values], label: str, labels: Iterable[str]) -> Metric:
    return Metric(f"{PREFIX}{name}_total", Kind.COUNTER, help_, read, label, tuple(labels))


def _gauge(name: str, help_: str, read: Callable[[Local], float], *, merge: Merge = Merge.SUM) -> Metric:
    return Metric(PREFIX + name, Kind.GAUGE, help_, read, merge=merge)


def _gauges(
    name: str, help_: str, read: Callable[[Local], Values], label: str, labels: Iterable[str], *, merge: Merge = Merge.SUM
) -> Metric:
    return Metric(PREFIX + name, Kind.GAUGE, help_, read, label, tuple(labels), merge)


def _of_front(
    name: str, kind: Kind, help_: str, read: Callable[[Front], float], *, merge: Merge = Merge.SUM
) -> Metric:
    """A number that every process of the relay has, also one in which nothing is forwarded."""
    return Metric(PREFIX + name, kind, help_, read, merge=merge, front=read)


def _labelled_of_front(
    name: str, kind: Kind, help_: str, read: Callable[[Front], Values], *, label: str, labels: Iterable[str],
    merge: Merge = Merge.SUM,
) -> Metric:
    """The same with a label."""
    return Metric(PREFIX + name, kind, help_, read, label, tuple(labels), merge, read)


def _histogram(name: str, help_: str, read: Callable[[Local], Buckets]) -> Metric:
    return Metric(PREFIX + name, Kind.HISTOGRAM, help_, read)


def _names(kind: type[Enum]) -> tuple[str, ...]:
    """Label values of an enumeration: its members' names in lower case."""
    return tuple(member.name.lower() for member in kind)


def _named(counts: Mapping[K, int]) -> Values:
    return {member.name.lower(): count for member, count in counts.items()}


def _buckets(distribution: _Distribution) -> Buckets:
    return Buckets(distribution.bounds, tuple(distribution.counts), distribution.sum)


def _all_sizes(sizes: Iterable[Sizes], largest: int) -> Buckets:
    """The sizes of all sockets together."""
    total = _buckets(Sizes(largest))
    for one in sizes:
        total = total.plus(_buckets(one))
    return total


def _or_infinite(limit: float | None) -> float:
    return inf if limit is None else limit


_FINISHED: Final = tuple(outcome for outcome in Handshake if outcome is not Handshake.STARTED)
_EXTERNAL: Final = ("bouncer", "webhook")


def _external(front: Front, attribute: str) -> Values:
    """An attribute of each system outside; 0 for one that is not configured, and for a moment that never was."""
    return {name: getattr(getattr(front, name), attribute, None) or 0 for name in _EXTERNAL}


def _ended(local: Local) -> Values:
    return {name: local.relay.counters.allocations_ended.get(name, 0) for name in _names(TerminationReason)}


def _errors(local: Local) -> Values:
    return {**_front_errors(local), "session": local.relay.counters.session_errors}


def _front_errors(front: Front) -> Values:
    troubles = front.troubles()
    return {
        "session": 0,
        **{name: sum(task.failures for task in troubles.get(name, ())) for name in TROUBLES},
    }


_BUILD: Final[Mapping[str, str]] = MappingProxyType({
    "version": __version__, "python": platform.python_version(), "twisted": twisted.__version__, "aioquic": aioquic.__version__,
    "form": form().value,
})

SERVICE: Final = (
    Metric(
        f"{PREFIX}build_info", Kind.INFO, "Versions of the program and of what it is built on, and the form it runs in.",
        lambda _: _BUILD, front=lambda _: _BUILD,
    ),
    _of_front(
        "ready", Kind.GAUGE, "1 when the relay takes new allocations, 0 when it starts or drains.",
        lambda front: float(front.is_ready()), merge=Merge.SMALLEST),
    _of_front(
        "draining", Kind.GAUGE, "1 when the relay is about to stop.",
        lambda front: float(front.is_draining()), merge=Merge.LARGEST),
    _of_front(
        "certificate_expiry_timestamp_seconds", Kind.GAUGE,
        "When the certificate that new connections see expires, in Unix time.",
        lambda front: front.certificate_expires(), merge=Merge.SMALLEST),
    Metric(
        f"{PREFIX}errors_total", Kind.COUNTER,
        "Errors of the relay's own: what went wrong in one session, a background task, a log file, the state on disk.",
        _errors, "where", ("session", *TROUBLES), front=_front_errors),
    _labelled_of_front(
        "reloads_total", Kind.COUNTER,
        "Times the settings were read again: done, or refused because something was wrong with them.",
        lambda front: {"done": front.reloads.done, "refused": front.reloads.refused},
        label="outcome", labels=("done", "refused")),
    _gauge("workers", "Processes that forward.", lambda _: 1),
    _of_front(
        "worker_restarts_total", Kind.COUNTER, "Times a process that forwards was replaced.", lambda front: front.restarts()),
)

ALLOCATIONS: Final = (
    _gauges(
        "active_allocations", "Allocations that there are: active with both ends there, waiting with one or none.",
        lambda local: {
            "active": local.relay.counters.allocations_active, "waiting": local.relay.counters.allocations_waiting,
        }, "state", ("active", "waiting")),
    _gauge(
        "allocations_limit", "Allocations that there may be at a time.", lambda local: local.relay.policy.max_allocations,
        merge=Merge.LARGEST),
    _counter("allocations", "Allocations that were created.", lambda local: local.relay.counters.allocations_created),
    _counter("joins", "Connections that were bound to an allocation.", lambda local: local.relay.counters.allocations_joined),
    _counter(
        "redirects", "Clients that were sent to the worker that has their allocation.",
        lambda local: local.relay.counters.redirected),
    _counters("allocations_ended", "Allocations that ended, by reason.", _ended, "reason", _names(TerminationReason)),
    _histogram(
        "allocation_duration_seconds", "How long the allocations that have ended had lived.",
        lambda local: _buckets(local.relay.counters.allocation_duration)),
    _gauge(
        "remembered_allocations", "Ended allocations that are remembered until their token expires.",
        lambda local: local.relay.table.tombstones),
    _gauge(
        "quota_bytes", "Sum of the quotas of the allocations that there are, of those that have one.",
        lambda local: local.relay.counters.quota_granted),
    _gauge(
        "quota_usage_bytes", "What those allocations have used of their quotas.", lambda local: local.relay.counters.quota_used),
    _counter(
        "quota_warnings", "Times an allocation came to 90 % of its quota.", lambda local: local.relay.counters.quota_warnings),
)

FORWARDING: Final = (
    _counter(
        "forwarded_bytes", "Payload bytes that were forwarded, of datagrams and of streams.",
        lambda local: local.relay.counters.bytes_forwarded),
    _counter("forwarded_packets", "Datagrams that were forwarded.", lambda local: local.relay.counters.packets_forwarded),
    _counter(
        "channel_packets", "Those of them that were forwarded by channels.",
        lambda local: local.relay.counters.channel_packets),
    _counter("channels_opened", "Channels that were opened.", lambda local: local.relay.counters.channels_opened),
    _counters(
        "dropped_packets", "Datagrams that were not forwarded, by cause.",
        lambda local: _named(local.relay.counters.dropped_packets), "cause", _names(DropCause)),
    _counters(
        "dropped_bytes", "Payload bytes of the datagrams that were not forwarded, by cause.",
        lambda local: _named(local.relay.counters.dropped_bytes), "cause", _names(DropCause)),
    _gauge(
        "bandwidth_usage_bytes_per_second", "Payload bytes a second that were forwarded in the last second.",
        lambda local: local.vitals.bandwidth.usage),
    _gauge(
        "bandwidth_limit_bytes_per_second", "What all allocations together may use; infinite when nothing limits them.",
        lambda local: _or_infinite(local.relay.policy.global_bandwidth_limit), merge=Merge.LARGEST),
    _histogram(
        "egress_wait_seconds",
        "How long the oldest datagram for a connection had waited when the connection was looked at, of waits of 1 ms and more.",
        lambda local: _buckets(local.relay.counters.egress_waits.histogram)),
    _gauge(
        "egress_wait_max_seconds", "The longest such wait in the last 15 to 30 seconds.",
        lambda local: local.relay.counters.egress_waits.worst.at(local.now()), merge=Merge.LARGEST),
    _counter(
        "streams_mirrored", "Streams of clients that were carried to the other end.",
        lambda local: local.relay.counters.streams_mirrored),
    _counters(
        "streams_reset", "Streams that the relay itself reset, by cause.",
        lambda local: _named(local.relay.counters.streams_reset), "cause", _names(StreamReset)),
)

SOCKETS: Final = (
    _counter("udp_received_packets", "UDP datagrams that came in.", lambda local: local.relay.counters.packets_received),
    _counter(
        "udp_received_bytes", "UDP payload bytes that came in.",
        lambda local: sum(traffic.bytes_received for traffic in local.traffic)),
    _counter(
        "udp_reads", "System calls that brought datagrams.", lambda local: sum(traffic.reads for traffic in local.traffic)),
    _histogram(
        "udp_batch_packets", "UDP datagrams that each wake-up brought.",
        lambda local: _all_sizes((traffic.batches for traffic in local.traffic), LARGEST_BATCH)),
    _counter(
        "udp_sent_bytes", "UDP payload bytes that went out.",
        lambda local: sum(traffic.bytes_sent for traffic in local.traffic)),
    _histogram(
        "udp_send_packets", "UDP datagrams that each system call took out.",
        lambda local: _all_sizes((traffic.sends for traffic in local.traffic), LARGEST_TRAIN)),
    _counter(
        "udp_sends_blocked", "Sends that were lost because the socket's buffer was full.",
        lambda local: local.relay.counters.sends_blocked),
    _counters(
        "input_dropped_packets", "UDP datagrams that were thrown away before they reached a session, by cause.",
        lambda local: _named(local.relay.counters.input_dropped), "cause", _names(InputDrop)),
)

CONNECTIONS: Final = (
    _gauges(
        "connections", "QUIC connections that there are: half-open ones, and those whose handshake is complete.",
        lambda local: {
            "handshaking": local.connections.handshaking,
            "established": local.connections.connections - local.connections.handshaking,
        }, "state", ("handshaking", "established")),
    _counter(
        "handshakes_started", "Handshakes that were begun.",
        lambda local: local.relay.counters.handshakes[Handshake.STARTED]),
    _counters(
        "handshakes", "Handshakes that came to an end, by outcome.",
        lambda local: {outcome.name.lower(): local.relay.counters.handshakes[outcome] for outcome in _FINISHED},
        "outcome", (outcome.name.lower() for outcome in _FINISHED)),
    _counters(
        "connections_closed", "Connections that the relay closed, by the code that it gave.",
        lambda local: _named(local.relay.counters.connections_closed), "code", _names(ErrorCode)),
    _counter(
        "path_changes", "Times a client's packets began to come from another address.",
        lambda local: local.relay.counters.path_changes),
    _counter("key_updates", "Updates of packet protection keys.", lambda local: local.relay.counters.key_updates),
    _counter(
        "version_negotiations", "Answers to QUIC versions that are not spoken here.",
        lambda local: local.relay.counters.version_negotiations),
    _counter(
        "stateless_resets", "Stateless resets that were sent for connections that are not known.",
        lambda local: local.relay.counters.stateless_resets_sent),
    _counter("capsules", "Control messages that came in.", lambda local: local.relay.counters.capsules_received),
    _counter(
        "capsules_unknown", "Control messages of types that are not known here; they are passed over.",
        lambda local: local.relay.counters.capsules_unknown),
)

ADMISSION: Final = (
    _counters(
        "refused", "Requests and connections that were refused, by the code that said why.",
        lambda local: _named(local.relay.counters.refused), "code", _names(ErrorCode)),
    _counters(
        "rate_limit_hits", "What sources were held to, by limit: rates, lists of networks, demands to show their address.",
        lambda local: _named(local.relay.counters.limited), "limit", _names(Limit)),
    _counter("retries", "Retry packets that were sent.", lambda local: local.relay.counters.retries_sent),
    _counter(
        "connections_refused", "Attempts to connect that were answered with a refusal before any handshake.",
        lambda local: local.relay.counters.connections_refused),
    _counter("stun_answers", "STUN requests that were answered.", lambda local: local.relay.counters.stun_answered),
    _gauges(
        "sources", "Sources that each table of limits remembers.",
        lambda local: dict(local.relay.admission.tables), "table", TABLES, merge=Merge.LARGEST),  # they share one
    _of_front(
        "access_entries", Kind.GAUGE, "Networks on the lists of allowed and blocked ones.",
        lambda front: front.entries(), merge=Merge.LARGEST),  # every process has the same
    _counter(
        "token_cache_hits", "Tokens whose signature was known to be right.",
        lambda local: local.relay.counters.token_cache_hits),
    _counter(
        "token_cache_misses", "Tokens whose signature had to be verified.",
        lambda local: local.relay.counters.token_cache_misses),
    _counter(
        "tokens_refreshed", "Tokens that took the place of an older one.", lambda local: local.relay.counters.tokens_refreshed),
    _labelled_of_front(
        "external_failures_total", Kind.COUNTER, "Requests to systems outside that failed.",
        lambda front: _external(front, "failures"), label="system", labels=_EXTERNAL),
    _labelled_of_front(
        "external_last_success_timestamp_seconds", Kind.GAUGE,
        "When an exchange last went well, in Unix time; 0 before the first.",
        lambda front: _external(front, "last_success"), label="system", labels=_EXTERNAL, merge=Merge.LARGEST),
    _labelled_of_front(
        "external_rejected_total", Kind.COUNTER, "What systems outside said that was not understood or not done.",
        lambda front: _external(front, "rejected"), label="system", labels=_EXTERNAL),
    _of_front(
        "bouncer_decisions", Kind.GAUGE, "Decisions of the bouncer's engine that are in force.",
        lambda front: front.bouncer.decisions if front.bouncer else 0),
    _of_front(
        "webhook_queued_events", Kind.GAUGE, "Security events that wait for the webhook.",
        lambda front: front.webhook.queued if front.webhook else 0),
    _of_front(
        "webhook_dropped_events_total", Kind.COUNTER, "Security events that the webhook will never hear of.",
        lambda front: front.webhook.dropped if front.webhook else 0),
    _of_front(
        "webhook_blocks_total", Kind.COUNTER, "Sources that were blocked because the webhook's answer named them.",
        lambda front: front.webhook.blocked if front.webhook else 0),
)

PROCESS: Final = (
    _histogram(
        "event_loop_lag_seconds", "How late the event loop is, measured ten times a second.",
        lambda local: _buckets(local.vitals.loop.waits.histogram)),
    _gauge(
        "event_loop_lag_max_seconds", "The latest that it was in the last 15 to 30 seconds.",
        lambda local: local.vitals.loop.waits.worst.at(local.now()), merge=Merge.LARGEST),
    _gauge(
        "event_loop_lag_last_seconds", "How late it was when last measured.",
        lambda local: local.vitals.loop.last, merge=Merge.LARGEST),
    _histogram(
        "gc_pause_seconds", "How long each full garbage collection stopped everything.",
        lambda local: _buckets(local.vitals.collections.waits.histogram)),
    _gauge(
        "gc_pause_max_seconds", "The longest of them in the last 15 to 30 seconds.",
        lambda local: local.vitals.collections.waits.worst.at(local.now()), merge=Merge.LARGEST),
    _of_front(
        "cpu_seconds_total", Kind.COUNTER, "Processor time that the relay has used, in all its processes.",
        lambda front: front.vitals.cost.cpu),
    _of_front(
        "resident_memory_bytes", Kind.GAUGE, "Memory that the relay has in RAM, in all its processes.",
        lambda front: front.vitals.cost.resident),
)

SECTIONS: Final[Mapping[str, tuple[Metric, ...]]] = MappingProxyType({
    "The service": SERVICE, "Allocations": ALLOCATIONS, "Forwarding": FORWARDING, "Sockets": SOCKETS,
    "Connections": CONNECTIONS, "Who gets in": ADMISSION, "The process": PROCESS,
})
"""The metrics by what they are about, in the order of the documentation."""

METRICS: Final = tuple(metric for section in SECTIONS.values() for metric in section)

RULES: Final[Mapping[str, Merge]] = MappingProxyType({metric.name: metric.merge for metric in METRICS})
"""How the values of each metric merge."""


COUNTERS: Final = frozenset(metric.name for metric in METRICS if metric.kind is Kind.COUNTER)
"""Those that never go back."""


def take(local: Local) -> Snapshot:
    """All numbers of a process that forwards, now."""
    return _snapshot((metric, metric.read(local)) for metric in METRICS)


def take_front(front: Front) -> Snapshot:
    """The numbers of a process in which nothing is forwarded, now: those metrics that it has anything to say of."""
    return _snapshot((metric, metric.front(front)) for metric in METRICS if metric.front is not None)


def _snapshot(found: Iterable[tuple[Metric, Any]]) -> Snapshot:
    values: dict[str, Values] = {}
    histograms: dict[str, Buckets] = {}
    facts: dict[str, Mapping[str, str]] = {}
    for metric, value in found:
        match metric.kind:
            case Kind.HISTOGRAM:
                histograms[metric.name] = value
            case Kind.INFO:
                facts[metric.name] = value
            case _:
                values[metric.name] = value if metric.label else {"": value}
    return Snapshot(values, histograms, facts)


def with_name(name: str) -> Metric:
    """The metric of that name; ``KeyError`` when there is none."""
    return _BY_NAME[name]


_BY_NAME: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in METRICS})
